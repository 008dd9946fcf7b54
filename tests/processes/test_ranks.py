"""Several processes are one: the same batches, losses, weights, in float64 to 1e-12; killed and
resumed, by as many or by others.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import runs
import tiny
from farm import Farm
from matrix import cases
from paths import HELPERS
from winnow.system.files import read_json
from winnow.system.run_folder import RunFolder

pytestmark = pytest.mark.process

NEAR = 1e-12
BASE = {
    "batch_size": 8,
    "steps": 6,
    "lr": 1e-3,
    "dtype": "float64",
    "max_tokens": 100,
    "save_every": 2,
    "eval_every": 3,
    "rank_timeout": 60,
}


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    made = Farm(tmp_path_factory.mktemp("cache"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = runs.world(tmp_path_factory.mktemp("world"))
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in tiny.pairs(16, seed=5)
        for side in ("chosen", "rejected")
    ]
    tiny.write(root / "thumbs.jsonl", rows[:20])
    tiny.write(root / "other-thumbs.jsonl", rows[20:])
    return root


def trained(farm, world, out, ranks, command="dpo", **changes):
    """A finished run of so many processes."""
    run, answer = (
        RunFolder(out),
        farm(
            *line(world, out, command, **changes),
            ranks=ranks,
            out=out.with_name(f"{out.name}-said"),
        ),
    )
    assert answer["codes"] == [0] * ranks, answer["said"]
    assert run.finished
    return run


def line(world, out, command="dpo", **changes):
    few = {"kl_samples": 4} if command == "dpo" else {}
    return runs.line(
        command, world, out, **{**BASE, **few, "eval_data": [str(world / "held.jsonl")], **changes}
    )


def same(one, other, near=NEAR):
    """Every metric of every row, and every weight."""
    rows, theirs = runs.numbers(one), runs.numbers(other)
    assert [row["step"] for row in rows] == [row["step"] for row in theirs]
    for row, own in zip(rows, theirs):
        assert row == pytest.approx(own, rel=near, abs=near), (set(row) ^ set(own), row["step"])
    ours, its = runs.weights(one.model), runs.weights(other.model)
    assert ours.keys() == its.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, its[name], rtol=near, atol=near)


KINDS = {
    "sft": ("sft", {}),
    "lora": ("dpo", {"lora": "r=4,alpha=8", "optimizer": "rmsprop", "weight_decay": 0.1}),
    "mixture": ("dpo", {"objective": "dpo:0.8,bco:0.2:beta=0.1,kto:0.5,sft:1"}),
    "aot": ("dpo", {"objective": "aot"}),
    "moving": ("dpo", {"moving_reference": "mix=0.3,every=2"}),
    "tdpo": ("dpo", {"objective": "tdpo", "checkpointing": True}),
    "uneven": (
        "dpo",
        {"batch_size": 3, "steps": 4, "save_best": True, "async_save": True},
    ),  # three groups for two processes: one has less
    "stream": ("dpo", {"stream": 10, "engine": "rows"}),
    "reward": ("reward", {}),
    "reward-lora": ("reward", {"lora": "r=4,alpha=8", "batch_size": 3, "steps": 4}),
}


@pytest.mark.parametrize(
    "kind",
    cases(
        [(kind,) for kind in KINDS],
        lambda kind: kind in {"sft", "lora", "mixture", "uneven", "reward"},
    ),
)
def test_two_processes_are_one(farm, world, tmp_path, seed, kind):
    command, more = KINDS[kind]
    same(
        trained(farm, world, tmp_path / "one", 1, command, seed=seed, **more),
        trained(farm, world, tmp_path / "two", 2, command, seed=seed, **more),
    )


def test_labels_alone(farm, world, tmp_path):
    """kto's baseline and counts of thumbs, with processes that may have none of a kind."""
    more = {
        "data": [str(world / "thumbs.jsonl")],
        "objective": "kto",
        "batch_size": 3,
        "eval_data": [str(world / "other-thumbs.jsonl")],
    }
    same(
        trained(farm, world, tmp_path / "one", 1, **more),
        trained(farm, world, tmp_path / "two", 2, **more),
    )


@pytest.fixture(scope="module")
def four(farm, world, tmp_path_factory):
    """A finished run of four processes."""
    return trained(farm, world, tmp_path_factory.mktemp("four") / "run", 4)


