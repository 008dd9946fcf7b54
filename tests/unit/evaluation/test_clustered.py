"""Figures over prompts as numbers: closed forms, the ordinary intervals where every row is its own
prompt, coverage by simulation; and what is made of them.
"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from winnow.evaluation import heldout
from winnow.evaluation.statistics import calibration, displacement, intervals, rewardbench
from winnow.evaluation.statistics.intervals import mean, ratio, share, stratified
from winnow.evaluation.statistics.winrate import interval, over_prompts
from winnow.system.figure import Figure
from winnow.system.format import wilson


def test_a_row_per_prompt_gives_the_ordinary_intervals():
    values = [0.5, 2.0, -1.0, 4.0]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = mean(values, range(4))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)
    assert (found.value, found.count, found.prompts) == (pytest.approx(1.375), 4, 4)
    assert over_prompts(values).low == pytest.approx(found.low, rel=1e-12)
    for wins, n in ((0, 5), (3, 7), (7, 7)):
        hits = [True] * wins + [False] * (n - wins)
        made = share(hits, range(n))
        assert (made.low, made.high) == pytest.approx(wilson(wins / n, n), abs=1e-12)


def test_nothing_and_everything_end_at_0_and_1():
    for n in range(2, 400):
        assert (share([True] * n, range(n)).high, share([False] * n, range(n)).low) == (1.0, 0.0)
        assert share([True] * (2 * n), [i // 2 for i in range(2 * n)]).high == 1.0
        assert (
            interval([1.0] * n)[1],
            interval([0.0] * n)[0],
            wilson(1.0, n)[1],
            wilson(0.0, n)[0],
        ) == (1.0, 0.0, 1.0, 0.0)


def test_equal_prompts_give_the_interval_of_their_means():
    """Two rows of each prompt: what the prompts' own means give, for the mean and for the share."""
    pairs = [(1.0, 3.0), (0.0, 1.0), (5.0, 5.0), (-2.0, 0.0)]
    found = mean([v for pair in pairs for v in pair], [p for p in range(4) for _ in range(2)])
    plain = mean([sum(pair) / 2 for pair in pairs], range(4))
    assert (found.value, found.low, found.high) == pytest.approx(
        (plain.value, plain.low, plain.high), rel=1e-12
    )
    hits = [(True, True), (True, False), (False, False), (True, True), (True, False)]
    made = share([hit for pair in hits for hit in pair], [p for p in range(5) for _ in range(2)])
    assert (made.low, made.high) == pytest.approx(
        interval([sum(pair) / 2 for pair in hits]), rel=1e-12
    )
    assert (made.count, made.prompts) == (10, 5)


def test_weights_are_those_of_a_ratio_by_hand():
    """Values 1, 2, 4 with weights 1, 2, 1: mean 9/4; slopes -5/4, -1/2, 7/4; variance 3/2 (25/16 +
    1/4 + 49/16) / 16; t of two degrees is 4.302653.
    """
    found = mean([1.0, 2.0, 4.0], "abc", [1.0, 2.0, 1.0])
    half = 4.302653 * math.sqrt(1.5 * (25 / 16 + 1 / 4 + 49 / 16) / 16)
    assert (found.value, found.low, found.high) == pytest.approx(
        (2.25, 2.25 - half, 2.25 + half), abs=1e-5
    )


def test_a_ratio_of_sums_needs_no_row_to_divide():
    """Sums 9 / 6; slopes over - 3/2 under: 2 - 0, 3 - 3, 4 - 6 = 2, 0, -2 (a row may have nothing
    to divide by); variance 3/2 (4 + 4) / 36.
    """
    found = ratio([2, 3, 4], [0, 2, 4], "abc")
    half = 4.302653 * math.sqrt(1.5 * 8 / 36)
    assert (found.value, found.low, found.high) == pytest.approx(
        (1.5, 1.5 - half, 1.5 + half), abs=1e-5
    )


def test_one_prompt_has_a_value_and_says_why_it_has_no_interval():
    for found in (mean([1.0, 2.0], ["a", "a"]), share([True, False], ["a", "a"])):
        assert (found.low, found.high, found.prompts) == (None, None, 1)
        assert "one prompt" in found.why
    assert intervals.flat({"x": mean([1.0], ["a"]), "n": 3}) == {"x": 1.0, "n": 3}
    assert intervals.flat({"x": mean([1.0, 1.0], "ab")}) == {"x": 1.0, "x_low": 1.0, "x_high": 1.0}


