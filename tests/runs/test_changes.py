"""What may be another one when a run goes on: nothing in silence, anything by name, and what no
number depends on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import runs
import tiny
from winnow import api
from winnow.config.training import FREE, DPOSettings, RewardSettings
from winnow.errors import RunError
from winnow.system.files import read_json
from winnow.system.run_folder import RunFolder
from winnow.training import checkpoint

KEPT = {"steps": 4, "save_every": 1, "keep": 3, "schedule": "constant", "warmup": 0}
# Another value of every setting a number depends on.
OTHER = {
    "model": "elsewhere",
    "dtype": "float64",
    "device": "cpu",
    "trust_remote_code": True,
    "as": "text",
    "chat_template": "template.jinja",
    "max_length": 100,
    "cut_budget": 0.5,
    "on_bad_row": "skip",
    "limit": 20,
    "max_tokens": 300,
    "data": "other.jsonl",
    "stream": 24,
    "eval_data": "held.jsonl",
    "eval_fraction": 0.2,
    "epochs": 2.0,
    "steps": 5,
    "batch_size": 6,
    "lr": 0.002,
    "optimizer": "rmsprop",
    "schedule": "cosine",
    "warmup": 2,
    "weight_decay": 0.1,
    "clip": 2.0,
    "checkpointing": True,
    "engine": "rows",
    "compile": True,
    "lora": "r=2",
    "quantize": "nf4",
    "seed": 1,
    "save_best": True,
    "eval_every": 3,
    "objective": "ipo",
    "beta": 0.2,
    "label_smoothing": 0.1,
    "pairs": "best",
    "score": "sum",
    "offset": 1.0,
    "tail_weight": 0.5,
    "wpo": True,
    "divergence": "js",
    "moving_reference": "mix=0.5",
    "preset": "paper",
    "kl_samples": 3,
    "reference": "elsewhere",
}
REWARD = {field.alias or name for name, field in RewardSettings.model_fields.items()}
# What a setting needs beside it, and must not have.
WITH = {
    "cut_budget": {"max_length": 100},
    "stream": {},
    "save_best": {"eval_data": "held.jsonl"},
    "score": {"objective": "ipo"},
    "epochs": {"steps": None},
    "offset": {},
    "pairs": {},
    "wpo": {},
}


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    return runs.dpo(world, tmp_path_factory.mktemp("finished") / "run", **KEPT)


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy of the run without its last step and its end."""
    run = RunFolder(shutil.copytree(finished.root, tmp_path / "run"))
    run.unfinish()
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "step_4")
    return run


def test_every_setting_is_one_or_the_other():
    names = {field.alias or name for name, field in DPOSettings.model_fields.items()}
    assert {*OTHER, *FREE} == names
    assert not {*OTHER} & {*FREE}
    assert {*OTHER, *FREE} >= REWARD


@pytest.mark.parametrize("name", OTHER)
def test_every_change_is_refused_by_name(world, unfinished, monkeypatch, capsys, name):
    refused(monkeypatch, capsys, world, unfinished, "dpo", name)


@pytest.fixture(scope="module")
def reward(world, tmp_path_factory):
    """A reward model's run without its end: a refusal changes nothing in it, so one does for
    all.
    """
    run = api.reward(**runs.settings(world, tmp_path_factory.mktemp("reward") / "run", **KEPT))
    run.unfinish()
    shutil.rmtree(run.checkpoints / "step_4")
    return run


# a reward model is never in 4 bits
@pytest.mark.parametrize("name", [name for name in OTHER if name in REWARD and name != "quantize"])
def test_every_change_of_a_reward_model_is_refused_by_name(
    world, reward, monkeypatch, capsys, name
):
    refused(monkeypatch, capsys, world, reward, "reward", name)


def test_a_reward_model_goes_on_where_it_stopped(world, reward, tmp_path):
    whole = api.reward(**runs.settings(world, tmp_path / "whole", **KEPT))
    run = api.reward(
        **runs.settings(world, Path(shutil.copytree(reward.root, tmp_path / "run")), **KEPT)
    )
    assert runs.numbers(run) == runs.numbers(whole)
    assert (run.model / "model.safetensors").read_bytes() == (
        whole.model / "model.safetensors"
    ).read_bytes()


