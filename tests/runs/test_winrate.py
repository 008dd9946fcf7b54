"""`winnow winrate` through the command line: real models, real judges; each figure counted once
more from the files; kills, faults, the page.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import safetensors.torch
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, t

import endpoints
import runs
import tiny
from endpoints import line as verdict
from matrix import cases
from paths import HELPERS
from winnow.commands import sample
from winnow.config.model_spec import ModelSpec
from winnow.models import reward_models
from winnow.preferences.judging import endpoint
from winnow.preferences.judging import games as matches
from winnow.preferences.judging.games import Match
from winnow.preferences.votes import Vote
from winnow.reports import winrate_report, winrate_warnings
from winnow.system.files import read_json, read_jsonl, sha256_file

PROMPTS = 14
TASTE = "test_winrate:taste"


def taste(prompt, answer):
    """A judge with a will of its own, which likes length a little; equal scores come up."""
    return zlib.crc32(f"{prompt}{answer}".encode()) % 5 + len(answer) // 20


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    for name in [
        name for name in os.environ if name.lower().endswith("_proxy") or name == "OPENAI_API_KEY"
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(sys, "path", [*sys.path, str(HELPERS)])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("new", "old", "other")):
        tiny.folder(root / name, seed=seed, hidden_size=16, intermediate_size=32)
    tiny.folder(root / "chat", template=tiny.TEMPLATE)
    tiny.write(
        root / "prompts.jsonl", [{"prompt": f"{i}: {'green ' * (i % 5)}?"} for i in range(PROMPTS)]
    )
    tiny.write(
        root / "people.jsonl",
        [
            {"prompt": row["prompt"], "completion": f" it is {'very ' * (i % 3)}green"}
            for i, row in enumerate(asked(root))
        ],
    )
    return root


def asked(world):
    return read_jsonl(world / "prompts.jsonl")


def line(world, out, *models, **changes):
    given = {
        "prompts": world / "prompts.jsonl",
        "judge": TASTE,
        "k": 2,
        "max_new_tokens": 8,
        "out": out,
        **changes,
    }
    options = [
        str(word)
        for name, value in given.items()
        if value is not None
        for word in ("--" + name.replace("_", "-"), value)
    ]
    return ["winrate", *(str(world / name) for name in models or ("new", "old")), *options]


def figures(out):
    """The report without what depends on the clock and on the folder's name."""
    found = read_json(out / "report.json")
    return {
        name: found[name]
        for name in (
            "headline",
            "prompts",
            "comparisons",
            "others",
            "ranking",
            "temperatures",
            "warnings",
            "shown",
        )
    }


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """Three models and people, two answers each, and the temperatures."""
    out = tmp_path_factory.mktemp("whole") / "w"
    with pytest.MonkeyPatch.context() as patch:
        assert (
            runs.winnow(
                patch,
                *line(world, out, "new", "old", "other", "people.jsonl", temperatures="0,0.5,1"),
            )
            == 0
        )
    return out


# ---------------------------------------------------------------- every figure once more


def said(world, out, number):
    """Of each prompt a model's answers, from the files."""
    if number == 4:
        return [[row["completion"]] for row in read_jsonl(world / "people.jsonl")]
    return [
        row["completions"] + [None] * row["left_out"]
        for row in read_jsonl(out / f"model-{number}.answers.jsonl")
    ]


def games(world, out, i, j):
    """(prompt, what ours got, our characters more, the score's gain) of each game, judged here once
    more; None: somebody said nothing.
    """
    found = []
    for p, (mine, yours, row) in enumerate(
        zip(said(world, out, i), said(world, out, j), asked(world), strict=True)
    ):
        for g in range(2):
            a, b = mine[g % len(mine)], yours[g % len(yours)]
            if a is None or b is None:
                found.append((p, None, None, None))
                continue
            x, y = taste(row["prompt"], a), taste(row["prompt"], b)
            found.append((p, (x > y) + 0.5 * (x == y), len(a) - len(b), x - y))
    return found


def per_prompt(rows):
    """Means over each prompt's games."""
    return np.array(
        [
            np.mean([value for p, value in rows if p == prompt])
            for prompt in dict.fromkeys(p for p, _ in rows)
        ],
        float,
    )


def wilson(rates):
    """Wilson's interval at the effective number of prompts, from its two roots."""
    mean, n, z = rates.mean(), len(rates), norm.ppf(0.975)
    if rates.std() and not set(rates) <= {0.0, 1.0}:
        n, z = mean * (1 - mean) / (rates.var(ddof=1) / len(rates)), t.ppf(0.975, len(rates) - 1)
    return sorted(np.roots([1 + z * z / n, -2 * mean - z * z / n, mean**2]))


def students(values):
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return {
        "mean": values.mean(),
        "low": values.mean() - half,
        "high": values.mean() + half,
        "prompts": len(values),
    }


