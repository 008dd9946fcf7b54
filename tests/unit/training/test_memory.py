"""Will it fit: the estimate against the memory a process really takes, and what is said where it
does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product

import pytest
import torch

import runs
import tiny
from matrix import cases
from paths import HELPERS
from winnow.config.model_spec import ModelSpec
from winnow.config.options import parse_lora
from winnow.config.resolve import resolve
from winnow.config.training import DPOSettings, TrainSettings
from winnow.data.dataset import Wanted
from winnow.data.packing import most_expensive
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine import head, output_head, rows
from winnow.engine.batch import collate
from winnow.engine.fast import MASKS, SEGMENTS, SINGLE
from winnow.errors import TrainingError
from winnow.models import adapters, loading, meta, model_folder
from winnow.models.device import available, pick_dtype
from winnow.models.layers import enable_checkpointing
from winnow.system.files import read_json
from winnow.training import memory, plan
from winnow.training.memory import Memory, estimate, remedies
from winnow.training.optimizer import Optimizer
from winnow.training.startup_checks import rehearse

LLAMA = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
}
WIDE = {
    **LLAMA,
    "vocab_size": 60_000,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
}
GPT2 = {"vocab_size": 8192, "n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 2048}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("family", "shape", "tokens", "changes"),
    [
        ("llama", LLAMA, 2048, {}),
        pytest.param(
            "llama",
            {**LLAMA, "tie_word_embeddings": True},
            1024,
            {"optimizer": "rmsprop"},
            marks=pytest.mark.soak,
        ),
        pytest.param("llama", WIDE, 1024, {}, marks=pytest.mark.soak),
        pytest.param("llama", LLAMA, 4096, {"checkpointing": True}, marks=pytest.mark.soak),
        ("gpt2", GPT2, 2048, {"checkpointing": True}),
        ("llama", LLAMA, 2048, {"lora": "r=8"}),
        pytest.param("gpt2", GPT2, 2048, {"lora": "r=8"}, marks=pytest.mark.soak),
        pytest.param("gpt2", GPT2, 2048, {}, marks=pytest.mark.soak),
    ],
)
@pytest.mark.process
@pytest.mark.slow
def test_the_estimate_is_within_15_percent_of_the_peak(family, shape, tokens, changes):
    words = [
        sys.executable,
        str(HELPERS / "peak.py"),
        family,
        json.dumps(shape),
        str(tokens),
        json.dumps(changes),
    ]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["estimated"] == pytest.approx(found["measured"], rel=0.15), found


def settings(**changes):
    return TrainSettings(model="made", data=["made"], out="made", **changes)


FAMILIES = ["llama", "gpt2", "gemma2", "opt"]
CHANGES: list[dict[str, object]] = [{}, {"checkpointing": True}, {"lora": "r=2"}]
ENGINES = [SEGMENTS, MASKS, SINGLE, rows]


def in_each_row(family, changes, engine):
    """A third of the cases, with each two of family, change and engine in one at least."""
    return (FAMILIES.index(family) + CHANGES.index(changes) + ENGINES.index(engine)) % 3 == 0


@pytest.mark.parametrize(
    ("family", "changes", "engine"), cases(product(FAMILIES, CHANGES, ENGINES), in_each_row)
)
@pytest.mark.slow
def test_what_is_alive_is_counted_exactly(family, changes, engine):
    """The outline gives out and drops byte for byte what the model does."""
    batch, asked = collate([tiny.trie(i, 2) for i in range(3)]), settings(**changes)
    model = tiny.model(family)
    expected, _ = memory._alive(
        memory._outline(model.config, torch.float32, asked), batch, asked, engine
    )
    if asked.lora:
        model = adapters.with_lora(model, parse_lora(asked.lora), 0)
    if asked.checkpointing:
        enable_checkpointing(model)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    known = [
        *model.parameters(),
        *model.buffers(),
        *(p.grad for p in model.parameters() if p.grad is not None),
    ]
    with head.own_scratch(), memory._Alive(known) as alive:
        engine.backward(
            model,
            batch,
            lambda columns, part: {"logp": torch.zeros_like(columns["logp"])},
            ("entropy",),
        )
    if engine in (SEGMENTS, MASKS):
        assert alive.most == expected > 0
    # rows of one length are asked for without a mask, which cannot be seen without their content
    else:
        assert alive.most <= expected <= 1.1 * alive.most


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.slow
def test_logits_that_are_formed_twice_are_counted_too(family, monkeypatch):
    """A group with more logits than are held whole: of a large vocabulary, with long answers."""
    monkeypatch.setattr(output_head, "LARGEST", 97 * 4 * 10)
    monkeypatch.setattr(output_head, "TILE", 97 * 4 * 7)
    test_what_is_alive_is_counted_exactly(family, {}, SEGMENTS)
    group = RenderedGroup(
        tuple(
            TokenSequence((1, 2, *(3 + (7 * k + i) % 90 for i in range(520))), 2) for k in range(2)
        ),
        (),
        (None,) * 2,
        "long",
    )
    monkeypatch.undo()
    config = tiny.model(family, vocab_size=262_144).config
    assert estimate(config, collate([group]), torch.float32, settings()).head == 2**27


def test_training_an_adapter_that_is_there_is_planned_as_that(tmp_path):
    folder = tiny.folder(tmp_path / "model")
    first = loading.load(ModelSpec(str(folder), device="cpu"), lora=parse_lora("r=4"))
    loading.save(first.model, first.tokenizer, tmp_path / "adapter")
    batch = collate([tiny.trie(i, 2) for i in range(3)])
    named = settings().model_copy(update={"model": str(tmp_path / "adapter")})
    fresh = estimate(
        model_folder.load_config(ModelSpec(str(folder))), batch, torch.float32, settings(lora="r=4")
    )
    assert (
        estimate(model_folder.load_config(ModelSpec(named.model)), batch, torch.float32, named)
        == fresh
    )
    assert not any("--lora" in words for words, _ in remedies(named, 1024, 100))


@pytest.mark.slow
def test_half_precision_and_experts_are_counted_too():
    batch = collate([tiny.trie(i, 2) for i in range(3)])
    config = tiny.model("llama").config
    full, half = (
        estimate(config, batch, dtype, settings()) for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.weights * 2 == full.weights
    assert half.optimizer == full.optimizer * 3 / 2  # master weights besides
    assert (
        estimate(tiny.model("qwen3_moe").config, batch, torch.float32, settings()).activations
        > memory.BUFFERS
    )


def of(config, processes, dtype=torch.float32, device="cpu", **changes):
    batch = collate([tiny.trie(i, 2) for i in range(3)])
    return estimate(
        config, batch, dtype, settings(**changes), device=torch.device(device), processes=processes
    )


@pytest.mark.slow
def test_of_several_processes_each_holds_its_part():
    """Embeddings, head and last norm, and two of four layers, are whole while a layer computes; the
    head is the largest part that is summed at once.
    """
    config = tiny.model("llama", num_hidden_layers=4).config
    model = meta.outline(config, torch.float32)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    every = sum(p.numel() for p in model.parameters())
    outside = every - 4 * layer
    alone, four = of(config, 1), of(config, 4)
    assert (alone.weights, alone.gradients, alone.optimizer, alone.whole) == (
        4 * every,
        4 * every,
        8 * every,
        0,
    )
    assert four.weights == every + 4 * (outside + 2 * layer)
    assert four.gradients == every + 4 * (outside + 2 * layer) + 4 * max(outside, layer)
    assert (four.optimizer, four.whole) == (2 * every, 4 * every)
    assert four.head == alone.head
    assert (
        of(config, 4, checkpointing=True).activations
        == of(config, 1, checkpointing=True).activations
    )
    assert four.activations == alone.activations + four.whole
    half = of(config, 4, torch.bfloat16, "cuda")
    # a part in float32, what is whole in half
    assert half.weights == every + 2 * (outside + 2 * layer)
    assert half.gradients == every + 2 * (outside + 2 * layer) + 4 * max(outside, layer)
    assert (half.optimizer, half.whole) == (2 * every, 2 * every)
    assert half.activations == of(config, 1, torch.bfloat16, "cuda").activations


@pytest.mark.slow
def test_of_an_adapter_several_processes_hold_parts_too():
    config = tiny.model("llama", num_hidden_layers=12).config
    alone, two = (of(config, processes, lora="r=2") for processes in (1, 2))
    assert two.optimizer == alone.optimizer / 2
    assert alone.weights / 2 < two.weights < alone.weights
    assert two.whole == alone.weights


def test_whole_weights_can_be_the_most():
    assert Memory(1, 2, 3, 4, 5, 6).total == 21
    assert Memory(1, 2, 3, 4, 5, 6, whole=13).total == 21
    assert Memory(1, 2, 3, 4, 5, 6, whole=14).total == 22


@pytest.mark.slow
def test_each_change_that_is_named_saves_memory():
    config = tiny.model(
        "llama", num_hidden_layers=2, hidden_size=256, intermediate_size=4096, vocab_size=20_000
    ).config
    groups = [tiny.trie(i, 3) for i in range(40)]

    def needs(asked, tokens):
        return estimate(
            config,
            collate([groups[i] for i in most_expensive(groups, tokens, 64)]),
            torch.float32,
            asked,
        ).total

    now = needs(settings(max_tokens=1024), 1024)
    changes = list(remedies(settings(max_tokens=1024), 1024, 100))
    assert [words.split()[0] for words, _ in changes] == ["--max-tokens"] * 2 + [
        "--checkpointing",
        "--lora",
        "--optimizer",
    ]
    for words, change in changes:
        assert (
            needs(settings(**{"max_tokens": 1024, **change}), change.get("max_tokens", 1024)) < now
        ), words


@pytest.mark.slow
def test_what_makes_it_fit_is_named(tmp_path, monkeypatch, capsys):
    world = runs.world(tmp_path)
    whole = [
        "check",
        "--model",
        world / "model",
        "--data",
        world / "train.jsonl",
        "--batch-size",
        8,
    ]
    monkeypatch.setattr(memory, "BUFFERS", 0)
    assert runs.winnow(monkeypatch, *whole) == 0
    assert "will not fit" not in capsys.readouterr().out
    needed = plan.memory_of
    seen = []

    def told(*args):
        seen.append(needed(*args))
        return seen[-1]

    monkeypatch.setattr(plan, "memory_of", told)
    assert runs.winnow(monkeypatch, *whole) == 0
    room = seen.pop().total - 1000
    monkeypatch.setattr(plan, "available", lambda device: room)
    assert runs.winnow(monkeypatch, *whole) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "it will not fit: --" in said
    assert seen[-1].total <= room < seen[0].total
    monkeypatch.setattr(plan, "available", lambda device: 10)
    assert runs.winnow(monkeypatch, *whole) == 0
    assert "no change makes it" in " ".join(capsys.readouterr().out.split())


def budget_of(run):
    return read_json(run.environment)["plan"]["tokens_per_micro_batch"]


@pytest.mark.slow
def test_auto_takes_what_fits(tmp_path, monkeypatch):
    world = runs.world(tmp_path)
    monkeypatch.setattr(memory, "BUFFERS", 0)
    run = runs.dpo(world, tmp_path / "room", steps=1, max_tokens="auto")
    assert budget_of(run) == 16_384
    asked = resolve(
        DPOSettings, runs.settings(world, tmp_path / "tight", max_tokens="auto")
    ).settings
    train_set = plan.prepared(asked, Wanted("preference"))[1](0)
    needs = {tokens: plan.memory_of(asked, train_set, tokens).total for tokens in (128, 256, 512)}
    assert needs[128] < needs[256] < needs[512]
    monkeypatch.setattr(plan, "available", lambda device: needs[256] / plan.ROOM + 1)
    small = runs.dpo(world, tmp_path / "tight", steps=1, max_tokens="auto")
    assert budget_of(small) == 256
    assert runs.numbers(small)[0]["loss"] == pytest.approx(runs.numbers(run)[0]["loss"], abs=1e-6)


def optimizer_of(model):
    return Optimizer(model, kind="adamw", weight_decay=0.1, clip=None)


def test_memory_that_runs_out_names_the_rows():
    """A real refusal by torch's allocator: a batch whose logits nobody could hold."""

    class Greedy:
        NAME = "greedy"

        def logps(self, model, batch, want=(), other=None):
            return {"logp": torch.empty(2**50)}

        def backward(self, model, batch, slope, want=(), other=None):
            return {"logp": torch.empty(2**50)}

        def said(self, model, batch):
            return None

    batch, model = collate([tiny.trie(3, 2), tiny.trie(4, 2)]), tiny.model("llama")
    with pytest.raises(
        TrainingError, match=r"memory runs out .* distinct tokens of trie:3, trie:4"
    ):
        rehearse(model, batch, Greedy(), optimizer_of(model))


