"""What being safe costs: saves while training goes on, a start from a checkpoint beside a fresh
one, two processes beside one.

    python bench/reliability.py [saving] [starting] [processes] --out runs/reliability

Each figure is a ratio within one run, alternating, three repetitions. Prints a line of markdown per
figure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from winnow.config.model_spec import ModelSpec

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

import torch

import tiny
from winnow.data.packing import pack
from winnow.data.render import Renderer
from winnow.data.sources import load
from winnow.engine.fast import SEGMENTS
from winnow.engine.micro_batches import Data
from winnow.models import loading
from winnow.models.device import keep_memory
from winnow.objectives.objective import DEMONSTRATION
from winnow.training.checkpoint import Progress, Saver
from winnow.training.optimizer import Optimizer
from winnow.training.step import take_step

SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
TIMES, RUN = 3, 30  # repetitions; steps of a run whose speed is measured
# steps to a save; saves of each kind; steps before and after it, which tell how long one takes
STEPS, SAVES, AROUND = (
    100,
    7,
    10,
)


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("what", nargs="*", default=["saving", "starting", "processes"])
    asked.add_argument("--out", type=Path, default=Path("runs/reliability"))
    told = asked.parse_args()
    shutil.rmtree(told.out, ignore_errors=True)
    told.out.mkdir(parents=True)
    torch.set_num_threads(os.cpu_count() or 1)
    tiny.folder(told.out / "model", **SHAPE, max_position_embeddings=512)
    tiny.write(told.out / "pairs.jsonl", rows(96))
    for name in told.what:
        {"saving": saving, "starting": starting, "processes": processes}[name](told.out)


def rows(count: int) -> list[dict[str, str]]:
    """Pairs of some fifty tokens a side."""
    chance, words = random.Random(0), [row["chosen"] for row in tiny.pairs(40)]
    some = lambda: "".join(chance.choices(words, k=3))  # noqa: E731
    return [
        {"prompt": f"{i}: {some()}", "chosen": some(), "rejected": some()} for i in range(count)
    ]


def saving(out: Path) -> None:
    """What one save adds to a hundred steps: the seconds by which it, and each step until it is on
    the disk, are longer than the steps around it.

    A hundred steps with a save against a hundred without would need a quieter machine: there the
    noise of a hundred steps is in the difference, here that of the few steps which the save
    touches.
    """
    keep_memory()
    loaded = loading.load(ModelSpec(str(out / "model"), device="cpu"), train=True)
    optimizer = Optimizer(loaded.model, kind="adamw", weight_decay=0.0, clip=1.0)
    renderer = Renderer(loaded.tokenizer)
    groups = [renderer.render(group) for group in load(str(out / "pairs.jsonl")).groups[:8]]
    data = Data(groups, [], None)
    parts = [i for part in pack(groups, 4096) for i in part]
    savers = {
        name: Saver(out / name, {}, keep=1, keep_best=False, aside=name == "aside")
        for name in ("waiting", "aside")
    }

    def step() -> float:
        began = time.perf_counter()
        micro_batches = data.micro_batches(parts, 4096)
        take_step(
            loaded.model,
            micro_batches,
            objective=DEMONSTRATION,
            engine=SEGMENTS,
            optimizer=optimizer,
            lr=1e-6,
            before={},
            live=None,
        )
        return time.perf_counter() - began

    share: dict[str, list[float]] = {name: [] for name in savers}
    usual = [step() for _ in range(AROUND)][1:]
    for number in range(1, SAVES + 1):
        for name, saver in savers.items():
            began = time.perf_counter()
            saver.save(Progress(number), optimizer.weights(), optimizer.state(), {})
            took, touched = time.perf_counter() - began, []
            while saver.pending is not None and not saver.pending.done():
                touched.append(step())
            saver.wait()
            after = [step() for _ in range(AROUND)]
            each = statistics.median([*usual, *after])
            share[name].append((took + sum(touched) - len(touched) * each) / (STEPS * each))
            usual = after
            words = (
                f"  {name}: {took:.2f} s, then {len(touched)} steps of"
                f" {statistics.mean(touched or [0]):.2f} s, usual {each:.2f} s:"
                f" {share[name][-1]:+.2%}"
            )
            print(words, file=sys.stderr, flush=True)
    size = sum(file.stat().st_size for file in (out / "aside").rglob("*.safetensors")) / 2**20
    for name, found in share.items():
        what = (
            f"a save of {size:.0f} MiB in {STEPS} steps of {statistics.median(usual):.2f} s, {name}"
        )
        print(
            f"| {what} | {statistics.median(found):+.1%} |"
            f" {', '.join(f'{one:+.1%}' for one in found)} |",
            flush=True,
        )


def command(recipe: str, out: Path, run: Path, steps: int) -> list[str]:
    files = ["--model", out / "model", "--data", out / "pairs.jsonl", "--out", run]
    return [
        str(word)
        for word in (
            recipe,
            *files,
            "--steps",
            steps,
            "--batch-size",
            16,
            "--save-every",
            3,
            "--lr",
            1e-5,
        )
    ]


def starting(out: Path) -> None:
    """Seconds from the command to the first step's line, of a fresh run and of the same run gone on
    with. sft has no reference to compute, so a fresh start has the least to do there.
    """
    for recipe in ("sft", "dpo"):
        found: dict[str, list[float]] = {"fresh": [], "resumed": []}
        for number in range(TIMES):
            run, env = (
                out / f"{recipe}-{number}",
                {
                    **os.environ,
                    "WINNOW_CACHE": str(out / f"cache-{number}"),
                },
            )
            for kind in found:
                seconds, process = first_step(
                    run, command(recipe, out, run, 1000), env, 1 if kind == "fresh" else 4
                )
                found[kind].append(seconds)
                wait(process, run / "checkpoints" / "step_3")
                process.kill()
                process.wait()
                for late in run.glob("checkpoints/step_[!3]*"):
                    shutil.rmtree(late)
            print(
                f"  {recipe}: fresh {found['fresh'][-1]:.1f} s, resumed"
                f" {found['resumed'][-1]:.1f} s",
                file=sys.stderr,
                flush=True,
            )
        ratios = [b / a for a, b in zip(found["fresh"], found["resumed"])]
        each = ", ".join(f"{r:.2f}" for r in ratios)
        print(
            f"| {recipe}: command to first step, resumed over fresh"
            f" ({statistics.median(found['fresh']):.0f} s) | {statistics.median(ratios):.2f} |"
            f" {each} |",
            flush=True,
        )


def first_step(
    run: Path, words: list[str], env: dict[str, str], line: int
) -> tuple[float, subprocess.Popen[bytes]]:
    """Seconds until that line of the metrics is there. A run that goes on writes the file anew
    first.
    """
    before, began = seen(run)[0], time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "winnow", *words],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while seen(run)[0] == before or seen(run)[1] < line:
        assert process.poll() is None, "the run ended early"
        time.sleep(0.005)
    return time.perf_counter() - began, process


def seen(run: Path) -> tuple[int, int]:
    """The metrics file's number on the disk, and its lines."""
    file = run / "metrics.jsonl"
    return (file.stat().st_ino, file.read_text().count("\n")) if file.exists() else (0, 0)


