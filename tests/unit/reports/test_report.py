"""The report: every number there, warnings exact, foreign text inert, nothing loaded from
anywhere.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from scipy.stats import binomtest

from report_parts import NASTY, Page, data, drawn, environment, healthy, lines, make
from winnow.errors import RunError
from winnow.reports import page as page_parts
from winnow.reports import plots, rlhf_warnings, run_report, run_summary, training_warnings
from winnow.system.format import number, percent, visible, wilson

SOURCE = Path(run_report.__file__).parent


def test_every_number_is_in_report_json(tmp_path: Path) -> None:
    root = make(
        tmp_path / "run", summary={"accuracy": 0.75, "seconds": 12.5, "notes": ["Read this."]}
    )
    made = run_report.write(root)
    stored = json.loads((root / "report.json").read_text())
    assert stored == made == run_report.build([root])
    assert stored["schema"] == 1
    assert stored["summary"] == {"accuracy": 0.75, "seconds": 12.5, "notes": ["Read this."]}
    run = stored["runs"][0]
    assert run["metrics"] == healthy()
    assert run["final"] == {**healthy()[-2], **healthy()[-1]}
    assert run["data"] == data()
    assert run["settings"] == environment()["settings"]
    assert run["status"] == {"step": 40, "steps": 40, "state": "complete"}
    assert run["samples"] == [
        {
            "prompt": "the film was",
            "before": "0: the film was",
            "after": "40: the film was",
            "step": 40,
        }
    ]


def test_the_page_says_what_matters(tmp_path: Path) -> None:
    root = make(tmp_path / "run")
    run_report.write(root)
    page = Page((root / "report.html").read_text())
    low, high = wilson(0.75, 100)
    text = re.sub(r"\s+", " ", page.text)
    for words in (
        "Prefers the chosen answer in 75 % of 100 held-out",
        f"95 % interval {100 * low:.0f}–{100 * high:.0f} %",
        "Nothing to warn of",
    ):
        assert words in text
    for words in ("900 read", "−6 identical completions", "894 used", "cd" * 32):
        assert words in text
    for words in (
        "preset paper",
        "winnow dpo --beta 0.1",
        "torch 2.13.0",
        "complete, 40 of 40 steps",
    ):
        assert words in text
    assert page.tags.count("figure") == len(drawn())
    assert len(page.ids) == len(set(page.ids))


def test_plots_are_spoken_and_take_their_colours_from_the_page(tmp_path: Path) -> None:
    drawings = plots.draw(run_report.build([make(tmp_path / "run")])["runs"])
    assert [drawing.title for drawing in drawings] == drawn()
    for drawing in drawings:
        assert 'role="img"' in drawing.svg
        assert "<text" in drawing.svg
        assert "var(--" in drawing.svg
        assert "http" not in drawing.svg
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing.svg)) <= {"#000000"}
    assert "training from 0.686 at step 1 to 0.393 at step 40" in drawings[0].svg
    assert [line.label for line in drawings[0].lines] == ["training", "held out", "hard"]
    # at step 0 every pair is a tie
    assert min(step for step, _ in drawings[1].lines[1].points) == 10


@pytest.fixture
def empty_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No curves: matplotlib draws them, and is given no text of a user's. What a drawing says of
    itself stays.
    """
    axes = '<svg xmlns="http://www.w3.org/2000/svg"><g id="figure_1"></g></svg>'
    monkeypatch.setattr(
        plots,
        "_svg",
        lambda panel, lines, level: plots._page_svg(axes, visible(plots._spoken(panel, lines))),
    )


