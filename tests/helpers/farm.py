"""Whole commands in processes of their own, one or several to a job, quickly: a process that has
imported everything forks for each.

Run as a program it reads jobs from stdin, a JSON object a line, and answers each with a line. The
first job it does itself, so that whatever is loaded on the way is there for all others. A job:

words: of the command line. ranks: how many processes (1). out: where what they say goes, one file
per rank. fault: {"point": of a save or step, "time": its how-manieth passing (from 1), "rank",
"signal"}: a process sends itself that signal there (or
       hangs for so many seconds, or finds the disk full), and leaves a mark, so that a test knows
       that the fault came to pass. "power": the run folder in which the power is cut before that.
without: functions of winnow.system.files that do nothing in this job, or "folder_atomic" and
"write_atomic": nothing but write. moment: {"after": seconds, "rank"}: that process is killed then,
wherever it is. points: whether the answer lists the points that were passed. limit: seconds after
which everybody is killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from power import Power

TESTS = Path(__file__).parent


class Farm:
    """The forking process, from a test's side."""

    def __init__(self, cache: Path, *warm: object) -> None:
        """cache: as $WINNOW_CACHE; warm: words of a command to begin with."""
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "WINNOW_CACHE": str(cache),
            "TOKENIZERS_PARALLELISM": "false",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "farm.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        assert self("--version" if not warm else warm[0], *warm[1:], out=cache)["codes"] == [0]

    def __call__(self, *words: object, out: Path, **job: Any) -> dict[str, Any]:
        """The job's answer: `codes` (exit codes by rank, negative for a signal), `said` (by rank),
        `seconds`, `faults`, `points`.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(
            json.dumps({"words": [str(word) for word in words], "out": str(out), **job}) + "\n"
        )
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        self.process.communicate()


def serve() -> None:
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoModelForCausalLM, GenerationConfig  # noqa: F401

    import winnow.cli
    import winnow.system.distributed
    import winnow.training.dpo
    import winnow.training.sft  # noqa: F401

    shorten(setattr)  # as in the tests' own process
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    for number, line in enumerate(sys.stdin):
        job = json.loads(line)
        answer = run(job) if number else {"codes": [command(job["words"])]}
        print(json.dumps(answer), file=answers, flush=True)


def command(words: list[str]) -> int:
    """The command line, here; its exit code."""
    from winnow.cli import main

    sys.argv = ["winnow", *words]
    try:
        main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def run(job: dict[str, Any]) -> dict[str, Any]:
    out, count, began = Path(job["out"]), job.get("ranks", 1), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for mark in out.glob("fault-*"):
        mark.unlink()
    children = {start(job, out, rank, count, port): rank for rank in range(count)}
    codes: dict[int, int] = {}
    order = []
    moment = job.get("moment")
    while len(codes) < count:
        if moment and time.monotonic() - began > moment["after"]:
            for child, rank in children.items():
                if rank == moment["rank"] and rank not in codes:
                    os.kill(child, signal.SIGKILL)
            moment = None
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in children:
            codes[children[pid]] = os.waitstatus_to_exitcode(status)
            order.append(children[pid])
        elif time.monotonic() - began > job.get("limit", 120):
            for other, rank in children.items():
                if rank not in codes:
                    os.kill(other, signal.SIGKILL)
        else:
            time.sleep(0.002)
    points = (
        [json.loads(line) for line in (out / "points").read_text().splitlines()]
        if (out / "points").exists()
        else []
    )
    (out / "points").unlink(missing_ok=True)
    return {
        "codes": [codes[rank] for rank in range(count)],
        "order": order,
        "said": [(out / f"rank-{rank}").read_text(errors="replace") for rank in range(count)],
        "seconds": time.monotonic() - began,
        "faults": len(list(out.glob("fault-*"))),
        "points": points,
    }


def start(job: dict[str, Any], out: Path, rank: int, count: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        file = os.open(out / f"rank-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if count > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        os.environ |= job.get("env", {})
        prepare(job, out, rank)
        code = command(job["words"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def prepare(job: dict[str, Any], out: Path, rank: int) -> None:
    """Points of saves and steps are listed, and at one of them the fault comes to pass."""
    from winnow.system import files

    fault, seen = job.get("fault"), dict[str, int]()
    power = Power(Path(fault["power"]), out) if fault and fault.get("power") else None
    for name in job.get("without", ()):
        disable(name)

    def reached(point: str) -> None:
        seen[point] = seen.get(point, 0) + 1
        if job.get("points"):
            with (out / "points").open("a") as file:
                file.write(json.dumps([rank, point, seen[point]]) + "\n")
        if fault and (fault["point"], fault["time"], fault.get("rank", 0)) == (
            point,
            seen[point],
            rank,
        ):
            (out / f"fault-{rank}-{seen[point]}").touch()
            if power:
                power.cut()
            if fault.get("hang"):
                time.sleep(fault["hang"])
            elif fault.get("full"):
                if fault.get("told"):
                    os.kill(os.getpid(), fault["told"])
                raise OSError(28, "No space left on device")
            else:
                for _ in range(2 if fault.get("twice") else 1):
                    os.kill(os.getpid(), fault.get("signal", signal.SIGKILL))

    files.reached = reached
    watch(reached)


def watch(reached: Callable[[str], None]) -> None:
    """Two more points, where a run may be for long: each held-out micro-batch, each sampled
    token.
    """
    from winnow.generation import sampler
    from winnow.training import step

    asked = sampler.ALONE["stopping_criteria"][0]

    def told(*given: Any, **more: Any) -> Any:
        reached("sampled token")
        return asked(*given, **more)

    sampler.ALONE["stopping_criteria"] = [told]
    obey = step.distributed.obey

    def held_out() -> None:
        if sys._getframe(1).f_code.co_name == "held_out":
            reached("held-out")
        obey()

    step.distributed.obey = held_out


def shorten(patch: Callable[[Any, str, Any], None]) -> None:
    """What takes longest in short runs of tiny models is made short: sampled answers, the estimate
    of memory, the curves of reports.
    """
    from winnow.generation import prompts
    from winnow.reports import plots
    from winnow.training import run as training

    axes = '<svg xmlns="http://www.w3.org/2000/svg"><g></g></svg>'
    patch(prompts, "LONGEST", 8)
    patch(training, "memory_line", lambda *_: "")
    patch(
        plots,
        "_svg",
        lambda panel, lines, level: plots._page_svg(
            axes, plots.visible(plots._spoken(panel, lines))
        ),
    )


def disable(name: str) -> None:
    from winnow.models import loading
    from winnow.system import files, run_folder
    from winnow.training import checkpoint

    @contextmanager
    def plain(path: Path) -> Iterator[Path]:
        path.mkdir(parents=True, exist_ok=True)
        yield path

    def write(path: Path, content: str | bytes) -> None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    instead = {"folder_atomic": plain, "write_atomic": write}.get(name, lambda path: None)
    for module in (files, run_folder, loading, checkpoint):
        if getattr(module, name, None) is not None:
            setattr(module, name, instead)


if __name__ == "__main__":
    serve()
