"""The reference: numbers with an identity, the same however they were computed, refused when they
are of something else.
"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import runs
import tiny
from winnow.engine import rows as engine
from winnow.engine.batch import collate
from winnow.engine.dataset_logps import Reference, dataset_logps, offsets
from winnow.engine.fast import SEGMENTS
from winnow.errors import RunError, TrainingError
from winnow.models import loading
from winnow.models.hashes import weights_hash
from winnow.system.files import cache_folder
from winnow.training import reference, references, run
from winnow.training.reference import identity, spot_check, store, stored

CPU = torch.device("cpu")


def numbers(model, groups, tokens=4096):
    return dataset_logps(engine, model, groups, tokens, CPU, whose="the model")


def test_the_numbers_are_the_engines_in_the_data_sets_order():
    groups, model = tiny.groups(6), tiny.model("llama", dtype=torch.float64)
    with torch.no_grad():
        expected = torch.cat([engine.logps(model, collate([group]))["logp"] for group in groups])
    told = []
    for tokens in (4096, 120, 1):
        torch.testing.assert_close(
            dataset_logps(engine, model, groups, tokens, CPU, told.append, whose="the model"),
            expected,
            rtol=0,
            atol=1e-12,
        )
    assert sum(told) == 3 * len(groups)
    assert not expected.requires_grad


def test_a_batch_finds_its_own_numbers_whatever_its_order():
    groups = tiny.groups(6)
    start = offsets(groups)
    reference = Reference("made", torch.arange(start[-1], dtype=torch.float64), start)
    assert start[-1] == sum(len(s.ids) - s.start for g in groups for s in g.sequences)
    for items in ([4, 0, 3], [5], list(range(6))):
        batch = collate([groups[i] for i in items], items)
        expected = [n for i in items for n in range(start[i], start[i + 1])]
        assert reference.of(batch).tolist() == expected
        assert len(expected) == len(batch.target_N)


def test_the_identity_is_of_weights_tokens_dtype_and_engine():
    groups, model = tiny.groups(3), tiny.model("llama")
    name = identity(weights_hash(model), groups, torch.float32, engine)
    assert name == identity(
        weights_hash(tiny.model("llama")), tiny.groups(3), torch.float32, engine
    )
    with torch.no_grad():
        # one bit of one weight
        model.lm_head.weight[0, 0] = torch.nextafter(model.lm_head.weight[0, 0], torch.tensor(1.0))
    others = [
        identity(weights_hash(model), groups, torch.float32, engine),
        identity(weights_hash(tiny.model("llama")), groups[::-1], torch.float32, engine),
        identity(weights_hash(tiny.model("llama")), groups, torch.bfloat16, engine),
    ]
    assert len({name, *others}) == 4


def test_a_store_is_read_back_to_the_bit_and_only_by_its_name(tmp_path):
    groups = tiny.groups(3)
    kept = Reference("a" * 64, numbers(tiny.model("llama"), groups), offsets(groups))
    store(tmp_path, kept)
    found = stored(tmp_path, "a" * 64, groups)
    assert torch.equal(found.value, kept.value)
    assert (found.start == kept.start).all()
    assert stored(tmp_path, "b" * 64, groups) is None
    with pytest.raises(
        RunError, match="damaged"
    ):  # the same file name, but another identity inside
        stored(tmp_path, "a" * 16 + "b" * 48, groups)
    with pytest.raises(RunError, match="damaged"):
        stored(tmp_path, "a" * 64, groups[:2])


def test_no_byte_of_a_store_may_change(tmp_path):
    groups = tiny.groups(3)
    store(tmp_path, Reference("a" * 64, numbers(tiny.model("llama"), groups), offsets(groups)))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in range(len(whole))]
    for damaged in (*flipped, *(whole[:at] for at in range(0, len(whole), 16))):
        file.write_bytes(damaged)
        with pytest.raises(RunError, match="damaged"):
            stored(tmp_path, "a" * 64, groups)


def test_a_model_that_gives_no_numbers_is_no_reference():
    model = tiny.model("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = float("inf")
    with pytest.raises(
        TrainingError, match="the model gives log-probs that are not finite for one of made:"
    ):
        numbers(model, tiny.groups(3))


@pytest.fixture
def computed(monkeypatch):
    """How many groups each reference pass computed."""
    counts, plain = [], dataset_logps

    def counted(engine, model, groups, *rest, **more):
        counts.append(len(groups))
        return plain(engine, model, groups, *rest, **more)

    for module in (reference, references):
        monkeypatch.setattr(module, "dataset_logps", counted)
    return counts


@pytest.mark.slow
def test_another_run_computes_no_reference_again(tmp_path, computed):
    """Another rate, beta, objective, folder: the numbers are read, and only the few of the spot
    check are computed.
    """
    world = runs.world(tmp_path)
    held = [str(world / "held.jsonl")]
    runs.dpo(world, tmp_path / "one", steps=2, eval_data=held, kl_samples=0)
    assert computed == [24, 8]
    for i, change in enumerate(
        ({"lr": 2e-3}, {"beta": 0.5}, {"objective": "ipo"}, {"batch_size": 4})
    ):
        computed.clear()
        runs.dpo(world, tmp_path / f"more {i}", steps=2, eval_data=held, kl_samples=0, **change)
        assert computed == [reference.SPOTS] * 2
    computed.clear()
    runs.dpo(
        world,
        tmp_path / "other data",
        steps=2,
        data=[str(world / "other.jsonl")],
        batch_size=6,
        kl_samples=0,
    )
    assert computed == [6]


@pytest.mark.slow
def test_adapters_of_any_rank_share_the_base_models_reference(tmp_path, computed):
    world = runs.world(tmp_path)
    for i, change in enumerate(({}, {"lora": "r=2"}, {"lora": "r=4,alpha=8", "seed": 3})):
        runs.dpo(world, tmp_path / f"run {i}", steps=1, kl_samples=0, **change)
    assert computed == [24, reference.SPOTS, reference.SPOTS]


def test_a_cache_that_cannot_be_written_is_known_before_the_work(tmp_path, monkeypatch):
    world = runs.world(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("WINNOW_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(references, "dataset_logps", None)
    with pytest.raises(
        RunError, match=r"cannot write here: Not a directory\n  -> export WINNOW_CACHE="
    ):
        runs.dpo(world, tmp_path / "run")


def test_a_named_reference_model_is_not_in_memory_while_training(tmp_path, monkeypatch):
    world, held = runs.world(tmp_path), []
    load, fit = loading.load, run.fit

    def watched(name, **settings):
        loaded = load(name, **settings)
        held.append(weakref.ref(loaded.model))
        return loaded

    def looked(*args, **settings):
        gc.collect()
        held.append([one() is not None for one in held])
        return fit(*args, **settings)

    monkeypatch.setattr(loading, "load", watched)
    monkeypatch.setattr(run, "fit", looked)
    runs.dpo(world, tmp_path / "run", reference=str(world / "model"), kl_samples=0, steps=1)
    assert held[-1] == [True, False]  # the policy is, its reference is not


def test_rounding_is_told_from_another_model():
    """Little at each token, and less in the mean: half a nat somewhere is bfloat16's, a tenth
    everywhere is not.
    """
    one = torch.zeros(100)
    assert reference.only_noise(
        one, one.clone().index_fill_(0, torch.tensor([3]), 0.4), torch.bfloat16
    )
    assert not reference.only_noise(one, one + 0.1, torch.bfloat16)
    assert not reference.only_noise(
        one, one.clone().index_fill_(0, torch.tensor([3]), 0.6), torch.bfloat16
    )


def test_stored_numbers_are_held_against_the_model(tmp_path):
    """Numbers under the right name that the model does not say: of another version of a library, or
    of a machine that errs.
    """
    groups, model = tiny.groups(9), tiny.model("llama")
    kept = Reference("a" * 64, numbers(model, groups), offsets(groups))
    assert spot_check(SEGMENTS, model, groups, kept, 4096, CPU) < 1e-5
    spoiled = Reference("a" * 64, kept.value.clone(), kept.start)
    spoiled.value[kept.start[8] + 1] -= 0.01
    with pytest.raises(RunError, match=r"differ from the model's by up to 0\.01 nats"):
        spot_check(SEGMENTS, model, groups, spoiled, 4096, CPU)


def test_large_sets_are_packed_window_by_window(monkeypatch):
    monkeypatch.setattr("winnow.data.packing.WINDOW", 4)
    groups, model = tiny.groups(11), tiny.model("llama", dtype=torch.float64)
    found = dataset_logps(SEGMENTS, model, groups, 200, CPU, whose="the model")
    torch.testing.assert_close(found, numbers(model, groups), rtol=0, atol=1e-12)


def test_the_store_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_CACHE", str(tmp_path / "here"))
    assert cache_folder("reference") == tmp_path / "here" / "reference"
    monkeypatch.delenv("WINNOW_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("reference") == tmp_path / ".cache" / "winnow" / "reference"