def refused(monkeypatch, capsys, world, run, command, name):
    monkeypatch.chdir(world)
    changed = {**KEPT, **WITH.get(name, {}), name: OTHER[name]}
    words = runs.line(command, world, run.root, **changed)
    before = runs.tree(run.root)
    assert runs.winnow(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert f"\n  {name}: " in error
    assert f"--allow-change {name}" in error
    after = runs.tree(run.root)
    assert {key: after[key] for key in before if key != "lock"} == {
        key: before[key] for key in before if key != "lock"
    }


def test_what_no_number_depends_on_may_change_without_a_word(world, unfinished, finished):
    runs.dpo(
        world,
        unfinished.root,
        **{**KEPT, "save_every": 2, "keep": 1, "async_save": True, "rank_timeout": 5.0},
    )
    assert runs.numbers(unfinished) == runs.numbers(finished)
    assert (unfinished.model / "model.safetensors").read_bytes() == (
        finished.model / "model.safetensors"
    ).read_bytes()


def test_an_allowed_change_is_made_recorded_and_then_the_runs_own(
    world, unfinished, finished, monkeypatch, capsys
):
    changed = {**KEPT, "lr": 0.002, "beta": 0.2}
    assert (
        runs.winnow(
            monkeypatch, *runs.line("dpo", world, unfinished.root, **changed, allow_change=["lr"])
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "beta: 0.1 -> 0.2" in error
    assert "lr: " not in error
    assert (
        runs.winnow(
            monkeypatch,
            *runs.line("dpo", world, unfinished.root, **changed, allow_change=["lr", "beta"]),
        )
        == 0
    )
    assert "resumed at step 3" in capsys.readouterr().out
    assert runs.numbers(unfinished)[:3] == runs.numbers(finished)[:3]
    assert runs.numbers(unfinished)[3]["learning_rate"] == 0.002
    head = read_json(unfinished.environment)
    assert [one["changed"] for one in head["changes"]] == [
        {"beta": [0.1, 0.2], "lr": [0.001, 0.002]}
    ]
    assert (head["settings"]["lr"], yaml.safe_load(unfinished.config.read_text())["lr"]) == (
        0.002,
        0.002,
    )
    shutil.rmtree(unfinished.checkpoints / "step_4")  # the newest is from before the change
    unfinished.unfinish()
    # the same command needs no flag
    assert runs.winnow(monkeypatch, *runs.line("dpo", world, unfinished.root, **changed)) == 0
    assert runs.winnow(monkeypatch, *runs.line("dpo", world, unfinished.root, **KEPT)) == 2


@pytest.mark.parametrize(
    "name",
    [
        "optimizer",
        "dtype",
        "engine",
        "batch_size",
        "objective",
        "warmup",
        "eval_data",
        "moving_reference",
        "seed",
    ],
)
def test_what_is_allowed_is_possible(world, unfinished, monkeypatch, capsys, name):
    monkeypatch.chdir(world)
    names = [name, "score"] if name == "objective" else [name]  # ipo fills in a setting of its own
    words = runs.line(
        "dpo", world, unfinished.root, **{**KEPT, name: OTHER[name]}, allow_change=names
    )
    assert runs.winnow(monkeypatch, *words) == 0
    said = capsys.readouterr().out
    assert "resumed at step 3" in said
    assert ("its moments begin at 0" in said) == (name == "optimizer")
    assert [row["step"] for row in runs.numbers(unfinished) if "loss" in row] == [1, 2, 3, 4]
    assert [*read_json(unfinished.environment)["changes"][0]["changed"]] == names


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora": "r=2", "allow_change": ["lora"]}, "the checkpoint's model is of another model"),
        ({"model": "other", "allow_change": ["seed"]}, "model: "),
        ({"steps": 2, "allow_change": ["steps"]}, "3 steps are done, and steps is 2"),
        (
            {"max_length": 30, "cut_budget": 0.9, "allow_change": ["max_length"]},
            "cut_budget: None -> 0.9",
        ),
    ],
)
def test_what_is_allowed_but_not_possible_changes_nothing(
    world, unfinished, monkeypatch, capsys, changes, told
):
    before = runs.tree(unfinished.root)
    assert (
        runs.winnow(monkeypatch, *runs.line("dpo", world, unfinished.root, **{**KEPT, **changes}))
        == 2
    )
    assert told in capsys.readouterr().err
    after = runs.tree(unfinished.root)
    assert {key: after[key] for key in before if key != "lock"} == {
        key: before[key] for key in before if key != "lock"
    }
    assert runs.winnow(monkeypatch, *runs.line("dpo", world, unfinished.root, **KEPT)) == 0


@pytest.mark.slow
def test_a_streams_next_window_is_the_one_it_was(world, tmp_path, monkeypatch, capsys):
    """The first window is compared as all data is, each further one when it comes again."""
    data = tiny.write(tmp_path / "rows.jsonl", tiny.pairs(24, seed=4))
    changed = {**KEPT, "data": [str(data)], "stream": 8, "steps": 3}
    run = runs.dpo(world, tmp_path / "run", **changed)
    whole = runs.numbers(run)
    run.unfinish()
    for step in (2, 3):
        shutil.rmtree(run.checkpoints / f"step_{step}")
    tiny.write(data, [*tiny.pairs(24, seed=4)[:8], *tiny.pairs(24, seed=5)[8:]])
    words = runs.line("dpo", world, run.root, **changed)
    assert runs.winnow(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert "window 2 of the data is another one than when it was first read" in error
    tiny.write(data, tiny.pairs(24, seed=4))
    assert runs.winnow(monkeypatch, *words) == 0
    assert runs.numbers(run) == whole


@pytest.mark.parametrize("what", ["never kept", "damaged"])
@pytest.mark.slow
def test_a_best_checkpoint_that_is_gone_is_forgotten_aloud(
    world, tmp_path, monkeypatch, capsys, what
):
    # the first one is the best: it gets worse
    changed = {
        **KEPT,
        "steps": 6,
        "keep": 1,
        "eval_every": 1,
        "eval_data": [str(world / "against.jsonl")],
    }
    run = runs.dpo(world, tmp_path / "run", **changed, save_best=what == "damaged")
    run.unfinish()
    more = {"save_best": True}
    if what == "damaged":
        assert (run.checkpoints / "step_1").is_dir()
        (run.checkpoints / "step_1" / "weights.safetensors").write_bytes(b"gone")
    else:
        more["allow_change"] = ["save_best"]
    assert runs.winnow(monkeypatch, *runs.line("dpo", world, run.root, **changed, **more)) == 0
    assert ("is gone or damaged" in capsys.readouterr().out) == (
        what == "damaged" or what == "never kept"
    )
    assert run.finished


def test_a_finished_run_goes_on_for_more_steps_in_the_same_order(
    world, finished, tmp_path, monkeypatch, capsys
):
    run = RunFolder(shutil.copytree(finished.root, tmp_path / "run"))
    words = runs.line("dpo", world, run.root, **{**KEPT, "steps": 7}, allow_change=["steps"])
    assert runs.winnow(monkeypatch, *words) == 0
    assert "resumed at step 4" in capsys.readouterr().out
    whole = runs.dpo(world, tmp_path / "whole", **{**KEPT, "steps": 7})
    assert runs.numbers(run) == runs.numbers(whole)
    assert (run.model / "model.safetensors").read_bytes() == (
        whole.model / "model.safetensors"
    ).read_bytes()
    assert runs.winnow(monkeypatch, *words) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_run_cut_off_between_its_last_save_and_the_deletion_of_old_ones_ends_with_both(
    world, tmp_path, monkeypatch
):
    """Killed there, it has a checkpoint too many, and no step is left whose save would see it."""

    def cut_off(folder, *, current, **kept):
        if current == 3:
            raise OSError("cut off")
        prune(folder, current=current, **kept)

    prune, settings = checkpoint.prune, {"steps": 3, "save_every": 1, "keep": 1}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "prune", cut_off)
        with pytest.raises(OSError, match="cut off"):
            runs.dpo(world, tmp_path / "run", **settings)
    run = RunFolder(tmp_path / "run")
    names = [path.name for path in checkpoint.saved(run.checkpoints)]
    assert names == ["step_2", "step_3"]
    runs.dpo(world, run.root, **settings)
    assert [path.name for path in checkpoint.saved(run.checkpoints)] == ["step_3"]


def test_another_token_budget_keeps_the_order(world, unfinished, finished):
    """Micro-batches are cut otherwise, steps are not: the same figures up to rounding."""
    runs.dpo(world, unfinished.root, **KEPT, max_tokens=80, allow_change=["max_tokens"])
    for row, same in zip(runs.numbers(unfinished), runs.numbers(finished)):
        assert row == pytest.approx(same, rel=1e-4, abs=1e-6)


@pytest.fixture
def other_rows(world):
    kept = (world / "train.jsonl").read_text()
    tiny.write(world / "train.jsonl", tiny.pairs(24, seed=7))
    yield
    (world / "train.jsonl").write_text(kept)


def test_other_data_by_name(world, unfinished, other_rows):
    with pytest.raises(RunError, match="data: '24 groups'"):
        runs.dpo(world, unfinished.root, **KEPT)
    runs.dpo(world, unfinished.root, **KEPT, allow_change=["data"])
    assert unfinished.finished
    assert [*read_json(unfinished.environment)["changes"][0]["changed"]] == ["data"]
    assert read_json(unfinished.root / "data.json")["train"]["used"] == 24


def test_another_tokenizer_and_another_template_are_told_apart(world, tmp_path):
    tiny.folder(tmp_path / "chat", hidden_size=16, intermediate_size=32, template=tiny.TEMPLATE)
    changed = {**KEPT, "model": str(tmp_path / "chat"), "as": "chat"}
    run = runs.dpo(world, tmp_path / "run", **changed)
    run.unfinish()
    config = tmp_path / "chat" / "tokenizer_config.json"
    kept, path = config.read_text(), tmp_path / "chat" / "chat_template.jinja"
    template = path.read_text()
    path.write_text(template.replace("user", "human") if "user" in template else "x" + template)
    with pytest.raises(RunError, match=r"template: '(.|\n)*--allow-change template"):
        runs.dpo(world, run.root, **changed)
    path.write_text(template)
    config.write_text(kept)
    tokenizer = json.loads((tmp_path / "chat" / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Prepend", "prepend": "x"}
    (tmp_path / "chat" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RunError, match=r"tokenizer: '(.|\n)*--allow-change tokenizer"):
        runs.dpo(world, run.root, **changed)


def test_a_name_that_is_none(world, unfinished, monkeypatch, capsys):
    assert (
        runs.winnow(
            monkeypatch, *runs.line("dpo", world, unfinished.root, **KEPT, allow_change=["betta"])
        )
        == 2
    )
    assert (
        "allow_change: there is no 'betta' to change; did you mean 'beta'?"
        in capsys.readouterr().err
    )


# ---------------------------------------------------------------- winnow verify


def test_verify_finds_every_byte(world, finished, tmp_path, monkeypatch, capsys):
    run = RunFolder(shutil.copytree(finished.root, tmp_path / "run"))
    before = runs.tree(run.root)
    assert runs.winnow(monkeypatch, "verify", run.root) == 0
    said = capsys.readouterr().out
    assert "checkpoint step_4: 3 files, as they were saved" in said
    assert "model, metrics, samples and records: " in said
    assert runs.tree(run.root) == before
    hashed = [
        *run.checkpoints.glob("*/*"),
        run.manifest,
        *run.model.iterdir(),
        run.metrics,
        run.samples,
        run.config,
        run.environment,
        run.root / "data.json",
    ]
    for file in hashed:
        content = file.read_bytes()
        for damaged in (
            content[:-2],
            content[:40] + bytes([content[40] ^ 1]) + content[41:],
            bytes([content[0] ^ 1]) + content[1:],
        ):
            file.write_bytes(damaged)
            assert runs.winnow(monkeypatch, "verify", run.root) == 2, file
            assert file.name in capsys.readouterr().out.replace("\n", "")
        file.unlink()
        assert runs.winnow(monkeypatch, "verify", run.root) == 2, file
        file.write_bytes(content)
    capsys.readouterr()
    for folder in (
        run.model,
        run.checkpoints / "step_4",
    ):  # somebody laid an adapter beside the weights
        (folder / "adapter_config.json").write_text("{}")
        assert runs.winnow(monkeypatch, "verify", run.root) == 2
        assert "adapter_config.json: not a file of" in capsys.readouterr().out.replace("\n", "")
        (folder / "adapter_config.json").unlink()
    assert runs.winnow(monkeypatch, "verify", run.root) == 0


def test_verify_of_what_is_not_finished_and_of_what_is_no_run(
    unfinished, tmp_path, monkeypatch, capsys
):
    assert runs.winnow(monkeypatch, "verify", unfinished.root) == 0
    assert "not finished" in capsys.readouterr().out
    assert runs.winnow(monkeypatch, "verify", tmp_path) == 2
    assert "no run was begun here" in capsys.readouterr().err
