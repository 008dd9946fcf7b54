"""A run that was killed anywhere and begun again is, bit for bit, the run that was never killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time

import pytest

import runs
import tiny
from farm import Farm
from matrix import cases
from winnow.errors import RunError
from winnow.reports import run_report
from winnow.system.files import cache_folder, read_json, read_jsonl, write_json
from winnow.system.run_folder import RunFolder
from winnow.training import plan, run_record

STEPS, EVERY = 20, 7


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def farm(world, tmp_path_factory):
    made = Farm(
        tmp_path_factory.mktemp("cache"),
        *runs.line("dpo", world, tmp_path_factory.mktemp("warm") / "run"),
    )
    yield made
    made.close()


def killed(farm, words, out, after):
    """A run that was killed by SIGKILL at its step `after`."""
    run = RunFolder(out)
    answer = farm(*words, out=out.with_name("said"), fault={"point": f"step {after}", "time": 1})
    assert (answer["faults"], answer["codes"]) == (1, [-signal.SIGKILL]), answer["said"]
    assert not run.finished
    assert not run.model.exists()
    assert after - 1 <= len([row for row in read_jsonl(run.metrics) if "loss" in row]) <= after
    return run


KINDS = [
    ("sft", {}),
    ("dpo", {"eval_every": 8}),
    ("dpo", {"lora": "r=4,alpha=8", "optimizer": "rmsprop"}),
    ("dpo", {"stream": 10}),
    ("dpo", {"objective": "dpo:0.8,bco:0.2:beta=0.1,kto:0.5,sft:1", "eval_every": 8}),
    ("dpo", {"moving_reference": "mix=0.3,every=3", "eval_every": 8}),
    ("dpo", {"objective": "tdpo"}),
    ("reward", {"eval_every": 8}),
    ("reward", {"lora": "r=4,alpha=8"}),
]


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "more"),
    cases(KINDS, lambda command, more: (command, more) in (*KINDS[:4], *KINDS[7:8])),
)
def test_killed_and_resumed_equals_never_killed(
    farm, world, tmp_path, monkeypatch, capsys, seed, command, more
):
    more = {
        "batch_size": 5,
        "steps": STEPS,
        "save_every": EVERY,
        "max_tokens": 200,
        "schedule": "cosine",
        "weight_decay": 0.1,
        "seed": seed,
        **more,
    }
    if "eval_every" in more:
        more["eval_data"] = [world / "held.jsonl"]
    words = {
        name: runs.line(command, world, tmp_path / name, **more) for name in ("killed", "whole")
    }
    resumed = killed(farm, words["killed"], tmp_path / "killed", 17)
    assert runs.winnow(monkeypatch, *words["killed"]) == 0
    assert "resumed at step 14" in capsys.readouterr().out
    assert runs.winnow(monkeypatch, *words["whole"]) == 0
    whole = RunFolder(tmp_path / "whole")
    assert (
        runs.numbers(resumed),
        [row["step"] for row in runs.numbers(whole) if "loss" in row],
    ) == (runs.numbers(whole), [*range(1, STEPS + 1)])
    name = "adapter_model.safetensors" if "lora" in more else "model.safetensors"
    assert (resumed.model / name).read_bytes() == (whole.model / name).read_bytes()
    for file in ("weights.safetensors", "optimizer.safetensors", "progress.json"):
        ours, theirs = (run.checkpoints / f"step_{STEPS}" / file for run in (resumed, whole))
        assert ours.read_bytes() == theirs.read_bytes(), file
    assert read_json(resumed.environment)["held_out"] == read_json(whole.environment)["held_out"]
    if command != "reward":
        assert resumed.samples.read_bytes() == whole.samples.read_bytes()
    assert read_json(whole.checkpoints / f"step_{STEPS}" / "progress.json")["cursor"] == {
        "epoch": 12 if "stream" in more else 4,
        "position": 0,
    }


@pytest.mark.process
def test_a_real_process_killed_midway(world, tmp_path, monkeypatch):
    """Not forked by anybody, and killed at no point that is known."""
    words = runs.line("sft", world, tmp_path / "killed", steps=40, save_every=5)
    run, process = RunFolder(tmp_path / "killed"), runs.started(*words)
    deadline = time.monotonic() + 120
    while not (run.checkpoints / "step_5").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not run.finished
    assert runs.winnow(monkeypatch, *words) == 0
    assert runs.numbers(run) == runs.numbers(
        runs.sft(world, tmp_path / "whole", steps=40, save_every=5)
    )


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A finished run, 4 steps with a checkpoint each; copy it before changing it."""
    return runs.dpo(
        world, tmp_path_factory.mktemp("finished") / "run", steps=4, save_every=1, keep=3
    ).root


