"""How an evaluation stands on a page of its own: what `winnow eval --out` leaves as report.html. No figure is made here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def render(report: Mapping[str, Any]) -> str:
    return str(report["model"])
