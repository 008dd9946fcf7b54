"""`winnow eval` as people meet it: several sets, slices, kl, displacement, calibration,
RewardBench, reward models; each figure by another road.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoConfig, AutoModelForSequenceClassification

import runs
import tiny
from report_parts import NASTY, Page
from winnow import api
from winnow.config.model_spec import ModelSpec
from winnow.data.render import TokenSequence
from winnow.errors import DataError, SettingsError
from winnow.evaluation import distance
from winnow.evaluation import kl as drift
from winnow.evaluation.statistics import rewardbench
from winnow.generation import prompts as sample_prompts
from winnow.generation.sampler import Sampling, sample
from winnow.models import hashes, loading, reward_models, scoring
from winnow.models.scoring import Dialogue
from winnow.reports import eval_report, reliability
from winnow.reports.eval_warnings import examine
from winnow.system.figure import Figure, interval
from winnow.system.files import read_json, read_jsonl, sha256_file
from winnow.system.format import number, percent, tenths, wilson

CPU = "cpu"


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    """A model that answers with few tokens, a policy trained from it, and sets with columns."""
    root = runs.world(tmp_path_factory.mktemp("world"))
    kinds = ["fact", "chat", None]
    rows = [
        {**row, "kind": kinds[i % 3], "level": i % 2, "tags": ["a"]}
        for i, row in enumerate(tiny.pairs(14, seed=5))
    ]
    tiny.write(root / "kinds.jsonl", rows)
    runs.dpo(root, root / "run", lr=3e-3, beta=0.4)
    return root


def evaluated(world, *data, **settings):
    return api.evaluate(
        model=str(world / "run"), data=[str(one) for one in data], device=CPU, **settings
    )


# ---------------------------------------------------------------- sets


def test_several_sets_are_never_pooled(world, capsys):
    """Each by its own name, and its numbers are those it has alone; NAME=SET names one that has
    another's name.
    """
    both = evaluated(world, world / "held.jsonl", f"second={world / 'other.jsonl'}")
    said = capsys.readouterr().out
    alone = [evaluated(world, world / name).summary for name in ("held.jsonl", "other.jsonl")]
    assert set(both.report["sets"]) == {"held", "second"}
    assert both.summary == {
        **{f"held_{k}": v for k, v in alone[0].items()},
        **{f"second_{k}": v for k, v in alone[1].items()},
    }
    assert [row["set"] for row in both.rows] == ["held"] * 8 + ["second"] * 6
    assert f"on {world / 'held.jsonl'}"[-20:] in said.replace("\n", "")
    with pytest.raises(DataError, match="two evaluation sets have the same name"):
        evaluated(world, world / "held.jsonl", world / "held.jsonl")
    with pytest.raises(SettingsError, match="nothing to evaluate on"):
        evaluated(world)


def test_a_report_says_where_every_figure_comes_from(world, tmp_path):
    found = evaluated(world, world / "held.jsonl", out=str(tmp_path / "out"))
    report = read_json(tmp_path / "out" / "report.json")
    assert report == json.loads(json.dumps(found.report))
    (one,) = report["sets"].values()
    assert one["files"] == [
        {
            "name": str(world / "held.jsonl"),
            "bytes": (world / "held.jsonl").stat().st_size,
            "sha256": sha256_file(world / "held.jsonl"),
        }
    ]
    policy, start = (
        loading.load(ModelSpec(str(world / name), device=CPU)).model for name in ("run", "model")
    )
    assert report["weights"] == {
        "model": hashes.weights_hash(policy),
        "reference": hashes.weights_hash(start),
    }
    assert report["versions"]["torch"] == torch.__version__
    for name, figure in one["figures"].items():
        assert isinstance(figure, int) or (
            figure["low"] < figure["high"] and figure["count"] and figure["prompts"]
        ), name
    assert read_jsonl(tmp_path / "out" / "rows.jsonl") == found.rows


def test_loss_and_its_interval_by_hand(world):
    """One comparison per prompt: the interval of a mean of each row's own loss."""
    found = evaluated(world, world / "held.jsonl")
    losses = [math.log1p(math.exp(-row["rewards/margins"])) for row in found.rows]
    low, high = stats.t.interval(0.95, 7, np.mean(losses), stats.sem(losses))
    figure = found.report["sets"][str(world / "held.jsonl")]["figures"]["loss"]
    assert (figure["value"], figure["low"], figure["high"]) == pytest.approx(
        (np.mean(losses), low, high), rel=1e-5
    )
    assert (figure["count"], figure["prompts"]) == (8, 8)