@pytest.mark.usefixtures("empty_axes")
@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_foreign_text_is_inert(tmp_path: Path, text: str) -> None:
    name = re.sub(r"[/\0\ud800]", "_", text)[:60]
    settings = environment(data=[text], **{text[:40]: text})
    settings |= {
        "command": text,
        "device": text,
        "recipe": text[:80],
        "versions": {text: text},
        "reference": {"identity": text},
        "weights_hash": text,
    }
    finding = {"code": text, "message": text, "rows": [text], "remedy": text}
    parts = data(
        findings=[finding | {"level": level} for level in ("warning", "note", text)],
        dropped={text: 1},
        sources=[{"name": text, "layout": text, "rows": 1, "weight": 2, "ignored": [text]}],
    )
    rows = [row | {f"eval_{text[:50]}_loss": 0.5} for row in healthy()]
    foreign = {
        "verdict": text[:200],
        "titled": [ROW | {"title": text, "source": text}],
        "cards": [CARD | {"label": text[:200]}],
        "looked_for": [text[:200]],
    }
    foreign["warnings"] = [dict.fromkeys(WARNING, text[:200])]
    root = make(
        tmp_path / name,
        rows=rows,
        texts=(text,),
        environment=settings,
        data=parts,
        summary={"notes": [text], text[:9]: text, **foreign},
    )
    run_report.write(root)
    html = (root / "report.html").read_bytes().decode()
    page = Page(html)
    assert page.danger == []
    # what a browser refuses, should anything get through
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in html
    assert page.tags.count("style") == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", html)
    assert visible(text.replace("\ud800", "?"))[: page_parts.PREVIEW // 2] in page.text.replace(
        "\ufffd", "?"
    )
    assert run_report.page([root, make(tmp_path / "other")], tmp_path / "both.html").exists()
    assert Page((tmp_path / "both.html").read_text()).danger == []


