"""Run by test_memory.py in a process of its own: the memory a training takes at most, beside what
was estimated for it.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import torch
from transformers import AutoConfig

from winnow.config.options import parse_lora
from winnow.config.training import TrainSettings
from winnow.data.packing import most_expensive, pack
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine.batch import collate
from winnow.engine.fast import SEGMENTS
from winnow.models import adapters, meta
from winnow.models.device import LITTLE, MUCH, keep_memory, pick_device
from winnow.models.layers import enable_checkpointing
from winnow.training.memory import estimate
from winnow.training.optimizer import Optimizer


def held(name: str) -> int:
    """VmRSS (now) or VmHWM (most so far) of this process, bytes."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main(family: str, shape: dict, tokens: int, changes: dict) -> None:
    pick_device("cpu")
    config = AutoConfig.for_model(family, **shape)
    settings = TrainSettings(model="made", data=["made"], out="made", **changes)
    rng = random.Random(0)
    groups = []
    for i in range(24):
        prompt = tuple(
            rng.randrange(config.vocab_size) for _ in range(round(rng.lognormvariate(4.5, 0.6)))
        )
        answers = [
            tuple(
                rng.randrange(config.vocab_size) for _ in range(round(rng.lognormvariate(5, 0.4)))
            )
            for _ in range(2)
        ]
        groups.append(
            RenderedGroup(
                tuple(TokenSequence(prompt + answer, len(prompt)) for answer in answers),
                (),
                (None, None),
                f"made:{i}",
            )
        )
    lora = parse_lora(settings.lora)
    fullest = most_expensive(groups, tokens, 64)  # training rehearses it
    expected = estimate(config, collate([groups[i] for i in fullest]), torch.float32, settings)
    before = held("VmRSS")
    model = meta.outline(config, torch.float32)
    if lora:
        model = adapters.with_lora(model, lora, 0)
    if settings.checkpointing:
        enable_checkpointing(model)
    keep_memory(LITTLE if settings.checkpointing else MUCH)
    optimizer = Optimizer(model, kind=settings.optimizer, weight_decay=0.0, clip=1.0)
    for _ in range(2):
        for part in [fullest, *pack(groups, tokens)]:
            SEGMENTS.backward(
                model,
                collate([groups[i] for i in part]),
                lambda columns, part: {"logp": torch.full_like(columns["logp"], 1e-3)},
                ("entropy",),
            )
        optimizer.clip_gradients()
        optimizer.step(1e-6)
    print(
        json.dumps(
            {
                "measured": held("VmHWM") - before,
                "estimated": expected.total,
                "parts": repr(expected),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
