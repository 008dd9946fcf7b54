"""Rows of data sets that the datasets library reads: saved folders, and the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.data.jsonl import Row
from winnow.data.tables import numbered, readable, rows_of
from winnow.errors import DataError, Problem
from winnow.system import hub


def saved_rows(path: Path, spec: DataSpec) -> tuple[str, Iterator[Row | Problem]]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a third party raises over a damaged folder
        raise DataError(
            f"{path}: cannot be read as a data set saved with save_to_disk: {_cause(error)}"
        ) from error
    if not isinstance(saved, datasets.DatasetDict):
        if spec.split:
            raise DataError(
                f"{path}: holds one data set without splits, got {spec.split!r}",
                remedy=f"give {spec.name}",
            )
        return spec.name, _rows_of(spec.name, saved)
    split = spec.split or "train"
    if split not in saved:
        raise DataError(
            f"{path}: no split {split!r}; there are {', '.join(saved)}",
            remedy=f"give {spec.name}:{next(iter(saved), 'SPLIT')}",
        )
    return f"{spec.name}:{split}", _rows_of(f"{spec.name}:{split}", saved[split])


def _rows_of(title: str, saved: Any) -> Iterator[Row | Problem]:
    with readable(title, "data set saved with save_to_disk"):
        yield from numbered(title, rows_of(saved.with_format("arrow").iter(ROWS_AT_ONCE)))


def hub_rows(name: str, split: str, streaming: bool = False) -> Iterator[Row | Problem]:
    """Rows of a data set on the Hugging Face hub, or in its local cache when offline. Raises
    DataError at once.

    streaming: rows are fetched as they are read, instead of all of them first.
    """
    import datasets

    try:
        if not Path(name).exists():
            hub.ask("dataset", name)
        loaded: Iterable[dict[str, Any]] = datasets.load_dataset(
            name, split=split, streaming=streaming
        )
    except Exception as error:  # whatever the hub, its client and the builders raise
        why = (
            f"the hub {error}"
            if isinstance(error, hub.NotThere)
            else f"not to be had from the hub{_offline()}: {_cause(error)}"
        )
        raise DataError(
            f"{name}:{split}: no file or folder of that name here, and {why}",
            remedy=(
                "download it where there is a network and give the folder, or a .jsonl or .parquet"
                " file"
            ),
        ) from error
    return numbered(f"{name}:{split}", loaded)


def _offline() -> str:
    return " (HF_HUB_OFFLINE is set)" if hub.offline() else ""


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


ROWS_AT_ONCE = 1_000  # rows of a saved data set at a time


@dataclass(frozen=True, slots=True)
class DataSpec:
    name: str
    split: str | None
    weight: float

    def __str__(self) -> str:
        return f"{self.name}:{self.split}" if self.split else self.name