def wait(process: subprocess.Popen[bytes], path: Path) -> None:
    while not path.exists():
        assert process.poll() is None, "the run ended early"
        time.sleep(0.005)


def processes(out: Path) -> None:
    """Tokens a second of one process with all cores, and of as many processes as there are cores
    with one each.
    """
    cores = os.cpu_count() or 1
    found: dict[int, list[float]] = {1: [], cores: []}
    for _ in range(TIMES):
        for count in found:
            run = out / f"{count} processes"
            shutil.rmtree(run, ignore_errors=True)
            env = {
                **os.environ,
                "OMP_NUM_THREADS": str(cores // count),
                "WINNOW_CACHE": str(out / "cache"),
            }
            torchrun = (
                ["torch.distributed.run", "--nproc-per-node", str(count), "-m"] if count > 1 else []
            )
            words = [sys.executable, "-m", *torchrun, "winnow", *command("dpo", out, run, RUN)]
            subprocess.run(
                words, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            rates = [
                row["tokens_per_second"]
                for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
                if "loss" in row
            ]
            found[count].append(statistics.median(rates))
            print(
                f"  {count} processes: {found[count][-1]:,.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )
    ratios = [b / a for a, b in zip(found[1], found[cores])]
    each = ", ".join(f"{r:.2f}" for r in ratios)
    print(
        f"| tokens a second, {cores} processes (gloo) over one with {cores} threads |"
        f" {statistics.median(ratios):.2f} | {each} |"
    )


if __name__ == "__main__":
    main()
