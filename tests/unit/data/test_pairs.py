"""Several answers to a prompt: which pairs are compared, rankings, answers to other prompts, and
what an objective asks of its data.
"""

from __future__ import annotations

import itertools
import random
import re
import time

import pytest

import runs
import tiny
from winnow import api
from winnow.config.options import DataSettings
from winnow.data import pairs as ranking
from winnow.data.dataset import Wanted, prepare
from winnow.data.pairs import chosen, ranks, with_mismatched
from winnow.data.records import Comparison, Completion, PreferenceGroup
from winnow.data.render import RenderedGroup, Renderer, TokenSequence
from winnow.data.tokens import tokens_of
from winnow.errors import DataError, NothingLeft, Problem, SettingsError
from winnow.system.files import read_json, read_jsonl
from winnow.system.run_folder import RunFolder


def made(*comparisons, count=4):
    return PreferenceGroup(
        "p", tuple(Completion(str(k)) for k in range(count)), comparisons, where="f:1"
    )


def by_scores(*scores):
    pairs = [
        (i, j) if scores[i] > scores[j] else (j, i)
        for i, j in itertools.combinations(range(len(scores)), 2)
        if scores[i] != scores[j]
    ]
    return made(
        *(Comparison(w, v, margin=float(scores[w] - scores[v])) for w, v in pairs),
        count=len(scores),
    )


def names(group):
    return {(c.winner, c.loser) for c in group.comparisons}


def test_which_pairs():
    group = by_scores(3, 9, 1, 5)
    assert names(chosen(group, "all")) == {(1, 0), (0, 2), (3, 0), (1, 2), (1, 3), (3, 2)}
    assert names(chosen(group, "adjacent")) == {(1, 3), (3, 0), (0, 2)}
    assert names(chosen(group, "best")) == {(1, 0), (1, 2), (1, 3)}
    assert names(chosen(group, "listwise")) == names(group)
    # probability, weight and margin stay
    assert {c.margin for c in chosen(group, "adjacent").comparisons} == {
        4,
        2,
    }


def test_ties_stand_on_the_same_rank():
    group = by_scores(5, 5, 1, 3)
    assert names(chosen(group, "adjacent")) == {(0, 3), (1, 3), (3, 2)}
    assert names(chosen(group, "best")) == {(0, 3), (0, 2), (1, 3), (1, 2)}
    listwise = chosen(group, "listwise")
    assert ranks(listwise.comparisons, 4) == (0, 0, 3, 2)
    tie = made(Comparison(0, 1, 0.5), Comparison(0, 2), Comparison(1, 2), count=3)
    assert names(chosen(tie, "best")) == {(0, 1), (0, 2), (1, 2)}
    assert ranks(chosen(tie, "listwise").comparisons, 3) == (0, 0, 2)


def test_a_ranking_follows_from_its_chain():
    """Neighbours alone imply the rest; a probability of 0 turns a comparison round."""
    chain = made(Comparison(2, 0, weight=2.0), Comparison(0, 3), Comparison(1, 3, probability=0.0))
    whole = chosen(chain, "listwise")
    assert ranks(whole.comparisons, 4) == (1, 3, 0, 2)
    assert names(whole) == {(2, 0), (2, 3), (2, 1), (0, 3), (0, 1), (3, 1)}
    assert [c.weight for c in whole.comparisons] == [pytest.approx(4 / 3)] * 6
    assert names(chosen(chain, "best")) == {(2, 0)}


def test_a_prompt_that_stands_in_most_rows_costs_no_search():
    groups = rendered(4000, lambda i: (10 + (i % 500 == 0) * (1 + i), 3))
    began = time.process_time()
    found = with_mismatched(groups, 0, None)
    assert time.process_time() - began < 5
    for i in range(0, 4000, 97):
        mine, theirs = groups[i], found[i].sequences[2]
        other = theirs.ids[2] - 50
        assert (other % 500 == 0) != (i % 500 == 0) or other != i
        assert theirs.ids[:2] == mine.sequences[0].ids[:2]
        assert groups[other].sequences[0].ids[:2] != mine.sequences[0].ids[:2]