def test_intervals_cover_when_answers_share_a_prompt():
    """60 prompts of 1 to 4 rows that are alike within a prompt; 600 worlds. Taken as independent
    rows, Wilson's covers far less.
    """
    rng = random.Random(0)
    sizes = [1 + p % 4 for p in range(60)]
    prompts = [p for p, size in enumerate(sizes) for _ in range(size)]
    shares = means = naive = 0
    for _ in range(600):
        own = [rng.betavariate(1.2, 0.8) for _ in sizes]  # mean 0.6
        hits = [rng.random() < own[p] for p in prompts]
        found = share(hits, prompts)
        shares += found.low <= 0.6 <= found.high
        low, high = wilson(found.value, len(hits))
        naive += low <= 0.6 <= high
        values = [4 * own[p] + rng.gauss(0, 0.3) for p in prompts]
        made = mean(values, prompts)
        means += made.low <= 2.4 <= made.high
    assert 0.93 <= shares / 600 <= 0.97
    assert 0.93 <= means / 600 <= 0.97
    assert naive / 600 < 0.91


def test_a_stratified_interval_covers_and_is_wilsons_of_one_stratum():
    one = share([True] * 30 + [False] * 12, range(42))
    alone = stratified([one], [7.0])
    assert (alone.value, alone.low, alone.high) == pytest.approx(
        (one.value, one.low, one.high), rel=1e-12
    )
    rng = random.Random(1)
    truth, sizes, weights = (0.95, 0.6, 0.8), (30, 60, 45), (0.5, 0.2, 0.3)
    inside = 0
    for _ in range(800):
        parts = [
            share([rng.random() < p for _ in range(n)], range(n)) for p, n in zip(truth, sizes)
        ]
        found = stratified(parts, weights)
        inside += found.low <= sum(w * p for w, p in zip(weights, truth)) <= found.high
    assert 0.93 <= inside / 800 <= 0.97


def row(prompt, chosen, rejected, lengths=(2, 4), probability=1.0):
    return {
        "prompt": prompt,
        "probability": probability,
        "moved/chosen": chosen,
        "moved/rejected": rejected,
        "length/chosen": lengths[0],
        "length/rejected": lengths[1],
    }


def test_displacement_by_hand():
    rows = [
        row(0, -1.0, -4.0),
        row(1, 0.5, -2.0, (1, 8)),
        row(2, -3.0, 1.0, (5, 4)),
        row(3, 9.0, 9.0, probability=0.5),
    ]
    found = displacement.displacement(rows)
    assert found.chosen.value == pytest.approx(-3.5 / 3)
    assert found.rejected.value == pytest.approx(-5 / 3)
    # all tokens alike, as training logs it
    assert found.chosen_token.value == pytest.approx(-3.5 / 8)
    assert found.rejected_token.value == pytest.approx(-5 / 16)
    assert (found.less_likely.value, found.both.value, found.less_likely.count) == (
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
        3,
    )
    assert (found.less_likely.low, found.less_likely.high) == pytest.approx(
        wilson(2 / 3, 3), abs=1e-12
    )
    assert displacement.displacement(rows[3:]) is None
    assert displacement.displacement([{"prompt": 0, "probability": 1.0}]) is None


def test_sureness_against_its_definitions():
    margins = np.array([0.0, 2.0, -1.0, 3.0])
    claimed = [0.5, *(1 / (1 + math.exp(-m)) for m in (2.0, 1.0, 3.0))]
    agreed = [0, 1, 0, 1]
    found = calibration.sureness(margins, [0, 1, 1, 2])
    assert found.excess.value == pytest.approx((sum(claimed) - sum(agreed)) / 4)
    assert found.brier.value == pytest.approx(
        sum((c - a) ** 2 for c, a in zip(claimed, agreed)) / 4
    )
    assert found.log_loss.value == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 4)
    assert found.brier.value == pytest.approx(calibration.calibration(margins).brier.score)
    assert found.log_loss.value == pytest.approx(calibration.calibration(margins).log_loss)
    assert (found.excess.count, found.excess.prompts) == (4, 3)


