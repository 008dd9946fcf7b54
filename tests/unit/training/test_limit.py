"""The share of the hardware's limit: the arithmetic counted by hand, and against torch's own
counter.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import runs
import tiny
from winnow.config.options import Lora
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine import rows as engine
from winnow.engine.batch import collate
from winnow.models.adapters import with_lora
from winnow.models.device import pick_device
from winnow.system.files import read_jsonl
from winnow.training.utilization import Limit, limit_of, matrix_rate

CPU = torch.device("cpu")


def test_the_share_by_hand():
    group = RenderedGroup(
        (TokenSequence((5, 6, 7, 8), 2), TokenSequence((5, 6, 9), 2)), (), (None, None), "made"
    )
    batch = collate([group])  # tokens 5 6 | 7 8 | 9 at positions 0 1 2 3 2; three are scored
    assert Limit(100.0, 10.0, 1.0, 1000.0).share([batch, batch], 0.5) == pytest.approx(
        2 * (5 * 100 + 3 * 10 + 8) / 0.5 / 1000
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "qwen3"])
def test_the_arithmetic_is_what_torch_counts(family):
    """One sequence, all of it scored: the model's matrix products, without attention's, which
    kernels count in many ways.
    """
    model = tiny.model(family)
    ids = tuple((7 * i) % 90 for i in range(64))
    batch = collate([RenderedGroup((TokenSequence(ids, 1),), (), (None,), "made")])
    limit = limit_of(model, CPU)
    with FlopCounterMode(display=False) as counter:
        engine.backward(
            model, batch, lambda columns, part: {"logp": torch.ones_like(columns["logp"])}
        )
    products = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op)
    )
    vectors = sum(p.numel() for name, p in model.named_parameters() if p.ndim < 2 or "wpe" in name)
    # the oracle's head reads every position, norms are no products
    ours = limit.per_token * 64 + limit.per_scored * 64 - 6 * vectors * 64
    assert ours == pytest.approx(products, rel=0.02)


def test_an_adapters_frozen_weights_cost_less_and_experts_are_not_guessed():
    full = limit_of(tiny.model("llama"), CPU)
    light = limit_of(with_lora(tiny.model("llama"), Lora(r=1), 0), CPU)
    assert light.per_scored / full.per_scored == pytest.approx(4 / 6)
    assert limit_of(tiny.model("qwen3_moe"), CPU) is None


@pytest.mark.slow
def test_each_step_says_its_share(tmp_path):
    world = runs.world(tmp_path)
    rows = [
        row
        for row in read_jsonl(runs.dpo(world, tmp_path / "run", steps=2).metrics)
        if "loss" in row
    ]
    assert all(0 < row["hardware_share"] < 1.5 for row in rows)
    assert matrix_rate(CPU, torch.float32) > 1e8
    assert pick_device("cpu") == CPU
