"""Texts -> tokens by several processes, to the same columns whatever their number.

The helpers are processes with two pipes and not a `multiprocessing` pool: a pool runs the caller's
own script again in each of them, and a script without `if __name__ == "__main__"` would fail on its
first large data set. Chunks are cut by count alone and come back in their order, so the result
depends on nothing but the texts.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from queue import SimpleQueue

from winnow.data.records import Comparison, Completion, Message, PreferenceGroup, Text
from winnow.data.render import RenderedGroup, Renderer
from winnow.data.tokens import Columns, packed
from winnow.errors import DataError, Problem, RunError, WinnowError

CHUNK = 500  # groups: half a second of work, half a megabyte of text
_MOST = 16  # processes: beyond that the one that reads and writes is what they wait for

Chunk = tuple[Columns, list[Problem]]
_Helper = subprocess.Popen[bytes]


def workers() -> int:
    """How many processes tokenise: $WINNOW_WORKERS, or one per processor this one may use."""
    asked = os.environ.get("WINNOW_WORKERS", "")
    if asked and not (asked.isdecimal() and int(asked)):
        raise RunError(
            f"WINNOW_WORKERS is {asked!r}, expected a whole number above 0",
            remedy="export WINNOW_WORKERS=1, or unset it",
        )
    return (
        int(asked)
        if asked
        else min(
            (
                len(os.sched_getaffinity(0))
                if hasattr(os, "sched_getaffinity")
                else os.cpu_count() or 1
            ),
            _MOST,
        )
    )


def rendered(
    groups: Iterable[PreferenceGroup], renderer: Renderer, count: int, tick: Callable[[int], None]
) -> Iterator[Chunk]:
    """The columns of all groups, chunk by chunk, and the problems of those that cannot be scored.
    `tick(n)` is told of n groups done.

    count: of processes; 1 is this one. Raises what the renderer raises, and RunError when a process
    ends before its time.
    """
    texts = iter(groups)
    chunks = enumerate(iter(lambda: list(islice(texts, CHUNK)), []))
    if count == 1:
        for number, chunk in chunks:
            yield _rendered(renderer, number * CHUNK, chunk)
            tick(len(chunk))
        return
    with _helpers(renderer, count) as idle, ThreadPoolExecutor(count) as pool:
        waiting: deque[tuple[Future[Chunk], int]] = deque()
        for number, chunk in chunks:
            waiting.append(
                (
                    pool.submit(_ask, idle, number * CHUNK, [_flat(group) for group in chunk]),
                    len(chunk),
                )
            )
            if len(waiting) > 2 * count:  # no more in memory than keeps them busy
                yield from _next(waiting, tick)
        while waiting:
            yield from _next(waiting, tick)


def _next(
    waiting: deque[tuple[Future[Chunk], int]], tick: Callable[[int], None]
) -> Iterator[Chunk]:
    future, size = waiting.popleft()
    yield future.result()
    tick(size)


def _rendered(renderer: Renderer, first: int, chunk: Sequence[PreferenceGroup]) -> Chunk:
    """The columns of a chunk whose first text has the number `first`."""
    made = renderer.render_all(chunk)
    good = [
        (number, group)
        for number, group in enumerate(made, first)
        if isinstance(group, RenderedGroup)
    ]
    problems = [
        problem for error in made if isinstance(error, DataError) for problem in error.problems
    ]
    return packed([group for _, group in good], [number for number, _ in good]), problems


# --- the helpers


@contextmanager
def _helpers(renderer: Renderer, count: int) -> Iterator[SimpleQueue[_Helper]]:
    """Processes that wait for chunks. Each tokenises in one thread: there are as many of them as
    processors.
    """
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from winnow.data.parallel import serve; serve()"
    )
    told = pickle.dumps(renderer)
    idle: SimpleQueue[_Helper] = SimpleQueue()
    with ExitStack() as stack:
        for _ in range(count):
            environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
            helper = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            stack.enter_context(helper)  # closes the pipes, which ends it, and waits
            stack.callback(helper.kill)
            assert helper.stdin is not None
            try:
                helper.stdin.write(told)
                helper.stdin.flush()
            except OSError as error:
                raise _ended(helper) from error
            idle.put(helper)
        yield idle


def _ask(idle: SimpleQueue[_Helper], first: int, chunk: list[_Flat]) -> Chunk:
    """One chunk done by whichever helper is free."""
    helper = idle.get()
    try:
        assert helper.stdin is not None
        assert helper.stdout is not None
        pickle.dump((first, chunk), helper.stdin)
        helper.stdin.flush()
        answer: Chunk | WinnowError = pickle.load(helper.stdout)
    except (
        OSError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:  # an answer may be cut off in the middle
        raise _ended(helper) from error
    finally:
        idle.put(helper)
    if isinstance(answer, WinnowError):
        raise answer
    return answer


def _ended(helper: _Helper) -> RunError:
    return RunError(
        f"a tokenizing process ended with code {helper.wait()}",
        remedy="see its last words above; WINNOW_WORKERS=1 needs less memory",
    )


def serve() -> None:
    """A helper's whole life: a renderer, then chunks, until the pipe closes."""
    # who started it is asked to stop too, and closes the pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a library prints must not stand among the answers
        renderer: Renderer = pickle.load(sys.stdin.buffer)
        while True:
            try:
                first, chunk = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                answer: Chunk | WinnowError = _rendered(
                    renderer, first, [_group(flat) for flat in chunk]
                )
            except WinnowError as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()


# --- a group as plain tuples, which cross a pipe several times faster

_Flat = tuple[object, ...]


def _flat(group: PreferenceGroup) -> _Flat:
    completions = [
        (_flat_text(completion.text), completion.label) for completion in group.completions
    ]
    comparisons = [
        (c.winner, c.loser, c.probability, c.weight, c.margin) for c in group.comparisons
    ]
    return _flat_text(group.prompt), completions, comparisons, group.tools, group.where


def _flat_text(text: Text) -> object:
    return (
        text if isinstance(text, str) else [(turn.role, turn.content, turn.extra) for turn in text]
    )


def _group(flat: _Flat) -> PreferenceGroup:
    prompt, completions, comparisons, tools, where = flat
    made = tuple(Completion(_text(text), label) for text, label in completions)  # type: ignore[attr-defined]
    compared = tuple(Comparison(*values) for values in comparisons)  # type: ignore[attr-defined]
    return PreferenceGroup(_text(prompt), made, compared, tools, where)  # type: ignore[arg-type]


def _text(flat: object) -> Text:
    return flat if isinstance(flat, str) else tuple(Message(*turn) for turn in flat)  # type: ignore[attr-defined]