def unfinished(run, folder, step):
    """A copy of a run that was killed after `step` was saved."""
    shutil.copytree(run.root, folder)
    copy = RunFolder(folder)
    for file in (copy.report_json, copy.report_html, copy.manifest):
        file.unlink()
    shutil.rmtree(copy.model)
    for saved in copy.checkpoints.iterdir():
        if int(saved.name.removeprefix("step_")) > step:
            shutil.rmtree(saved)
    return copy


def test_four_processes_and_what_each_of_them_holds(farm, world, four, tmp_path):
    same(trained(farm, world, tmp_path / "one", 1), four)
    newest = four.checkpoints / "step_6"
    parts = [load_file(newest / f"weights.{rank}-of-4.safetensors") for rank in range(4)]
    whole = load_file(four.model / "model.safetensors")
    for name, weight in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), weight), name
        assert max(len(part[name]) for part in parts) == -(-len(weight) // 4)
    assert read_json(newest / "manifest.json")["world"] == 4


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.soak), 2, 4])
def test_resumed_by_as_many_or_by_others(farm, world, four, tmp_path, ranks):
    copy = unfinished(four, tmp_path / "run", 4)
    answer = farm(*line(world, copy.root), ranks=ranks, out=tmp_path / "said")
    assert answer["codes"] == [0] * ranks, answer["said"]
    assert "resumed at step 4" in answer["said"][0]
    same(copy, four)
    if ranks == 4:  # to the bit
        assert runs.numbers(copy) == runs.numbers(four)
        for file in (
            "model/model.safetensors",
            *(
                f"checkpoints/step_6/{kind}.{r}-of-4.safetensors"
                for kind in ("weights", "optimizer")
                for r in range(4)
            ),
        ):
            assert (copy.root / file).read_bytes() == (four.root / file).read_bytes(), file


@pytest.mark.parametrize(("first", "then"), cases([(2, 4), (1, 2)], lambda first, then: first == 1))
def test_resumed_by_more(farm, world, four, tmp_path, first, then):
    begun = trained(farm, world, tmp_path / "begun", first)
    same(begun, four)
    copy = unfinished(begun, tmp_path / "run", 4)
    answer = farm(*line(world, copy.root), ranks=then, out=tmp_path / "said")
    assert answer["codes"] == [0] * then, answer["said"]
    assert "resumed at step 4" in answer["said"][0]
    same(copy, four)


def test_a_part_of_a_checkpoint_that_is_damaged_is_known_to_all(farm, world, four, tmp_path):
    copy = unfinished(four, tmp_path / "run", 6)
    part = copy.checkpoints / "step_6" / "optimizer.2-of-4.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    answer = farm(*line(world, copy.root), ranks=2, out=tmp_path / "said")
    assert answer["codes"] == [0, 0], answer["said"]
    assert "passed over: " in answer["said"][0]
    assert "optimizer.2-of-4.safetensors: damaged" in " ".join(answer["said"][0].split())
    assert "resumed at step 4" in answer["said"][0]
    same(copy, four)


def test_the_reference_is_computed_once_by_all_and_read_by_one(farm, world, tmp_path):
    """Each process computes its part; what is stored is what one process stores."""
    held = {"env": {"WINNOW_CACHE": str(tmp_path / "cache")}}
    for ranks in (2, 1):
        answer = farm(
            *line(world, tmp_path / f"run{ranks}", dtype="float32"),
            ranks=ranks,
            out=tmp_path / "said",
            **held,
        )
        assert answer["codes"] == [0] * ranks, answer["said"]
        assert ("log-probs read from" in answer["said"][0]) == (ranks == 1)
    assert answer["said"][0].count("kept for other runs") == 0