@pytest.mark.parametrize(
    ("group", "told"),
    [
        (
            made(Comparison(0, 1), Comparison(1, 2), Comparison(2, 0), count=3),
            "go round in a circle",
        ),
        (
            made(Comparison(0, 1), Comparison(2, 3)),
            "do not say which of completions 0 and 3 is better",
        ),
        (made(*(Comparison(0, k) for k in range(1, 10)), count=10), "more than 8 completions tied"),
    ],
)
def test_what_is_no_ranking_is_said(group, told):
    assert chosen(group, "all") is group
    for pairs in ("adjacent", "best", "listwise"):
        problem = chosen(group, pairs)
        assert isinstance(problem, Problem)
        assert told in problem.reason
        assert problem.where == "f:1"


def test_random_scores_give_their_order_back():
    rng = random.Random(0)
    for _ in range(200):
        scores = [rng.randint(0, 4) for _ in range(rng.randint(2, 6))]
        group = by_scores(*scores)
        if not group.comparisons:
            continue
        expected = tuple(sum(other > score for other in scores) for score in scores)
        assert ranks(chosen(group, "listwise").comparisons, len(scores)) == expected
        # the order of the comparisons says nothing
        kept = rng.sample(group.comparisons, len(group.comparisons))
        assert (
            ranks(chosen(made(*kept, count=len(scores)), "listwise").comparisons, len(scores))
            == expected
        )
        best = {k for k, score in enumerate(scores) if score == max(scores)}
        assert {c.winner for c in chosen(group, "best").comparisons} <= best


# ---------------------------------------------------------------- answers to other prompts


def rendered(count, prompts=lambda i: (10 + i, 3)):
    def one(i):
        sequences = tuple(TokenSequence((*prompts(i), *([50 + i] * (2 + k))), 2) for k in range(2))
        return RenderedGroup(sequences, (Comparison(0, 1),), (None, None), f"f:{i}")

    return tokens_of([one(i) for i in range(count)])


def test_each_group_gets_an_answer_to_another_prompt():
    groups = rendered(20)
    made = with_mismatched(groups, 0, None)
    answered = []
    for i, (before, after) in enumerate(zip(groups, made)):
        assert after.sequences[:2] == before.sequences
        assert (after.comparisons, after.labels, after.where, after.mismatched) == (
            before.comparisons,
            (None,) * 3,
            before.where,
            1,
        )
        other = after.sequences[2]
        assert other.ids[: other.start] == (10 + i, 3)
        assert len(set(other.ids[2:])) == 1
        assert other.ids[2] != 50 + i
        answered.append(other.ids[2])
    assert sorted(answered) == [50 + i for i in range(20)]  # every prompt's answer is taken once
    assert list(with_mismatched(groups, 0, None)) == list(made)
    assert list(with_mismatched(groups, 1, None)) != list(made)
    cut = with_mismatched(groups, 0, 3)
    assert all(len(group.sequences[2].ids) == 3 for group in cut)