def test_a_mixture_and_a_loss_of_the_whole(world):
    """dpo + sft is a sum of two ratios; aot sorts all comparisons, and a part of them says
    nothing.
    """
    mixed = evaluated(
        world, world / "held.jsonl", objective="dpo:0.8,sft:0.2", reference=str(world / "model")
    )
    (one,) = mixed.report["sets"].values()
    pair = np.log1p(np.exp([-row["rewards/margins"] for row in mixed.rows]))
    nll, length = (
        np.array([sign * row[name] for row in mixed.rows])
        for sign, name in ((-1, "logps/chosen"), (1, "length/chosen"))
    )
    value = 0.8 * pair.mean() + 0.2 * nll.sum() / length.sum()
    slope = (
        0.8 * (pair - pair.mean()) / 8
        + 0.2 * (nll - nll.sum() / length.sum() * length) / length.sum()
    )
    half = stats.t.ppf(0.975, 7) * math.sqrt(8 / 7 * (slope @ slope))
    loss = one["figures"]["loss"]
    assert (loss["value"], loss["low"], loss["high"]) == pytest.approx(
        (value, value - half, value + half), rel=1e-4
    )
    whole = evaluated(world, world / "held.jsonl", objective="aot", reference=str(world / "model"))
    (one,) = whole.report["sets"].values()
    assert one["figures"]["loss"]["low"] is None
    assert "sorts all comparisons together" in one["figures"]["loss"]["why"]


# ---------------------------------------------------------------- slices


def test_slices_are_the_rows_of_each_value(world, capsys):
    found = evaluated(world, world / "kinds.jsonl", by=["kind", "level"])
    (one,) = found.report["sets"].values()
    assert list(one["by"]) == ["kind", "level"]
    assert {value: part["comparisons"] for value, part in one["by"]["kind"].items()} == {
        "chat": 5,
        "fact": 5,
        "(none)": 4,
    }
    assert list(one["by"]["level"]) == ["0", "1"]
    fact = [row for row in found.rows if row["by"]["kind"] == "fact"]
    assert {int(row["where"].rpartition(":")[2]) for row in fact} == {1, 4, 7, 10, 13}
    right = sum(row["correct"] for row in fact) / 5
    part = one["by"]["kind"]["fact"]["rewards/accuracies"]
    assert (part["value"], part["low"], part["high"], part["count"]) == pytest.approx(
        (right, *wilson(right, 5), 5)
    )
    assert one["by"]["kind"]["fact"]["rewards/margins"]["value"] == pytest.approx(
        sum(row["rewards/margins"] for row in fact) / 5
    )
    assert "By kind" in capsys.readouterr().out


def test_columns_that_cannot_split(world, tmp_path):
    with pytest.raises(
        SettingsError,
        match=r"(?s)no column 'kinds'; did you mean 'kind'.*it has chosen, kind, level",
    ):
        evaluated(world, world / "kinds.jsonl", by=["kinds"])
    with pytest.raises(SettingsError, match=r"kinds.jsonl:1: column 'tags' is a list"):
        evaluated(world, world / "kinds.jsonl", by=["tags"])
    many = tiny.write(
        tmp_path / "many.jsonl", [{**row, "id": i} for i, row in enumerate(tiny.pairs(201))]
    )
    with pytest.raises(SettingsError, match="column 'id' has 201 values"):
        evaluated(world, many, by=["id"])
    with pytest.raises(SettingsError, match="subsets of its own"):
        evaluated(world, rewardbench=str(many), by=["id"])


# ---------------------------------------------------------------- kl


