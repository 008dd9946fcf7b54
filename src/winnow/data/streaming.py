"""A data set in windows: so many rows at a time are read, and the next when those are used up.

For data that is too large, or too slow to fetch, to be read whole before training. After the last
window the first comes again. Which rows a window holds depends on nothing but its number, so a run
is resumed exactly: the rows before it are read over. The first window's layout is that of all, as
it would be were the data read whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from winnow.data import sources
from winnow.data.jsonl import Row
from winnow.data.layout_parts import As
from winnow.data.sources import Loaded
from winnow.errors import Problem


class Windows:
    """The windows of `size` rows of the data set `spec`, of which an epoch reads no more than
    `limit` rows. Raises DataError where it has none.
    """

    def __init__(self, spec: str, size: int, *, as_: As = None, limit: int | None = None) -> None:
        self.spec, self.size, self.as_, self.limit = spec, size, as_, limit
        self._begin()

    def load(self, number: int) -> Loaded:
        """Window `number`, from 0 on without an end."""
        if number < self.next:
            self._begin()
        while self.next < number:
            for _ in self._rows():
                pass
        return sources.collect(self.title, self.layout, self._rows(), self.as_)

    def _begin(self) -> None:
        self.next = 0
        self._open()

    def _open(self) -> None:
        self.title, rows = sources.open_rows(self.spec)
        rows = islice(rows, self.limit)
        self.layout, first = sources.layout_of(self.title, islice(rows, self.size), self.as_)
        self.rows = chain(first, rows)

    def _rows(self) -> Iterator[Row | Problem]:
        """The next window's rows; those of a new pass where this one is at its end."""
        first = next(self.rows, None)
        if first is None:
            self._open()
            first = next(self.rows)  # there is one: the layout was told by it
        self.next += 1
        return chain([first], islice(self.rows, self.size - 1))
