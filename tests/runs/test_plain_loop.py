"""examples/plain_loop.py is `winnow dpo` in plain PyTorch: the same losses from the same rows in
the same order.
"""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from exact import Exact
from paths import ROOT
from winnow import api, completion_logps
from winnow.data.jsonl import Row
from winnow.data.layouts import LAYOUTS, detect, group_of
from winnow.data.order import MixShare, order
from winnow.data.packing import budget, pack
from winnow.data.render import Renderer
from winnow.errors import DataError
from winnow.system.files import read_jsonl

spec = importlib.util.spec_from_file_location("plain_loop", ROOT / "examples" / "plain_loop.py")
plain_loop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain_loop)


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.slow
def test_the_plain_loop_equals_winnow_dpo(tmp_path, dtype, near):
    tiny.folder(tmp_path / "model")
    rows = tiny.pairs(12)
    tiny.write(tmp_path / "rows.jsonl", rows)
    settings = {
        "batch_size": 4,
        "steps": 3,
        "lr": 1e-3,
        "schedule": "constant",
        "warmup": 0,
        "seed": 7,
        "dtype": dtype,
    }
    # the model rounds to float32 inside, whatever its dtype; a shared prompt's gradient is rounded
    # at another place
    with Exact():
        run = api.dpo(
            model=str(tmp_path / "model"),
            data=[str(tmp_path / "rows.jsonl")],
            out=str(tmp_path / "run"),
            **settings,
        )
    ours = [row["loss"] for row in read_jsonl(run.metrics)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    in_order = [rows[i] for i in order([MixShare(12)], 7, 0)]
    with Exact():
        assert plain_loop.train(
            model, tokenizer, in_order, steps=3, batch_size=4, lr=1e-3
        ) == pytest.approx(ours, abs=near)
    assert abs(ours[2] - ours[0]) > 1e-2  # it moved


def test_completion_logps_are_differentiable_and_in_order():
    model, tokenizer = (
        tiny.model("gpt2", dtype=torch.float64, vocab_size=len(tiny.tokenizer())),
        tiny.tokenizer(),
    )
    rows = [
        {"prompt": "a", "chosen": " much longer than the others", "rejected": " b"},
        {"prompt": "c", "completion": " d"},
    ]
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


LINES = [  # of the layouts that stand one row per line
    *(
        "demonstrations",
        "demonstrations_chat",
        "grouped",
        "hh",
        "kto_unpaired",
        "pairs_chat",
        "pairs_chat_implicit_prompt",
    ),
    *("pairs_text", "rewardbench", "scored", "ultrafeedback_binarized"),
]


def test_completion_logps_of_any_rows_equal_a_plain_loop(shared_data, monkeypatch):
    """Rows of every layout in one call, more than one micro-batch holds: each answer as if it were
    alone, in the order given.
    """
    monkeypatch.setattr("winnow.data.packing.BUDGET", 1000)
    tokenizer = tiny.tokenizer(template=tiny.TEMPLATE)
    model = tiny.model("gpt2", dtype=torch.float64, vocab_size=len(tokenizer), n_positions=2048)
    files = [read_jsonl(shared_data / "layouts" / f"{name}.jsonl")[:2] for name in LINES]
    files.append(json.loads((shared_data / "layouts" / "alpaca_preference.json").read_text())[:2])
    rows = [row for several in zip(*files) for row in several]
    renderer = Renderer(tokenizer)
    expected, rendered = [], []
    with torch.no_grad():
        for i, row in enumerate(rows):
            place = Row(f"row {i}", row)
            rendered.append(renderer.render(group_of(place, LAYOUTS[detect([place])], None)))
            for sequence in rendered[-1].sequences:
                logp = model(torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
                expected.append(
                    sum(
                        float(logp[t - 1, sequence.ids[t]])
                        for t in range(sequence.start, len(sequence.ids))
                    )
                )
        found = completion_logps(model, tokenizer, rows).tolist()
    batches = pack(rendered, budget(rendered, None))
    assert len(batches) > 1
    # so that the order had to be restored
    assert [i for items in batches for i in items] != list(range(len(rows)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_completion_logps_refuse_what_they_cannot_score():
    model, tokenizer = tiny.model("llama", vocab_size=len(tiny.tokenizer())), tiny.tokenizer()
    good = {"prompt": "a", "chosen": " b", "rejected": " c"}
    with pytest.raises(DataError, match="row 1: the columns question, answer fit no known layout"):
        completion_logps(model, tokenizer, [good, {"question": "a", "answer": "b"}])
    with pytest.raises(DataError, match="row 1 cannot be used"):
        completion_logps(model, tokenizer, [good, {**good, "chosen": 7}])