def test_kl_is_exact_over_the_vocabulary(world):
    """Samples drawn again, and each one's kl summed from the two models' whole distributions, by
    hand.
    """
    found = evaluated(world, world / "held.jsonl", kl_samples=20, seed=3)
    (one,) = found.report["sets"].values()
    far = one["kl"]
    # three each: 20 do not divide by 8 prompts
    assert (far["how"], far["kl"]["count"], far["kl"]["prompts"], far["most"]) == (
        "exact",
        24,
        8,
        sample_prompts.LONGEST,
    )
    policy, start = (
        loading.load(ModelSpec(str(world / name), device=CPU)) for name in ("run", "model")
    )
    prompts = {
        row["where"]: policy.tokenizer(json.loads(line)["prompt"])["input_ids"]
        for row, line in zip(found.rows, (world / "held.jsonl").read_text().splitlines())
    }
    end = policy.tokenizer.eos_token_id
    answers = sample(
        policy,
        list(prompts.values()),
        Sampling(end, max_new_tokens=sample_prompts.LONGEST, seed=3),
        k=3,
    )
    values = []
    for ids, many in zip(prompts.values(), answers):
        for answer in many:
            tokens = [*answer.ids, *([end] if answer.finished else [])]
            with torch.no_grad():
                p, q = (
                    model.model(torch.tensor([[*ids, *tokens]]))
                    .logits[0, len(ids) - 1 : -1]
                    .double()
                    .log_softmax(-1)
                    for model in (policy, start)
                )
            values.append(float((p.exp() * (p - q)).sum()))
    assert far["kl"]["value"] == pytest.approx(np.mean(values), rel=1e-4)
    assert far["length"]["value"] == pytest.approx(
        np.mean([len(a.ids) + a.finished for many in answers for a in many])
    )
    assert far["kl"]["value"] > 0.001
    means = np.array(values).reshape(8, 3).mean(1)
    assert far["kl"]["high"] - far["kl"]["value"] == pytest.approx(
        stats.t.ppf(0.975, 7) * stats.sem(means), rel=1e-3
    )
    assert found.summary["kl"] == far["kl"]["value"]


def test_where_two_models_have_no_room_it_is_k3_and_says_so(world, monkeypatch, capsys):
    exact = evaluated(world, world / "held.jsonl", kl_samples=5)
    monkeypatch.setattr(distance, "available", lambda device: 1000)
    found = evaluated(world, world / "held.jsonl", kl_samples=5)
    (one,), (other,) = found.report["sets"].values(), exact.report["sets"].values()
    assert (one["kl"]["how"], one["kl"]["kl"]["count"]) == ("k3", 5)
    assert "two models at once need" in one["kl"]["why"]
    assert "k3" in capsys.readouterr().out
    assert one["kl"]["length"] == other["kl"]["length"]  # the same answers
    assert one["kl"]["kl"]["value"] != other["kl"]["kl"]["value"]
    assert (
        abs(one["kl"]["kl"]["value"] - other["kl"]["kl"]["value"]) < 2 * other["kl"]["kl"]["value"]
    )


def test_k3_is_drifts(world):
    ours, theirs = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.0, -0.5])
    group = tiny.groups(1)[0]
    group = replace(
        group,
        sequences=(TokenSequence((3, 4, 5), 1), TokenSequence((3, 6), 1)),
        comparisons=(),
        labels=(None, None),
    )
    assert distance._k3(group, ours, theirs) == [
        drift.kl(ours[:2], theirs[:2], 1),
        drift.kl(ours[2:], theirs[2:], 1),
    ]


def test_kl_needs_a_reference(world):
    with pytest.raises(SettingsError, match="kl_samples: compares with the reference"):
        api.evaluate(model=str(world / "model"), data=[str(world / "held.jsonl")], kl_samples=4)


# ---------------------------------------------------------------- displacement and calibration, in
# words


