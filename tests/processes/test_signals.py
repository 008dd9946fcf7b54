"""SIGTERM and SIGINT: saved at the step's end, exit 143 and 130, also while evaluating, sampling
and saving; the second one at once.
"""

from __future__ import annotations

import os
import signal
import time
from functools import cache
from itertools import product

import pytest

import runs
from farm import Farm
from matrix import cases
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
def undisturbed(farm, world, tmp_path_factory):
    """By seed: a run that no signal reached, and the points it passed."""

    @cache
    def run(seed=0):
        out = tmp_path_factory.mktemp("undisturbed")
        answer = farm(*line(world, out / "run", seed=seed), out=out / "said", points=True)
        assert answer["codes"] == [0], answer["said"]
        return RunFolder(out / "run"), [point for _, point, _ in answer["points"]]

    return run


def passing(points, point):
    """Which passing of a point is in the evaluation after step 3; of a point outside of
    evaluations, the first.
    """
    within = {"held-out": 1, "sampled token": 5}
    return points[: points.index("step 3")].count(point) + within[point] if point in within else 1


def steps(run):
    return [int(path.name.removeprefix("step_")) for path in checkpoint.saved(run.checkpoints)]


def goes_on(farm, world, run, folder, ranks=1, seed=0, equals=None):
    """The same command again comes to the end, and where one is given to what an undisturbed run
    comes to.
    """
    answer = farm(*line(world, run.root, seed=seed), out=folder / "said", ranks=ranks)
    assert answer["codes"] == [0] * ranks, answer["said"]
    if equals is not None:
        assert runs.numbers(run) == runs.numbers(equals)
        assert (run.model / "model.safetensors").read_bytes() == (
            equals.model / "model.safetensors"
        ).read_bytes()
    return answer["said"][0]


TERM, INT = signal.SIGTERM, signal.SIGINT
SAVED = {
    "step 2": 2,
    "held-out": 3,
    "sampled token": 3,
    "weights written": 4,
    "renamed": 4,
}  # at which step
OUTSIDE = ["lock.json written", "data.json synced", "report.html synced", "model synced"]


@pytest.mark.parametrize(
    ("point", "number"),
    cases(product(SAVED, CODES), lambda point, number: number == TERM or point == "step 2"),
)
def test_saved_at_the_steps_end(farm, world, undisturbed, tmp_path, seed, point, number):
    """While stepping, evaluating, sampling, saving and renaming."""
    run, (whole, points), saved = RunFolder(tmp_path / "run"), undisturbed(seed), SAVED[point]
    answer = farm(
        *line(world, run.root, seed=seed),
        out=tmp_path / "said",
        fault={"point": point, "time": passing(points, point), "signal": number},
    )
    assert (answer["faults"], answer["codes"]) == (1, [CODES[number]]), answer["said"]
    said = answer["said"][0]
    assert f"stopped by {number.name} at step {saved}, which is saved" in said
    assert "Traceback" not in said
    assert steps(run) == [saved]
    assert f"resumed at step {saved}" in goes_on(
        farm, world, run, tmp_path, seed=seed, equals=whole
    )


def test_an_evaluation_that_was_cut_short_is_in_the_metrics_once(
    farm, world, undisturbed, tmp_path
):
    """Made again by a run that is killed before its next save, and again."""
    run, (whole, points) = RunFolder(tmp_path / "run"), undisturbed()
    farm(
        *line(world, run.root),
        out=tmp_path / "said",
        fault={"point": "held-out", "time": passing(points, "held-out"), "signal": TERM},
    )
    answer = farm(
        *line(world, run.root), out=tmp_path / "said", fault={"point": "step 4", "time": 1}
    )
    assert answer["codes"] == [-signal.SIGKILL]
    assert "resumed at step 3" in goes_on(farm, world, run, tmp_path, equals=whole)


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


@pytest.mark.parametrize(
    ("point", "number"),
    cases(
        product(OUTSIDE, CODES), lambda point, number: number == TERM or point == "data.json synced"
    ),
)
def test_outside_of_training_it_ends_at_once(
    farm, world, undisturbed, tmp_path, seed, point, number
):
    run = RunFolder(tmp_path / "run")
    answer = farm(
        *line(world, run.root, seed=seed),
        out=tmp_path / "said",
        fault={"point": point, "time": 1, "signal": number},
    )
    assert (answer["faults"], answer["codes"]) == (1, [CODES[number]]), answer["said"]
    assert "Traceback" not in answer["said"][0]
    assert f"stopped by {number.name}" in answer["said"][0]
    goes_on(farm, world, run, tmp_path, seed=seed, equals=undisturbed(seed)[0])


@pytest.mark.parametrize("number", CODES)
def test_the_second_one_does_not_wait(farm, world, undisturbed, tmp_path, number):
    run = RunFolder(tmp_path / "run")
    answer = farm(
        *line(world, run.root),
        out=tmp_path / "said",
        fault={"point": "step 2", "time": 1, "signal": number, "twice": True},
    )
    assert answer["codes"] == [-number]
    assert steps(run) == []
    goes_on(farm, world, run, tmp_path, equals=undisturbed()[0])


BOTH_STOP = {("step 2", TERM), ("held-out", INT), ("sampled token", TERM), ("weights written", INT)}


@pytest.mark.parametrize(
    ("point", "number"), cases(product([*SAVED][:4], CODES), lambda *case: case in BOTH_STOP)
)
def test_one_of_two_processes_is_told_and_both_stop(
    farm, world, undisturbed, tmp_path, seed, point, number
):
    run, saved = RunFolder(tmp_path / "run"), SAVED[point]
    fault = {
        "point": point,
        "time": passing(undisturbed(seed)[1], point),
        "signal": number,
        "rank": 0 if point == "sampled token" else 1,
    }
    answer = farm(*line(world, run.root, seed=seed), out=tmp_path / "said", fault=fault, ranks=2)
    assert (answer["faults"], answer["codes"]) == (1, [CODES[number]] * 2), answer["said"]
    assert steps(run) == [saved]
    assert f"resumed at step {saved}" in goes_on(farm, world, run, tmp_path, ranks=2, seed=seed)


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