def test_half_precision_in_shards():
    """Masters in float32 and gradients summed in it, an adapter in float32 beside a base in
    bfloat16; what is hashed is what one process hashes.
    """
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        str(HELPERS / "half.py"),
    ]
    done = subprocess.run(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    told = next(
        json.loads(line.removeprefix("told "))
        for line in done.stdout.splitlines()
        if line.startswith("told ")
    )
    for found in told:  # by each process
        for kind in ("full", "adapter"):
            assert found[kind]["hash"], kind
            assert found[kind]["dtypes"], kind
            assert found[kind]["masters"] == ["torch.float32"]
            assert found[kind]["computes"] == "torch.bfloat16"
            assert max(found[kind]["near"].values()) < 1e-4, found
        assert found["adapter"]["moved"] < 1e-6, found  # of a first step of 0.01


def test_what_the_leader_finds_wrong_is_said_once(farm, world, tmp_path):
    answer = farm(
        *line(world, tmp_path / "run", data=[str(world / "none.jsonl")]),
        ranks=2,
        out=tmp_path / "said",
    )
    assert answer["codes"] == [2, 2]
    assert "none.jsonl" in answer["said"][0]
    assert answer["said"][1] == ""
    assert not (tmp_path / "run").exists()


def test_a_job_whose_others_never_come_is_told(farm, world, tmp_path):
    alone = {"WORLD_SIZE": "2", "RANK": "0"}
    # nobody said where to meet
    answer = farm(*line(world, tmp_path / "run"), out=tmp_path / "said", env=alone)
    assert answer["codes"] == [1]
    assert "the other 1 processes of this job were not found" in answer["said"][0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    answer = farm(
        *line(world, tmp_path / "run", rank_timeout=3), out=tmp_path / "said", env=alone | meet
    )
    assert answer["codes"] == [1]
    assert "were not found" in answer["said"][0]
    assert "Traceback" not in answer["said"][0]
    assert not (tmp_path / "run").exists()


def test_what_one_process_does_is_refused_to_several(farm, world, tmp_path):
    answer = farm(
        "eval",
        "--model",
        world / "model",
        "--data",
        world / "held.jsonl",
        ranks=2,
        out=tmp_path / "said",
    )
    assert answer["codes"] == [2, 2]
    assert "winnow eval runs in one process, and this job has 2" in answer["said"][0]
    answer = farm(*line(world, tmp_path / "run", compile=True), ranks=2, out=tmp_path / "said")
    assert answer["codes"] == [2, 2]
    assert "compile: with several processes" in answer["said"][0]


def test_numbers_that_are_not_finite_stop_all_with_one_message(farm, world, tmp_path):
    answer = farm(
        *line(
            world,
            tmp_path / "run",
            lr=1e30,
            clip="none",
            dtype="float32",
            eval_data=[],
            kl_samples=0,
        ),
        ranks=2,
        out=tmp_path / "said",
    )
    assert answer["codes"] == [1, 1], answer["said"]
    assert sum("not finite" in said for said in answer["said"]) == 1
    assert not any("Traceback" in said for said in answer["said"])


@pytest.mark.parametrize("dead", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_when_one_process_dies_all_leave_and_a_new_job_goes_on(farm, world, four, tmp_path, dead):
    copy = unfinished(four, tmp_path / "run", 2)
    answer = farm(
        *line(world, copy.root),
        ranks=2,
        out=tmp_path / "said",
        fault={"point": "step 5", "time": 1, "rank": dead},
        limit=60,
    )
    assert (answer["faults"], answer["codes"][dead], answer["codes"][1 - dead]) == (
        1,
        -signal.SIGKILL,
        1,
    )
    assert answer["order"][0] == dead
    said = answer["said"][1 - dead]
    assert "Traceback" not in said
    assert "another process of this job is gone" in said
    answer = farm(*line(world, copy.root), ranks=2, out=tmp_path / "said")
    assert answer["codes"] == [0, 0]
    assert "resumed at step 4" in answer["said"][0]
    same(copy, four)


def test_a_process_that_hangs_ends_the_job_in_time_and_is_named(farm, world, tmp_path):
    fault = {"point": "step 3", "time": 1, "rank": 1, "hang": 25}
    answer = farm(
        *line(world, tmp_path / "run", rank_timeout=6),
        ranks=2,
        out=tmp_path / "said",
        fault=fault,
        limit=50,
    )
    assert answer["faults"] == 1
    assert answer["codes"][0] == 1
    assert answer["order"] == [0, 1]
    assert "gives no sign of life (last seen: rank 1, after step 3)" in answer["said"][0]
    assert "Traceback" not in answer["said"][0]


def test_a_process_that_cannot_write_its_part_leaves_the_checkpoint_before(farm, world, tmp_path):
    """Its file system is full, or rather: what it may write is little."""
    answer = farm(
        *line(world, tmp_path / "run", steps=4),
        ranks=2,
        out=tmp_path / "said",
        fault={"point": "weights written", "time": 2, "rank": 1, "full": True},
    )
    assert answer["codes"] == [1, 1], answer["said"]
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_2"]
    assert "No space left" in answer["said"][1] + answer["said"][0]
