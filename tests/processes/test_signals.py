"""SIGTERM and SIGINT: saved at the step's end, exit 143 and 130, also while evaluating, sampling
and saving; the second one at once.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

import runs
from farm import Farm
from winnow.errors import Stopped
from winnow.system import signals
from winnow.system.files import read_json
from winnow.system.run_folder import RunFolder
from winnow.training import checkpoint

pytestmark = pytest.mark.process

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def line(world, out, command="dpo", **changes):
    base = {
        "steps": 6,
        "save_every": 4,
        "batch_size": 8,
        "eval_every": 3,
        "eval_data": [str(world / "held.jsonl")],
        "rank_timeout": 30,
    }
    return runs.line(command, world, out, **{**base, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def farm(world, tmp_path_factory):
    made = Farm(
        tmp_path_factory.mktemp("cache"), *line(world, tmp_path_factory.mktemp("warm") / "run")
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(whole_and_points):
    """A run nobody disturbed."""
    return whole_and_points[0]


@pytest.fixture(scope="module")
def whole_and_points(farm, world, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    answer = farm(*line(world, out / "run"), out=out / "said", points=True)
    assert answer["codes"] == [0], answer["said"]
    return RunFolder(out / "run"), [point for _, point, _ in answer["points"]]


@pytest.fixture(scope="module")
def passings(whole_and_points):
    """Which passing of a point is in the evaluation after step 3."""
    before = whole_and_points[1][: whole_and_points[1].index("step 3")]
    return {
        "held-out": before.count("held-out") + 1,
        "sampled token": before.count("sampled token") + 20,
    }


def steps(run):
    return [int(path.name.removeprefix("step_")) for path in checkpoint.saved(run.checkpoints)]


def goes_on(farm, world, run, whole, folder, ranks=1):
    """The same command again comes to what an undisturbed run comes to."""
    answer = farm(*line(world, run.root), out=folder / "said", ranks=ranks)
    assert answer["codes"] == [0] * ranks, answer["said"]
    if ranks == 1:
        assert runs.numbers(run) == runs.numbers(whole)
        assert (run.model / "model.safetensors").read_bytes() == (
            whole.model / "model.safetensors"
        ).read_bytes()
    return answer["said"][0]


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    ("point", "saved"),
    [("step 2", 2), ("held-out", 3), ("sampled token", 3), ("weights written", 4), ("renamed", 4)],
    ids=["stepping", "evaluating", "sampling", "saving", "renaming"],
)
def test_saved_at_the_steps_end(farm, world, whole, passings, tmp_path, number, point, saved):
    run = RunFolder(tmp_path / "run")
    answer = farm(
        *line(world, run.root),
        out=tmp_path / "said",
        fault={"point": point, "time": passings.get(point, 1), "signal": number},
    )
    assert (answer["faults"], answer["codes"]) == (1, [CODES[number]]), answer["said"]
    said = answer["said"][0]
    assert f"stopped by {number.name} at step {saved}, which is saved" in said
    assert "Traceback" not in said
    assert steps(run) == [saved]
    assert f"resumed at step {saved}" in goes_on(farm, world, run, whole, tmp_path)


def test_an_evaluation_that_was_cut_short_is_in_the_metrics_once(
    farm, world, whole, passings, tmp_path
):
    """Made again by a run that is killed before its next save, and again."""
    run = RunFolder(tmp_path / "run")
    farm(
        *line(world, run.root),
        out=tmp_path / "said",
        fault={"point": "held-out", "time": passings["held-out"], "signal": signal.SIGTERM},
    )
    answer = farm(
        *line(world, run.root), out=tmp_path / "said", fault={"point": "step 4", "time": 1}
    )
    assert answer["codes"] == [-signal.SIGKILL]
    assert "resumed at step 3" in goes_on(farm, world, run, whole, tmp_path)


@pytest.mark.parametrize("then", ["the end", "a signal"])
def test_a_save_on_the_side_that_failed_is_told(farm, world, tmp_path, then):
    """Not that all is well: whatever comes next."""
    run, fault = RunFolder(tmp_path / "run"), {"point": "weights written", "time": 2, "full": True}
    if then == "a signal":
        fault |= {"told": signal.SIGTERM}  # while the thread writes
    answer = farm(
        *line(world, run.root, async_save=True, save_every=2), out=tmp_path / "said", fault=fault
    )
    assert (answer["faults"], answer["codes"]) == (1, [1]), answer["said"]
    assert "No space left on device" in answer["said"][0]
    assert "which is saved" not in answer["said"][0]
    assert steps(run) == [2]


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    "point", ["lock.json written", "data.json synced", "report.html synced", "model synced"]
)
def test_outside_of_training_it_ends_at_once(farm, world, whole, tmp_path, number, point):
    run = RunFolder(tmp_path / "run")
    answer = farm(
        *line(world, run.root),
        out=tmp_path / "said",
        fault={"point": point, "time": 1, "signal": number},
    )
    assert (answer["faults"], answer["codes"]) == (1, [CODES[number]]), answer["said"]
    assert "Traceback" not in answer["said"][0]
    assert f"stopped by {number.name}" in answer["said"][0]
    goes_on(farm, world, run, whole, tmp_path)


@pytest.mark.parametrize("number", CODES)
def test_the_second_one_does_not_wait(farm, world, whole, tmp_path, number):
    run = RunFolder(tmp_path / "run")
    answer = farm(
        *line(world, run.root),
        out=tmp_path / "said",
        fault={"point": "step 2", "time": 1, "signal": number, "twice": True},
    )
    assert answer["codes"] == [-number]
    assert steps(run) == []
    goes_on(farm, world, run, whole, tmp_path)


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    ("point", "saved"),
    [("step 2", 2), ("held-out", 3), ("sampled token", 3), ("weights written", 4)],
)
def test_one_of_two_processes_is_told_and_both_stop(
    farm, world, passings, tmp_path, number, point, saved
):
    run = RunFolder(tmp_path / "run")
    rank = 0 if point == "sampled token" else 1
    fault = {"point": point, "time": passings.get(point, 1), "signal": number, "rank": rank}
    answer = farm(*line(world, run.root), out=tmp_path / "said", fault=fault, ranks=2)
    assert (answer["faults"], answer["codes"]) == (1, [CODES[number]] * 2), answer["said"]
    assert steps(run) == [saved]
    assert f"resumed at step {saved}" in goes_on(farm, world, run, None, tmp_path, ranks=2)


@pytest.mark.smoke
def test_a_real_process_under_a_real_signal(world, tmp_path, monkeypatch):
    """Not forked by anybody: what a scheduler does."""
    run, process = (
        RunFolder(tmp_path / "run"),
        runs.started(*line(world, tmp_path / "run", steps=10_000, eval_data=[])),
    )
    deadline = time.monotonic() + 120
    while not steps(run):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped by SIGTERM at step" in error
    assert "Traceback" not in error
    newest = checkpoint.saved(run.checkpoints)[-1]
    assert f"at step {read_json(newest / 'progress.json')['step']}, which is saved" in error
    assert not (run.root / "lock.json").exists()


def swallow(number):
    """What code around somebody else's does."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(5)
    except Exception:
        pytest.fail("swallowed")
    finally:
        # it did not wait: a sampling that goes on would end each answer after a word
        assert signals.asked() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_nobodys_failure(number):
    """Code that takes whatever others raise for their failure does not take a signal for one;
    nothing that comes later takes it for its own.
    """
    with signals.caught(), pytest.raises(Stopped) as stopped:
        swallow(number)
    assert stopped.value.exit_code == 128 + number
