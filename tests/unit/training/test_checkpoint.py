"""Checkpoints: whole or absent, verified, pruned; and an optimizer that comes back exactly as it
was.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import tiny
from winnow.data.order import Cursor
from winnow.errors import RunError
from winnow.system.files import sha256_file, tidy, write_sealed
from winnow.training import checkpoint
from winnow.training.checkpoint import Progress
from winnow.training.optimizer import Optimizer

HEX = 4 * "0123abcd"


def make(folder, step=3, **changes):
    progress = Progress(
        **{
            "step": step,
            "cursor": Cursor(2, 5),
            "tokens": 77,
            "best_step": 1,
            "best_loss": 0.1 + 0.2,
            **changes,
        }
    )
    weights = {
        "a": torch.randn(3, 2, generator=torch.Generator().manual_seed(step)),
        "b": torch.tensor([1e-45, -0.0]),
    }
    return (
        checkpoint.save(
            folder, progress, weights, {"step|a": torch.tensor(3.0)}, {"data": "x"}, {}
        ),
        progress,
        weights,
    )


def test_what_was_saved_comes_back_to_the_bit(tmp_path):
    path, progress, weights = make(tmp_path)
    found = checkpoint.load(path)
    assert found.progress == progress
    assert found.identity == {"data": "x"}
    assert all(
        torch.equal(found.weights[name].view(torch.int32), weights[name].view(torch.int32))
        for name in weights
    )
    assert found.optimizer["step|a"].shape == ()


def test_every_byte_of_every_file_counts(tmp_path):
    path, _, _ = make(tmp_path)
    for file in ("weights.safetensors", "optimizer.safetensors", "progress.json"):
        kept = (path / file).read_bytes()
        for at in (0, len(kept) // 2, len(kept) - 1):
            data = bytearray(kept)
            data[at] ^= 1
            (path / file).write_bytes(data)
            with pytest.raises(RunError, match=f"{file}: damaged"):
                checkpoint.load(path)
        (path / file).unlink()
        with pytest.raises(RunError, match=f"{file}: missing"):
            checkpoint.load(path)
        (path / file).write_bytes(kept)
    checkpoint.load(path)
    manifest = json.loads((path / "manifest.json").read_text())
    write_sealed(
        path / "manifest.json",
        {**{name: value for name, value in manifest.items() if name != "sealed"}, "schema": 3},
    )
    with pytest.raises(RunError, match="another version"):
        checkpoint.load(path)


@pytest.mark.parametrize("sealed", [True, False])
def test_every_byte_of_a_manifest_counts(tmp_path, sealed):
    """Of one without a seal, from the first version, what it is there for: files, sizes, hashes;
    its identity is compared later.
    """
    path, _, _ = make(tmp_path)
    manifest = path / "manifest.json"
    if not sealed:
        head = json.loads(manifest.read_text())
        manifest.write_text(
            json.dumps(
                {"schema": 1, "torch": "2.0", "identity": head["identity"], "files": head["files"]}
            )
        )
    whole, refused = manifest.read_bytes(), 0
    for at in range(len(whole)):
        manifest.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            assert checkpoint.load(path).progress.step == 3
        except RunError:
            refused += 1
    assert refused == len(whole) if sealed else refused > 0.9 * len(whole)


def test_the_newest_intact_one_is_taken_by_number(tmp_path):
    for step in (2, 9, 10):
        make(tmp_path, step)
    (tmp_path / "step_11.tmp-0123").mkdir()  # a writer that died
    found, complaints = checkpoint.latest(tmp_path)
    assert (found.progress.step, complaints) == (10, [])
    (tmp_path / "step_10" / "manifest.json").unlink()
    found, complaints = checkpoint.latest(tmp_path)
    assert found.progress.step == 9
    assert len(complaints) == 1
    assert "step_10" in complaints[0]
    assert checkpoint.latest(tmp_path / "none") == (None, [])


def test_an_interrupted_save_leaves_nothing_behind(tmp_path, monkeypatch):
    make(tmp_path, 1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        make(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]


def test_leftovers_of_writers_that_died_are_tidied_away(tmp_path):
    make(tmp_path, 1)
    for name in (f"step_4.tmp-{HEX}", f"step_3.old-{HEX}", "my.tmp-notes", "model.old-20251122"):
        (tmp_path / name).mkdir()
    (tmp_path / f".config.yaml.tmp-{HEX}").touch()
    tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.old-20251122",
        "my.tmp-notes",
        "step_1",
    ]


def test_a_checkpoint_of_the_first_schema_is_read(tmp_path):
    """It had no note of evaluations: they came before the save."""
    path, progress, _ = make(tmp_path)
    kept = json.loads((path / "progress.json").read_text())
    del kept["evaluated"], kept["moved"]
    (path / "progress.json").write_text(json.dumps(kept))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["progress.json"] = {
        "bytes": (path / "progress.json").stat().st_size,
        "sha256": sha256_file(path / "progress.json"),
    }
    (path / "manifest.json").write_text(
        json.dumps(
            {
                "schema": 1,
                "torch": "2.11",
                "identity": manifest["identity"],
                "files": manifest["files"],
            }
        )
    )
    assert checkpoint.load(path).progress == replace(progress, evaluated=3, moved=True)


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 7):
        make(tmp_path, step)
    checkpoint.prune(tmp_path, keep=2, best=2, current=6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_2", "step_5", "step_6"]
    checkpoint.prune(tmp_path, keep=1, best=None, current=6)
    assert [p.name for p in tmp_path.iterdir()] == ["step_6"]


def test_pruning_keeps_the_one_that_was_written_now(tmp_path):
    """After a later one did not verify, and its steps are done again."""
    for step in (2, 4, 3):
        make(tmp_path, step)
    checkpoint.prune(tmp_path, keep=1, best=None, current=3)
    assert [p.name for p in tmp_path.iterdir()] == ["step_3"]


def feed(optimizer, seed, dtype):
    for _, p, _ in optimizer.masters:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(p.dtype)
        if (
            p.dtype == torch.bfloat16
        ):  # the hooks hand a half-precision gradient on as it appears; do the same
            master = next(m for _, q, m in optimizer.masters if q is p)
            master.grad, p.grad = p.grad.float(), None
    optimizer.clip_gradients()
    optimizer.step(1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_an_optimizer_comes_back_as_it_was(tmp_path, kind, dtype):
    """Three steps, a checkpoint, two more = the checkpoint put into a fresh model, and two more."""
    one = Optimizer(tiny.model("llama", dtype=dtype), kind=kind, weight_decay=0.1, clip=1.0)
    for seed in range(3):
        feed(one, seed, dtype)
    path = checkpoint.save(tmp_path, Progress(3), one.weights(), one.state(), {}, {})
    model = tiny.model("llama", dtype=dtype, seed=5)
    two = Optimizer(model, kind=kind, weight_decay=0.1, clip=1.0)
    found = checkpoint.load(path)
    two.load_weights(found.weights)
    two.load_state(found.optimizer)
    for seed in (3, 4):
        feed(one, seed, dtype)
        feed(two, seed, dtype)
    for name, tensor in one.weights().items():
        assert tensor.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
        assert torch.equal(tensor, two.weights()[name]), name
        assert torch.equal(model.get_parameter(name).detach(), tensor.to(dtype)), name
    assert all(torch.equal(tensor, two.state()[name]) for name, tensor in one.state().items())


def test_a_state_of_another_model_is_refused():
    one = Optimizer(tiny.model("llama"), kind="adamw", weight_decay=0.0, clip=None)
    feed(one, 0, torch.float32)
    other = Optimizer(tiny.model("gpt2"), kind="adamw", weight_decay=0.0, clip=None)
    with pytest.raises(RunError, match="of another model"):
        other.load_weights(one.weights())
    with pytest.raises(RunError, match="of another model"):
        other.load_state(one.state())