@pytest.fixture
def unfinished(finished, tmp_path):
    """The same without its end."""
    shutil.copytree(finished, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    run.unfinish()
    shutil.rmtree(run.model)
    return run


def again(world, run, **more):
    return runs.line("dpo", world, run.root, **{"steps": 4, "save_every": 1, "keep": 3, **more})


def test_a_finished_run_says_so_and_nothing_is_changed(world, finished, monkeypatch, capsys):
    before = runs.tree(finished)
    assert runs.winnow(monkeypatch, *again(world, RunFolder(finished))) == 0
    assert "already finished" in capsys.readouterr().out
    after = runs.tree(finished)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"lock"}


def test_other_settings_are_refused_and_listed(world, unfinished, finished, monkeypatch, capsys):
    for run in (unfinished, RunFolder(finished)):
        before = runs.tree(run.root)
        assert runs.winnow(monkeypatch, *again(world, run, lr=2e-3, beta=0.5)) == 2
        error = capsys.readouterr().err
        assert "beta: 0.1 -> 0.5" in error
        assert "lr: 0.001 -> 0.002" in error
        assert "seed" not in error
        assert {
            name: value for name, value in runs.tree(run.root).items() if name in before
        } == before


def test_other_training_data_is_refused(world, unfinished, monkeypatch, capsys):
    kept = (world / "train.jsonl").read_text()
    try:
        tiny.write(
            world / "train.jsonl",
            [
                *tiny.pairs(23),
                {"prompt": "24: other?", "chosen": " yes, but", "rejected": " no, not"},
            ],
        )
        assert runs.winnow(monkeypatch, *again(world, unfinished)) == 2
    finally:
        (world / "train.jsonl").write_text(kept)
    error = capsys.readouterr().err
    assert (
        "begun otherwise:\n  data: '24 groups' -> '24 groups, or the same number with other texts'"
        in error
    )
    assert "--allow-change data" in error
    assert not unfinished.finished


def test_other_evaluation_data_is_refused(world, tmp_path):
    """It chooses the best checkpoint, so it belongs to the run: also for SFT, which has no
    reference.
    """
    held = tiny.write(tmp_path / "held.jsonl", tiny.pairs(6, seed=1))
    run = runs.sft(world, tmp_path / "run", steps=2, eval_data=[str(held)])
    run.unfinish()
    tiny.write(held, tiny.pairs(6, seed=2))
    with pytest.raises(RunError, match="data changed since the checkpoint"):
        runs.sft(world, tmp_path / "run", steps=2, eval_data=[str(held)])


def test_another_start_is_refused(world, unfinished, tmp_path):
    """The same path with other weights behind it."""
    kept = (world / "model" / "model.safetensors").read_bytes()
    try:
        tiny.folder(world / "model", seed=9, hidden_size=16, intermediate_size=32)
        with pytest.raises(RunError, match="weights, reference changed since the checkpoint"):
            runs.dpo(world, unfinished.root, steps=4, save_every=1, keep=3)
    finally:
        (world / "model" / "model.safetensors").write_bytes(kept)


