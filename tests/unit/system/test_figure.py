"""A figure as files hold it, and as it is written."""

from __future__ import annotations

import pytest

from winnow.evaluation.statistics.intervals import flat, mean
from winnow.system.figure import Figure, cell, cited, interval, support, taken_over, value
from winnow.system.format import number, percent, signed, tenths

FIGURE = Figure(0.75, 0.5, 0.9, 177, 30)
UNDEFINED = Figure(None, None, None, 0, 0, "nobody voted")
POINT = Figure(0.75, None, None, 1, 1, "one prompt has no spread")


@pytest.mark.parametrize(
    ("row", "figure"),
    [
        (
            {"value": 0.75, "low": 0.5, "high": 0.9, "count": 177, "prompts": 30, "why": ""},
            FIGURE,
        ),
        ({"rate": 0.75, "low": 0.5, "high": 0.9, "prompts": 30}, Figure(0.75, 0.5, 0.9, 30, 30)),
        ({"mean": 0.75, "low": 0.5, "high": 0.9}, Figure(0.75, 0.5, 0.9, 0, 0)),
        ({"share": 0.75, "low": 0.5, "high": 0.9, "count": 4}, Figure(0.75, 0.5, 0.9, 4, 4)),
        ({"value": None, "count": 0, "why": "nobody voted"}, UNDEFINED),
    ],
)
def test_every_form_in_which_files_hold_figures_is_read(row, figure):
    assert Figure.read(row) == figure


def test_what_is_logged_flat_is_read_again():
    figure = mean([1.0, 2.0, 4.0], "abc")
    assert Figure.logged(flat({"kl": figure}), "kl", 3) == figure


def test_a_figure_is_written_in_one_form():
    assert cited(FIGURE, percent) == "75 % (95 % interval 50–90 %, n = 177 from 30 prompts)"
    assert cell(FIGURE, tenths, count=False) == "75.0 % (50.0–90.0 %)"
    assert support(FIGURE, signed) == "95 % interval +0.500 to +0.900, n = 177 from 30 prompts"
    assert cell(FIGURE) == "0.750 (0.500 to 0.900, n = 177 from 30 prompts)"
    assert interval(Figure(-0.1, -0.2, 0.1, 9, 9), tenths) == "−20.0 % to 10.0 %"


def test_what_is_missing_is_said_with_its_reason():
    assert value(UNDEFINED, percent) == cited(UNDEFINED) == "undefined: nobody voted"
    assert support(UNDEFINED) == ""
    assert interval(POINT) == "no interval: one prompt has no spread"
    assert cited(POINT, percent) == "75 % (no interval: one prompt has no spread, n = 1)"
    assert cell(POINT, percent, count=False) == "75 %"


def test_what_a_figure_was_taken_over():
    assert taken_over(Figure(0.0, 0.0, 1.0, 6, 1)) == "n = 6 from 1 prompt"
    assert taken_over(FIGURE) == "n = 177 from 30 prompts"
    assert taken_over(Figure(0.0, 0.0, 1.0, 30, 30), "pairs") == "n = 30 pairs"


def test_the_interval_of_a_loss_turns_with_it():
    assert FIGURE.negated() == Figure(-0.75, -0.9, -0.5, 177, 30)
    assert (FIGURE.contains(0.5), FIGURE.contains(0.4), POINT.contains(0.75)) == (
        True,
        False,
        False,
    )
    assert number(FIGURE.negated().value) == "−0.750"