def test_prompts_that_stand_twice_are_no_other_prompts():
    groups = rendered(6, lambda i: (10 + i // 3, 3))  # two prompts, three times each
    for group in with_mismatched(groups, 3, None):
        mine, theirs = group.sequences[0].ids[2] - 50, group.sequences[2].ids[2] - 50
        assert mine // 3 != theirs // 3
    with pytest.raises(NothingLeft, match="all prompts are the same"):
        with_mismatched(rendered(3, lambda i: (1, 2)), 0, None)


def test_mismatched_answers_change_no_account(tmp_path):
    path = tmp_path / "pairs.jsonl"
    tiny.write(path, tiny.pairs(12))
    renderer = Renderer(tiny.tokenizer())
    plain, _ = prepare([str(path)], renderer, DataSettings(), Wanted("preference"))
    other, _ = prepare([str(path)], renderer, DataSettings(), Wanted("judged", mismatched=True))
    assert other.account.mismatched == 12
    for name in ("used", "comparisons", "completions", "dropped", "findings"):
        assert getattr(other.account, name) == getattr(plain.account, name)
    # the rows are the same rows
    assert other.account.fingerprint == plain.account.fingerprint
    assert other.account.tokens.scored == plain.account.tokens.scored


# ---------------------------------------------------------------- what an objective asks of its
# data


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    root = runs.world(tmp_path_factory.mktemp("world"))
    pairs = tiny.pairs(24)
    scored = [
        {
            "prompt": p["prompt"],
            "completions": [p["chosen"], p["rejected"], p["chosen"] + " b", p["rejected"] + " c"],
            "scores": [4, 1, 3, 2],
        }
        for p in pairs
    ]
    tiny.write(root / "scored.jsonl", scored)
    tiny.write(
        root / "tied.jsonl",
        [{**row, "scores": [2, 2, 2, 2]} if i == 3 else row for i, row in enumerate(scored)],
    )
    sides = ("chosen", "rejected")
    tiny.write(
        root / "thumbs.jsonl",
        [
            {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
            for p in pairs
            for side in sides
        ],
    )
    held = tiny.pairs(8, seed=1)
    tiny.write(
        root / "held_good.jsonl",
        [{"prompt": p["prompt"], "completion": p["chosen"], "label": True} for p in held],
    )
    tiny.write(
        root / "held_thumbs.jsonl",
        [
            {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
            for p in held
            for side in sides
        ],
    )
    for side in sides:
        name, label = ("good", True) if side == "chosen" else ("bad", False)
        tiny.write(
            root / f"{name}.jsonl",
            [{"prompt": p["prompt"], "completion": p[side], "label": label} for p in pairs],
        )
    tiny.write(root / "soft.jsonl", [{**p, "probability": 0.7} for p in pairs])
    circle = [{"winner": 0, "loser": 1}, {"winner": 1, "loser": 2}, {"winner": 2, "loser": 0}]
    tiny.write(
        root / "circle.jsonl",
        [
            {
                "prompt": p["prompt"],
                "completions": ["a", "b", "c"],
                "comparisons": circle if i == 5 else circle[:2],
            }
            for i, p in enumerate(pairs)
        ],
    )
    return root


@pytest.mark.parametrize(
    ("pairs", "each"), [("all", 6), ("adjacent", 3), ("best", 3), ("listwise", 6)]
)
def test_each_answer_is_computed_once_whatever_the_pairs(world, tmp_path, pairs, each):
    run = runs.dpo(
        world,
        tmp_path / "run",
        data=[str(world / "scored.jsonl")],
        pairs=pairs,
        batch_size=24,
        steps=1,
        kl_samples=0,
    )
    account = read_json(run.root / "data.json")["train"]
    assert (account["comparisons"], account["completions"]) == (24 * each, 96)
    assert account["not_chosen"] == 24 * (6 - each)
    (row,) = [row for row in read_jsonl(run.metrics) if "loss" in row]
    assert (
        row["num_tokens"]
        == read_jsonl(
            runs.dpo(
                world,
                tmp_path / "all",
                data=[str(world / "scored.jsonl")],
                batch_size=24,
                steps=1,
                kl_samples=0,
            ).metrics
        )[-1]["num_tokens"]
    )
    settings = read_json(run.environment)["settings"]
    assert (settings["objective"], settings["pairs"]) == (
        "plackett_luce" if pairs == "listwise" else "dpo",
        pairs,
    )


def test_groups_of_ties_alone_are_dropped_and_counted(world, tmp_path):
    run = runs.dpo(
        world,
        tmp_path / "run",
        objective="plackett_luce",
        data=[str(world / "tied.jsonl")],
        steps=1,
        kl_samples=0,
    )
    account = read_json(run.root / "data.json")["train"]
    assert account["used"] == 23
    assert sum(account["dropped"].values()) == 1


@pytest.mark.parametrize(
    ("file", "settings", "told"),
    [
        ("thumbs.jsonl", {}, "has no comparisons to learn from"),
        (
            "thumbs.jsonl",
            {"objective": "dpo,sft"},
            "labels without comparisons train with winnow dpo --objective kto",
        ),
        (
            "soft.jsonl",
            {"objective": "plackett_luce"},
            "have a probability of 0.7, and a ranking is certain or tied",
        ),
        ("train.jsonl", {"offset": 0.1}, "the data has no margins or score gaps"),
        ("good.jsonl", {"objective": "aot_unpaired"}, "aot_unpaired: the data has no bad answer"),
        ("bad.jsonl", {"objective": "kto,sft"}, "sft: the data has no good answer"),
        (
            "soft.jsonl",
            {"objective": "aot"},
            (
                r"aot sorts a batch's answers, so single comparisons cannot have a probability or"
                r" weight: 24 do not fit"
            ),
        ),
        (
            "train.jsonl",
            {"objective": "odpo"},
            (
                r"odpo asks by how much each winner is better, so margins \(or score gaps\) must be"
                r" above 0: 24 do not fit"
            ),
        ),
        (
            "circle.jsonl",
            {"pairs": "best"},
            r"no ranking for --pairs best: 1[\s\S]*circle.jsonl:6[\s\S]*go round in a circle",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused_before_anything_is_loaded(
    world, tmp_path, monkeypatch, file, settings, told
):
    monkeypatch.setattr("winnow.models.loading.load", None)
    with pytest.raises((DataError, NothingLeft)) as caught:
        runs.dpo(world, tmp_path / "run", data=[str(world / file)], **settings)
    assert re.search(told, str(caught.value))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_check_refuses_what_training_would(world, monkeypatch, capsys):
    words = ("check", "--model", world / "model", "--batch-size", 8)
    assert runs.winnow(monkeypatch, *words, "--data", world / "train.jsonl", "--offset", 0.1) == 2
    assert "nothing to offset" in capsys.readouterr().err
    assert (
        runs.winnow(
            monkeypatch, *words, "--data", world / "train.jsonl", "--moving-reference", "every=99"
        )
        == 2
    )
    assert "it would never move" in capsys.readouterr().err
    assert (
        runs.winnow(monkeypatch, *words, "--data", world / "thumbs.jsonl", "--objective", "kto")
        == 0
    )
    said = capsys.readouterr().out
    assert "an answer to another prompt" in " ".join(said.split())


def test_a_circle_can_be_left_out(world, tmp_path):
    run = runs.dpo(
        world,
        tmp_path / "run",
        data=[str(world / "circle.jsonl")],
        pairs="best",
        on_bad_row="skip",
        steps=1,
        kl_samples=0,
    )
    account = read_json(run.root / "data.json")["train"]
    assert (account["used"], account["dropped"]) == (23, {"cannot be used": 1})


@pytest.mark.slow
def test_odpo_and_offsets_look_at_margins(world, tmp_path, capsys):
    data = [str(world / "scored.jsonl")]
    starts = {}
    for name, more in {
        "dpo": {},
        "odpo": {"objective": "odpo:alpha=2"},
        "offset": {"offset": 0.5},
    }.items():
        run = runs.dpo(
            world, tmp_path / name, data=data, batch_size=24, steps=1, kl_samples=0, **more
        )
        starts[name] = read_jsonl(run.metrics)[0]["loss"]
    assert starts["dpo"] == pytest.approx(0.693147, abs=1e-5)
    assert starts["odpo"] > starts["dpo"]
    assert starts["offset"] > starts["dpo"]
    assert (
        runs.winnow(
            pytest.MonkeyPatch(),
            "check",
            "--model",
            world / "model",
            "--data",
            data[0],
            "--batch-size",
            8,
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "144 comparisons have one; dpo does not look at it" in " ".join(said.split())


@pytest.mark.slow
def test_an_evaluation_knows_the_pairs_and_the_objective(world, tmp_path, capsys):
    run = runs.dpo(
        world,
        tmp_path / "run",
        data=[str(world / "scored.jsonl")],
        objective="plackett_luce",
        batch_size=24,
        steps=2,
        kl_samples=0,
    )
    found = api.evaluate(model=str(run.root), data=[str(world / "scored.jsonl")])
    assert "pairs=listwise" in capsys.readouterr().out
    assert len(found.rows) == 144
    kto = runs.dpo(
        world,
        tmp_path / "kto",
        data=[str(world / "thumbs.jsonl")],
        objective="kto:desirable=1.5",
        batch_size=16,
        steps=2,
        kl_samples=0,
        eval_data=[str(world / "held_thumbs.jsonl")],
    )
    again = api.evaluate(model=str(kto.root), data=[str(world / "held_thumbs.jsonl")])
    logged = [row for row in read_jsonl(kto.metrics) if "eval_loss" in row][-1]
    assert again.summary["loss"] == pytest.approx(logged["eval_loss"], rel=1e-5)


def test_tied_ranks_have_a_limit():
    assert ranking.MOST_TIED == 8  # 2^8 terms


@pytest.mark.slow
def test_one_sided_batches_are_passed_through(world, tmp_path):
    """Small batches of thumbs, an evaluation of good answers alone: nothing to compare is no error,
    and no loss of 0.
    """
    settings = {
        "objective": "aot_unpaired",
        "data": [str(world / "thumbs.jsonl")],
        "batch_size": 2,
        "steps": 12,
        "kl_samples": 0,
    }
    run = runs.dpo(world, tmp_path / "run", eval_data=[str(world / "held_good.jsonl")], **settings)
    rows = [row for row in read_jsonl(run.metrics) if "grad_norm" in row]
    assert len(rows) == 12
    assert 0 < sum("loss" in row for row in rows) < 12
    assert not any("eval_loss" in row for row in read_jsonl(run.metrics))
    assert "loss" not in api.evaluate(model=str(run.root), data=[str(world / "good.jsonl")]).summary
    first = runs.dpo(
        world,
        tmp_path / "sft",
        objective="sft",
        data=[str(world / "thumbs.jsonl")],
        batch_size=1,
        steps=8,
        kl_samples=0,
    )
    assert first.finished


def test_a_streams_last_row_alone_is_passed_over(world, tmp_path, capsys):
    run = runs.dpo(
        world,
        tmp_path / "run",
        objective="kto",
        data=[str(world / "thumbs.jsonl")],
        stream=47,
        batch_size=8,
        steps=14,
        kl_samples=0,
    )
    assert run.finished
    assert "window 2 passed over: all prompts are the same" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["bco", "beta_dpo", "dpo:0.8,bco:0.2,sft:1", "kto"])
@pytest.mark.slow
def test_an_evaluation_equals_the_last_one_of_training(world, tmp_path, text):
    """Also where the loss knows something of the training so far, and whatever the seed that
    matched answers to prompts.
    """
    run = runs.dpo(
        world,
        tmp_path / "run",
        objective=text,
        eval_data=[str(world / "held.jsonl")],
        kl_samples=0,
        lr=5e-3,
        steps=8,
        seed=5,
    )
    logged = [row for row in read_jsonl(run.metrics) if "eval_loss" in row][-1]
    assert api.evaluate(model=str(run.root), data=[str(world / "held.jsonl")]).summary[
        "loss"
    ] == pytest.approx(logged["eval_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("given", "objective_", "beta"),
    [
        ({"preset": "simpo", "objective": "dpo"}, "dpo", 0.1),
        ({"preset": "simpo", "objective": "simpo:beta=2"}, "simpo:gamma=1.4", 2.0),
        ({"preset": "zephyr"}, "dpo", 0.01),
        ({"preset": "zephyr", "objective": "dpo"}, "dpo", 0.01),
        ({"preset": "zephyr", "objective": "orpo"}, "orpo:weight=0.1", None),
        ({"preset": "mpo", "beta": 0.2}, "dpo:0.8:beta=0.2,bco:0.2:beta=0.2,sft", 0.2),
    ],
)
def test_presets_give_way(given, objective_, beta):
    """A preset's beta belongs to its objective; what is typed wins over it."""
    from winnow.config.resolve import resolve
    from winnow.config.training import DPOSettings
    from winnow.training.dpo import chosen as settled

    _, resolved = settled(resolve(DPOSettings, {"model": "m", "data": ["d"], "out": "o", **given}))
    assert (resolved.settings.objective, resolved.settings.beta) == (objective_, beta)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"objective": "plackett_luce:1,dpo:1"},
            "takes each ranking as a whole and dpo compares two answers",
        ),
        ({"objective": "kto", "pairs": "listwise"}, "kto.* judges answers one by one"),
        ({"moving_reference": "every=50"}, "every=50 is more than the 6 steps"),
        (
            {"moving_reference": "mix=0.5", "save_best": True, "eval_fraction": 0.2},
            "save_best picks the lowest held-out loss",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(world, tmp_path, given, told):
    with pytest.raises(SettingsError, match=told):
        runs.dpo(world, tmp_path / "run", kl_samples=0, **given)


@pytest.mark.slow
def test_what_is_recorded_can_be_given_again(world, tmp_path, monkeypatch):
    """A run's own config.yaml, on its own folder: finished; with another one: the same numbers."""
    for i, text in enumerate(
        ["cdpo:1:label_smoothing=0,sft:0.1", "dpo:0.333333333,hinge:0.5", "simpo", "robust"]
    ):
        run = runs.dpo(world, tmp_path / f"run{i}", objective=text, kl_samples=0, steps=3)
        assert runs.winnow(monkeypatch, "dpo", "--config", run.config) == 0
        assert (
            runs.winnow(monkeypatch, "dpo", "--config", run.config, "--out", tmp_path / f"again{i}")
            == 0
        )
        assert runs.numbers(RunFolder(tmp_path / f"again{i}")) == runs.numbers(run)
