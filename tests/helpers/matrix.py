"""Full matrices of faults: the cases that every change must hold, and the others, which are `make
soak`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def cases(
    matrix: Iterable[tuple[Any, ...]],
    chosen: Callable[..., bool],
    smoke: Iterable[tuple[Any, ...]] = (),
) -> list[Any]:
    """Every case as a parameter: soak where it is not chosen; `smoke` are those that the default
    suite has.
    """

    def marks(case: tuple[Any, ...]) -> list[pytest.MarkDecorator]:
        if case in smoke:
            return [pytest.mark.smoke]
        return [] if chosen(*case) else [pytest.mark.soak]

    return [pytest.param(*case, marks=marks(case)) for case in matrix]
