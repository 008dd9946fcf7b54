"""Held-out figures as numbers: intervals against closed forms, sums per completion, rows, their
summary, and win rates.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import tiny
from winnow.data.records import Comparison
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine.batch import collate
from winnow.evaluation import heldout
from winnow.evaluation.statistics.intervals import flat
from winnow.evaluation.statistics.winrate import win_rate
from winnow.objectives import scores
from winnow.system.format import wilson
from winnow.training.metrics import add, divide

Z = 1.959963984540054


def made(*comparisons, lengths=(2, 1, 3)):
    """A group whose completions have these many scored tokens after a prompt of one."""
    return RenderedGroup(
        tuple(TokenSequence((0, *([1] * n)), 1) for n in lengths),
        comparisons,
        (None,) * len(lengths),
        "made:1",
    )


def test_the_interval_is_wilsons():
    # 8 of 10 by hand: centre (0.8 + z2/20) / (1 + z2/10) = 0.716740, half width 0.226578
    assert heldout.interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert heldout.interval(5, 5) == pytest.approx((5 / (5 + Z * Z), 1.0), abs=1e-12)
    assert heldout.interval(0, 5) == pytest.approx((0.0, Z * Z / (5 + Z * Z)), abs=1e-12)
    with pytest.raises(ValueError, match="n"):
        heldout.interval(0, 0)


@pytest.mark.parametrize(("wins", "count"), [(0, 1), (1, 1), (3, 7), (50, 100), (999, 1000)])
def test_the_reports_interval_is_the_same(wins, count):
    """figures.wilson, written without scipy so that a report needs none, is its twin; its ends
    solve (w - p)^2 = z^2 p (1 - p) / n.
    """
    low, high = heldout.interval(wins, count)
    assert wilson(wins / count, count) == pytest.approx((low, high), abs=1e-12)
    for end in (low, high):
        assert (wins / count - end) ** 2 == pytest.approx(
            Z * Z * end * (1 - end) / count, abs=1e-12
        )


def test_sums_by_completion_are_those_of_its_own_tokens():
    groups = [made(lengths=(2, 1, 3)), made(lengths=(1, 4))]
    # powers of two: a sum tells which tokens are in it
    value = torch.tensor([2.0**i for i in range(11)])
    assert heldout.by_completion(value, groups) == [
        [1 + 2, 4, 8 + 16 + 32],
        [64, 128 + 256 + 512 + 1024],
    ]


def test_sums_by_completion_are_made_in_float64():
    value = torch.tensor([1e8] + [1.0] * 1000)
    assert heldout.by_completion(value, [made(lengths=(1001,))]) == [[1e8 + 1000]]
    assert float(value[0] + value[1]) == 1e8  # what float32 makes of it, one by one


def test_rows_name_both_sides_and_swap_them_below_one_half():
    group = made(
        Comparison(0, 1), Comparison(0, 2, probability=0.25), Comparison(1, 2, probability=0.5)
    )
    policy, reference = [[-3.0, -2.0, -5.0]], [[-4.0, -1.0, -8.0]]  # log-ratios 1, -1, 3
    first, swapped, tie = heldout.rows([group], policy, reference, 0.5)
    assert first == {
        "where": "made:1",
        "prompt": 0,
        "chosen": 0,
        "rejected": 1,
        "probability": 1.0,
        "logps/chosen": -3.0,
        "logps/rejected": -2.0,
        "length/chosen": 2,
        "length/rejected": 1,
        "raw_correct": False,
        "moved/chosen": 1.0,
        "moved/rejected": -1.0,
        "rewards/chosen": 0.5,
        "rewards/rejected": -0.5,
        "rewards/margins": 1.0,
        "correct": True,
    }
    assert (swapped["chosen"], swapped["rejected"], swapped["probability"]) == (2, 0, 0.75)
    assert (swapped["length/chosen"], swapped["length/rejected"]) == (3, 2)
    assert (swapped["rewards/margins"], swapped["correct"], swapped["raw_correct"]) == (
        1.0,
        True,
        False,
    )
    assert (tie["probability"], tie["correct"], tie["raw_correct"]) == (0.5, None, None)


def test_rows_without_a_reference_have_no_rewards():
    (row,) = heldout.rows([made(Comparison(1, 0))], [[-3.0, -2.0, -5.0]], None, 0.5)
    assert row["raw_correct"] is True
    assert not [name for name in row if name.startswith("rewards/") or name == "correct"]
    assert "rewards/accuracies" not in heldout.summary([row])


def test_an_equal_score_is_not_a_win():
    (row,) = heldout.rows([made(Comparison(0, 1))], [[-2.0, -2.0, 0.0]], [[-2.0, -2.0, 0.0]], 0.1)
    assert (row["correct"], row["raw_correct"]) == (False, False)


def test_a_summary_by_hand():
    group = made(Comparison(0, 1), Comparison(0, 2), Comparison(1, 2, probability=0.5))
    other = RenderedGroup(
        tuple(TokenSequence((5, *([1] * n)), 1) for n in (2, 1, 3)),
        group.comparisons,
        (None,) * 3,
        "made:2",
    )
    assert heldout.prompts([group, other, group]) == [0, 1, 0]
    policy, reference = (
        [[-3.0, -2.0, -5.0], [-3.0, -2.0, -5.0]],
        [
            [-4.0, -1.0, -8.0],
            [-4.0, -1.0, -8.0],
        ],
    )
    found = heldout.summary(heldout.rows([group, other], policy, reference, 0.5))
    low, high = wilson(0.5, 2)  # two prompts of one share: as sure as two looks
    assert {
        name: value
        for name, value in found.items()
        if name.rpartition("_")[2] not in ("low", "high") or "accuracies" in name
    } == pytest.approx(
        {
            "comparisons": 6,
            "ties": 2,
            "logps/chosen": -3.0,
            "logps/rejected": -3.5,
            "rewards/chosen": 0.5,
            "rewards/rejected": 0.5,
            "rewards/margins": 0.0,
            "length/chosen": 2.0,
            "length/rejected": 2.0,
            "logratio/chosen": 0.5,
            "logratio/rejected": 0.5,
            "rewards/accuracies": 0.5,
            "rewards/accuracies_low": low,
            "rewards/accuracies_high": high,
            "raw/accuracies": 0.5,
            "raw/accuracies_low": low,
            "raw/accuracies_high": high,
        },
        abs=1e-12,
    )


def test_only_ties_have_no_means_and_no_accuracy():
    found = heldout.summary(
        heldout.rows(
            [made(Comparison(0, 1, probability=0.5))],
            [[-3.0, -2.0, -5.0]],
            [[-4.0, -1.0, -8.0]],
            0.5,
        )
    )
    assert found == {"comparisons": 1, "ties": 1}


def sums(logp_N, ref_N, batch):
    return scores.sums(
        logp_N, replace(batch, reference_N=ref_N), beta=0.3, reference=True, mean=False
    )


def test_an_evaluation_equals_what_training_logs_for_the_same_rows():
    """One name, one number: the summary of rows and the sums of the training loop, however the
    batch is cut.
    """
    groups = [
        *tiny.groups(6),
        made(Comparison(0, 1, probability=0.5), Comparison(0, 2, probability=0.2)),
    ]
    whole = collate(groups)
    generator = torch.Generator().manual_seed(0)
    logp_N, ref_N = (
        -torch.rand(len(whole.target_N), generator=generator, dtype=torch.float64) for _ in range(2)
    )
    policy, reference = (heldout.by_completion(value, groups) for value in (logp_N, ref_N))
    evaluated = heldout.summary(heldout.rows(groups, policy, reference, 0.3))
    logged = divide(sums(logp_N, ref_N, whole))
    assert len(logged) == 10
    assert {name: evaluated[name] for name in logged} == pytest.approx(logged, rel=1e-12)
    cut, at = {}, 0
    for group in groups:
        batch = collate([group])
        n = len(batch.target_N)
        add(cut, sums(logp_N[at : at + n], ref_N[at : at + n], batch))
        at += n
    assert divide(cut) == pytest.approx(logged, rel=1e-12)


def test_sums_are_added_by_name_and_divided_once():
    sums = {"loss": (1.0, 1.0)}
    add(sums, {"loss": (9.0, 4.0), "tokens": (3.0, 1.0)})
    add(sums, {"ties": (0.0, 0.0)})
    assert sums == {"loss": (10.0, 5.0), "tokens": (3.0, 1.0), "ties": (0.0, 0.0)}
    # not the mean of 1 and 2.25; what counted nothing has no mean
    assert divide(sums) == {
        "loss": 2.0,
        "tokens": 3.0,
    }


def test_a_win_rate_by_hand():
    """Prompts' rates 1, 1/2 and 3/4; the tie counts half. s = 1/4, so n = (3/16) / (1/48) = 9;
    Student's t with two degrees of freedom is 4.302653.
    """
    found = win_rate([[2.0], [1.0], [3.0, 1.0]], [[1.0, 0.0], [1.0], [0.0, 2.0]])
    assert (found.rate, found.ties, found.prompts, found.games) == (
        pytest.approx(0.75),
        pytest.approx(1 / 7),
        3,
        7,
    )
    for end in (found.low, found.high):
        assert (end - 0.75) ** 2 == pytest.approx(4.302653**2 * end * (1 - end) / 9, rel=1e-6)
    reverse = win_rate([[1.0, 0.0], [1.0], [0.0, 2.0]], [[2.0], [1.0], [3.0, 1.0]])
    assert (reverse.rate, reverse.low, reverse.high, reverse.ties) == pytest.approx(
        (0.25, 1 - found.high, 1 - found.low, 1 / 7)
    )
    with pytest.raises(ValueError, match="the same prompts on both sides"):
        win_rate([[1.0]], [])


def test_labelled_answers_have_rows_and_an_area():
    """Rewards 0.5 x (1, -1) and 0.5 x (2, 2): of four pairs of a good and a bad one the good one
    wins two and a half.
    """
    first = replace(made(lengths=(2, 1, 3)), labels=(True, False, None))
    second = replace(made(lengths=(2, 1)), labels=(False, True))
    policy, reference = [[-3.0, -2.0, -5.0], [-1.0, -2.0]], [[-4.0, -1.0, -8.0], [-3.0, -4.0]]
    rows = heldout.thumbs([first, second], policy, reference, 0.5)
    assert [(row["completion"], row["label"], row["reward"], row["length"]) for row in rows] == [
        (0, True, 0.5, 2),
        (1, False, -0.5, 1),
        (0, False, 1.0, 2),
        (1, True, 1.0, 1),
    ]
    found = flat(heldout.thumbs_figures(rows))
    assert found["labels"] == 4
    assert found["rewards/chosen"] == pytest.approx(0.75)
    assert found["rewards/rejected"] == pytest.approx(0.25)
    # 0.5 > -0.5, 0.5 < 1, 1 > -0.5, 1 = 1
    assert found["rewards/auc"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert found["raw/auc"] == pytest.approx((0 + 0 + 0.5 + 0) / 4)
    assert flat(heldout.thumbs_figures([])) == {}
    assert "rewards/auc" not in flat(heldout.thumbs_figures(rows[:1]))
    assert heldout.thumbs([made(Comparison(0, 1))], policy, None, 0.5) == []