@pytest.mark.parametrize(
    ("i", "j", "place"),
    [
        (1, 4, ("comparisons", 0)),
        (3, 4, ("comparisons", 2)),
        (1, 2, ("others", 0)),
        (2, 3, ("others", 2)),
    ],
)
def test_every_figure_of_a_comparison_is_that_of_the_files(world, whole, i, j, place):
    found = read_json(whole / "report.json")[place[0]][place[1]]
    names = ("new", "old", "other", "people.jsonl")
    assert (found["model"], found["against"], found["asked"]) == (
        names[i - 1],
        names[j - 1],
        PROMPTS,
    )
    rows = games(world, whole, i, j)
    valid = [row for row in rows if row[1] is not None]
    rates = per_prompt([(p, won) for p, won, _, _ in valid])
    low, high = wilson(rates)
    won = found["win_rate"]
    assert (won["rate"], won["low"], won["high"]) == pytest.approx((rates.mean(), low, high))
    assert (won["prompts"], won["games"], won["spread"]) == (
        len(rates),
        2 * PROMPTS,
        pytest.approx(rates.std(ddof=1)),
    )
    for name, part in (
        ("ties", [(p, w == 0.5) for p, w, _, _ in valid]),
        ("invalid", [(p, w is None) for p, w, _, _ in rows]),
    ):
        shares = per_prompt(part)
        assert (found[name]["rate"], found[name]["prompts"]) == (
            pytest.approx(shares.mean()),
            len(shares),
        )
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(
            tuple(wilson(shares)), abs=1e-12
        )
    assert found["lengths"]["longer"] == pytest.approx(
        students(per_prompt([(p, d) for p, _, d, _ in valid]))
    )
    assert found["score_gain"] == pytest.approx(
        students(per_prompt([(p, g) for p, _, _, g in valid]))
    )
    for side, number in (("ours", i), ("theirs", j)):
        lengths = [
            (p, len(a))
            for p, many in enumerate(said(world, whole, number))
            for a in many
            if a is not None
        ]
        assert found["lengths"][side] == pytest.approx(students(per_prompt(lengths)))
    better, worse = int((rates > 0.5).sum()), int((rates < 0.5).sum())
    told = found["sign_test"]
    assert (told["better"], told["worse"], told["p"]) == (
        better,
        worse,
        pytest.approx(binomtest(better, better + worse).pvalue),
    )
    spread = math.sqrt(((rates - 0.5) ** 2).mean())
    two = norm.ppf(0.975) + norm.ppf(0.8)
    assert found["detectable"]["difference"] == (
        pytest.approx(two * spread / math.sqrt(len(rates)))
        if two * spread / math.sqrt(len(rates)) <= 0.5
        else None
    )
    assert found["needed"]["prompts"] == math.ceil((two * spread / 0.05) ** 2)
    assert found["orders"] is None  # a judge that scores reads nothing in any order


@pytest.mark.parametrize(("i", "j", "place"), [(1, 4, ("comparisons", 0)), (1, 2, ("others", 0))])
def test_the_rate_at_equal_lengths_is_statsmodels(world, whole, i, j, place):
    import statsmodels.api as sm
    from statsmodels.tools.sm_exceptions import SpecificationWarning

    valid = [row for row in games(world, whole, i, j) if row[1] is not None]
    prompt, score, longer = (np.array(column, float) for column in list(zip(*valid))[:3])
    weight = np.array([1 / (prompt == p).sum() for p in prompt])
    design = np.stack([np.ones(len(score)), np.tanh(longer / longer.std())], 1)
    made = sm.GLM(score, design, family=sm.families.Binomial(), var_weights=weight)
    with pytest.warns(
        SpecificationWarning, match="not fully supported"
    ):  # for freedoms' sake: the covariance is the one written in the docs
        fitted = made.fit(
            cov_type="cluster", cov_kwds={"groups": prompt, "use_correction": False}, tol=1e-12
        )
    clusters = len(set(prompt))
    half = t.ppf(0.975, clusters - 1) * fitted.bse * math.sqrt(clusters / (clusters - 1))
    found = read_json(whole / "report.json")[place[0]][place[1]]["length_controlled"]
    assert (found["rate"], found["low"], found["high"]) == pytest.approx(
        tuple(expit(fitted.params[0] + side * half[0]) for side in (0, -1, 1)), rel=1e-6
    )
    weights = (found["weight"], found["weight_low"], found["weight_high"])
    assert weights == pytest.approx(
        tuple(fitted.params[1] + side * half[1] for side in (0, -1, 1)), rel=1e-6, abs=1e-6
    )


