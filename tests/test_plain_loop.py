"""examples/plain_loop.py is `winnow dpo` in plain PyTorch: the same losses from the same rows in the same order."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from winnow import api, completion_logps
from winnow.data.stream import Share, order
from winnow.files import read_jsonl

spec = importlib.util.spec_from_file_location("plain_loop", Path(__file__).parents[1] / "examples" / "plain_loop.py")
plain_loop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain_loop)


def test_the_plain_loop_equals_winnow_dpo(tmp_path):
    tiny.folder(tmp_path / "model")
    rows = tiny.pairs(12)
    tiny.write(tmp_path / "rows.jsonl", rows)
    settings = {"batch_size": 4, "steps": 3, "lr": 1e-3, "schedule": "constant", "warmup": 0, "seed": 7}
    run = api.dpo(model=str(tmp_path / "model"), data=[str(tmp_path / "rows.jsonl")], out=str(tmp_path / "run"), **settings)
    ours = [row["loss"] for row in read_jsonl(run.metrics)]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "model"), AutoTokenizer.from_pretrained(tmp_path / "model")
    in_order = [rows[i] for i in order([Share(12)], 7, 0)]
    assert plain_loop.train(model, tokenizer, in_order, steps=3, batch_size=4, lr=1e-3) == pytest.approx(ours, abs=1e-5)


def test_completion_logps_are_differentiable_and_in_order():
    model, tokenizer = tiny.model("gpt2", dtype=torch.float64, vocab_size=len(tiny.tokenizer())), tiny.tokenizer()
    rows = [{"prompt": "a", "chosen": " much longer than the others", "rejected": " b"}, {"prompt": "c", "completion": " d"}]
    logp_C = completion_logps(model, tokenizer, rows)
    assert logp_C.shape == (3,)
    alone = torch.cat([completion_logps(model, tokenizer, [row]) for row in rows])
    torch.testing.assert_close(logp_C, alone, rtol=0, atol=1e-12)
    weight = model.transformer.h[0].mlp.c_fc.weight  # this family computes in float64 throughout
    (slope,) = torch.autograd.grad(logp_C[1], weight)
    shift = torch.zeros_like(weight)
    shift[3, 5] = 1e-5
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight += sign * shift
            values.append(float(completion_logps(model, tokenizer, rows)[1]))
            weight -= sign * shift
    assert float(slope[3, 5]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)
