"""Nothing lost: real processes killed with real signals end with the bytes of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import tiny
from winnow.files import RunFolder, read_jsonl, sha256_file

TIMING = ("pairs_per_second", "tokens_per_second")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny.folder(root / "model")
    tiny.write(root / "train.jsonl", tiny.pairs(20))
    tiny.write(root / "held.jsonl", tiny.pairs(6, seed=1))
    return root


def command(world, recipe, out, *more):
    base = [sys.executable, "-m", "winnow", recipe, "--model", str(world / "model"), "--data", str(world / "train.jsonl"), "--out", str(out)]
    return [
        *base,
        "--eval-data",
        str(world / "held.jsonl"),
        "--batch-size",
        "6",
        "--epochs",
        "3",
        "--lr",
        "1e-3",
        "--save-every",
        "3",
        "--eval-every",
        "4",
        *more,
    ]


def run(words):
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)


def kill_after(words, out, rows):
    """Start it, wait until `rows` metric rows are written, SIGKILL it."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics = RunFolder(out).metrics
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < rows:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not RunFolder(out).finished


def fingerprint(out):
    """Weights, optimizer and progress by hash; metrics but for timing."""
    folder = RunFolder(out)
    last = max(folder.checkpoints.glob("step_*"), key=lambda p: int(p.name.removeprefix("step_")))
    files = [*folder.model.glob("*.safetensors"), *last.glob("*.safetensors"), last / "progress.json"]
    rows = [{name: value for name, value in row.items() if name not in TIMING} for row in read_jsonl(folder.metrics)]
    return {str(p.relative_to(folder.root)): sha256_file(p) for p in files}, rows


@pytest.mark.parametrize("case", [("dpo",), ("sft",), ("dpo", "--lora", "r=4")], ids=["dpo", "sft", "lora"])
def test_a_killed_run_ends_as_if_nothing_had_happened(world, tmp_path, case):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = command(world, case[0], killed, *case[1:])
    kill_after(words, killed, rows=7)  # past the first save, in the middle of an epoch
    again = run(words)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stdout
    undisturbed = run(command(world, case[0], whole, *case[1:]))
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert "resumed" not in undisturbed.stdout
    assert fingerprint(killed) == fingerprint(whole)


@pytest.fixture
def finished(world, tmp_path):
    out = tmp_path / "run"
    words = command(world, "dpo", out)
    assert run(words).returncode == 0
    return out, words


def test_what_a_begun_run_refuses(world, finished):
    """Finished: says so. Other settings, other data: named. Damaged checkpoints: passed over aloud, or refused."""
    out, words = finished
    folder, before = RunFolder(out), fingerprint(out)
    again = run(words)
    assert (again.returncode, "already finished" in again.stdout) == (0, True)
    other = run([*words, "--beta", "0.2"])
    assert other.returncode == 2
    assert "beta: None -> 0.2" in other.stderr
    assert "Traceback" not in other.stderr

    folder.report_json.unlink()  # not finished any more
    newest = folder.checkpoints / "step_12"
    data = bytearray((newest / "weights.safetensors").read_bytes())
    data[-5] ^= 255
    (newest / "weights.safetensors").write_bytes(data)
    back = run(words)
    assert back.returncode == 0, back.stderr
    assert "step_12/weights.safetensors: damaged" in back.stdout.replace("\n", "")
    assert "resumed at step 9" in back.stdout
    assert fingerprint(out) == before

    folder.report_json.unlink()
    for weights in folder.checkpoints.glob("*/weights.safetensors"):
        weights.unlink()
    lost = run(words)
    assert lost.returncode == 2
    assert "no checkpoint is intact" in lost.stderr

    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    changed = tiny.write(out.parent / "train.jsonl", [*rows[:-1], {**rows[-1], "chosen": " other"}])
    try:
        saved = (world / "train.jsonl").read_bytes()
        (world / "train.jsonl").write_bytes(changed.read_bytes())
        stale = run(words)
    finally:
        (world / "train.jsonl").write_bytes(saved)
    assert stale.returncode == 2
    assert "begun with other data" in stale.stderr


def test_one_writer_per_folder(world, finished):
    out, words = finished
    with RunFolder(out).lock():
        second = run(words)
    assert second.returncode == 2
    assert f'"pid": {os.getpid()}' in second.stderr