def test_the_ranking_is_the_likeliest(world, whole):
    met = [
        (i - 1, j - 1, w)
        for i in (1, 2, 3)
        for j in range(i + 1, 5)
        for _, w, _, _ in games(world, whole, i, j)
        if w is not None
    ]

    def cost(at):
        return sum(
            w * np.logaddexp(0, at[j] - at[i]) + (1 - w) * np.logaddexp(0, at[i] - at[j])
            for i, j, w in met
        ) + 0.005 * (at @ at)

    at = minimize(cost, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    found = read_json(whole / "report.json")["ranking"]
    assert (found["games"], found["prompts"], len(found["groups"])) == (len(met), PROMPTS, 1)
    names = ["new", "old", "other", "people.jsonl"]
    strengths = {row["model"]: row["strength"] for row in found["groups"][0]}
    assert [strengths[name] for name in names] == pytest.approx(list(at - at.mean()), abs=1e-5)
    assert list(strengths.values()) == sorted(strengths.values(), reverse=True)
    for one in found["beats"]:
        assert one["rate"] == pytest.approx(
            expit(strengths[one["model"]] - strengths[one["against"]])
        )
        assert one["low"] < one["rate"] < one["high"]


def test_temperatures_are_the_same_figures_of_other_answers(world, whole):
    report = read_json(whole / "report.json")
    points = report["temperatures"]
    assert [(one["model"], one["temperature"]) for one in points] == [
        (name, heat) for name in ("new", "old", "other") for heat in (0.0, 0.5, 1.0)
    ]
    baseline = [one[0] for one in said(world, whole, 4)]
    for one in points:
        number = ("new", "old", "other").index(one["model"]) + 1
        if one["temperature"] == 1.0:  # the temperature of the main comparison
            assert {name: value for name, value in one.items() if name != "temperature"} == report[
                "comparisons"
            ][number - 1]
            continue
        rows = read_jsonl(whole / f"model-{number}.at-{one['temperature']:g}.answers.jsonl")
        assert {row["sampled"]["temperature"] for row in rows} == {one["temperature"]}
        rates = []
        for row, other in zip(rows, baseline, strict=True):
            scores = [
                (taste(row["prompt"], a), taste(row["prompt"], other)) for a in row["completions"]
            ]
            rates += [np.mean([(x > y) + 0.5 * (x == y) for x, y in scores])] if scores else []
        assert one["win_rate"]["rate"] == pytest.approx(np.mean(rates))
    greedy = read_jsonl(whole / "model-1.at-0.answers.jsonl")
    assert all(len(set(row["completions"])) <= 1 for row in greedy)


def test_the_report_says_where_it_comes_from(world, whole):
    report = read_json(whole / "report.json")
    files = {
        name: whole / name if (whole / name).exists() else world / "people.jsonl"
        for name in report["sources"]
    }
    assert {
        "prompts.jsonl",
        "model-1.answers.jsonl",
        "games.jsonl",
        "games.judged.jsonl",
        str(world / "people.jsonl"),
    } <= set(files)
    assert {name: source["sha256"] for name, source in report["sources"].items()} == {
        name: sha256_file(path) for name, path in files.items()
    }
    assert report["settings"]["judge"] == report["judge"]["judge"] == TASTE
    assert report["command"].startswith("winnow winrate ")
    assert {"winnow-lm", "numpy", "scipy", "torch", "python"} <= set(report["versions"])
    # random numbers of their own, whatever their place in the command
    assert len({model["sampled"]["seed"] for model in report["models"][:3]}) == 3
    assert "sampled" not in report["models"][3]


def test_games_lie_there_as_groups_that_other_commands_read(whole, call):
    from winnow.data.sources import load

    judged = load(str(whole / "games.judged.jsonl"))
    assert (judged.layout, judged.problems) == ("grouped", [])
    assert (
        call("report", whole / "games.judged.jsonl", "--out", whole.parent / "votes.html")[0] == 0
    )


# ---------------------------------------------------------------- the same model, the same folder


def test_a_model_against_itself_is_even_and_that_is_said(world, tmp_path, call):
    import shutil

    shutil.copytree(world / "new", world / "copy", dirs_exist_ok=True)
    for models in (("new", "new"), ("new", "copy")):
        out = tmp_path / models[1]
        code, told, _ = call(*line(world, out, *models))
        assert code == 0
        one = read_json(out / "report.json")["comparisons"][0]
        assert (one["win_rate"]["rate"], one["alike"]["rate"], one["ties"]["rate"]) == (
            0.5,
            1.0,
            1.0,
        )
        assert one["win_rate"]["low"] < 0.5 < one["win_rate"]["high"]
        assert "are even, 50 %, as they must be: these are the same weights" in told
        said = [warning["message"] for warning in read_json(out / "report.json")["warnings"]]
        assert not any("includes 50 %" in message or "are few" in message for message in said)
        assert sum("these are the same weights" in message for message in said) == 1
        (card,) = winrate_report.cards(read_json(out / "report.json"))
        assert (card.value, card.interval) == ("50 %", None)


def test_two_models_do_not_draw_the_same_numbers(world, tmp_path, call):
    """With the same random numbers like models say the same, and that is no game of two answers
    that know nothing of each other.
    """
    assert call(*line(world, tmp_path / "w"))[0] == 0
    ours, theirs = (read_jsonl(tmp_path / "w" / f"model-{n}.answers.jsonl") for n in (1, 2))
    assert ours[0]["sampled"]["seed"] != theirs[0]["sampled"]["seed"]


def test_who_else_plays_changes_nothing_of_a_pair(world, tmp_path, call):
    shutil.copytree(world / "old", world / "third")
    files = sorted((world / "third").glob("*.safetensors"))
    weights = safetensors.torch.load_file(files[0])
    safetensors.torch.save_file(
        {name: value * 1.01 for name, value in weights.items()}, files[0], {"format": "pt"}
    )
    assert call(*line(world, tmp_path / "two"))[0] == 0
    assert call(*line(world, tmp_path / "three", "third", "new", "old"))[0] == 0
    (two,) = read_json(tmp_path / "two" / "report.json")["comparisons"]
    third, three = read_json(tmp_path / "three" / "report.json")["comparisons"]
    assert (third["model"], two) == ("third", three)


def test_a_judge_that_fails_is_found_before_anything_is_sampled(world, tmp_path, call, monkeypatch):
    monkeypatch.setattr(sample, "run", None)
    (world / "broken_taste.py").write_text(
        "def score(prompt, completion):\n    raise KeyError('nothing')\n\ndef gold(prompt,"
        " completion, gold):\n    return 1\n"
    )
    for judge, told in (
        (f"{world / 'broken_taste.py'}:score", "raised KeyError"),
        (f"{world / 'broken_taste.py'}:gold", "wants the column gold, and there are no columns"),
        (f"reward:{world / 'old'}", "is no reward model"),
        ("http://127.0.0.1:1/v1", "nobody replies there"),
    ):
        more = {"judge_model": "m"} if judge.startswith("http") else {}
        code, _, error = call(*line(world, tmp_path / "w", judge=judge, **more))
        assert (code, told in error) == (2, True), error
        assert not (tmp_path / "w").exists()


def test_a_finished_folder_is_told_and_left(world, tmp_path, call):
    out = tmp_path / "w"
    assert call(*line(world, out))[0] == 0
    before = runs.tree(out)
    code, told, _ = call(*line(world, out))
    assert (code, "is finished; nothing to do" in told, "Win rate, ties half" in told) == (
        0,
        True,
        True,
    )
    after = runs.tree(out)
    assert {name: after[name] for name in after if "lock" not in name} == {
        name: before[name] for name in before if "lock" not in name
    }
    for changes, what in (
        ({"judge": "length"}, f"judge: '{TASTE}' -> 'length'"),
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"k": 1}, "k: 2 -> 1"),
    ):
        code, _, error = call(*line(world, out, **changes))
        assert (code, what in error) == (2, True)
    code, _, error = call(*line(world, out, "new", "other"))
    assert (code, "models: " in error) == (2, True)