@pytest.mark.parametrize(
    "file", ["weights.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"]
)
def test_a_damaged_checkpoint_is_passed_over_aloud(
    world, unfinished, finished, monkeypatch, capsys, file
):
    newest = unfinished.checkpoints / "step_4" / file
    newest.write_bytes(newest.read_bytes()[:-9])
    assert runs.winnow(monkeypatch, *again(world, unfinished)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "passed over:" in said
    assert "resumed at step 3" in said
    assert runs.numbers(unfinished) == runs.numbers(RunFolder(finished))
    assert (unfinished.model / "model.safetensors").read_bytes() == (
        finished / "model" / "model.safetensors"
    ).read_bytes()


def test_a_single_flipped_bit_is_seen(world, unfinished, capsys):
    weights = unfinished.checkpoints / "step_4" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    runs.dpo(world, unfinished.root, steps=4, save_every=1, keep=3)
    assert "resumed at step 3" in capsys.readouterr().out


def test_when_every_checkpoint_is_damaged_nothing_goes_on(world, unfinished, monkeypatch, capsys):
    for folder in unfinished.checkpoints.iterdir():
        (folder / "weights.safetensors").write_bytes(b"gone")
    assert runs.winnow(monkeypatch, *again(world, unfinished)) == 2
    error = capsys.readouterr().err
    assert "no checkpoint is intact" in error
    assert error.count("damaged") == 3
    assert not unfinished.finished


def test_one_writer_per_folder(world, unfinished, monkeypatch, capsys):
    with unfinished.lock():
        before = runs.tree(unfinished.root)
        assert runs.winnow(monkeypatch, *again(world, unfinished)) == 2
        assert runs.tree(unfinished.root) == before
    error = capsys.readouterr().err
    assert "another process is writing here" in error
    assert f'"pid": {os.getpid()}' in error
    assert runs.winnow(monkeypatch, *again(world, unfinished)) == 0


def test_a_changed_reference_store_is_an_error(world, unfinished):
    runs.dpo(world, unfinished.root.parent / "fills the store", steps=1)
    store = next(cache_folder("reference").glob("*.safetensors"))
    data = bytearray(store.read_bytes())
    data[-1] ^= 0x40
    store.write_bytes(data)
    with pytest.raises(RunError, match="damaged: its numbers are not those that were stored"):
        runs.dpo(world, unfinished.root, steps=4, save_every=1, keep=3)


@pytest.mark.slow
def test_another_runs_reference_store_is_never_read(world, tmp_path, monkeypatch):
    """Of other data: it has another name, so the numbers are computed, and equal those of a run
    that found no store.
    """
    runs.dpo(world, tmp_path / "first", steps=1)
    other = tiny.write(tmp_path / "other.jsonl", tiny.pairs(16, seed=7))
    run = runs.dpo(world, tmp_path / "run", data=[str(other)], steps=2)
    assert len(list(cache_folder("reference").glob("*.safetensors"))) == 2
    monkeypatch.setenv("WINNOW_CACHE", str(tmp_path / "empty"))
    clean = runs.dpo(world, tmp_path / "clean", data=[str(other)], steps=2)
    assert runs.numbers(run) == runs.numbers(clean)


def test_other_settings_are_refused_even_where_the_metrics_are_gone(world, unfinished):
    unfinished.metrics.unlink()
    with pytest.raises(RunError, match="beta: 0\\.1 -> 0\\.7"):
        runs.dpo(world, unfinished.root, steps=4, save_every=1, keep=3, beta=0.7)


def test_auto_keeps_the_budget_it_began_with(world, tmp_path, monkeypatch, capsys):
    """Whatever memory is free when a run goes on: other micro-batches would round otherwise."""
    run = runs.dpo(world, tmp_path / "run", steps=4, save_every=1, keep=3, max_tokens="auto")
    expected = runs.numbers(run)
    shutil.rmtree(run.checkpoints / "step_4")
    run.unfinish()
    monkeypatch.setattr(plan, "available", lambda device: 10**6)
    capsys.readouterr()
    runs.dpo(world, run.root, steps=4, save_every=1, keep=3, max_tokens="auto")
    said = capsys.readouterr().out
    assert "resumed at step 3" in said
    assert "micro-batches of 16,384 tokens" in said
    assert runs.numbers(run) == expected


def test_a_torn_last_line_of_metrics_is_cut(world, unfinished, finished):
    with unfinished.metrics.open("a") as file:
        file.write('{"step": 5, "loss": 0.1}\n{"step": 6, "lo')
    runs.dpo(world, unfinished.root, steps=4, save_every=1, keep=3)
    assert runs.numbers(unfinished) == runs.numbers(RunFolder(finished))


# ---------------------------------------------------------------- the end of a run, and its report


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_report_that_cannot_be_drawn_leaves_a_finished_run(
    world, finished, tmp_path, call, monkeypatch
):
    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(run_report, "render", no_room)
        assert call(*again(world, run))[0] == 1
        assert run.finished
        assert not run.report_json.exists()
        # nothing but the report is missing, and it cannot be drawn
        assert call(*again(world, run))[0] == 1
    assert (run.model / "model.safetensors").read_bytes() == (
        finished / "model" / "model.safetensors"
    ).read_bytes()
    assert call("generate", "--model", run.root, "--prompt", "a b", "--max-new-tokens", 2)[0] == 0
    assert call("export", run.root, "--out", tmp_path / "plain")[0] == 0
    code, said, _ = call("verify", run.root)
    assert (code, "0 of them not as they were" in said) == (0, True)
    code, said, _ = call("report", run.root)
    assert (code, said) == (0, f"report: {run.report_html}\n")
    assert read_json(run.report_json)["runs"][0]["final"]["step"] == 4
    assert (
        run_report.page([run.root], tmp_path / "page.html").read_bytes()
        == run.report_html.read_bytes()
    )


def test_the_same_command_draws_a_missing_report_and_nothing_else(world, finished, tmp_path, call):
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    page = run.report_html.read_bytes()
    for file in (run.report_json, run.report_html):
        file.unlink()
    before = runs.tree(run.root)
    code, said, _ = call(*again(world, run))
    assert (code, said.splitlines()) == (
        0,
        [
            f"{run.root}: already finished (report: {run.report_html}); nothing to do",
            f"report: {run.report_html}",
        ],
    )
    assert run.report_html.read_bytes() == page
    after = runs.tree(run.root)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"report.html", "report.json"}
    assert call(*again(world, run))[1].splitlines() == said.splitlines()[:1]


