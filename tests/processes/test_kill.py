"""The kill matrix: SIGKILL at every step, and at every point inside a save, with one process and
with two. Nothing is ever lost.
"""

from __future__ import annotations

import hashlib
import random
import signal
from functools import cache
from itertools import product

import pytest

import runs
from farm import Farm
from matrix import cases
from winnow.system.run_folder import RunFolder

pytestmark = pytest.mark.process

STEPS = 10
# What a save goes through, in the order in which one process does; found by a run that lists its
# points, and held against it.
SAVE = [
    "metrics synced",
    "weights written",
    "weights synced",
    "optimizer written",
    "optimizer synced",
    "progress.json written",
    "progress.json synced",
    "manifest.json written",
    "manifest.json synced",
    "manifest written",
    "folder synced",
    "renamed",
    "parent synced",
    "renamed to be deleted",
    "pruned",
]
# What comes before the first step and after the last one.
BEGIN = [
    "lock.json synced",
    "config.yaml written",
    "config.yaml synced",
    "data.json synced",
    "environment.json synced",
    "samples.jsonl synced",
]
END = [
    "model synced",
    "folder synced",
    "renamed",
    "parent synced",
    "manifest.json written",
    "manifest.json synced",
    "report.html synced",
    "report.json written",
]


def line(world, out, command="dpo", **changes):
    return runs.line(
        command,
        world,
        out,
        **{
            "steps": STEPS,
            "save_every": 2,
            "keep": 2,
            "batch_size": 5,
            "rank_timeout": 30,
            **changes,
        },
    )


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


def digest(run):
    """Of all that must be the same at the end: weights, moments, progress, metrics without the
    clock, model, samples.
    """
    files = [
        *sorted(run.checkpoints.rglob("*.safetensors")),
        *sorted(run.checkpoints.rglob("progress.json")),
        *sorted(run.model.iterdir()),
        *run.root.glob(run.samples.name),
    ]
    told = [
        (str(file.relative_to(run.root)), hashlib.sha256(file.read_bytes()).hexdigest())
        for file in files
    ]
    return [*told, *runs.numbers(run)]


@pytest.fixture(scope="module")
def undisturbed(farm, world, tmp_path_factory):
    """By number of processes and seed: what a run that nobody killed comes to, and the points it
    passed, by rank.
    """

    @cache
    def run(ranks, seed=0):
        out = tmp_path_factory.mktemp("undisturbed")
        answer = farm(
            *line(world, out / "run", seed=seed), ranks=ranks, out=out / "said", points=True
        )
        assert answer["codes"] == [0] * ranks, answer["said"]
        return digest(RunFolder(out / "run")), answer["points"]

    return run


def killed_and_resumed(farm, world, folder, fault, ranks=1, **changes):
    """The run after a fault, and the same command again."""
    run = RunFolder(folder / "run")
    answer = farm(*line(world, run.root, **changes), ranks=ranks, out=folder / "said", fault=fault)
    assert answer["faults"] == 1, (fault, answer["said"])
    assert answer["codes"][fault.get("rank", 0)] == -signal.SIGKILL
    assert all(code in (1, -signal.SIGKILL) for code in answer["codes"])
    answer = farm(*line(world, run.root, **changes), ranks=ranks, out=folder / "said")
    assert answer["codes"] == [0] * ranks, (fault, answer["said"])
    left = [
        path.name
        for path in (*run.root.iterdir(), *run.checkpoints.iterdir())
        if ".tmp-" in path.name or ".old-" in path.name
    ]
    assert left == []
    return run


def passed(points, rank, name):
    return max(
        (time for number, point, time in points if (number, point) == (rank, name)), default=0
    )


def passing(points, rank, name, seed):
    """Which passing of a point a save is struck at: the third save of five, the first deletion of
    an old one; with another seed than 0 any.
    """
    if seed:
        # what is passed while it trains is struck at then; else at its end
        training = points[: points.index([rank, f"step {STEPS}", 1])]
        times = passed(training, rank, name) or passed(points, rank, name)
        return random.Random(f"{seed} {rank} {name}").randint(1, times)
    return (
        1
        if name == "renamed to be deleted"
        else 5
        if name.endswith("-of-2 synced") and not rank
        else 3
    )


def test_the_points_are_those_of_a_save(undisturbed):
    """A point that is gone, or a new one, has to be looked at here."""
    _, points = undisturbed(1)
    own = [point for _, point, _ in points]
    last = len(own) - own[::-1].index("metrics synced") - 1
    seen = list(dict.fromkeys(point for point in own[last:][: own[last:].index("pruned") + 1]))
    assert [point for point in seen if point in SAVE] == SAVE
    assert set(seen) - set(SAVE) <= {"progress synced", "manifest synced"}
    assert all(passed(points, 0, point) for point in (*BEGIN, *END))


STEP = [*product(range(1, STEPS + 1), (1, 2), (False, True))]


@pytest.mark.parametrize(
    ("step", "ranks", "aside"),
    cases(STEP, lambda *case: case == (5, 2, True), smoke=[(5, 1, False), (8, 2, False)]),
)
def test_killed_at_a_step(farm, world, undisturbed, tmp_path, seed, step, ranks, aside):
    fault = {"point": f"step {step}", "time": 1, "rank": step % ranks}
    run = killed_and_resumed(
        farm, world, tmp_path, fault, ranks, seed=seed, async_save=aside or None
    )
    assert digest(run) == undisturbed(ranks, seed)[0]


