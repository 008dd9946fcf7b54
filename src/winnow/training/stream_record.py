"""What a run records of a stream's windows, and compares when it comes to one again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from winnow.data.dataset import Dataset
from winnow.data.packing import largest
from winnow.errors import NothingLeft, RunError
from winnow.system.console import safe, say
from winnow.system.files import read_json, write_json
from winnow.system.launch import leads
from winnow.system.run_folder import RunFolder
from winnow.training.head import say_warnings


def window(run: RunFolder, number: int, one: Dataset, tokens: int) -> None:
    """Say what became of a stream's window (from 0 on), with the data's warnings, and add it to
    data.json. tokens: of a micro-batch.
    """
    account = one.account
    row = {
        name: getattr(account, name)
        for name in ("read", "dropped", "identical", "used", "comparisons", "fingerprint")
    }
    _add_window(run, number, row)
    if number == 0:  # told with the model and the plan
        return
    dropped = ", ".join(f"{n} {reason}" for reason, n in account.dropped.items()) or "none"
    say(
        f"window {number + 1}: {account.read:,} rows read, dropped: {dropped};"
        f" {account.used:,} groups, {account.comparisons:,} comparisons"
    )
    needs = largest(one.groups)
    if needs > tokens:
        say(
            f"[yellow]window {number + 1}:[/] its largest group needs {needs:,} tokens,"
            f" micro-batches have {tokens:,}: it goes alone, and takes more memory"
        )
    say_warnings(one)


def same_window(run: RunFolder, number: int, one: Dataset, allowed: Sequence[str]) -> None:
    """Raises RunError where a stream's window is another one than when this run first read it."""
    rows = read_json(run.root / "data.json").get("windows", [])
    then = next((row.get("fingerprint") for row in rows if row["window"] == number + 1), None)
    if then is not None and then != one.account.fingerprint and "data" not in allowed:
        raise RunError(
            f"{run.root}: window {number + 1} of the data is another one than when it was first"
            " read",
            remedy=(
                "give the data the run was begun with; to go on with the change: --allow-change"
                " data"
            ),
        )


def empty_window(run: RunFolder, number: int, error: NothingLeft) -> None:
    """The same of a window without a usable row."""
    say(f"[yellow]window {number + 1} passed over:[/] {safe(error.what)}")
    _add_window(
        run,
        number,
        {
            "read": sum(error.dropped.values()),
            "dropped": error.dropped,
            "identical": 0,
            "used": 0,
            "comparisons": 0,
        },
    )


def _add_window(run: RunFolder, number: int, row: dict[str, Any]) -> None:
    if not leads():
        return
    data = read_json(run.root / "data.json")
    # a run that was resumed comes by again
    others = [one for one in data.get("windows", []) if one["window"] != number + 1]
    rows = sorted([*others, {"window": number + 1, **row}], key=lambda one: int(one["window"]))
    write_json(run.root / "data.json", {**data, "windows": rows})