def test_a_megabyte_is_folded_and_clipped(tmp_path: Path) -> None:
    long = "word " * 210_000
    html = run_report.render(run_report.build([make(tmp_path / "run", texts=(long,))]))
    assert len(html) < 1_000_000
    assert "1,050,000 characters" in html
    assert "1,030,000 more characters" in html
    assert '<details class="long">' in html


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a" / "run"), make(tmp_path / "b" / "run")
    run_report.write(first)
    run_report.write(second)
    for name in ("report.html", "report.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_several_runs_share_plots_and_show_what_differs(tmp_path: Path) -> None:
    roots = [
        make(tmp_path / "a" / "dpo"),
        make(tmp_path / "b" / "dpo", environment=environment(beta=0.5)),
        make(tmp_path / "c" / "dpo"),
    ]
    made = run_report.build(roots)
    assert [run["name"] for run in made["runs"]] == ["a/dpo", "b/dpo", "c/dpo"]
    page = Page(run_report.page(roots, tmp_path / "new" / "page.html").read_text())
    assert "3 runs, side by side." in page.text
    assert page.tags.count("figure") == len(drawn())
    assert re.search(r"beta\s*0\.1\s*0\.5\s*0\.1", page.text)
    looks = {(line.ink, line.marker) for line in plots.draw(made["runs"])[0].lines}
    assert len(looks) == 3
    assert run_report.build([roots[0], roots[0]])["runs"] == run_report.build([roots[0]])["runs"]


def two_runs(root: Path, summary: dict[str, Any]) -> Path:
    """A folder with an SFT run, a DPO run and what is known of both."""
    sft = environment("sft") | {"started": "2025-12-31T00:00:00+00:00"}
    rows = [{"step": step, "loss": 5 - 0.05 * step, "entropy": 4.0} for step in range(1, 41)]
    make(root / "sft", rows=rows, environment=sft)
    make(root / "dpo")
    (root / "summary.json").write_text(json.dumps(summary))
    return root


WON = {"value": 0.92, "low": 0.9, "high": 0.94, "count": 4096, "prompts": 256, "why": ""}
ROW = {
    "title": "Wins",
    "value": 0.92,
    "low": 0.9,
    "high": 0.94,
    "n": "4,096 games of 256 prompts",
    "why": "",
    "source": "summary.json: figures, win_rate",
}
CARD = {
    "label": "Wins",
    "value": "92 %",
    "detail": "256 prompts",
    "at": 0.92,
    "interval": [0.9, 0.94],
}
WARNING = {
    "code": "strange",
    "message": "Something is strange.",
    "advice": "Look at it.",
    "level": "warning",
}
HANDED = {
    "verdict": "The model wins.",
    "titled": [ROW],
    "cards": [CARD],
    "warnings": [WARNING],
    "looked_for": ["strange things"],
}


def test_a_folder_of_runs_shows_what_its_summary_hands_over_and_both(tmp_path: Path) -> None:
    summary = {
        "win_rate": 0.92,
        "figures": {"win_rate": WON},
        "words_in_use": 64,
        "kl": 21.0,
        "notes": ["Displacement."],
        **HANDED,
    }
    made = run_report.write(two_runs(tmp_path / "demo", summary))
    assert [run["name"] for run in made["runs"]] == ["sft", "dpo"]
    assert made["summary"] == summary
    assert [(sign["run"], sign["code"]) for sign in made["warnings"]] == [
        ("", "far"),
        ("", "strange"),
    ]
    assert made["checked"][-1] == "strange things"
    assert [asdict(card) for card in run_summary.cards(made)] == [{**CARD, "interval": (0.9, 0.94)}]
    text = Page((tmp_path / "demo" / "report.html").read_text()).text
    for words in (
        "The model wins.",
        "Something is strange. Look at it.",
        "256 prompts",
        "4,096 games of 256 prompts",
        ROW["source"],
        "Displacement.",
    ):
        assert words in text
    assert "words_in_use" not in text  # it was not handed over
    assert text.index("Preference training") < text.index("Supervised fine-tuning")
    assert not (tmp_path / "demo" / "dpo" / "report.json").exists()


def test_a_summary_that_hands_nothing_over_shows_its_numbers_under_their_names(
    tmp_path: Path,
) -> None:
    """As a version before titled figures left it."""
    summary = {
        "win_rate": 0.92,
        "figures": {"win_rate": WON},
        "words_in_use": 64,
        "grammatical_after": 0.06,
        "kl": 21.0,
        "notes": ["Displacement."],
    }
    made = run_report.write(two_runs(tmp_path / "demo", summary))
    assert [(sign["run"], sign["code"]) for sign in made["warnings"]] == [("", "far")]
    assert [(card.label, card.value, card.detail) for card in run_summary.cards(made)] == [
        ("Win rate", "0.920", "95 % interval 0.900 to 0.940, n = 4,096 from 256 prompts"),
        ("Words in use", "64", ""),
        ("Grammatical after", "0.0600", ""),
        ("Kl", "21.0", ""),
    ]
    text = Page((tmp_path / "demo" / "report.html").read_text()).text
    for words in (
        "2 runs, side by side.",
        "4,096 rows of 256 prompts",
        "summary.json: figures, win_rate",
        "summary.json: words_in_use",
        "Displacement.",
    ):
        assert words in text


def test_the_general_report_knows_no_experiment() -> None:
    files = [
        SOURCE / f"{name}.py"
        for name in ("run_report", "run_summary", "run_figures", "training_warnings")
    ] + [SOURCE / "templates" / name for name in ("page.html.jinja", "runs.html.jinja")]
    words = re.compile(
        r"grammatical|true_reward|win_rate|demo\b|frontier_page import|import frontier_page|broken"
        r" text"
    )
    assert [(path.name, word) for path in files for word in words.findall(path.read_text())] == []


def test_a_run_without_metrics_says_so(tmp_path: Path) -> None:
    root = make(tmp_path / "run", rows=[])
    for name in ("data.json", "samples.jsonl", "metrics.jsonl"):
        (root / name).unlink()
    made = run_report.build([root])
    assert made["runs"][0]["status"]["state"] == "no steps yet"
    text = Page(run_report.render(made)).text
    assert "No step has been logged yet." in text
    assert "Nothing could be looked for yet" in text


FIGURE = {"value": 2.0, "low": 1.0, "high": 3.0, "count": 8, "prompts": 4, "why": ""}


def spoil(root: Path, name: str, content: str | None) -> None:
    (root / name).unlink() if content is None else (root / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("environment.json", None, "environment.json is missing"),
        ("environment.json", "{", "environment.json: cannot be read as JSON"),
        ("environment.json", "[]", "got list, expected an object"),
        (
            "environment.json",
            '{"schema": 1, "recipe": "dpo"}',
            "settings: got NoneType, expected dict",
        ),
        (
            "environment.json",
            '{"schema": 9, "recipe": "dpo", "settings": {}}',
            "schema: got 9, expected 1",
        ),
        ("data.json", None, "data.json: missing, though the run has metrics"),
        ("data.json", '{"train": 3}', "train: got int, expected dict"),
        ("data.json", '{"train": {"dropped": []}}', "dropped: got list, expected dict"),
        (
            "metrics.jsonl",
            '{"step": 1}\n{"st\n{"step": 2}\n',
            "metrics.jsonl:2: cannot be read as JSON",
        ),
        ("metrics.jsonl", '{"loss": 1}\n', "metrics.jsonl:1: step: got None"),
        (
            "metrics.jsonl",
            '{"step": 1, "loss": "low"}\n',
            "metrics.jsonl:1: loss: got str, expected a number",
        ),
        ("metrics.jsonl", "3\n", "metrics.jsonl:1: got int, expected an object"),
        (
            "samples.jsonl",
            '{"step": 0, "prompt": "a", "completion": 3}\n',
            "samples.jsonl:1: completion: got int, expected str",
        ),
        ("summary.json", '{"kl": "high"}', "kl: got str, expected a number"),
        ("summary.json", '{"verdict": 3}', "verdict: got int, expected str"),
        (
            "summary.json",
            '{"titled": [3]}',
            "titled: got 3, expected title, n, why, source and its numbers",
        ),
        ("summary.json", json.dumps({"titled": [ROW | {"value": "high"}]}), "titled: got"),
        ("summary.json", json.dumps({"titled": [ROW | {"low": None}]}), "titled: got"),
        ("summary.json", json.dumps({"cards": [CARD | {"interval": [0.5]}]}), "cards: got"),
        ("summary.json", json.dumps({"cards": [CARD | {"onclick": "x"}]}), "cards: got"),
        ("summary.json", json.dumps({"warnings": [WARNING | {"advice": 3}]}), "warnings: got"),
        (
            "summary.json",
            '{"figures": {"kl": 3}}',
            "figures, kl: got 3, expected a figure with its interval",
        ),
        (
            "summary.json",
            json.dumps({"figures": {"kl": FIGURE | {"value": "high"}}}),
            "figures, kl: got",
        ),
        (
            "summary.json",
            json.dumps({"figures": {"kl": FIGURE | {"high": None}}}),
            "figures, kl: got",
        ),
        (
            "summary.json",
            json.dumps({"figures": {"kl": FIGURE | {"prompts": "many"}}}),
            "figures, kl: got",
        ),
    ],
)
def test_damage_is_named_with_a_remedy(
    tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    root = make(tmp_path / "run")
    spoil(root, name, content)
    with pytest.raises(RunError, match=re.escape(words)) as caught:
        run_report.build([root])
    assert str(root) in str(caught.value)
    assert caught.value.remedy


def test_a_torn_last_line_and_nan_are_no_damage(tmp_path: Path) -> None:
    root = make(tmp_path / "run")
    (root / "metrics.jsonl").write_text(
        lines(healthy()) + '{"step": 41, "loss": NaN, "grad_norm": Infinity}\n{"step": 42, "lo'
    )
    rows = run_report.write(root)["runs"][0]["metrics"]
    assert rows[-1] == {"step": 41, "loss": None, "grad_norm": None}
    with pytest.raises(RunError, match="no run folder was given"):
        run_report.build([])


def last(
    rows: list[dict[str, Any]], name: str, value: float, count: int = 20
) -> list[dict[str, Any]]:
    """`rows` with a metric set to a value in the last so many rows that have it."""
    rows = copy.deepcopy(rows)
    for row in [row for row in rows if name in row][-count:]:
        row[name] = value
    return rows


def without(rows: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if not name.startswith(prefix)} for row in rows
    ]


RUN = {"metrics": healthy(), "settings": {"clip": 1.0}, "data": data(), "summary": {}}
BARE = without(healthy(), "eval_logratio")

FIRES: dict[str, tuple[dict[str, Any], str]] = {
    "displacement": (
        {
            "metrics": last(
                last(healthy(), "eval_logratio/chosen", -0.4, 1), "eval_logratio/rejected", -0.62, 1
            )
        },
        (
            "Chosen log-probability fell 0.40 nats per token since the start, measured on held-out"
            " answers (rejected: fell 0.62): displacement."
        ),
    ),
    "overfit": (
        {"metrics": last(healthy(), "rewards/accuracies", 1.0)},
        "Accuracy is 1.00 on training pairs and 0.75 on held-out ones: the pairs are memorised.",
    ),
    "rising": (
        {"metrics": last(healthy(), "eval_loss", 0.6421, 1)},
        "Held-out loss rose from 0.5431 at step 30 to 0.6421 at step 40.",
    ),
    "stuck": (
        {"metrics": last(healthy(), "loss", 0.6931, 40)},
        (
            "Loss was 0.6931 at step 1 and is 0.6931 over the last 10 logged steps: it has not left"
            " its start."
        ),
    ),
    "clipped": (
        {"metrics": last(healthy(), "grad_norm", 7.314, 30)},
        "The gradient was clipped at 30 of 40 logged steps (75 %): median norm 7.31, clip 1.0.",
    ),
    "length-bias": (
        {"metrics": last(healthy(), "length/chosen", 30.0, 40)},
        (
            "Chosen answers average 30 tokens, rejected ones 21: the model can learn to be longer"
            " instead of better."
        ),
    ),
    "longer": (
        {"summary": {"length_ratio": 1.4}},
        "Answers after training are 1.40 times as long as before.",
    ),
    "chance": (
        {"metrics": last(healthy(), "eval_rewards/accuracies", 0.55)},
        (
            "Held-out accuracy is 0.55 over 100 comparisons (95 % interval 0.45 to 0.64): it cannot"
            " be told from chance."
        ),
    ),
    "collapse": (
        {"metrics": last(healthy(), "entropy", 0.5)},
        "Entropy fell from 1.99 to 0.50 nats per token: samples will repeat each other.",
    ),
    "far": (
        {"metrics": last(healthy(), "kl", 21.3, 1)},
        (
            "KL to the reference is 21.3 nats per answer: the model says what the reference hardly"
            " ever would."
        ),
    ),
    "cut": (
        {"data": data(tokens={"prompt": 4000, "scored": 5500, "cut": 500})},
        "max_length cut 500 tokens off the training data (5.0 % of it).",
    ),
    "ignorant": (
        {"metrics": last(healthy(), "explained_variance", 0.04, 10)},
        (
            "The critic explains 0.040 of the returns’ variance over the last 10 logged steps: it"
            " knows next to nothing."
        ),
    ),
    "hurried": (
        {"metrics": last(healthy(), "clip_fraction", 0.4, 10)},
        (
            "Within an iteration 40 % of the tokens lost their slope to clipping and 0.010 nats per"
            " token were moved, means of the last 10 logged steps: the steps are too large."
        ),
    ),
    "off-target": (
        {
            "metrics": last(healthy(), "kl", 1.25, 3),
            "settings": {"target_kl": 6},
            "status": {"state": "complete"},
        },
        (
            "KL to the reference is 1.25 nats per answer, mean of the last 3 iterations, and"
            " target_kl is 6.00: beta has not brought it there."
        ),
    ),
    "unending": (
        {"metrics": last(healthy(), "finished", 0.61, 4)},
        (
            "Own answers that end by themselves fell from 94 % in the first 4 iterations to 61 % in"
            " the last 4: the others are cut off."
        ),
    ),
}