def test_answers_that_changed_are_refused(world, tmp_path, call):
    people = tmp_path / "people.jsonl"
    people.write_bytes((world / "people.jsonl").read_bytes())
    assert call(*line(world, tmp_path / "w", "new", people))[0] == 0
    people.write_text(people.read_text().replace("it is", "it was"))
    code, _, error = call(*line(world, tmp_path / "w", "new", people))
    assert (code, "its content has changed" in error) == (2, True)


def test_a_page_that_cannot_be_drawn_is_drawn_by_the_same_command(
    world, tmp_path, monkeypatch, call
):
    """The figures are written before the page, so nothing is judged again for it."""

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    words = line(world, tmp_path / "w")
    with monkeypatch.context() as patch:
        patch.setattr(winrate_report, "render", no_room)
        assert call(*words)[0] == 1
    figures_before = (tmp_path / "w" / "report.json").read_bytes()
    assert not (tmp_path / "w" / "report.html").exists()
    code, said, _ = call(*words)
    assert (code, "is finished; nothing to do" in said) == (0, True)
    assert (tmp_path / "w" / "report.json").read_bytes() == figures_before
    page = (tmp_path / "w" / "report.html").read_text()
    assert page == winrate_report.render(read_json(tmp_path / "w" / "report.json"))


WRITTEN = [
    "winrate.json",
    "model-1.answers.jsonl",
    "model-2.answers.jsonl",
    "games.judged.jsonl",
    "model-1.at-0.games.jsonl",
]


@pytest.mark.process
@pytest.mark.parametrize(
    "point", cases([(point,) for point in WRITTEN], lambda point: point in WRITTEN[2:4])
)
def test_killed_anywhere_it_goes_on_to_the_same(world, tmp_path, seed, point, monkeypatch):
    """A real process under SIGKILL as soon as a file is there."""
    words = line(world, tmp_path / "w", judge="regex:[A-Za-z]", temperatures="0,1", seed=seed)
    process = subprocess.Popen(
        [sys.executable, "-m", "winnow", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "w" / point).exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "w" / "report.json").exists()
    assert runs.winnow(monkeypatch, *words) == 0
    assert (
        runs.winnow(
            monkeypatch,
            *line(world, tmp_path / "again", judge="regex:[A-Za-z]", temperatures="0,1", seed=seed),
        )
        == 0
    )
    assert figures(tmp_path / "w") == figures(tmp_path / "again")


# ---------------------------------------------------------------- a language model judges


def judge(stub, **more):
    return {"judge": stub.url, "judge_model": "stub", "k": 1, **more}