def test_displacement_and_sureness_are_of_the_rows(world):
    found = evaluated(world, world / "held.jsonl")
    (one,) = found.report["sets"].values()
    moved = [row["rewards/chosen"] / 0.4 for row in found.rows]
    assert one["displacement"]["chosen"]["value"] == pytest.approx(np.mean(moved), rel=1e-6)
    assert one["displacement"]["less_likely"]["value"] == sum(m < 0 for m in moved) / 8
    margin = np.array([row["rewards/margins"] for row in found.rows])
    claimed, agreed = 1 / (1 + np.exp(-abs(margin))), margin > 0
    assert one["calibration"]["sureness"]["excess"]["value"] == pytest.approx(
        np.mean(claimed - agreed)
    )
    assert one["calibration"]["count"] == 8
    other = evaluated(world, world / "held.jsonl", objective="simpo")
    (one,) = other.report["sets"].values()
    assert one["calibration"] is None  # no reference, so no margins
    other = evaluated(world, world / "held.jsonl", objective="ipo", reference=str(world / "model"))
    (one,) = other.report["sets"].values()
    assert "no differences of summed log-ratios" in one["calibration"]["why"]


def figure(value, low, high, count=100):
    return {"value": value, "low": low, "high": high, "count": count, "prompts": count, "why": ""}


def told(**changes):
    """A report with nothing to warn of, changed."""
    moved = {
        name: figure(0.1, 0.0, 0.2)
        for name in ("chosen", "rejected", "chosen_token", "rejected_token", "both", "less_likely")
    }
    sure = {
        "excess": figure(0.0, -0.05, 0.05),
        "brier": figure(0.2, 0.1, 0.3),
        "log_loss": figure(0.6, 0.5, 0.7),
    }
    one = {
        "trained_on": False,
        "figures": {"rewards/accuracies": figure(0.8, 0.7, 0.9)},
        "displacement": moved | changes.pop("moved", {}),
        "calibration": {
            "count": 100,
            "bins": [{"count": 100, "agreed": 0.8}],
            "sureness": sure | changes.pop("sure", {}),
        },
        "kl": None,
        "data": {"findings": []},
    }
    return [
        (sign.code, sign.level, sign.message)
        for sign in examine({"sets": {"held": one | changes}, "rewardbench": None})
    ]


def test_what_the_numbers_say():
    assert told() == []
    (sign,) = told(
        moved={"chosen_token": figure(-0.3, -0.4, -0.2), "less_likely": figure(0.9, 0.8, 0.95)}
    )
    assert sign[:2] == ("displacement", "warning")
    assert "lost 0.3000 (95 % interval 0.2000 to 0.4000, n = 100) nats per token" in sign[2]
    (sign,) = told(moved={"less_likely": figure(0.7, 0.6, 0.8)})
    assert sign[:2] == ("displacement", "note")
    (sign,) = told(sure={"excess": figure(0.1, 0.05, 0.15)})
    assert sign == (
        "overconfident",
        "warning",
        (
            "Margins claim 90.0 % and labels agree in 80.0 %: overconfident by 10.0 points (95 %"
            " interval 5.0 to 15.0, n = 100)."
        ),
    )
    (sign,) = told(sure={"excess": figure(-0.1, -0.15, -0.05)})
    assert sign[0] == "underconfident"
    (sign,) = told(trained_on=True)
    assert sign[0] == "trained-on"
    (sign,) = told(figures={"rewards/accuracies": figure(0.55, 0.45, 0.65)})
    assert (sign[0], "cannot be told from chance" in sign[2]) == ("chance", True)
    (sign,) = told(figures={"raw/accuracies": figure(0.3, 0.2, 0.4)})
    assert (sign[0], "below chance" in sign[2]) == ("chance", True)
    (sign,) = told(kl={"kl": figure(12.0, 11.0, 13.0)})
    assert sign[0] == "far"


# ---------------------------------------------------------------- RewardBench


def bench_rows():
    """Two rows of each section, one of them with equal answers: a tie."""
    rows = tiny.pairs(8, seed=9)
    subsets = [
        "alpacaeval-easy",
        "mt-bench-med",
        "llmbar-natural",
        "mt-bench-hard",
        "donotanswer",
        "donotanswer",
        "math-prm",
        "hep-go",
    ]
    made = [
        {**row, "id": i, "subset": subset, "chosen_model": "a", "rejected_model": "b"}
        for i, (row, subset) in enumerate(zip(rows, subsets))
    ]
    made[5]["rejected"] = made[5]["chosen"]
    return made


