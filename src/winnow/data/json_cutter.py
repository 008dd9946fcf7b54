"""Elements of a JSON list, cut out of a stream without reading it whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from winnow.errors import Problem


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The bytes of one row; line and column count from 1, offset from 0."""

    where: str
    raw: bytes
    line: int
    column: int
    offset: int
    last: bool = False  # nothing follows, not even the end of the line


_OUTSIDE = re.compile(rb'["{}\[\],\n]')


_INSIDE = re.compile(rb'\\[^\n]|["\\\n]')


class Cutter:
    """Where in a JSON list we are: bracket depth, inside text or not, line. Works on bytes: UTF-8
    never hides a bracket.
    """

    def __init__(self, name: str, cap: int, offset: int) -> None:
        self.name, self.cap, self.offset = name, cap, offset  # offset: of the chunk being read
        self.depth, self.inside, self.skip = 0, False, 0
        self.line, self.line_start = 1, offset
        self.held, self.size, self.count = bytearray(), 0, 0
        self.begin = (1, offset, offset)  # line, its start, offset: of the element being collected
        self.last_line = 0  # on which an element began
        self.done = False

    def feed(self, chunk: bytes) -> Iterator[TextPiece | Problem]:
        taken, position = 0, self.skip
        # quote: behind the one that opened the text we are in, -1 if that was in an earlier chunk
        self.skip, quote = (
            0,
            -1,
        )
        while not self.done and (
            match := (_INSIDE if self.inside else _OUTSIDE).search(chunk, position)
        ):
            byte, position = match[0], match.end()
            if (
                byte == b"\n" and self.inside and quote >= 0
            ):  # no text spans lines: a quote is missing, look at the line without it
                self.inside, position = False, quote
            elif byte == b"\n":
                self.line, self.line_start, self.inside = (
                    self.line + 1,
                    self.offset + position,
                    False,
                )
            elif byte == b'"':
                self.inside, quote = not self.inside, position
            elif byte == b"\\":  # the escaped byte is the first of the next chunk
                self.skip = int(position == len(chunk))
            elif byte in b"[{":
                self.depth += 1
                if self.depth == 1:
                    taken = self._restart(position)
            elif byte == b"]" or (
                byte == b"}" and self.depth > 1
            ):  # no brace closes a list: it stays part of its row
                self.depth -= 1
                self.done = self.depth == 0
            if self.done or (byte == b"," and self.depth == 1):
                self._keep(chunk[taken : position - 1])
                yield from self._cut()
                taken = self._restart(position)
        self._keep(chunk[taken:])
        self.offset += len(chunk)

    def end(self) -> Iterator[Problem]:
        if self.depth > 0:
            line = self.begin[0]
            place = (
                f"the row that begins on line {self._start()[0]}"
                if self.held.strip(BLANK)
                else "the list"
            )
            yield Problem(
                f"{self.name}:{max(line, self.line)}",
                "",
                f"is cut off: the file ends inside {place}",
                "fetch or write the file again",
            )
        elif self.held.strip(BLANK):
            yield Problem(
                f"{self.name}:{self._start()[0]}",
                "",
                "text after the end of the list",
                "a file holds one list, or one object per line",
            )

    def _keep(self, part: bytes) -> None:
        self.size += len(part)
        if self.size > self.cap:
            self.held.clear()
        else:
            self.held += part

    def _restart(self, position: int) -> int:
        self.held.clear()
        self.size = 0
        self.begin = (self.line, self.line_start, self.offset + position)
        return position

    def _start(self) -> tuple[int, int, int]:
        """Line, column and offset of the first byte that is no blank."""
        line, line_start, offset = self.begin
        blank = len(self.held) - len(self.held.lstrip(BLANK))
        newline = self.held.rfind(b"\n", 0, blank)
        if newline >= 0:
            line, line_start = line + self.held.count(b"\n", 0, blank), offset + newline + 1
        return line, offset + blank - line_start + 1, offset + blank

    def _cut(self) -> Iterator[TextPiece | Problem]:
        line, column, offset = self._start()
        self.count += 1
        if self.size > self.cap:
            yield Problem(
                f"{self.name}:{line}",
                "",
                f"row {self.count} is longer than {self.cap:,} bytes",
                "split or remove the row",
            )
        elif raw := bytes(self.held.strip(BLANK)):
            # several rows on one line
            where = (
                f"{self.name}:{line}:{column}" if line == self.last_line else f"{self.name}:{line}"
            )
            self.last_line = line
            yield TextPiece(where, raw, line, column, offset)
        elif (
            not self.done or self.count > 1
        ):  # `[]` is an empty list, anything else is a comma too many
            yield Problem(
                f"{self.name}:{line}:{column}",
                "",
                "expected an object before this comma or bracket",
                "remove the extra comma",
            )


BLANK = b" \t\r\n"  # what JSON takes for one