def test_an_area_and_its_interval_are_delongs():
    good, bad = [3.0, 1.0, 2.0, 2.0], [0.0, 2.0, 1.0]
    rows = [
        {"where": "", "prompt": i, "completion": 0, "label": i < 4, "reward": value, "length": 1}
        for i, value in enumerate(good + bad)
    ]
    found = heldout.thumbs_figures(rows)["rewards/auc"]
    wins = [[(g > b) + 0.5 * (g == b) for b in bad] for g in good]
    v10, v01 = np.mean(wins, axis=1), np.mean(wins, axis=0)
    assert found.value == pytest.approx(np.mean(wins))
    delong = (np.sum((v10 - found.value) ** 2) / 16 + np.sum((v01 - found.value) ** 2) / 9) * 7 / 6
    assert found.value - found.low == pytest.approx(stats.t.ppf(0.975, 6) * math.sqrt(delong))


# ---------------------------------------------------------------- RewardBench


def test_rewardbench_scores_by_hand():
    """Reasoning: math-prm, one of two prompts won, weighs 984 / 447 a prompt; code, three of four.
    A tie is no win: the caller says so by False.
    """
    rows = [
        ("math-prm", True),
        ("math-prm", False),
        ("hep-go", True),
        ("hep-go", True),
        ("hep-cpp", True),
        ("hep-cpp", False),
    ]
    rows += [
        ("alpacaeval-easy", True),
        ("mt-bench-med", False),
        ("llmbar-natural", False),
        ("donotanswer", True),
        ("polite", True),
    ]
    found = rewardbench.scores([name for name, _ in rows], [hit for _, hit in rows])
    heavy = 984 / 447
    reasoning = (2 * heavy * 0.5 + 2 * 1.0 + 2 * 0.5) / (2 * heavy + 4)
    assert {name: one.value for name, one in found.sections.items()} == pytest.approx(
        {"Chat": 0.5, "Chat Hard": 0.0, "Safety": 1.0, "Reasoning": reasoning}
    )
    assert found.overall.value == pytest.approx((0.5 + 0 + 1 + reasoning) / 4)
    assert found.every.value == pytest.approx(7 / 11)
    assert found.other == ("polite",)
    assert found.subsets["hep-go"] == Figure(1.0, *wilson(1.0, 2), 2, 2)
    assert found.partial["hep-go"] == (2, 164)
    assert found.partial["hep-rust"] == (0, 164)
    assert rewardbench.section_of("polite") == rewardbench.OTHER


def test_the_whole_benchmark_weighs_prompts_alike_and_math_as_all_code():
    """With all prompts there a section is sum of accuracy times count over sum of counts, math-prm
    counting 984.
    """
    rng = random.Random(2)
    rows = [
        (name, rng.random() < 0.3 + 0.6 * (i % 5) / 5)
        for i, (name, count) in enumerate(rewardbench.COUNTS.items())
        for _ in range(count)
    ]
    found = rewardbench.scores([name for name, _ in rows], [hit for _, hit in rows])
    assert (len(rows), found.partial, found.other) == (2985, {}, ())
    assert found.why == ""
    for section, subsets in rewardbench.SECTIONS.items():
        counts = {**subsets, "math-prm": 984} if "math-prm" in subsets else subsets
        expected = sum(found.subsets[name].value * count for name, count in counts.items()) / sum(
            counts.values()
        )
        assert found.sections[section].value == pytest.approx(expected)
        assert found.sections[section].low < expected < found.sections[section].high
    assert (
        sum(
            rewardbench.SECTIONS["Reasoning"][name]
            for name in rewardbench.SECTIONS["Reasoning"]
            if name != "math-prm"
        )
        == 984
    )
    assert found.overall.value == pytest.approx(
        sum(one.value for one in found.sections.values()) / 4
    )


def test_a_missing_section_has_no_overall_score():
    found = rewardbench.scores(["hep-go", "donotanswer"], [True, False])
    assert found.overall is None
    assert "Chat, Chat Hard" in found.why
    assert rewardbench.scores(["polite"], [True]).sections == {}