def test_rewardbench_of_a_policy(world, tmp_path, capsys):
    """By implicit reward and by log-probs; the row with equal answers counts as wrong."""
    file = tiny.write(tmp_path / "bench.jsonl", bench_rows())
    found = api.evaluate(
        model=str(world / "run"), rewardbench=str(file), device=CPU, out=str(tmp_path / "out")
    )
    bench = read_json(tmp_path / "out" / "report.json")["rewardbench"]
    plain = evaluated(world, file)
    for name, key in (("rewards", "correct"), ("raw", "raw_correct")):
        won = {int(row["where"].rpartition(":")[2]) - 1: row[key] for row in plain.rows}
        assert 5 not in won
        hits = [won.get(i, False) for i in range(8)]
        expected = rewardbench.scores([row["subset"] for row in bench_rows()], hits)
        assert bench[name]["overall"]["value"] == pytest.approx(expected.overall.value)
        heavy = 984 / 447
        by_hand = (
            (hits[0] + hits[1]) / 2
            + (hits[2] + hits[3]) / 2
            + hits[4] / 2
            + (heavy * hits[6] + hits[7]) / (heavy + 1)
        ) / 4
        assert bench[name]["overall"]["value"] == pytest.approx(by_hand)
    assert (bench["unscored"], bench["rewards"]["subsets"]["donotanswer"]["count"]) == (1, 2)
    assert found.summary["rewardbench"] == bench["rewards"]["overall"]["value"]
    assert found.report["sets"] == {}
    said = " ".join(capsys.readouterr().out.split())
    assert "Overall: the mean of the sections" in said
    assert "counted as wrong, as a tie is: 1 row whose" in said
    assert "other numbers of prompts than the benchmark's" in said


def test_rewardbench_without_subsets_or_with_other_ones(world, tmp_path, capsys):
    rows = [{**row, "subset": "polite"} for row in bench_rows()[:4]]
    found = api.evaluate(
        model=str(world / "run"),
        rewardbench=str(tiny.write(tmp_path / "polite.jsonl", rows)),
        device=CPU,
    )
    assert found.report["rewardbench"]["rewards"]["overall"] is None
    assert found.report["rewardbench"]["rewards"]["other"] == ["polite"] or found.report[
        "rewardbench"
    ]["rewards"]["other"] == ("polite",)
    assert "not the benchmark's subsets" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SettingsError, match="no column 'subset'"):
        api.evaluate(model=str(world / "run"), rewardbench=str(world / "held.jsonl"), device=CPU)


# ---------------------------------------------------------------- reward models


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward") / "reward"
    made = tiny.tokenizer(template=tiny.TEMPLATE)
    config = AutoConfig.for_model(
        "llama",
        **{
            **tiny.SHAPE,
            "vocab_size": len(made),
            "max_position_embeddings": 256,
            "pad_token_id": 1,
            "num_labels": 1,
        },
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0)
    model.save_pretrained(path)
    made.save_pretrained(path)
    return path