def test_a_rehearsal_leaves_nothing_behind_and_other_errors_alone():
    model, batch = tiny.model("llama"), collate([tiny.trie(3, 2)])
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer, seen = optimizer_of(model), []

    class Watched:
        NAME = "watched"
        logps, said = SEGMENTS.logps, SEGMENTS.said

        def backward(self, model, batch, slope, want=(), other=None):
            seen.append(
                (
                    sorted(optimizer.state()),
                    all(p.grad is not None for p in model.parameters()),
                    want,
                )
            )
            return SEGMENTS.backward(model, batch, slope, want)

    rehearse(model, batch, Watched(), optimizer)
    ((state, graded, want),) = (
        seen  # gradients, moments and entropies are there, as they will be in a step
    )
    assert state == sorted(
        f"{slot}|{name}" for name in before for slot in ("exp_avg", "exp_avg_sq", "step")
    )
    assert graded
    assert want == ("entropy",)
    assert not any(value.any() for value in optimizer.state().values())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(RuntimeError, match="shape"):
        rehearse(model, batch, SEGMENTS, optimizer)


def test_free_memory_is_what_the_system_says():
    free = available(torch.device("cpu"))
    assert 2**20 < free < 2**50
    assert Memory(1, 2, 3, 4, 5, 6).total == 21
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