def test_a_reward_model_killed_at_a_step_and_inside_a_save(farm, world, tmp_path):
    """One of each kind: from here on its saves are those of any training."""
    answer = farm(*line(world, tmp_path / "whole", "reward"), out=tmp_path / "said")
    assert answer["codes"] == [0], answer["said"]
    for i, (point, time) in enumerate(
        (("step 5", 1), ("manifest written", 3), ("model synced", 1))
    ):
        (tmp_path / str(i)).mkdir()
        run = killed_and_resumed(
            farm, world, tmp_path / str(i), {"point": point, "time": time}, command="reward"
        )
        assert digest(run) == digest(RunFolder(tmp_path / "whole")), point


# With one process: aside here, and waiting where the power is cut.
@pytest.mark.parametrize(
    ("point", "aside"),
    cases(product(SAVE, (False, True)), lambda point, aside: aside, smoke=[("renamed", False)]),
)
def test_killed_inside_a_save(farm, world, undisturbed, tmp_path, seed, point, aside):
    whole, points = undisturbed(1, seed)
    fault = {"point": point, "time": passing(points, 0, point, seed)}
    run = killed_and_resumed(farm, world, tmp_path, fault, seed=seed, async_save=aside or None)
    assert digest(run) == whole


@pytest.mark.parametrize(
    ("where", "point"),
    cases(
        [*product(["begin"], BEGIN), *product(["end"], END)], lambda where, point: where == "begin"
    ),
)
def test_killed_before_the_first_step_and_after_the_last(
    farm, world, undisturbed, tmp_path, seed, where, point
):
    whole, points = undisturbed(1, seed)
    time = 1 if where == "begin" else passed(points, 0, point)
    run = killed_and_resumed(farm, world, tmp_path, {"point": point, "time": time}, seed=seed)
    assert digest(run) == whole


PARTS = [
    "weights written",
    "weights.{}-of-2 synced",
    "optimizer written",
    "optimizer.{}-of-2 synced",
]
OTHER = [(1, point.format(1)) for point in PARTS]  # all that the second process does in a save
OWN = [(0, point.format(0)) for point in PARTS[1::2]]
TWO = [
    *((0, point) for point in SAVE if not point.endswith(("weights synced", "optimizer synced"))),
    *OWN,
    *OTHER,
]


def test_the_points_of_the_second_process_are_all_of_them(undisturbed):
    """But for those of a run's beginning and end, which it shares."""
    own = {
        point for rank, point, _ in undisturbed(2)[1] if rank == 1 and not point.startswith("step ")
    }
    assert own == {point for _, point in OTHER}


def of_two(rank, point, aside):
    return (
        (rank, point) in (*OWN, *OTHER)
        if not aside
        else (rank, point) in {(0, "renamed"), (1, "weights written")}
    )


@pytest.mark.parametrize(
    ("rank", "point", "aside"),
    cases([(*one, aside) for one in TWO for aside in (False, True)], of_two),
)
def test_one_of_two_killed_inside_a_save(
    farm, world, undisturbed, tmp_path, seed, rank, point, aside
):
    whole, points = undisturbed(2, seed)
    fault = {"point": point, "time": passing(points, rank, point, seed), "rank": rank}
    run = killed_and_resumed(
        farm, world, tmp_path, fault, ranks=2, seed=seed, async_save=aside or None
    )
    assert digest(run) == whole


@pytest.mark.parametrize(("where", "point"), [*product(["save"], SAVE), *product(["end"], END)])
def test_the_power_is_cut(farm, world, undisturbed, tmp_path, where, point):
    """What was not synced is gone, what was renamed in a folder that was not synced has its old
    name again.
    """
    whole, points = undisturbed(1)
    time = passed(points, 0, point) if where == "end" else passing(points, 0, point, 0)
    run = killed_and_resumed(
        farm, world, tmp_path, {"point": point, "time": time, "power": str(tmp_path / "run")}
    )
    assert digest(run) == whole


@pytest.mark.soak
@pytest.mark.parametrize("point", list(dict.fromkeys([*SAVE, *END])))
def test_the_power_is_cut_at_any_passing(farm, world, undisturbed, tmp_path, seed, point):
    whole, points = undisturbed(1, seed)
    fault = {
        "point": point,
        "time": passing(points, 0, point, seed),
        "power": str(tmp_path / "run"),
    }
    assert digest(killed_and_resumed(farm, world, tmp_path, fault, seed=seed)) == whole


@pytest.mark.parametrize(
    "without", [["sync_file"], ["sync_folder"], ["folder_atomic", "write_atomic"]], ids=" and ".join
)
def test_the_matrix_can_fail(farm, world, undisturbed, tmp_path, without):
    """Without a sync, or without sync and rename, a power cut ends what no command can mend, or
    another run comes out.
    """
    run, fault = (
        RunFolder(tmp_path / "run"),
        {
            "point": "pruned",
            "time": 3,
            "power": str(tmp_path / "run"),
        },
    )
    first = farm(*line(world, run.root), out=tmp_path / "said", fault=fault, without=without)
    assert first["faults"] == 1, first["said"]
    answer = farm(*line(world, run.root), out=tmp_path / "said")
    resumed = "resumed at step 6" in answer["said"][0]  # what was saved last before the cut
    assert not resumed or answer["codes"] != [0] or digest(run) != undisturbed(1)[0], answer["said"]
