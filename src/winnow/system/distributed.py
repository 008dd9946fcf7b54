"""What the processes of one job tell each other. A process alone tells itself, so nothing here asks
how many there are.

Values travel as JSON (a float64 comes back as it was) and as tensors on the CPU, never as pickles.
Channels are separate, so that a save on the side and the training do not take each other's words;
`LONG` waits for as long as it takes, e.g. while one process reads the data.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as c10d
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from winnow.errors import RankError, RunError, Stopped, WinnowError
from winnow.system import signals
from winnow.system.launch import count, leads, rank

MAIN, SAVES, LONG = "main", "saves", "long"
FOREVER = datetime.timedelta(days=30)
MOMENT = 2.0  # seconds
# what an error says that comes from another process
LOST = (
    "gloo",
    "NCCL",
    "nccl",
    "TCPStore",
    "Broken pipe",
    "Connection reset",
)


@dataclass(frozen=True)
class RankGroups:
    """What connects the processes: a store of words, and a group for each channel."""

    store: Any
    groups: Mapping[str, Any]


_job: RankGroups | None = None
_step = _calls = 0  # signs of life: what this process has come to


def begin(patience: float) -> None:
    """Find the other processes, once. patience: seconds after which one that gives no sign of life
    counts as lost. Raises RankError.
    """
    global _job
    if _job is not None or count() == 1:
        return
    wait = datetime.timedelta(seconds=patience)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        store, number, total = next(rendezvous("env://", timeout=wait))
        c10d.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "cpu:gloo",
            store=store,
            rank=number,
            world_size=total,
            timeout=wait,
        )
        groups = {
            name: c10d.new_group(backend="gloo", timeout=limit)
            for name, limit in ((MAIN, wait), (SAVES, wait), (LONG, FOREVER))
        }
    except (RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise RankError(
            f"the other {count() - 1} processes of this job were not found: {why}",
            remedy="torchrun starts them all, and says where they meet",
        ) from error
    _job = RankGroups(
        c10d.PrefixStore(  # type: ignore[attr-defined]
            f"winnow/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
        ),
        groups,
    )


def gather(value: Any, channel: str = MAIN) -> list[Any]:
    """Every process's value, by rank. All of them have to ask."""
    if _job is None:
        return [value]
    if channel == MAIN:
        _live(_step)
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    return [json.loads(bytes(one.numpy())) for one in _gathered(data, channel)]


def gather_columns(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every process's values laid end to end, by rank, on the CPU; their dtype is the same
    everywhere.
    """
    if _job is None:
        return dict(columns)
    return {
        name: torch.cat(_gathered(value.detach().cpu().contiguous(), MAIN))
        for name, value in columns.items()
    }


def summed(value: Tensor) -> Tensor:
    """The sum over all processes of a tensor on the CPU, in place."""
    if _job is not None:
        c10d.all_reduce(value, group=_job.groups[MAIN])
    return value


class Halt(Exception):
    """A signal waits to be obeyed, and all processes know."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def obey() -> None:
    """Raises Halt, in all processes alike, where one of them was sent a signal. All of them have to
    ask.
    """
    number = max(gather(signals.asked()))
    if number:
        raise Halt(number)


def same(what: str, value: Any) -> None:
    """Raises RunError where processes differ in what must be one for all."""
    values = gather(value)
    if any(one != values[0] for one in values):
        told = ", ".join(f"{one!r} on rank {i}" for i, one in enumerate(values))
        raise RunError(
            f"the processes of this job differ in {what}: {told}",
            remedy="the same files and library versions on every machine",
        )


@contextmanager
def leader_first() -> Iterator[None]:
    """The others begin when the leader is through: what it finds wrong is said once, and what it
    stored they only read.
    """
    if _job is None:
        yield
    elif leads():
        code = 1
        try:
            yield
            code = 0
        except (WinnowError, Stopped) as error:
            code = error.exit_code
            raise
        finally:
            gather(code, LONG)
    else:
        code = gather(0, LONG)[0]
        if code:
            raise SystemExit(code)
        yield


def alive(step: int) -> None:
    """So many steps are done: for messages about others."""
    if _job is not None:
        _live(step)


def _live(step: int) -> None:
    global _step, _calls
    assert _job is not None
    _step, _calls = step, _calls + 1
    _job.store.set(f"at {rank()}", f"{_calls} {_step}")


@contextmanager
def watched() -> Iterator[None]:
    """Errors of the connection become a RankError that tells who was last seen where."""
    try:
        yield
    except RuntimeError as error:
        if _job is None or not any(word in str(error) for word in LOST):
            raise
        how = "gives no sign of life" if "imed out" in str(error) else "is gone"
        raise RankError(
            f"another process of this job {how} ({_seen(_job)})",
            remedy="see its own message; the same command goes on from the last checkpoint",
        ) from error


def told(message: str) -> str:
    """What this process says when it fails: nothing where another one said the same, and that it
    was not the first where it was not.
    """
    if _job is None:
        return message
    try:
        first, _, before = (
            _job.store.compare_set("failed", "", f"{rank()} {message}").decode().partition(" ")
        )
        _stay(_job)
    except RuntimeError:  # the store went with its host
        return f"rank {rank()}: {message}"
    if int(first) == rank():
        return f"rank {rank()}: {message}"
    return "" if before == message else f"rank {rank()}, after rank {first} failed: {message}"


def _stay(job: RankGroups) -> None:
    """The process that may hold the store goes last: the others are given a moment to see what was
    said. Who is gone is not waited for much.
    """
    job.store.add("told", 1)
    until = time.monotonic() + MOMENT
    while rank() == 0 and job.store.add("told", 0) < count() and time.monotonic() < until:
        time.sleep(0.02)


def _gathered(value: Tensor, channel: str) -> list[Tensor]:
    """Vectors of all processes, of whatever lengths."""
    assert _job is not None
    group = _job.groups[channel]
    if channel == LONG:  # in steps, so that a signal is heard meanwhile
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(count())]
        waiting = c10d.all_gather(lengths, torch.tensor([len(value)]), group=group, async_op=True)
        while not waiting.is_completed():
            time.sleep(0.01)
        waiting.wait()
    lengths = [torch.zeros(1, dtype=torch.long) for _ in range(count())]
    c10d.all_gather(lengths, torch.tensor([len(value)]), group=group)
    longest = int(max(lengths))
    padded = [torch.empty(longest, dtype=value.dtype) for _ in lengths]
    c10d.all_gather(padded, torch.cat([value, value.new_zeros(longest - len(value))]), group=group)
    return [one[: int(n)] for one, n in zip(padded, lengths)]


def _seen(job: RankGroups) -> str:
    """Which processes are behind the others, and up to where they came."""
    try:
        at = [
            (
                job.store.get(f"at {i}").decode().split()
                if job.store.check([f"at {i}"])
                else ("0", "0")
            )
            for i in range(count())
        ]
    except RuntimeError:
        return "and the launcher's store with it"
    most = max(int(calls) for calls, _ in at)
    behind = [
        f"rank {i}, after step {step}" for i, (calls, step) in enumerate(at) if int(calls) < most
    ]
    return "last seen: " + ", ".join(
        behind or (f"rank {i}, after step {step}" for i, (_, step) in enumerate(at))
    )
