"""Whole runs for tests: a small model, small data, and the command line in this process or in one
of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import tiny
from winnow import api
from winnow.system.files import read_jsonl
from winnow.system.run_folder import RunFolder

torch.set_num_threads(1)  # the models are tiny: threads only wait for each other
TIMING = ("pairs_per_second", "tokens_per_second", "hardware_share")


def world(root: Path) -> Path:
    """model/, train.jsonl (24 pairs), held.jsonl, other.jsonl, and against.jsonl: pairs that want
    the opposite.
    """
    tiny.folder(root / "model", hidden_size=16, intermediate_size=32)
    tiny.write(root / "train.jsonl", tiny.pairs(24))
    tiny.write(root / "held.jsonl", tiny.pairs(8, seed=1))
    tiny.write(root / "other.jsonl", tiny.pairs(6, seed=2))
    swapped = [
        {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
        for row in tiny.pairs(8, seed=3)
    ]
    tiny.write(root / "against.jsonl", swapped)
    return root


def settings(world: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """What the runs of these tests have in common."""
    base = {
        "model": str(world / "model"),
        "data": [str(world / "train.jsonl")],
        "out": str(out),
        "batch_size": 8,
        "steps": 6,
        "lr": 1e-3,
    }
    return {**base, **changes}


def dpo(world: Path, out: Path, **changes: Any) -> RunFolder:
    return api.dpo(**settings(world, out, **changes))


def sft(world: Path, out: Path, **changes: Any) -> RunFolder:
    return api.sft(**settings(world, out, **changes))


def line(command: str, world: Path, out: Path, **changes: Any) -> list[str]:
    """The same settings as command-line words."""
    words = [command]
    for name, value in settings(world, out, **changes).items():
        if value is None:
            continue
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
            continue
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(one)]
    return words


def winnow(monkeypatch: Any, *words: object) -> int:
    """The command line in this process; its exit code."""
    from winnow.cli import main

    monkeypatch.setattr(sys, "argv", ["winnow", *map(str, words)])
    try:
        main()
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def started(*words: object) -> subprocess.Popen[str]:
    """The command line in a process of its own, computing as this one does."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    return subprocess.Popen(
        [sys.executable, "-m", "winnow", *map(str, words)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def numbers(run: RunFolder) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    return [
        {name: value for name, value in row.items() if name not in TIMING}
        for row in read_jsonl(run.metrics)
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors files but the optimizer's."""
    return {
        name: t
        for file in sorted(folder.glob("*model*.safetensors"))
        for name, t in load_file(file).items()
    }


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below `root` with its time and content: equal trees mean that nothing was
    written.
    """
    return {
        str(p.relative_to(root)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }
