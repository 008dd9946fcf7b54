"""One side of the speed benchmark, in a process of its own that takes orders: `winnow`, or `trl`
with a batch size, or `trl default`.

Orders are lines on standard input, answers JSON lines on standard output: `step` does one optimizer
step over the workload's rows and tells its seconds; `reference` computes the reference log-probs of
them; `rate` measures the machine; `quit` tells the most memory held. The first step is a warm-up,
and its gradients (unclipped) go to a file so that both sides can be compared.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}

import torch
from safetensors.torch import save_file
from trl_trainer import BETA, LR
from workloads import WORKLOADS, Workload, pair_rows, rows

answers = sys.stdout
sys.stdout = sys.stderr  # whatever libraries print


def tell(**values: Any) -> None:
    """An answer."""
    print(json.dumps(values), file=answers, flush=True)


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def winnow(workload: Workload, model: Path, gradients: Path) -> None:
    """Winnow's own parts, put together as `winnow dpo` does."""
    from itertools import combinations

    from transformers import AutoModelForCausalLM

    from winnow.data.packing import budget, pack
    from winnow.data.records import Comparison
    from winnow.data.render import RenderedGroup, TokenSequence
    from winnow.engine.batch import collate
    from winnow.engine.dataset_logps import Reference, dataset_logps, offsets
    from winnow.engine.micro_batches import alone
    from winnow.engine.selection import choose
    from winnow.models.device import keep_memory, pick_device
    from winnow.objectives.objective import objective as named
    from winnow.training.optimizer import Optimizer
    from winnow.training.step import take_step
    from winnow.training.utilization import limit_of, matrix_rate

    device = pick_device("cpu")
    keep_memory()
    groups = []
    for i, row in enumerate(rows(workload)):
        sequences = tuple(
            TokenSequence((*row["prompt"], *answer), len(row["prompt"]))
            for answer in row["answers"]
        )
        comparisons = tuple(Comparison(a, b) for a, b in combinations(range(workload.k), 2))
        groups.append(RenderedGroup(sequences, comparisons, (None,) * workload.k, f"row {i}"))
    tokens = budget(groups, None)
    before = memory("VmRSS")
    policy = AutoModelForCausalLM.from_pretrained(model).eval()
    engine = choose(policy, policy.config.vocab_size, workload.longest).engine
    optimizer = Optimizer(policy, kind="adamw", weight_decay=0.0, clip=None)
    limit = limit_of(policy, device)
    objective = named("dpo", beta=BETA)
    batches = [collate([groups[i] for i in part], part) for part in pack(groups, tokens)]

    def reference() -> Any:
        return dataset_logps(engine, policy, groups, tokens, device, whose="the reference")

    stored = Reference("bench", reference(), offsets(groups))
    batches = [stored.into(batch) for batch in batches]
    tell(ready=before, engine=engine.NAME, micro_batches=len(batches))
    for order in sys.stdin:
        began = time.perf_counter()
        if order == "step\n":
            if gradients.exists():
                row, _ = take_step(
                    policy,
                    alone(batches),
                    objective=objective,
                    engine=engine,
                    optimizer=optimizer,
                    lr=LR,
                    before={},
                    live=None,
                )
            else:
                held, optimizer.step = optimizer.step, lambda lr: save_gradients(policy, gradients)  # type: ignore[method-assign]
                row, _ = take_step(
                    policy,
                    alone(batches),
                    objective=objective,
                    engine=engine,
                    optimizer=optimizer,
                    lr=LR,
                    before={},
                    live=None,
                )
                optimizer.step = held  # type: ignore[method-assign]
                optimizer.step(LR)
            seconds = time.perf_counter() - began
            tell(
                seconds=seconds,
                loss=row["loss"],
                flops=limit.share(batches, 1.0) * limit.rate,
                tokens=sum(len(b.token_T) for b in batches),
            )  # type: ignore[union-attr]
        elif order == "reference\n":
            reference()
            tell(seconds=time.perf_counter() - began)
        elif order == "rate\n":
            tell(rate=matrix_rate(device, torch.float32))
        else:
            tell(peak=memory("VmHWM") - before, peak_rss=memory("VmHWM"))
            return


def trl(workload: Workload, model: Path, gradients: Path, setting: str) -> None:
    """DPOTrainer over the same token rows. `setting`: a batch size, or `default` (batch 8, live
    reference, checkpointing; fp32).
    """
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl_trainer import trainer

    before = memory("VmRSS")
    policy = AutoModelForCausalLM.from_pretrained(model)

    class Orders(TrainerCallback):
        """Each step waits for its order."""

        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for order in sys.stdin:
                if order == "step\n":
                    made.seen = []
                    self.began = time.perf_counter()
                    return
                tell(peak=memory("VmHWM") - before, peak_rss=memory("VmHWM"))
                os._exit(0)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not gradients.exists():
                save_gradients(made.model, gradients)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tell(
                seconds=time.perf_counter() - self.began,
                loss=float(sum(made.seen)) / len(made.seen),
            )

    made = trainer(
        policy,
        pair_rows(workload),
        setting,
        gradients.parent,
        Orders(),
        max_steps=1000,
        max_grad_norm=0.0,
        bf16=False,
        use_cpu=True,
    )
    tell(ready=before)
    made.train()


def save_gradients(model: Any, path: Path) -> None:
    """All gradients, by name."""
    save_file(
        {
            name: p.grad.detach().clone()
            for name, p in model.named_parameters()
            if p.grad is not None
        },
        path,
    )


if __name__ == "__main__":
    side, name, model, gradients = sys.argv[1:5]
    if side == "winnow":
        winnow(WORKLOADS[name], Path(model), Path(gradients))
    else:
        trl(WORKLOADS[name], Path(model), Path(gradients), side.partition(" ")[2])