def test_a_report_is_drawn_in_place_for_one_run_alone(finished, tmp_path, call):
    code, _, error = call("report", finished, finished)
    assert (code, "--out report.html" in error) == (2, True)


def test_a_run_without_a_manifest_is_finished_by_its_report(world, finished, tmp_path, call):
    """As the first versions left it."""
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    run.manifest.unlink()
    write_json(
        run.environment,
        {name: value for name, value in read_json(run.environment).items() if name != "sealed"},
    )
    assert run.finished
    assert "nothing to do" in call(*again(world, run))[1]
    assert call("generate", "--model", run.root, "--prompt", "a b", "--max-new-tokens", 2)[0] == 0
    assert "finished by a version that wrote no hashes" in call("verify", run.root)[1]


def test_a_run_that_is_extended_is_unfinished_before_its_settings_change(
    world, finished, tmp_path, monkeypatch
):
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    longer = {"steps": 6, "save_every": 1, "keep": 3, "allow_change": ["steps"]}
    with monkeypatch.context() as patch:
        patch.setattr(run_record, "begin", no_room)
        with pytest.raises(OSError, match="No space left"):
            runs.dpo(world, run.root, **longer)
    assert not run.finished
    runs.dpo(world, run.root, **longer)
    assert run.finished
    assert read_json(run.report_json)["runs"][0]["final"]["step"] == 6
