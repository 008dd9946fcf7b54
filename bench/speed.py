"""How fast, beside TRL's DPOTrainer: same random-weight model, same token rows, alternating in one
run, float32 on the CPU.

`make bench` runs it in an environment with the extra `bench`; `--only NAME` one workload, `--out
FILE` also writes the figures. Each side is a process of its own and does one optimizer step when it
is told to; the others sleep. TRL's best setting is the fastest of batch 1, 4 and 8 with the
reference computed before and no checkpointing. bench/README.md says more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from safetensors import safe_open
from workloads import SHAPES, WORKLOADS, Workload, write_model

HERE = Path(__file__).parent
ROUNDS = 3


class Side:
    """A process that takes orders."""

    def __init__(self, name: str, workload: Workload, model: Path, folder: Path) -> None:
        self.name = name
        self.gradients = folder / f"{name}.safetensors"
        self.log = (folder / f"{name}.log").open("w")
        command = [
            sys.executable,
            str(HERE / "side.py"),
            name,
            workload.name,
            str(model),
            str(self.gradients),
        ]
        # as winnow's command line sets it, and to everybody's good on a busy machine
        env = {
            **os.environ,
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=env,
        )
        self.ready = self.answer()
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def order(self, what: str) -> dict[str, Any]:
        """Send an order, wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.flush()
            raise SystemExit(f"{self.name} died:\n{Path(self.log.name).read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def step(self) -> dict[str, Any]:
        """One optimizer step."""
        found = self.order("step")
        self.seconds.append(found["seconds"])
        self.losses.append(found["loss"])
        return found


def run(workload: Workload, model: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """All figures of one workload."""
    sizes = [size for size in (1, 4, 8) if workload.pairs % size == 0]
    ours = Side("winnow", workload, model, folder)
    theirs = [Side(f"trl {size}", workload, model, folder) for size in sizes] + [
        Side("trl default", workload, model, folder)
    ]
    sides = [ours, *theirs]
    rates = [ours.order("rate")["rate"]]
    for side in sides:  # warm-up, and the first step's numbers
        first = side.step()
        if side is ours:
            flops, tokens = first["flops"], first["tokens"]
        print(
            f"  {workload.name}: {side.name}: first step {first['seconds']:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    for side in sides:
        side.seconds.clear()
    for side in theirs[:-1]:  # measured once each before the fastest is chosen
        side.step()
    best = min(theirs[:-1], key=lambda side: side.seconds[0])
    passes = []
    for _ in range(rounds):
        for side in (ours, best, ours, theirs[-1]):  # ours twice: its steps are short
            side.step()
        passes.append(ours.order("reference")["seconds"])
        rates.append(ours.order("rate")["rate"])
    # whoever was quickest once is given that
    best = min(theirs[:-1], key=lambda side: min(side.seconds))
    peaks = {side.name: side.order("quit") for side in sides}
    seconds = {side.name: median(side.seconds) for side in sides}
    rate = max(rates)
    return {
        "workload": workload.name,
        "pairs": workload.pairs,
        "distinct_tokens": tokens,
        "seconds": {side.name: side.seconds for side in sides},
        "pairs_per_second": {name: workload.pairs / s for name, s in seconds.items()},
        "tokens_per_second": tokens / seconds["winnow"],
        "best": best.name,
        "times_best": seconds[best.name] / seconds["winnow"],
        "times_default": seconds["trl default"] / seconds["winnow"],
        "matrix_rate": rate,
        "share": flops / min(ours.seconds) / rate,
        "share_median": flops / seconds["winnow"] / median(rates),
        "reference_times": seconds["winnow"] / median(passes),
        "peak": {name: value["peak"] for name, value in peaks.items()},
        "peak_ratio": peaks["winnow"]["peak"] / peaks[best.name]["peak"],
        "peak_rss": {name: value["peak_rss"] for name, value in peaks.items()},
        "engine": ours.ready["engine"],
        # before the first update any loss is ln 2
        "loss_difference": max(abs(a - b) for a, b in zip(ours.losses[1:], best.losses[1:])),
        "gradient_difference": difference(ours.gradients, best.gradients),
    }


def difference(one: Path, other: Path) -> float:
    """Relative norm of the difference of all gradients."""
    wrong = whole = 0.0
    with safe_open(one, "pt") as mine, safe_open(other, "pt") as theirs:
        for name in mine.keys():  # noqa: SIM118 (no dict)
            a, b = mine.get_tensor(name).double(), theirs.get_tensor(name).double()
            wrong += float((a - b).square().sum())
            whole += float(b.square().sum())
    return float((wrong / whole) ** 0.5)


def machine() -> str:
    """What it ran on, in words."""
    import torch
    import transformers
    import trl

    info = Path("/proc/cpuinfo").read_text()
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in info.splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    wide = "AVX-512" if "avx512f" in info else "AVX2" if "avx2" in info else "no AVX2"
    return (
        f"{cpu}, {torch.get_num_threads()} threads, {wide}; torch {torch.__version__}, transformers"
        f" {transformers.__version__}, TRL {trl.__version__}; float32"
    )


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        (
            "| workload | Winnow pairs/s | TRL best | TRL default | x best | x default | share of"
            " GEMM rate | tokens/s | reference pass | peak memory | loss, gradients differ by |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for f in found:
        speed = f["pairs_per_second"]
        lines.append(
            f"| {f['workload']} | {speed['winnow']:.2f} | {speed[f['best']]:.3f}"
            f" ({f['best'].removeprefix('trl ')}) | {speed['trl default']:.3f} |"
            f" **{f['times_best']:.1f}** | **{f['times_default']:.1f}** | {f['share']:.0%} |"
            f" {f['tokens_per_second']:,.0f} | {f['reference_times']:.1f}x |"
            f" {f['peak']['winnow'] / 2**20:,.0f} MiB ({f['peak_ratio']:.2f} of TRL's) |"
            f" {f['loss_difference']:.0e}, {f['gradient_difference']:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=WORKLOADS, action="append", help="one workload; may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds (default 3)")
    parser.add_argument(
        "--out",
        type=Path,
        help="write the figures as JSON; those of workloads not run now are kept",
    )
    asked = parser.parse_args()
    print(machine())
    kept = (
        {f["workload"]: f for f in json.loads(asked.out.read_text())["figures"]}
        if asked.out and asked.out.exists()
        else {}
    )
    with tempfile.TemporaryDirectory() as temporary:
        for shape in SHAPES:
            write_model(shape, Path(temporary) / shape)
        for name in asked.only or WORKLOADS:
            folder = Path(temporary) / str(list(WORKLOADS).index(name))
            folder.mkdir()
            kept[name] = run(
                WORKLOADS[name], Path(temporary) / WORKLOADS[name].model, folder, asked.rounds
            )
            print(table([kept[name]]).splitlines()[-1], flush=True)
            if asked.out:
                figures = [kept[other] for other in WORKLOADS if other in kept]
                asked.out.write_text(
                    json.dumps({"machine": machine(), "figures": figures}, indent=1) + "\n"
                )
    print(table([kept[name] for name in WORKLOADS if name in kept]))


if __name__ == "__main__":
    main()
