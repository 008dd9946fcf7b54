"""Rendered groups as columns of numbers: in memory, or in files that are mapped and read as they
are needed.

A token costs four bytes here and about forty as a Python object, so a million pairs fit where
thirty thousand did. Whoever asks for a group gets it as it was rendered; whoever asks for all
lengths gets an array, and no group is built for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from winnow.data import render
from winnow.data.records import Comparison
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.errors import Problem, RunError
from winnow.system.files import read_json, sha256_file, sha256_json, write_json

SCHEMA = 2
Columns = Mapping[str, NDArray[Any]]

# Little-endian, so that the files mean the same everywhere. Counts and not offsets: parts can be
# laid end to end as they come.
DTYPES = {
    "ids": "<i4",  # per token
    "length": "<i4",  # per sequence, as all down to label
    "start": "<i4",
    "cut": "<i4",
    "moved": "|b1",
    "label": "|i1",  # -1: none
    "winner": "<i4",  # per comparison, as all down to margin
    "loser": "<i4",
    "probability": "<f8",
    "weight": "<f8",
    "margin": "<f8",
    "sequences": "<i4",  # per group, as all down to text: how many it has
    "comparisons": "<i4",
    "letters": "<i4",
    "special": "<i4",
    "mismatched": "<i4",
    "text": "<i8",  # its number among the texts that were given to the tokenizer
    "where": "|u1",  # UTF-8, one group's after the other's
}
# what training sees of a data set
SEEN = tuple(name for name in DTYPES if name not in ("letters", "text", "where"))
_LABELS = (False, True, None)  # by label: -1 is the last
_BLOCK = 256  # groups looked at together while all are walked through


@dataclass(frozen=True, eq=False)
class Tokens(Sequence[RenderedGroup]):
    """Groups as columns. `tokens[i]` equals the group that was rendered and is built anew each
    time; a slice is a list.

    `length_K`, `start_K` and the like are `columns["length"]`, `columns["start"]`: one number per
    sequence, of all groups in order.
    """

    columns: Columns
    digests: Mapping[str, str]  # SHA-256 of each column
    token_at: NDArray[Any]  # where each sequence's ids begin; one more for the end, as below
    sequence_at: NDArray[Any]  # where each group's sequences begin
    comparison_at: NDArray[Any]
    letter_at: NDArray[Any]

    def __len__(self) -> int:
        return len(self.columns["sequences"])

    @overload
    def __getitem__(self, index: int) -> RenderedGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[RenderedGroup]: ...
    def __getitem__(self, index: int | slice) -> RenderedGroup | list[RenderedGroup]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # raises IndexError, counts from the end where negative
        return self._block(i, i + 1)[0]

    def __iter__(self) -> Iterator[RenderedGroup]:
        for first in range(0, len(self), _BLOCK):
            yield from self._block(first, min(first + _BLOCK, len(self)))

    def identity(self, *names: str) -> str:
        """SHA-256 of the columns named (default: of all that training sees): equal for equal
        groups, wherever they are kept.
        """
        return sha256_json({name: self.digests[name] for name in names or SEEN})

    def per_group(self, name: str) -> NDArray[Any]:
        """A column per sequence summed over each group."""
        total = np.concatenate([[0], np.cumsum(self.columns[name], dtype=np.int64)])
        return np.diff(total[self.sequence_at])

    @cached_property
    def at_most(self) -> NDArray[Any]:
        """For each group no fewer distinct tokens than it has: its answers whole, and its prompt
        once where all its sequences begin with it.

        Told without building a group: a million pairs take seconds.
        """
        if not len(self):
            return np.empty(0, np.int64)
        prompt = np.minimum.reduceat(self.columns["start"], self.sequence_at[:-1]).astype(np.int64)
        alike = np.concatenate(
            [
                self._alike(prompt, first, min(first + _BLOCK, len(self)))
                for first in range(0, len(self), _BLOCK)
            ]
        )
        twice = np.where(alike, (self.columns["sequences"].astype(np.int64) - 1) * prompt, 0)
        most: NDArray[Any] = self.per_group("length") - twice
        return most

    def _alike(self, prompt: NDArray[Any], first: int, last: int) -> NDArray[Any]:
        """For the groups from `first` to `last`: are the first `prompt` tokens of all its sequences
        the same?
        """
        at, begin, ids = self.sequence_at, self.token_at[:-1], self.columns["ids"]
        count = np.diff(at[first : last + 1])
        length = np.repeat(prompt[first:last], count)  # of what is compared, per sequence
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        own = np.repeat(begin[at[first] : at[last]], length) + within
        leader = np.repeat(np.repeat(begin[at[first:last]], count), length) + within
        group = np.repeat(np.repeat(np.arange(last - first), count), length)
        alike: NDArray[Any] = (
            np.bincount(group, ids[own] != ids[leader], minlength=last - first) == 0
        )
        return alike

    def where(self, groups: NDArray[Any] | range) -> list[str]:
        """Where these groups stand in their files."""
        letters, at = self.columns["where"], self.letter_at
        return [_text(letters[at[g] : at[g + 1]]) for g in groups]

    def _block(self, first: int, last: int) -> list[RenderedGroup]:
        """The groups from `first` to `last`: each column is asked once for all of them."""
        c, s, m = (
            self.columns,
            slice(*self.sequence_at[[first, last]]),
            slice(*self.comparison_at[[first, last]]),
        )
        ids = tuple(c["ids"][slice(*self.token_at[[s.start, s.stop]])].tolist())
        ends = (self.token_at[s.start + 1 : s.stop + 1] - self.token_at[s.start]).tolist()
        rows = zip([0, *ends], ends, *(c[name][s].tolist() for name in ("start", "cut", "moved")))
        sequences = iter(
            [
                TokenSequence(ids[begin:end], start, cut, moved)
                for begin, end, start, cut, moved in rows
            ]
        )
        labels = iter([_LABELS[label] for label in c["label"][s].tolist()])
        comparisons = iter(
            [
                Comparison(*values)
                for values in zip(
                    *(
                        c[name][m].tolist()
                        for name in ("winner", "loser", "probability", "weight", "margin")
                    )
                )
            ]
        )
        sizes = zip(
            *(
                c[name][first:last].tolist()
                for name in ("sequences", "comparisons", "special", "mismatched")
            ),
            self.where(range(first, last)),
        )
        return [
            RenderedGroup(
                _take(sequences, k),
                _take(comparisons, pairs),
                _take(labels, k),
                where,
                special,
                mismatched,
            )
            for k, pairs, special, mismatched, where in sizes
        ]


def tokens_of(groups: Sequence[RenderedGroup]) -> Tokens:
    """The groups as columns, for any sequence of them."""
    return groups if isinstance(groups, Tokens) else gathered([packed(groups)])


def packed(
    groups: Sequence[RenderedGroup], texts: Sequence[int] | None = None
) -> dict[str, NDArray[Any]]:
    """The columns of groups; `texts` are the numbers of the texts they were rendered from (default
    0, 1, ...).
    """
    sequences = [sequence for group in groups for sequence in group.sequences]
    comparisons = [comparison for group in groups for comparison in group.comparisons]
    wheres = [group.where.encode(errors="surrogatepass") for group in groups]
    columns: dict[str, Iterable[Any]] = {
        "ids": chain.from_iterable(sequence.ids for sequence in sequences),
        "length": (len(sequence.ids) for sequence in sequences),
        **{
            name: [getattr(sequence, name) for sequence in sequences]
            for name in ("start", "cut", "moved")
        },
        "label": (-1 if label is None else label for group in groups for label in group.labels),
        **{
            name: [getattr(comparison, name) for comparison in comparisons]
            for name in ("winner", "loser", "probability", "weight", "margin")
        },
        "sequences": (len(group.sequences) for group in groups),
        "comparisons": (len(group.comparisons) for group in groups),
        "letters": map(len, wheres),
        "special": (group.special for group in groups),
        "mismatched": (group.mismatched for group in groups),
        "text": range(len(groups)) if texts is None else texts,
    }
    return {name: np.fromiter(values, dtype=DTYPES[name]) for name, values in columns.items()} | {
        "where": np.frombuffer(b"".join(wheres), DTYPES["where"])
    }


def gathered(parts: Iterable[Columns]) -> Tokens:
    """Columns laid end to end, in memory."""
    held = list(parts)
    columns = {
        name: np.concatenate([np.empty(0, dtype), *(part[name] for part in held)])
        for name, dtype in DTYPES.items()
    }
    return _tokens(
        columns, {name: hashlib.sha256(column.data).hexdigest() for name, column in columns.items()}
    )


def write(folder: Path, key: str, parts: Iterable[tuple[Columns, Sequence[Problem]]]) -> None:
    """Columns laid end to end into files of `folder`, one part in memory at a time, with the
    problems that came with them.
    """
    problems: list[Problem] = []
    digests = {name: hashlib.sha256() for name in DTYPES}
    files = {name: (folder / name).open("wb") for name in DTYPES}
    try:
        for columns, found in parts:
            problems += found
            for name, file in files.items():
                file.write(columns[name].data)
                digests[name].update(columns[name].data)
    finally:
        for file in files.values():
            file.close()
    listed = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest.hexdigest()}
        for name, digest in digests.items()
    }
    told = [[problem.where, problem.field, problem.reason, problem.fix] for problem in problems]
    manifest = {
        "schema": SCHEMA,
        "format": form(),
        "key": key,
        "dtypes": DTYPES,
        "files": listed,
        "problems": told,
    }
    write_json(folder / "manifest.json", {**manifest, "sha256": sha256_json(manifest)})


def opened(folder: Path, key: str) -> tuple[Tokens, list[Problem]]:
    """What `write` wrote, mapped from its files. Raises RunError when anything there is not what
    was written.
    """
    manifest = _manifest(folder, key)
    columns: dict[str, NDArray[Any]] = {}
    for name, dtype in DTYPES.items():
        path, noted = folder / name, manifest["files"][name]
        size = path.stat().st_size if path.exists() else -1
        if size != noted["bytes"]:
            raise _damaged(
                path,
                (
                    "it is missing"
                    if size < 0
                    else f"it has {size:,} bytes, {noted['bytes']:,} were written"
                ),
            )
        if sha256_file(path) != noted["sha256"]:
            raise _damaged(path, "its bytes are not those that were written")
        # an empty file cannot be mapped
        columns[name] = np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype)
    return _tokens(columns, {name: manifest["files"][name]["sha256"] for name in DTYPES}), [
        Problem(*told) for told in manifest["problems"]
    ]


def form() -> str:
    """What decides how texts lie in the files as tokens: the layout of the files, and the code that
    renders.
    """
    return sha256_json([SCHEMA, sha256_file(Path(render.__file__))])[:16]


def form_of(folder: Path) -> str | None:
    """The same of what `write` wrote. Raises RunError when its manifest is not what was written."""
    return _sealed(folder / "manifest.json").get("format")


def _sealed(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = read_json(path)
        if manifest.pop("sha256") != sha256_json(manifest):
            raise _damaged(path, "its bytes are not those that were written")
    except (RunError, KeyError, TypeError, AttributeError) as error:
        raise (
            error
            if isinstance(error, RunError) and error.remedy
            else _damaged(path, "it cannot be read")
        ) from error
    return manifest


def _manifest(folder: Path, key: str) -> dict[str, Any]:
    path = folder / "manifest.json"
    manifest = _sealed(path)
    try:
        if (
            manifest["schema"] != SCHEMA
            or manifest["dtypes"] != DTYPES
            or manifest["key"] != key
            or set(manifest["files"]) != set(DTYPES)
        ):
            raise _damaged(path, f"it is of other contents than {key[:16]}")
    except (KeyError, TypeError) as error:
        raise _damaged(path, "it cannot be read") from error
    return manifest


def _damaged(path: Path, why: str) -> RunError:
    return RunError(
        f"{path}: damaged tokens: {why}",
        remedy=f"delete the folder {path.parent}: it is made again from the data",
    )


def _tokens(columns: Columns, digests: Mapping[str, str]) -> Tokens:
    return Tokens(
        columns,
        digests,
        *(_offsets(columns[name]) for name in ("length", "sequences", "comparisons", "letters")),
    )


def _offsets(counts: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _take(values: Iterator[Any], count: int) -> tuple[Any, ...]:
    return tuple(next(values) for _ in range(count))


def _text(letters: NDArray[Any]) -> str:
    return letters.tobytes().decode(errors="surrogatepass")
