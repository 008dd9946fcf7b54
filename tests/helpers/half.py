"""Half precision in shards, for test_ranks: started by torchrun on two processes, tells as JSON
what is the same as with one.

The command line trains in bfloat16 on GPUs alone; its parts compute it on a CPU as well.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

import tiny
from winnow.config.options import Lora
from winnow.engine.batch import collate
from winnow.engine.fast import SEGMENTS
from winnow.engine.micro_batches import Data, alone
from winnow.models import adapters, fsdp, hashes
from winnow.models.loading import LoadedModel
from winnow.objectives.objective import DEMONSTRATION
from winnow.system import distributed as dist
from winnow.training.optimizer import Optimizer
from winnow.training.step import take_step

CPU = torch.device("cpu")
GROUPS = tiny.groups(6)


def loaded(adapter: bool) -> LoadedModel:
    model = tiny.model("llama", dtype=torch.bfloat16)
    return LoadedModel(
        adapters.with_lora(model, Lora(r=4, alpha=8), 0) if adapter else model, None, "here", CPU
    )


def trained(one: LoadedModel, micro: Any) -> tuple[dict[str, Any], Optimizer]:
    """A step's row, and the optimizer after it."""
    optimizer = Optimizer(one.net, kind="adamw", weight_decay=0.1, clip=1.0)
    return (
        take_step(
            one.net,
            micro,
            objective=DEMONSTRATION,
            engine=SEGMENTS,
            optimizer=optimizer,
            lr=1e-2,
            before={},
            live=None,
        )[0],
        optimizer,
    )


def compared(
    adapter: bool, whole: LoadedModel, theirs: dict[str, Any], plain: Optimizer
) -> dict[str, Any]:
    fresh, ours = loaded(adapter), loaded(adapter)
    ours = LoadedModel(ours.model, None, "here", CPU, fsdp.shard(ours.model))
    with fsdp.whole(ours.net):
        same = hashes.weights_hash(ours.model) == hashes.weights_hash(fresh.model)
        kinds = [str(p.dtype) for _, p in ours.model.named_parameters()] == [
            str(p.dtype) for _, p in whole.model.named_parameters()
        ]
    row, optimizer = trained(ours, Data(GROUPS, [], None).micro_batches(range(6), 60))
    near = {name: abs(row[name] / theirs[name] - 1) for name in ("loss", "grad_norm")}
    moved = [
        (mine - shard(weight)).abs().max().item()
        for mine, weight in zip(optimizer.weights().values(), plain.weights().values())
        if mine.numel()
    ]
    masters = {str(weight.dtype) for weight in optimizer.weights().values()}
    with fsdp.whole(ours.net):
        again = [str(p.dtype) for _, p in ours.model.named_parameters()] == [
            str(p.dtype) for _, p in whole.model.named_parameters()
        ]
    return {
        "hash": same,
        "dtypes": kinds and again,
        "near": near,
        "moved": max(moved),
        "masters": sorted(masters),
        "computes": str(ours.dtype),
    }


def shard(weight: torch.Tensor) -> torch.Tensor:
    return weight[fsdp.rows(len(weight))]


if __name__ == "__main__":
    kinds = {"full": False, "adapter": True}
    one = {name: loaded(adapter) for name, adapter in kinds.items()}
    # before there are others
    steps = {
        name: trained(model, alone([collate([group]) for group in GROUPS]))
        for name, model in one.items()
    }
    dist.begin(60)
    found = {name: compared(adapter, one[name], *steps[name]) for name, adapter in kinds.items()}
    told = dist.gather(found)
    if dist.leads():
        print("told " + json.dumps(told))
    sys.stdout.flush()
    # both leave together: under load one that was left behind aborted once
    torch.distributed.destroy_process_group()
