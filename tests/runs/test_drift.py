"""KL on the policy's own samples: against the exact sum over all sequences, and in whole runs
against models on disk.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import runs
import tiny
from winnow.config.model_spec import ModelSpec
from winnow.config.training import DPOSettings
from winnow.data.dataset import Wanted, prepare
from winnow.data.render import Renderer
from winnow.engine import rows as engine
from winnow.engine.dataset_logps import dataset_logps
from winnow.evaluation import kl as drift
from winnow.generation import prompts as asking
from winnow.generation.sampler import Answer, Sampling, sample
from winnow.models import loading
from winnow.system.files import read_jsonl
from winnow.training.reference import Frozen

CPU = torch.device("cpu")
END, VOCABULARY, LONGEST = 1, 5, 3


def scores(model, groups):
    return dataset_logps(engine, model, groups, 4096, CPU, whose="the model")


def every_answer():
    """All answers of at most LONGEST tokens, the end token included; those that do not end are cut
    off.
    """
    words = [token for token in range(VOCABULARY) if token != END]
    for length in range(LONGEST):
        for ids in itertools.product(words, repeat=length):
            yield Answer(ids, True)
    for ids in itertools.product(words, repeat=LONGEST):
        yield Answer(ids, False)


def test_the_estimator_has_the_exact_kl_as_its_mean():
    policy, reference = (
        tiny.model("llama", vocab_size=VOCABULARY, dtype=torch.float64, seed=seed).requires_grad_(
            False
        )
        for seed in (1, 2)
    )
    for model in (policy, reference):
        model.lm_head.weight.mul_(40)  # far from uniform, far from each other
    answers = list(every_answer())
    groups = drift.as_groups([(2, 3)], [answers], END)
    lengths = [len(s.ids) - s.start for s in groups[0].sequences]
    ours, theirs = (scores(model, groups).split(lengths) for model in (policy, reference))
    probability = [math.exp(float(one.sum())) for one in ours]
    # these are all the answers there are
    assert math.fsum(probability) == pytest.approx(1, abs=1e-12)
    exact = math.fsum(p * float((a - b).sum()) for p, a, b in zip(probability, ours, theirs))
    mean = math.fsum(p * drift.kl(a, b, 1) for p, a, b in zip(probability, ours, theirs))
    assert exact > 0.3
    assert mean == pytest.approx(exact, rel=1e-12)
    assert min(drift.kl(a, b, 1) for a, b in zip(ours, theirs)) >= 0
    assert drift.kl(torch.cat(ours), torch.cat(theirs), len(ours)) == pytest.approx(
        math.fsum(drift.kl(a, b, 1) for a, b in zip(ours, theirs)) / len(ours)
    )


def test_samples_are_scored_as_they_were_drawn():
    groups = drift.as_groups(
        [(2, 3), (4,)],
        [
            [Answer((7, 8), True), Answer((7, 8), False), Answer((), True), Answer((), False)],
            [Answer((), False)],
        ],
        END,
    )
    assert [(s.ids, s.start) for group in groups for s in group.sequences] == [
        ((2, 3, 7, 8, 1), 2),
        ((2, 3, 7, 8), 2),
        ((2, 3, 1), 2),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_change_places_and_come_back_bit_for_bit(dtype):
    model, groups = tiny.model("llama", dtype=dtype), tiny.groups(2)
    before, frozen = scores(model, groups), Frozen(model, torch.device("cpu"))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    trained = {name: p.clone() for name, p in model.named_parameters()}
    after = scores(model, groups)
    for _ in range(2):
        with frozen.inside(model):
            assert torch.equal(scores(model, groups), before)
        assert torch.equal(scores(model, groups), after)
    assert all(torch.equal(p, trained[name]) for name, p in model.named_parameters())
    assert float((after - before).abs().max()) > 0.1


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("changes", [{}, {"lora": "r=4,alpha=64", "lr": 1e-2}])
@pytest.mark.slow
def test_a_run_measures_kl_to_where_it_started(world, tmp_path, changes):
    """Equal to the two models on disk, the policy's samples drawn again; and the same with the
    reference given by name.
    """
    data = {
        "eval_data": [str(world / "held.jsonl")],
        "eval_every": 3,
        "kl_samples": 8,
        "lr": 3e-3,
        **changes,
    }
    run = runs.dpo(world, tmp_path / "run", **data)
    measured = {row["step"]: row["kl"] for row in read_jsonl(run.metrics) if "kl" in row}
    assert list(measured) == [0, 3, 6]
    assert measured[0] == 0
    assert min(measured[3], measured[6]) > 0.01
    policy, start = (
        loading.load(ModelSpec(str(run.root), device="cpu")),
        loading.load(ModelSpec(str(world / "model"), device="cpu")),
    )
    renderer = Renderer(policy.tokenizer, limit=256)
    _, held_out = prepare(
        [str(world / "train.jsonl")],
        renderer,
        DPOSettings(model="m", data=("d",), out="o"),
        Wanted("preference"),
        held_out=[str(world / "held.jsonl")],
    )
    probe = asking.probe(held_out, held_out["eval_"], renderer)
    answers = sample(
        policy, probe.prompts[:8], Sampling(probe.end, max_new_tokens=probe.room, seed=0)
    )
    groups = drift.as_groups(probe.prompts[:8], answers, probe.end)
    assert measured[6] == pytest.approx(
        drift.kl(scores(policy.model, groups), scores(start.model, groups), len(groups)), rel=1e-4
    )
    if not changes:
        named = runs.dpo(world, tmp_path / "named", reference=str(world / "model"), **data)
        assert {
            row["step"]: row["kl"] for row in read_jsonl(named.metrics) if "kl" in row
        } == measured


@pytest.mark.slow
def test_without_samples_or_held_out_data_nothing_is_measured(world, tmp_path):
    for name, changes in (
        ("none", {"kl_samples": 0, "eval_data": [str(world / "held.jsonl")]}),
        ("bare", {}),
    ):
        run = runs.dpo(world, tmp_path / name, steps=2, **changes)
        assert not any("kl" in row or "length/sampled" in row for row in read_jsonl(run.metrics))