def test_every_symptom_has_a_case() -> None:
    assert FIRES.keys() == training_warnings.SYMPTOMS.keys()


@pytest.mark.parametrize("code", FIRES)
def test_each_symptom_fires_with_its_numbers(code: str) -> None:
    change, sentence = FIRES[code]
    signs, _, _ = training_warnings.examine({**RUN, **change})
    assert [(sign.code, sign.message) for sign in signs] == [(code, sentence)]
    assert signs[0].remedy.endswith(".")


def test_a_healthy_run_is_left_in_peace() -> None:
    calm = {"length_ratio": 1.2, "kl": 9.9}
    signs, checked, unchecked = training_warnings.examine({**RUN, "summary": calm})
    assert signs == []
    assert len(checked) == len(training_warnings.SYMPTOMS)
    assert unchecked == []


def test_symptoms_at_their_edges() -> None:
    def codes(**change: Any) -> list[tuple[str, str]]:
        return [
            (sign.code, sign.message) for sign in training_warnings.examine({**RUN, **change})[0]
        ]

    assert (
        codes(metrics=last(BARE, "logratio/chosen", -training_warnings.DISPLACED + 1e-9, 10)) == []
    )
    ((code, message),) = codes(
        metrics=last(BARE, "logratio/chosen", -training_warnings.DISPLACED, 10)
    )
    assert code == "displacement"
    assert (
        "fell 0.20 nats per token since the start, measured over the last 10 logged steps"
        in message
    )
    assert (
        "on hard rose from 0.6250 at step 30 to 0.8000"
        in codes(metrics=last(healthy(), "eval_hard_loss", 0.8, 1))[0][1]
    )
    assert codes(metrics=last(healthy(), "eval_rewards/accuracies", 0.3))[0][1].endswith(
        "below chance."
    )
    # no count, no interval
    assert codes(metrics=last(healthy(), "eval_rewards/accuracies", 0.55), data={"train": {}}) == []
    assert codes(metrics=last(healthy(), "length/sampled", 25.2, 1)) == [
        ("longer", "Answers after training are 1.40 times as long as before.")
    ]
    assert codes(metrics=healthy()[:2], settings={"clip": None}) == []
    assert (
        codes(
            metrics=last(
                last(healthy(), "clip_fraction", rlhf_warnings.HURRIED, 10),
                "kl/step",
                rlhf_warnings.HURRIED_KL,
                10,
            )
        )
        == []
    )
    assert codes(metrics=last(healthy(), "kl/step", 0.06, 10))[0][0] == "hurried"
    early = [
        {"step": step, "explained_variance": 0.0} for step in range(1, rlhf_warnings.STUCK_STEPS)
    ]
    assert codes(metrics=early) == []  # it may still learn
    assert codes(metrics=early, status={"state": "complete"})[0][0] == "ignorant"
    for kl, target, fires in (
        (1.5, 1.0, False),
        (1.51, 1.0, True),
        (1.0, 1.5, False),
        (1.0, 1.51, True),
    ):
        found = codes(
            metrics=last(healthy(), "kl", kl, 3),
            settings={"target_kl": target},
            status={"state": "complete"},
        )
        assert [code for code, _ in found] == ["off-target"] * fires
    missed = [{"step": step, "kl": 0.5, "beta": 0.1} for step in range(1, 61)]
    assert "of the last 6 iterations" in codes(metrics=missed, settings={"target_kl": 6.0})[0][1]
    # it is on its way
    assert codes(metrics=missed[: rlhf_warnings.STUCK_STEPS - 1], settings={"target_kl": 6.0}) == []
    assert codes(metrics=missed, settings={"target_kl": None}) == codes(metrics=missed) == []
    assert (
        codes(metrics=missed[:2], settings={"target_kl": 6.0}, status={"state": "complete"}) == []
    )
    ends = [{"step": step, "finished": 0.75 if step <= 3 else 0.5} for step in range(1, 7)]
    assert codes(metrics=last(ends, "finished", 0.55, 3)) == []
    assert codes(metrics=last(ends, "finished", 0.54, 3))[0][0] == "unending"
    assert codes(metrics=ends[:1] + ends[2:]) == []  # too few to have a first and a last part
    sure = [
        {"step": step, "score": 1.0, "entropy": 2.0 if step <= 20 else 0.5} for step in range(1, 41)
    ]
    assert codes(metrics=sure) == [
        (
            "collapse",
            "Entropy fell from 2.00 to 0.50 nats per token: samples will repeat each other.",
        )
    ]
    short = [{**row, "rewards/margins": 0.0} for row in last(healthy(), "loss", 0.6931, 40)[:20]]
    assert codes(metrics=short) == []  # too early to say
    ((code, message),) = codes(metrics=short, status={"state": "complete"})
    assert (code, "is 0.6931 over the last 10 logged steps" in message) == ("stuck", True)
    found = {
        "level": "warning",
        "code": "length_tokens",
        "message": "Winners are longer.",
        "rows": ["f:1", "f:2", "f:3", "f:4"],
        "remedy": "Balance.",
    }
    # stands beside the data, not in the box
    assert codes(data=data(findings=[found | {"level": "note"}])) == []
    told = codes(metrics=last(healthy(), "length/chosen", 30.0, 40), data=data(findings=[found]))
    assert told == [("length_tokens", "Winners are longer. (f:1, f:2, f:3 and 1 more)")]


def test_sft_is_not_asked_about_pairs() -> None:
    rows = [
        {"step": step, "loss": 5.0, "entropy": 4.0 if step < 20 else 0.1} for step in range(1, 41)
    ]
    signs, checked, unchecked = training_warnings.examine(
        {**RUN, "metrics": rows, "data": {"train": {}, "eval": {}}}
    )
    assert (signs, checked) == ([], [])
    assert len(unchecked) == len(training_warnings.SYMPTOMS)


def test_numbers_as_people_read_them() -> None:
    expected = {
        0.69314: "0.693",
        -1.0: "−1.00",
        12345: "12,345",
        1234.5: "1,234",
        5e-7: "5e−7",
        1.25e-5: "1.25e−5",
        0.0: "0",
        -0.05213: "−0.0521",
    }
    assert {value: number(value) for value in expected} == expected
    assert [percent(share) for share in (0.921, 0.999, 1.0, 0.0, 0.001)] == [
        "92 %",
        "99.9 %",
        "100 %",
        "0 %",
        "0.1 %",
    ]
    for wins, count in ((50, 100), (10, 10), (0, 7), (3, 1000)):
        oracle = binomtest(wins, count).proportion_ci(method="wilson")
        assert wilson(wins / count, count) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_thinning_keeps_the_outline() -> None:
    series = [(step, float(step % 97)) for step in range(10_000)]
    thinned = plots.thin(series)
    assert len(thinned) <= plots.MOST
    assert {value for _, value in thinned} >= {0.0, 96.0}
    assert thinned == sorted(thinned)
    assert [value for _, value in plots.smooth([(i, 2.0) for i in range(100)])] == pytest.approx(
        [2.0] * 100
    )
    assert plots.smooth([(i, float(i)) for i in range(90)])[45] == (45, 45.0)


@pytest.mark.process
def test_a_browser_finds_nothing_to_fetch_or_complain_about(tmp_path: Path) -> None:
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if browser is None:
        pytest.skip("needs chromium: apt-get install chromium")
    root = make(tmp_path / "run", texts=NASTY[:-1])
    run_report.write(root)
    log = tmp_path / "net.json"
    switches = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    switches += [
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--v=0",
        f"--log-net-log={log}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [browser, *switches, (root / "report.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.count("<figure>") == len(drawn())
    assert "CONSOLE" not in done.stderr
    assert "evil.example" not in log.read_text()
    assert Page(done.stdout).danger == []


def on_rewards(*scores: tuple[float, float, float], looked: bool = True) -> list[dict[str, Any]]:
    """Iterations of `winnow ppo` whose score and looks are these (value, low, high)."""
    rows: list[dict[str, Any]] = []
    for step, (score, low, high) in enumerate(scores):
        if step:
            rows.append(
                {
                    "step": step,
                    "score": score,
                    "kl": 0.3 * step,
                    "answers": 64,
                    "num_answers": 64 * step,
                    "num_tokens": 640 * step,
                }
            )
        if looked:
            rows.append(
                {
                    "step": step,
                    "eval_answers": 50,
                    "eval_score": score,
                    "eval_score_low": low,
                    "eval_score_high": high,
                }
            )
            rows[-1] |= {
                "eval_kl": 0.4 * step,
                "eval_kl_low": 0.3 * step,
                "eval_kl_high": 0.5 * step,
            }
    return rows


def test_a_training_on_rewards_has_its_figures_with_intervals(tmp_path: Path) -> None:
    head = environment("ppo", max_new_tokens=32)
    root = make(
        tmp_path / "run",
        rows=on_rewards((0.0, -0.3, 0.3), (0.5, 0.2, 0.8), (1.0, 0.7, 1.3)),
        environment=head,
    )
    made = run_report.write(root)
    found = {one["title"]: one for one in made["runs"][0]["figures"]}
    score, kl = (
        found["Held-out score"],
        found["Held-out KL to the reference, nats per answer, over the vocabulary"],
    )
    assert (score["value"], score["low"], score["high"], score["n"], score["step"]) == (
        1.0,
        0.7,
        1.3,
        "50 prompts",
        2,
    )
    assert (kl["value"], kl["low"], kl["high"], kl["n"]) == (0.8, 0.6, 1.0, "50 prompts")
    assert found["KL to the reference, nats per answer, in training"]["n"] == "64 answers"
    assert found["Score of answers in training"]["value"] == 0.75
    text = Page((root / "report.html").read_text()).text
    assert (
        "went from 0 to 1.00 (95\u00a0% interval 0.700 to 1.30, n = 50), 0.800 nats per answer from"
        " where it began." in text
    )
    assert "Held-out KL" in text
    assert "Horizontal axis: iteration." in text
    assert "at most 128" not in text


def test_a_score_that_was_not_shown_to_move_says_so(tmp_path: Path) -> None:
    made = run_report.build(
        [
            make(
                tmp_path / "held",
                rows=on_rewards((0.0, -0.3, 0.3), (0.5, 0.2, 0.8)),
                environment=environment("ppo"),
            )
        ]
    )
    assert run_summary.verdict(made).endswith(
        "; the two intervals overlap, so it is not shown to have moved."
    )
    flat = [(0.0, 0.0, 0.0), *((value, 0.0, 0.0) for value in (0.5, 0.4, 0.6, 0.5))]
    made = run_report.build(
        [
            make(
                tmp_path / "flat",
                rows=on_rewards(*flat, looked=False),
                environment=environment("ppo"),
            )
        ]
    )
    low, high = stats.t.interval(0.95, 3, 0.5, stats.sem([0.5, 0.4, 0.6, 0.5]))
    assert (
        f"(95 % interval {number(low)} to {number(high)} over 4 iterations)"
        in run_summary.verdict(made)
    )
    assert run_summary.verdict(made).endswith(
        "; nothing was held out to check it on, and it is not shown to have moved."
    )
    up = [
        (0.0, 0.0, 0.0),
        (0.1, 0.0, 0.0),
        *((value, 0.0, 0.0) for value in (0.5, 0.4, 0.6, 0.5, 0.5, 0.4, 0.6, 0.5, 0.5, 0.4)),
    ]
    made = run_report.build(
        [make(tmp_path / "up", rows=on_rewards(*up, looked=False), environment=environment("ppo"))]
    )
    assert run_summary.verdict(made).endswith("; nothing was held out to check it on.")
