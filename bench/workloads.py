"""What the speed benchmark runs on: token rows of stated lengths, and random-weight models of
stated shapes.

Lengths are lognormal, taken at equal steps of the distribution instead of drawn, so that a few rows
stand for many.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any


@dataclass(frozen=True)
class Workload:
    """`groups` prompts with `k` answers each, all of whose pairs are compared. Lengths: (median,
    sigma of the log).
    """

    name: str
    prompt: tuple[float, float]
    answer: tuple[float, float]
    k: int = 2
    groups: int = 8
    longest: int = 900
    model: str = "small"

    @property
    def pairs(self) -> int:
        """Comparisons in one optimizer step."""
        return self.groups * math.comb(self.k, 2)


ULTRA, DIALOGUE = ((110, 1.0), (240, 0.65)), ((110, 0.8), (55, 0.8))
WORKLOADS = {
    w.name: w
    for w in (
        Workload("ultrafeedback-like", *ULTRA),
        Workload("summaries", (330, 0.35), (34, 0.35)),
        Workload("dialogue", *DIALOGUE),
        Workload("K=4, all 6 pairs", *ULTRA, k=4, groups=4),
        Workload("K=8, all 28 pairs", *ULTRA, k=8, groups=2),
        Workload("long history, 8 turns", (800, 0.1), (70, 0.5), longest=1000),
        Workload("ultrafeedback-like, V 151,936", *ULTRA, groups=4, model="wide"),
    )
}
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"vocab_size": 16_384, "tie_word_embeddings": True},
    "wide": {"vocab_size": 151_936, "tie_word_embeddings": True},
}
BODY = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1408,
}


def lengths(median: float, sigma: float, count: int, rng: random.Random) -> list[int]:
    """`count` lengths at the middle of equal parts of the lognormal, in random order."""
    found = [
        max(1, round(median * math.exp(sigma * NormalDist().inv_cdf((i + 0.5) / count))))
        for i in range(count)
    ]
    rng.shuffle(found)
    return found


def rows(workload: Workload) -> list[dict[str, Any]]:
    """{"prompt": ids, "answers": k lists of ids}, the same for every caller."""
    rng = random.Random(workload.name)
    vocabulary = SHAPES[workload.model]["vocab_size"]
    prompts = lengths(*workload.prompt, workload.groups, rng)
    answers = lengths(*workload.answer, workload.groups * workload.k, rng)
    found = []
    for i, prompt in enumerate(prompts):
        prompt = min(prompt, workload.longest - 50)
        mine = [
            min(n, workload.longest - prompt)
            for n in answers[i * workload.k : (i + 1) * workload.k]
        ]
        found.append(
            {
                "prompt": _ids(prompt, vocabulary, rng),
                "answers": [_ids(n, vocabulary, rng) for n in mine],
            }
        )
    return found


def pair_rows(workload: Workload) -> list[dict[str, Any]]:
    """The same as one row per pair, as other trainers take them."""
    return [
        {
            "prompt_ids": row["prompt"],
            "chosen_ids": row["answers"][a],
            "rejected_ids": row["answers"][b],
        }
        for row in rows(workload)
        for a, b in combinations(range(workload.k), 2)
    ]


def write_model(name: str, folder: Path) -> None:
    """A Llama-shaped model with random weights, from a fixed seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(**BODY, **SHAPES[name], max_position_embeddings=4096, pad_token_id=0)
    ).save_pretrained(folder)


def _ids(count: int, vocabulary: int, rng: random.Random) -> list[int]:
    return [rng.randrange(3, vocabulary) for _ in range(count)]