def test_a_reward_model_is_evaluated_by_its_scores(scorer, world, tmp_path, capsys):
    assert loading.is_scorer(ModelSpec(str(scorer)))
    assert not loading.is_scorer(ModelSpec(str(world / "model")))
    ranked = [
        {"prompt": f"{i}?", "completions": [f"a{'b' * i}", "cc", "dd d"], "scores": [1.0, 3.0, 2.0]}
        for i in range(12)
    ]
    file = tiny.write(tmp_path / "ranked.jsonl", ranked)
    found = api.evaluate(
        model=str(scorer), data=[str(file)], device=CPU, out=str(tmp_path / "out"), by=["prompt"]
    )
    loaded = reward_models.load(ModelSpec(str(scorer), device=CPU))
    scores = [
        scoring.scores(loaded, [Dialogue(row["prompt"], text) for text in row["completions"]])
        for row in ranked
    ]
    margins = [own[w] - own[v] for own in scores for w, v in ((1, 0), (2, 0), (1, 2))]
    assert [row["rewards/margins"] for row in found.rows] != []
    assert sorted(row["rewards/margins"] for row in found.rows) == pytest.approx(
        sorted(margins), abs=1e-5
    )
    assert found.summary["rewards/accuracies"] == pytest.approx(np.mean([m > 0 for m in margins]))
    assert not any(name.startswith(("logps", "raw", "nll", "loss")) for name in found.summary)
    (one,) = found.report["sets"].values()
    assert one["figures"]["rewards/accuracies"]["prompts"] == 12
    assert one["calibration"]["log_loss"] == pytest.approx(
        np.mean(np.logaddexp(0, -np.array(margins))), rel=1e-4
    )
    assert (found.report["kind"], found.report["objective"], one["displacement"]) == (
        "reward model",
        None,
        None,
    )
    page, told = (tmp_path / "out" / "report.html").read_text(), capsys.readouterr().out
    for text in (
        page,
        told,
    ):  # twelve slices of a prompt each: why none has an interval is said once
        assert text.count("Without brackets: one prompt has no spread to make an interval of.") == 1
        assert "(no interval" not in text


def test_rewardbench_of_a_reward_model(scorer, tmp_path):
    file = tiny.write(tmp_path / "bench.jsonl", bench_rows())
    found = api.evaluate(model=str(scorer), rewardbench=str(file), device=CPU)
    loaded = reward_models.load(ModelSpec(str(scorer), device=CPU))
    hits = []
    for row in bench_rows():
        chosen, rejected = scoring.scores(
            loaded,
            [Dialogue(row["prompt"], row["chosen"]), Dialogue(row["prompt"], row["rejected"])],
        )
        hits.append(chosen > rejected and row["chosen"] != row["rejected"])
    expected = rewardbench.scores([row["subset"] for row in bench_rows()], hits)
    assert found.summary["rewardbench"] == pytest.approx(expected.overall.value)
    assert "raw" not in found.report["rewardbench"]


def test_labels_of_a_reward_model(scorer, tmp_path):
    rows = [
        {"prompt": f"{i}?", "completion": "ab" * (1 + i % 4), "label": i % 3 == 0}
        for i in range(10)
    ]
    found = api.evaluate(
        model=str(scorer), data=[str(tiny.write(tmp_path / "thumbs.jsonl", rows))], device=CPU
    )
    loaded = reward_models.load(ModelSpec(str(scorer), device=CPU))
    scores = scoring.scores(loaded, [Dialogue(row["prompt"], row["completion"]) for row in rows])
    good, bad = (
        [s for s, row in zip(scores, rows) if row["label"]],
        [s for s, row in zip(scores, rows) if not row["label"]],
    )
    assert found.summary["rewards/auc"] == pytest.approx(
        stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad))
    )


@pytest.mark.parametrize(
    "given",
    [
        {"reference": "x"},
        {"beta": 0.1},
        {"objective": "dpo"},
        {"kl_samples": 4},
        {"max_length": 9},
        {"engine": "rows"},
    ],
)
def test_what_a_reward_model_has_no_use_for_is_refused(scorer, world, given):
    with pytest.raises(SettingsError, match="is a reward model, which scores whole answers"):
        api.evaluate(model=str(scorer), data=[str(world / "held.jsonl")], **given)


# ---------------------------------------------------------------- the page


