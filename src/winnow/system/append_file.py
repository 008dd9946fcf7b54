"""A JSON-lines file that grows row by row, and goes on where it stopped. What `winnow sample` and
`winnow judge` write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.errors import RunError
from winnow.system.console import ProgressBar, safe, say
from winnow.system.files import read_jsonl, sync_folder, write_jsonl
from winnow.system.identity import RUN_FORMAT, differences, refuse_format, refuse_other

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AppendFile:
    """A file whose rows have an `id` and say in `column` how they were made. things, done: words
    for what it tells ("prompts", "answered").
    """

    out: Path
    column: str
    things: str
    done: str

    def there(self, names: Sequence[str], how: Mapping[str, Any]) -> dict[str, Row]:
        """Rows of an earlier start by name, the later one of two; a last line that was cut off is
        dropped.

        Raises RunError where a row was made otherwise than `how`, or is none of `names`.
        """
        if not self.out.exists():
            return {}
        content = self.out.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole and self.column.encode() not in whole[: whole.index(b"\n")]:
            raise RunError(
                f"{self.out}: is no file of this command: {self.column!r} is missing in its"
                " first row",
                remedy="choose another --out",
            )
        if len(whole) < len(content):
            say(f"{safe(self.out)}: its last line was cut off, and is made again")
            os.truncate(self.out, len(whole))
        rows = {row["id"]: row for row in read_jsonl(self.out, "id", self.column)}
        self._refuse_strangers(rows, names, how)
        if rows:
            say(
                f"{safe(self.out)}: {len(rows):,} of {len(names):,} {self.things} are {self.done}"
                " already"
            )
        return rows

    def _refuse_strangers(
        self, rows: Mapping[str, Row], names: Sequence[str], how: Mapping[str, Any]
    ) -> None:
        strangers = len(set(rows).difference(names))
        refuse_other(
            self.out,
            "holds rows of another command",
            {
                key: pair
                for row in rows.values()
                for key, pair in differences(row[self.column], how).items()
            },
            *[f"{self.things}: {strangers:,} of its are not asked now"] * bool(strangers),
            remedy="choose another --out, or delete the file",
        )

    def refuse_format(self, rows: Mapping[str, Row]) -> None:
        """Raises RunError where rows of an earlier start are of another format, and others are to
        follow them.
        """
        for row in rows.values():
            refuse_format(self.out, row[self.column])

    def grow(self, rows: dict[str, Row], made: Iterable[Row], label: str, total: int) -> None:
        """Put each new row into `rows`, and on the disk's way as soon as it is there. `label` and
        `total` are for the progress line.
        """
        with self.out.open("ab") as file, ProgressBar(label, total) as steps:
            sync_folder(self.out.absolute().parent)
            for new in made:
                row = {**new, self.column: {**new[self.column], "format": RUN_FORMAT}}
                rows[row["id"]] = row
                file.write(json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n")
                file.flush()
                steps.advance(1)

    def settle(self, rows: Mapping[str, Row], names: Sequence[str]) -> list[Row]:
        """Write all rows in the order of `names`, each once, and give them back; no row, no
        file.
        """
        ordered = [rows[name] for name in names if name in rows]
        if ordered:
            write_jsonl(self.out, ordered)
        else:
            self.out.unlink(missing_ok=True)
        return ordered