def test_a_language_model_is_asked_in_both_orders_and_nothing_twice(world, tmp_path, call):
    with endpoints.served(endpoints.longer) as stub:
        code, told, _ = call(
            *line(world, tmp_path / "w", "new", "old", "people.jsonl", **judge(stub))
        )
        assert code == 0
        bodies = [json.dumps(one.body["messages"]) for one in stub.asked]
        assert len(bodies) == len(set(bodies))
        (tmp_path / "w" / "report.json").unlink()
        (tmp_path / "w" / "games.judged.jsonl").unlink()
        assert (
            call(*line(world, tmp_path / "w", "new", "old", "people.jsonl", **judge(stub)))[0] == 0
        )
        assert len(stub.asked) == len(bodies)  # what was said is kept
    report = read_json(tmp_path / "w" / "report.json")
    rows = read_jsonl(tmp_path / "w" / "games.judged.jsonl")
    for one in [*report["comparisons"], *report["others"]]:
        pairs = [
            (row, row["models"].index(one["model"]), row["models"].index(one["against"]))
            for row in rows
            if {one["model"], one["against"]} <= {*row["models"]}
        ]
        shares = [
            np.mean(
                [
                    {"first": v["first"] == i, "second": v["second"] == i}.get(v["outcome"], 0.5)
                    for v in votes
                ]
            )
            for votes, i in on(pairs)
        ]
        asked_of = sum(row["completions"][i] != row["completions"][j] for row, i, j in pairs)
        assert one["win_rate"]["rate"] == pytest.approx(np.mean(shares))
        assert (one["orders"]["both"], one["orders"]["alike"]) == (asked_of, asked_of)
        assert one["score_gain"] is None
    assert report["judge"]["model"] == "stub"
    assert "Same verdict in" in told


def on(pairs):
    """(votes on the answers i and j, i) of each row."""
    return [
        ([vote for vote in row["votes"] if {vote["first"], vote["second"]} == {i, j}], i)
        for row, i, j in pairs
    ]


def test_a_judge_that_takes_what_it_reads_first_makes_even_and_is_told_of(world, tmp_path, call):
    with endpoints.served(lambda asked: verdict("A")) as stub:
        assert call(*line(world, tmp_path / "both", "new", "people.jsonl", **judge(stub)))[0] == 0
        assert (
            call(
                *line(world, tmp_path / "one", "new", "people.jsonl", **judge(stub, orders="one"))
            )[0]
            == 0
        )
    report = read_json(tmp_path / "both" / "report.json")
    (one,) = report["comparisons"]
    assert (one["win_rate"]["rate"], one["orders"]["alike"], one["orders"]["first"]) == (
        0.5,
        0,
        one["orders"]["decided"],
    )
    told = " ".join(warning["message"] for warning in report["warnings"])
    assert "it mostly looks at the place" in told
    assert (
        "what the judge reads first wins 100 % of verdicts; both orders together cancel that"
        in told
    )
    told = " ".join(
        warning["message"] for warning in read_json(tmp_path / "one" / "report.json")["warnings"]
    )
    assert "in one order only" in told


def test_questions_without_a_verdict_are_in_no_figure_and_counted(world, tmp_path, call):
    """Asked about prompt 3 the judge says nothing that can be read."""
    with endpoints.served(
        lambda one: (
            endpoints.says("hm") if one.parts["PROMPT"].startswith("3:") else endpoints.longer(one)
        )
    ) as stub:
        assert call(*line(world, tmp_path / "w", "new", "people.jsonl", **judge(stub)))[0] == 0
    (one,) = read_json(tmp_path / "w" / "report.json")["comparisons"]
    silent = sum(row["left_out"] for row in read_jsonl(tmp_path / "w" / "model-1.answers.jsonl"))
    assert one["invalid"]["rate"] == pytest.approx((1 + silent) / PROMPTS)
    assert one["win_rate"]["prompts"] == PROMPTS - 1 - silent


def test_where_nothing_can_be_said_it_is_said(world, tmp_path, call):
    """No verdict at all, of three; and one prompt alone."""
    with endpoints.served(lambda one: endpoints.says("hm")) as stub:
        code, told, _ = call(
            *line(world, tmp_path / "w", "old", "new", "people.jsonl", limit=4, **judge(stub))
        )
    assert (code, "Nothing can be said of" in told) == (0, True)
    report = read_json(tmp_path / "w" / "report.json")
    assert report["comparisons"][0]["win_rate"]["why"] == "no game has a verdict"
    assert (
        report["comparisons"][0]["invalid"]["rate"],
        report["comparisons"][0]["length_controlled"]["rate"],
    ) == (1.0, None)
    assert "no verdict joins these groups: old; new; people.jsonl" in " ".join(
        warning["message"] for warning in report["warnings"]
    )
    code, told, _ = call(
        *line(world, tmp_path / "one", "old", "people.jsonl", limit=1, temperatures="0,1")
    )
    assert (code, "one prompt has no spread to make an interval of" in told) == (0, True)
    assert read_json(tmp_path / "one" / "report.json")["comparisons"][0]["win_rate"]["low"] is None
    assert '<svg class="plot"' not in (tmp_path / "one" / "report.html").read_text()


