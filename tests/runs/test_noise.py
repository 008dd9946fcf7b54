"""Label noise: the estimate on margins whose truth is known, calibration, recall, and the command
on planted flips.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import runs
import tiny
from winnow import api
from winnow.errors import DataError, SettingsError
from winnow.evaluation.statistics import label_noise as noise
from winnow.system.files import read_json, read_jsonl


def labels(rate, temperature, count=40_000, seed=0, spread=3.0):
    """Margins of labels drawn by the model of the noise: choices with s(t m), then flips."""
    random = np.random.default_rng(seed)
    margin = random.normal(0, spread, count)
    won = random.random(count) < 1 / (1 + np.exp(-temperature * margin))
    turned = random.random(count) < rate
    return np.where(won != turned, margin, -margin), turned


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.25])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.slow
def test_rate_and_temperature_are_found_again(rate, temperature):
    margin, _ = labels(rate, temperature, spread=3 / temperature)
    found = noise.estimate(margin)
    assert found.rate == pytest.approx(rate, abs=0.015)
    assert found.low - 1e-9 <= rate <= found.high + 0.005
    assert found.high - found.low < 0.04
    assert found.temperature == pytest.approx(temperature, rel=0.08)


@pytest.mark.slow
def test_the_interval_holds_the_truth_as_often_as_it_says():
    inside = 0
    for seed in range(60):
        margin, _ = labels(0.1, 1.0, count=1500, seed=seed)
        found = noise.estimate(margin)
        inside += found.low <= 0.1 <= found.high
    assert inside >= 52  # 95 % of 60 is 57; below 52 happens once in a thousand


def test_the_probability_of_a_flip_is_bayes():
    margin = np.array([-3.0, 0.0, 2.0])
    found = noise.flipped(margin, noise.Noise(0.1, 0.0, 0.2, 0.7))
    for m, p in zip(margin, found):
        right = 1 / (1 + math.exp(-0.7 * m))
        assert p == pytest.approx(0.1 * (1 - right) / (0.9 * right + 0.1 * (1 - right)), rel=1e-12)
    assert found[1] == pytest.approx(0.1)
    margin, turned = labels(0.1, 1.0)
    claimed = noise.flipped(margin, noise.estimate(margin))
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        part = (claimed >= low) & (claimed < high)
        assert turned[part].mean() == pytest.approx(claimed[part].mean(), abs=0.02)


def test_calibration_of_honest_and_of_loud_margins():
    margin, _ = labels(0.0, 1.0)
    honest = noise.calibration(margin)
    assert len(honest) == noise.BINS
    assert sum(one.count for one in honest) == len(margin)
    assert noise.calibration_error(honest) < 0.01
    assert [one.claimed for one in honest] == sorted(one.claimed for one in honest)
    loud = noise.calibration(3 * margin)
    assert noise.calibration_error(loud) > 0.08
    (alone,) = noise.calibration(np.array([1.0, 1.0, -1.0]))
    assert (alone.agreed, alone.count) == (pytest.approx(2 / 3), 3)
    assert alone.claimed == pytest.approx(1 / (1 + math.exp(-1)))


def test_few_rows_are_refused():
    with pytest.raises(ValueError, match="19 comparisons are too few"):
        noise.estimate(np.ones(19))


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A policy that learnt which of two words is better, on clean labels."""
    root = tmp_path_factory.mktemp("noise")
    tiny.folder(root / "model", hidden_size=16, intermediate_size=32)
    pairs = [
        {"prompt": f"say {i} ", "chosen": " yes indeed", "rejected": " no never"} for i in range(40)
    ]
    tiny.write(root / "train.jsonl", pairs)
    run = api.dpo(
        model=str(root / "model"),
        data=[str(root / "train.jsonl")],
        out=str(root / "run"),
        batch_size=20,
        steps=30,
        lr=3e-3,
        kl_samples=0,
    )
    flipped = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if i % 10 == 3 else row
        for i, row in enumerate(pairs)
    ]
    tiny.write(
        root / "flipped.jsonl", [{**row, "prompt": f"tell {i} "} for i, row in enumerate(flipped)]
    )
    return root, run


@pytest.mark.slow
def test_planted_flips_are_named(trained, tmp_path, capsys):
    root, run = trained
    found = api.evaluate(
        model=str(run.root),
        data=[str(root / "flipped.jsonl")],
        label_noise=True,
        out=str(tmp_path / "audit"),
    )
    said = capsys.readouterr().out
    suspects = sorted(found.rows, key=lambda row: row["rewards/margins"])[:4]
    assert min(row["p_flipped"] for row in suspects) >= max(
        row["p_flipped"] for row in found.rows if row not in suspects
    )
    assert {row["where"].rpartition(":")[2] for row in suspects} == {"4", "14", "24", "34"}
    for row in suspects:
        assert row["where"] in said
        assert f"margin {row['rewards/margins']:+.2f} nats" in said
    (report,) = (
        one["label_noise"] for one in read_json(tmp_path / "audit" / "report.json")["sets"].values()
    )
    assert report["low"] <= 0.1 <= report["high"]
    assert sum(one["count"] for one in report["calibration"]) == 40
    written = read_jsonl(tmp_path / "audit" / "rows.jsonl")
    assert [row["p_flipped"] for row in written] == [row["p_flipped"] for row in found.rows]
    assert "these are the rows it was trained on" not in said
    api.evaluate(model=str(run.root), data=[str(root / "train.jsonl")], label_noise=True)
    assert "these are the rows it was trained on" in capsys.readouterr().out


def test_without_a_reference_or_with_few_rows_it_is_refused(trained, tmp_path):
    root, _run = trained
    with pytest.raises(SettingsError, match="label_noise: looks at implicit rewards"):
        api.evaluate(
            model=str(root / "model"), data=[str(root / "flipped.jsonl")], label_noise=True
        )
    tiny.write(tmp_path / "few.jsonl", tiny.pairs(6))
    with pytest.raises(DataError, match="6 comparisons are too few"):
        api.evaluate(
            model=str(root / "model"),
            reference=str(root / "model"),
            data=[str(tmp_path / "few.jsonl")],
            label_noise=True,
        )


def test_the_command_line_says_it_too(trained, monkeypatch, capsys):
    root, run = trained
    assert (
        runs.winnow(
            monkeypatch,
            "eval",
            "--model",
            run.root,
            "--data",
            root / "flipped.jsonl",
            "--label-noise",
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "flipped labels:" in said
    assert "calibration error:" in said


def test_margins_that_are_no_log_ratios_are_refused(trained):
    root, run = trained
    for name in ("dpo_norm", "simpo", "ipo"):
        with pytest.raises(SettingsError, match="no sums of log-ratios"):
            api.evaluate(
                model=str(run.root),
                data=[str(root / "flipped.jsonl")],
                objective=name,
                reference=str(root / "model"),
                label_noise=True,
            )
