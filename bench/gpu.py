"""Speed and utilisation on a GPU, for models of true shape with random weights: full fine-tuning at
0.6B and 4B, LoRA at 8B.

`make bench-gpu`. Prints comparisons per second, the share of the GPU's own matrix rate (attention
counted with 12, recomputation not at all) and the memory measured beside the memory estimated.
`--shape tiny --device cpu` tries the script out anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from winnow.models import adapters

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch
from transformers import AutoConfig
from workloads import WORKLOADS, Workload, rows

from winnow.config.options import Lora
from winnow.config.training import TrainSettings
from winnow.data.packing import budget, most_expensive, pack
from winnow.data.records import Comparison
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine.batch import collate
from winnow.engine.dataset_logps import Reference, dataset_logps, offsets
from winnow.engine.micro_batches import alone
from winnow.engine.selection import choose
from winnow.models import meta
from winnow.models.device import pick_device, pick_dtype
from winnow.models.layers import compile_layers
from winnow.objectives.objective import objective
from winnow.training.memory import estimate
from winnow.training.optimizer import Optimizer
from winnow.training.step import take_step
from winnow.training.utilization import limit_of

SHAPES: dict[str, tuple[str, dict[str, Any], str | None]] = {  # family, configuration, adapter
    "0.6B": (
        "qwen3",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "tie_word_embeddings": True,
        },
        None,
    ),
    "4B": (
        "qwen3",
        {
            "hidden_size": 2560,
            "num_hidden_layers": 36,
            "intermediate_size": 9728,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "tie_word_embeddings": True,
        },
        None,
    ),
    "8B": (
        "llama",
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "intermediate_size": 14_336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128_256,
        },
        "r=16,alpha=32",
    ),
    "tiny": (
        "llama",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "vocab_size": 512,
        },
        None,
    ),
}
PAIRS = {"ultrafeedback-like": 64, "K=4, all 6 pairs": 16}  # groups per optimizer step


def groups_of(workload: Workload, vocabulary: int) -> list[RenderedGroup]:
    """The workload's rows as groups, tokens within the vocabulary."""
    found = []
    for i, row in enumerate(rows(workload)):
        prompt = [t % vocabulary for t in row["prompt"]]
        sequences = tuple(
            TokenSequence((*prompt, *(t % vocabulary for t in answer)), len(prompt))
            for answer in row["answers"]
        )
        found.append(
            RenderedGroup(
                sequences,
                tuple(Comparison(a, b) for a, b in combinations(range(workload.k), 2)),
                (None,) * workload.k,
                f"row {i}",
            )
        )
    return found


def measure(
    shape: str, name: str, device: torch.device, tokens: int, steps: int, compiled: bool
) -> dict[str, Any]:
    """One model on one workload: two steps to warm up, then `steps` measured."""
    family, settings, adapter = SHAPES[shape]
    workload = replace(WORKLOADS[name], groups=PAIRS[name])
    groups = groups_of(workload, settings["vocab_size"])
    config = AutoConfig.for_model(family, **settings, max_position_embeddings=4096)
    dtype = pick_dtype("auto", device)
    lora = Lora(16, 32) if adapter else None
    asked = TrainSettings(
        model="made", data=("made",), out=Path("made"), lora=adapter, device=str(device)
    )
    tokens = budget(groups, tokens)
    expected = estimate(
        config,
        collate([groups[i] for i in most_expensive(groups, tokens, len(groups))]),
        dtype,
        asked,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = meta.outline(config, dtype)
    if lora:
        model = adapters.with_lora(model, lora, 0)
    if compiled:
        compile_layers(model)
    chosen = choose(model, settings["vocab_size"], workload.longest)
    optimizer = Optimizer(model, kind="adamw", weight_decay=0.0, clip=1.0)
    limit = limit_of(model, device)
    stored = Reference(
        "bench",
        dataset_logps(chosen.engine, model, groups, tokens, device, whose="the reference"),
        offsets(groups),
    )
    batches = [
        stored.into(collate([groups[i] for i in part], part)) for part in pack(groups, tokens)
    ]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(2 + steps):
        _wait(device)
        began = time.perf_counter()
        take_step(
            model,
            alone(batches),
            objective=objective("dpo", beta=0.1),
            engine=chosen.engine,
            optimizer=optimizer,
            lr=1e-6,
            before={},
            live=None,
        )
        _wait(device)
        seconds.append(time.perf_counter() - began)
    best = min(seconds[2:])
    return {
        "shape": shape,
        "compiled": compiled,
        "workload": name,
        "engine": chosen.engine.NAME,
        "passed_over": chosen.passed_over,
        "pairs_per_second": workload.pairs / best,
        "share": limit.share(batches, best) if limit else None,
        "matrix_rate": limit.rate if limit else None,
        "seconds": seconds[2:],
        "memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "estimated": expected.total,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Each shape on each workload; one JSON line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", choices=SHAPES, action="append", help="may be repeated; default: all but tiny"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=16_384, help="per micro-batch")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="with compiled layers")
    asked = parser.parse_args()
    device = pick_device(asked.device)
    for shape in asked.shape or ["0.6B", "4B", "8B"]:
        for name in PAIRS:
            print(
                json.dumps(measure(shape, name, device, asked.tokens, asked.steps, asked.compile)),
                flush=True,
            )


if __name__ == "__main__":
    main()