@pytest.mark.process
def test_killed_while_it_asks_it_asks_for_the_rest_alone(world, tmp_path, monkeypatch):
    from dataclasses import replace

    with endpoints.served(lambda one: replace(endpoints.longer(one), wait=0.05)) as stub:
        words = line(world, tmp_path / "w", "new", "people.jsonl", **judge(stub, concurrency=2))
        process = subprocess.Popen(
            [sys.executable, "-m", "winnow", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        judged = tmp_path / "w" / "games.judged.jsonl"
        while not judged.exists() or judged.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = {json.dumps([row["prompt"], row["completions"]]) for row in read_jsonl(judged)}
        before = len(stub.asked)
        assert runs.winnow(monkeypatch, *words) == 0
        later = {one.parts["PROMPT"] for one in stub.asked[before:]}
        assert not {json.loads(one)[0] for one in done} & later
        assert (
            runs.winnow(
                monkeypatch, *line(world, tmp_path / "again", "new", "people.jsonl", **judge(stub))
            )
            == 0
        )
    assert figures(tmp_path / "w") == figures(tmp_path / "again")


def test_a_budget_is_of_the_whole_command_and_the_next_goes_on(world, tmp_path, call):
    with endpoints.served(endpoints.longer) as stub:
        words = line(
            world, tmp_path / "w", "new", "people.jsonl", **judge(stub, temperatures="0,1")
        )
        code, _, error = call(*words, "--budget", 10)
        assert (code, "budget: 10 requests are sent" in error, len(stub.asked)) == (2, True, 10)
        assert call(*words, "--budget", 1000)[0] == 0
        bodies = [json.dumps(one.body["messages"]) for one in stub.asked]
        assert len(bodies) == len(set(bodies))


def test_a_reward_model_is_the_judge(world, tmp_path, call):
    """Its scores, taken here once more, answer by answer."""
    import test_judge

    from winnow.models import scoring

    judge_model = test_judge.reward_model(tmp_path / "reward")
    assert (
        call(
            *line(
                world,
                tmp_path / "w",
                "new",
                "people.jsonl",
                judge=f"reward:{judge_model}",
                device="cpu",
            )
        )[0]
        == 0
    )
    loaded = reward_models.load(ModelSpec(str(judge_model), device="cpu"))
    gains = []
    for row, prompt, people in zip(
        read_jsonl(tmp_path / "w" / "model-1.answers.jsonl"),
        asked(world),
        read_jsonl(world / "people.jsonl"),
        strict=True,
    ):
        scores = scoring.scores(
            loaded,
            [
                scoring.Dialogue(prompt["prompt"], text)
                for text in (*row["completions"], people["completion"])
            ],
        )
        gains += [np.mean(scores[:-1]) - scores[-1]] if row["completions"] else []
    (one,) = read_json(tmp_path / "w" / "report.json")["comparisons"]
    assert one["score_gain"] == pytest.approx(students(np.array(gains)), rel=1e-4)
    assert one["orders"] is None


# ---------------------------------------------------------------- files of answers


def test_answers_of_any_file(world, tmp_path, call):
    """The same answers as `sample` and `generate` write them and as plain rows give the same
    figures.
    """
    texts = [row["prompt"] for row in asked(world)]
    answers = [f" {'so ' * (i % 4)}blue" for i in range(PROMPTS)]
    forms = {
        "plain": [{"prompt": p, "completion": a} for p, a in zip(texts, answers)],
        "generated": [{"prompt": p, "answer": [a]} for p, a in zip(texts, answers)],
        "sampled": [
            {"prompt": p, "completions": [a], "comparisons": [], "sampled": {}, "left_out": 0}
            for p, a in zip(texts, answers)
        ],
        "turns": [
            {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": a}]}
            for p, a in zip(texts, answers)
        ],
    }
    found = []
    for name, rows in forms.items():
        file = tiny.write(
            tmp_path / f"{name}.jsonl",
            [*rows[::-1], {**rows[0], **({"prompt": "not asked"} if "prompt" in rows[0] else {})}][
                : PROMPTS + ("prompt" in rows[0])
            ],
        )
        code, told, _ = call(*line(world, tmp_path / name, file, "people.jsonl"))
        assert code == 0
        assert ("answers to prompts that are not asked: 1 prompts" in told) == ("prompt" in rows[0])
        found.append(read_json(tmp_path / name / "report.json")["comparisons"][0] | {"model": ""})
    assert all(one == found[0] for one in found)
    assert found[0]["win_rate"]["games"] == PROMPTS  # one answer each: k is of models


def test_chat_prompts_and_a_model_with_a_template(world, tmp_path, call):
    turns = [
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": f"hello {i}"}]
        for i in range(4)
    ]
    prompts = tiny.write(tmp_path / "p.jsonl", [{"prompt": one} for one in turns])
    people = tiny.write(
        tmp_path / "people.jsonl",
        [{"prompt": one, "completion": [{"role": "assistant", "content": "hi"}]} for one in turns],
    )
    assert call(*line(world, tmp_path / "w", "chat", people, prompts=prompts))[0] == 0
    rows = read_jsonl(tmp_path / "w" / "games.judged.jsonl")
    assert {turn["role"] for row in rows for answer in row["completions"] for turn in answer} == {
        "assistant"
    }


def test_wordless_answers_are_no_games(world, tmp_path, call):
    rows = [
        {
            "prompt": row["prompt"],
            "completions": [" yes"] if i else [],
            "comparisons": [],
            "sampled": {},
            "left_out": 0 if i else 1,
        }
        for i, row in enumerate(asked(world))
    ]
    file = tiny.write(tmp_path / "a.jsonl", rows)
    assert call(*line(world, tmp_path / "w", file, "people.jsonl"))[0] == 0
    report = read_json(tmp_path / "w" / "report.json")
    assert (report["models"][0]["answers"], report["models"][0]["silent"]) == (PROMPTS - 1, 1)
    (one,) = report["comparisons"]
    assert (one["invalid"]["rate"], one["win_rate"]["prompts"], one["asked"]) == (
        pytest.approx(1 / PROMPTS),
        PROMPTS - 1,
        PROMPTS,
    )
    assert any("have no word" in warning["message"] for warning in report["warnings"])


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("models", "changes", "told"),
    [
        (("new",), {}, "give two or more, the baseline last"),
        (("new", "nowhere"), {}, "nowhere"),
        (("new", "old"), {"judge": "lenght"}, "'lenght' is no rule"),
        (("new", "old"), {"judge": "column:right"}, "answers have no column"),
        (
            ("new", "old"),
            {"judge": "http://localhost:1/v1"},
            "judge_model: an endpoint must be told",
        ),
        (
            ("new", "old"),
            {"judge": "http://localhost:1/v1", "judge_model": "m", "labels": "soft"},
            "labels: of no use to a language model",
        ),
        (
            ("new", "old"),
            {"judge": "https://h/v1?api-key=abcdef0123456789", "judge_model": "m"},
            "is no endpoint's address",
        ),
        (("new", "old"), {"ties": "drop"}, "unknown setting 'ties'"),
        (("new", "old"), {"temperature": 0}, "k: at temperature 0"),
        (("new", "old"), {"temperatures": "0,0"}, "temperatures: expected different numbers"),
        (("new", "old"), {"temperatures": "0,warm"}, "temperatures"),
        (
            ("people.jsonl", "old"),
            {"temperatures": "0,1"},
            "temperatures: files of answers have none",
        ),
        (("new", "few.jsonl"), {}, "prompts without an answer: 13 of 14"),
        (("new", "pairs.jsonl"), {}, "compares answers, so they are not all of one writer"),
        (("new", "both.jsonl"), {}, "stands beside before"),
        (("new", "empty.jsonl"), {}, "there is no row in it"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sampled(
    world, tmp_path, call, models, changes, told
):
    tiny.write(world / "few.jsonl", read_jsonl(world / "people.jsonl")[:1])
    tiny.write(world / "pairs.jsonl", tiny.pairs(3))
    tiny.write(world / "both.jsonl", [{"prompt": "p", "before": ["a"], "after": ["b"]}])
    (world / "empty.jsonl").write_text("")
    code, _, error = call(*line(world, tmp_path / "w", *models, **changes))
    assert (code, told in error) == (2, True), error
    assert not (tmp_path / "w").exists()


def test_a_folder_of_something_else_is_refused(world, tmp_path, call):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.txt").write_text("mine")
    code, _, error = call(*line(world, tmp_path / "w"))
    assert (code, "thesis.txt" in error) == (2, True)


def test_a_file_may_not_ask_for_code(world, tmp_path, call):
    (tmp_path / "s.yaml").write_text(
        f"judge: {TASTE}\nprompts: {world / 'prompts.jsonl'}\nmodels: [{world / 'new'},"
        f" {world / 'old'}]\nout: {tmp_path / 'w'}\n"
    )
    code, _, error = call("winrate", "--config", tmp_path / "s.yaml")
    assert (code, "runs code, so a file cannot ask for it" in error) == (2, True)
    assert (
        call(
            "winrate", "--config", tmp_path / "s.yaml", "--judge", "length", "--max-new-tokens", 4
        )[0]
        == 0
    )


# ---------------------------------------------------------------- sentences and the page


def made(scores, *, prompts=None, lengths=None, votes=()):
    """Matches of these scores, one to a prompt unless told."""
    return [
        Match(
            i if prompts is None else prompts[i],
            (s,),
            lengths[i] if lengths else (5, 5),
            False,
            None,
            votes[i] if votes else (),
        )
        for i, s in enumerate(scores)
    ]


def told(scores, *, models=(), others=(), ranking=None, orders="both", **more):
    one = matches.comparison("a", "b", made(scores, **more))
    accounts = [
        {"name": name, "same_as": None, "answers": 10, "silent": 0, "cut": 0.0}
        for name in ("a", "b")
    ]
    return one, winrate_warnings.warnings(
        {
            "comparisons": [one],
            "others": list(others),
            "models": models or accounts,
            "ranking": ranking,
            "settings": {"orders": orders},
        }
    )


def test_nothing_is_said_where_there_is_nothing_to_say():
    _, found = told([1.0] * 150 + [0.0] * 50, lengths=[(5 + i % 7, 5 + i % 11) for i in range(200)])
    assert found == []


@pytest.mark.parametrize(
    ("scores", "more", "sentence"),
    [
        (
            [1.0, 0.0] * 100,
            {},
            (
                "the interval includes 50 %: either may be better. So many prompts (200) show a"
                " difference of 10 points"
            ),
        ),
        ([1.0] * 30, {}, "30 prompts are few"),
        ([1.0] * 40 + [0.5] * 60, {}, "60 % of games are ties"),
        ([1.0] * 90 + [None] * 10, {}, "10 % of games have no verdict"),
        ([None] * 9, {}, "there is no win rate: no game has a verdict"),
        ([1.0], {}, "there is no interval"),
        (
            [1.0] * 70 + [0.0] * 30,
            {"lengths": [(9 + i % 9, 5) for i in range(70)] + [(3 + i % 8, 5) for i in range(30)]},
            "verdicts go with length (the longer",
        ),
        (
            [1.0, 0.0] * 50,
            {"lengths": [(5 + 9 * (i % 2 == 0) + i % 5, 7) for i in range(100)]},
            "no win rate at equal lengths: length alone settles",
        ),
        (
            [1.0] * 70,
            {"lengths": [(9 + i % 3, 5) for i in range(70)]},
            "no win rate at equal lengths: one side won every game",
        ),
    ],
)
def test_each_doubt_is_a_sentence(scores, more, sentence):
    _, found = told(scores, **more)
    assert sentence in " ".join(doubt["message"] for doubt in found), found


def test_785_prompts_are_asked_for_where_games_are_won_or_lost():
    one, found = told([1.0, 0.0] * 30)
    assert (one["needed"]["prompts"], one["detectable"]["difference"]) == (
        785,
        pytest.approx(2.8016 * 0.5 / math.sqrt(60), rel=1e-4),
    )
    assert any("785" in doubt["advice"] for doubt in found)


def test_models_that_cannot_be_ranked_are_told():
    apart = matches.ranking("abcd", {(0, 1): made([1.0, 0.0, 1.0]), (2, 3): made([1.0, 0.0])})
    _, found = told([1.0, 0.0] * 100, ranking=apart)
    assert "no verdict joins these groups: a, b; c, d" in " ".join(
        doubt["message"] for doubt in found
    )
    never = matches.ranking(
        "abc", {(0, 1): made([1.0] * 8), (1, 2): made([1.0, 0.0]), (0, 2): made([1.0] * 8)}
    )
    _, found = told([1.0, 0.0] * 100, ranking=never)
    assert "one side won every point: a; b, c" in " ".join(doubt["message"] for doubt in found)


def test_a_question_asked_about_two_games_counts_once_for_the_orders():
    """Two answers to the letter the same as two others make one question, and one row of votes."""
    votes = (Vote("x", 0, 1, "first", "j"), Vote("x", 1, 0, "first", "j"))
    found = matches.orders([Match(0, (1.0, 0.0), (3, 4), False, None, votes)] * 2)
    assert (found["both"], found["alike"], found["decided"], found["first"]) == (1, 0, 2, 2)


def test_the_page_shows_and_does_not_obey(whole):
    report = read_json(whole / "report.json")
    hostile = "<script>alert(1)</script>\x1b[2J\u202e{{ 7 * 7 }}"
    for one in report["shown"]:
        one["prompt"] = hostile
        one["answers"][0]["text"] = hostile
    report["comparisons"][0]["model"] = report["models"][0]["name"] = hostile
    page = winrate_report.render(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not set(page) & {"\x1b", "\u202e"}
    assert "{{ 7 * 7 }}" in page
    assert "http" not in page.replace("http-equiv", "").partition("Where the figures come from")[
        0
    ].replace("http://www.w3.org", "")


def test_the_page_has_every_number_with_its_interval_and_n(whole):
    report, page = read_json(whole / "report.json"), (whole / "report.html").read_text()
    assert page == winrate_report.render(report)
    for one in report["comparisons"]:
        won = one["win_rate"]
        assert (
            f"{100 * won['rate']:.1f} % ({100 * won['low']:.1f}–{100 * won['high']:.1f} %, n ="
            f" {won['prompts']})" in page
        )
    for warning in report["warnings"]:
        assert warning["message"].split(":")[0] in page
    for name, source in report["sources"].items():
        assert name in page
        assert source["sha256"] in page
    assert "nobody picked them" in page
    assert 'aria-label="Win rate over people.jsonl by temperature: new from ' in page


def test_what_is_shown_is_drawn_by_the_seed_alone(whole):
    shown = read_json(whole / "report.json")["shown"]
    assert len(shown) == 8
    assert len({one["prompt"] for one in shown}) == 8
    assert [answer["model"] for answer in shown[0]["answers"]] == [
        "new",
        "old",
        "other",
        "people.jsonl",
    ]


def test_intervals_of_the_logistic_and_the_share_are_in_one_place():
    """The rate at equal lengths of a judge blind to length is the rate: lengths that say nothing
    change nothing.
    """
    rng = np.random.default_rng(0)
    won = (rng.random(4000) < 0.7).astype(float)
    one = matches.comparison(
        "a", "b", made(won.tolist(), lengths=[(int(x), 50) for x in rng.integers(1, 100, 4000)])
    )
    assert logit(one["length_controlled"]["rate"]) == pytest.approx(
        logit(one["win_rate"]["rate"]), abs=0.02
    )
    assert one["length_controlled"]["weight_low"] < 0 < one["length_controlled"]["weight_high"]