def test_the_page_has_every_number_and_is_inert(world, scorer, tmp_path):
    """Values, intervals and n as the report has them; hostile names of slices as text; nothing runs
    or is loaded.
    """
    rows = [{**row, "kind": NASTY[i % 7]} for i, row in enumerate(tiny.pairs(18, seed=5))]
    file, bench = (
        tiny.write(tmp_path / "kinds.jsonl", rows),
        tiny.write(tmp_path / "bench.jsonl", bench_rows()),
    )
    found = evaluated(
        world, file, by=["kind"], kl_samples=6, rewardbench=str(bench), out=str(tmp_path / "out")
    )
    html = (tmp_path / "out" / "report.html").read_text()
    page = Page(html)
    assert page.danger == []
    assert "default-src 'none'" in html
    assert html == eval_report.render(json.loads((tmp_path / "out" / "report.json").read_text()))
    (one,) = found.report["sets"].values()
    words = " ".join(page.text.replace("\u00a0", " ").split())
    shares = [
        one["figures"]["rewards/accuracies"],
        one["displacement"]["less_likely"],
        *(part["rewards/accuracies"] for part in one["by"]["kind"].values()),
    ]
    shares += [
        found.report["rewardbench"]["rewards"]["overall"],
        *found.report["rewardbench"]["raw"]["subsets"].values(),
    ]
    for figure in shares:
        assert f"{percent(figure['value'], 1)}" in words
        assert interval(Figure.read(figure), tenths) in words
    for figure in (
        one["figures"]["loss"],
        one["kl"]["kl"],
        one["calibration"]["sureness"]["brier"],
    ):
        assert (
            f"{number(figure['value'], 4)}{number(figure['low'], 4)} to"
            f" {number(figure['high'], 4)}{figure['count']}" in words
        )
    for hash in (one["files"][0]["sha256"], *found.report["weights"].values()):
        assert hash in words
    for sign in found.report["warnings"]:
        assert " ".join(sign["message"].split()) in words
    assert "95 % interval" in words.partition("policy")[2][:400]


def test_the_page_of_a_reward_model_and_of_answers_nobody_compared(scorer, world, tmp_path):
    api.evaluate(
        model=str(scorer), data=[str(world / "held.jsonl")], device=CPU, out=str(tmp_path / "a")
    )
    assert "by its reward" in Page((tmp_path / "a" / "report.html").read_text()).text
    demonstrations = tiny.write(
        tmp_path / "shown.jsonl", [{"prompt": f"{i}?", "completion": " yes"} for i in range(4)]
    )
    api.evaluate(
        model=str(world / "model"), data=[str(demonstrations)], device=CPU, out=str(tmp_path / "b")
    )
    assert "nats per token" in Page((tmp_path / "b" / "report.html").read_text()).text


def test_a_calibration_plot_stands_where_its_numbers_say():
    bins = [
        {"claimed": 0.5, "agreed": 0.4, "low": 0.25, "high": 0.6},
        {"claimed": 1.0, "agreed": 1.0, "low": 0.8, "high": 1.0},
    ]
    svg = reliability.reliability(bins)
    left, top, wide, high = (
        reliability.LEFT,
        reliability.TOP,
        reliability.WIDE,
        reliability.HIGH,
    )
    assert f'cx="{left:.1f}" cy="{top + high * 0.6 / 0.8:.1f}"' in svg  # the axis begins at 20 %
    assert f'cx="{left + wide:.1f}" cy="{top:.1f}"' in svg
    assert f"M{left:.1f} {top + high * 0.75 / 0.8:.1f}V{top + high * 0.4 / 0.8:.1f}" in svg


@pytest.mark.parametrize("lora", [None, "r=4,alpha=8"])
def test_a_run_of_winnow_reward_is_one(world, tmp_path, lora):
    """A whole model and an adapter: their run folders are known as reward models, and evaluated by
    the scores training ended with.
    """
    run = api.reward(
        **runs.settings(
            world, tmp_path / "run", eval_data=[str(world / "held.jsonl")], lora=lora, lr=1e-2
        )
    )
    assert loading.is_scorer(ModelSpec(str(run.root)))
    found = api.evaluate(model=str(run.root), data=[str(world / "held.jsonl")], device=CPU)
    last = [row for row in read_jsonl(run.metrics) if "eval_loss" in row][-1]
    for name in ("rewards/accuracies", "rewards/margins", "rewards/chosen"):
        assert found.summary[name] == pytest.approx(last[f"eval_{name}"], rel=1e-4), name
    (one,) = found.report["sets"].values()
    # arXiv 2305.18290 eq. 2
    assert one["calibration"]["log_loss"] == pytest.approx(last["eval_loss"], rel=1e-4)
