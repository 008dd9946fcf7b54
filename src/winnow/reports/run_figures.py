"""The figures of a run, or of several with a summary, as a reviewer wants them: value, interval, n,
the step they are of, and which file they stand in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from winnow.evaluation.statistics.intervals import ONE, mean
from winnow.system.figure import Figure
from winnow.system.format import RECENT, looks, plural, points, wilson

Run = Mapping[str, Any]

HELD_OUT = {
    "loss": "Held-out loss",
    "rewards/accuracies": "Held-out accuracy",
    "rewards/auc": "Held-out area under the curve: a good answer above a bad one",
    "raw/accuracies": "Held-out accuracy of log-probs alone",
    "rewards/margins": "Held-out margin",
    "logratio/chosen": "Chosen, held out, nats per token since the start",
    "logratio/rejected": "Rejected, held out, nats per token since the start",
}
# of a training on rewards
LOOKED = {
    "score": "Held-out score",
    "kl": "Held-out KL to the reference, nats per answer, over the vocabulary",
}
OWN = {  # of answers that are sampled while it is trained; the score, of a training on rewards
    "score": "Score of answers in training",
    "kl": "KL to the reference, nats per answer",
    "length/sampled": "Length of own answers, tokens",
}
TRAINED = {
    "score": "Score of answers in training",
    "loss": "Training loss",
    "rewards/accuracies": "Training accuracy",
    "rewards/margins": "Training margin",
    "tokens_per_second": "Tokens per second",
}
SINGLE = "a single count or reading of the clock has none"
UNTOLD = "its interval was not kept"
UNKEPT = "training keeps no spread of it; winnow eval gives it"


def figures(run: Run) -> list[dict[str, Any]]:
    """Rows with title, value, low, high, n, step, source and why there is no interval, of the last
    evaluation and the last logged steps.
    """
    rows = run["metrics"]
    found = []
    for prefix, account in ((run["data"] or {}).get("eval") or {}).items():
        saved = (run.get("held_out") or {}).get(prefix)
        found += _saved(run, prefix, saved) if saved else _held_out(rows, prefix, account)
    found += _looked(rows)
    own = _own(rows)
    named = {row["title"] for row in own}
    return (
        found
        + own
        + [
            row
            for name, title in TRAINED.items()
            if title not in named and (row := _trained(rows, name, title))
        ]
    )


def of_summary(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same of what is known about several runs together: as its maker titled them, else every
    number under its name in the file.
    """
    if "titled" in summary:
        return list(summary["titled"])
    known: Mapping[str, Any] = summary.get("figures", {})
    figures_of = [
        summary_figure(name, title_of(name), figure, "row") for name, figure in known.items()
    ]
    return figures_of + [
        summary_number(name, value, UNTOLD)
        for name, value in plain_numbers(summary).items()
        if name not in known
    ]


def summary_figure(name: str, title: str, row: Mapping[str, Any], noun: str) -> dict[str, Any]:
    """A row for a figure of summary.json with its interval. noun: what it is over, beside
    prompts.
    """
    figure = Figure.read(row)
    n = plural(figure.prompts, "prompt")
    if figure.prompts < figure.count:
        n = f"{plural(figure.count, noun)} of {n}"
    return _row(title, figure, n, f"summary.json: figures, {name}")


def _row(title: str, figure: Figure, n: str, source: str, **step: int) -> dict[str, Any]:
    """A row as `report.json` holds it: with the step, of what is logged."""
    row = {"title": title, "value": figure.value, "low": figure.low, "high": figure.high, "n": n}
    return {**row, **step, "source": source, "why": figure.why}


def summary_number(name: str, value: float, why: str = SINGLE) -> dict[str, Any]:
    """A row for a number of summary.json without an interval, and why it has none."""
    figure = Figure(value, None, None, 1, 1, why)
    return _row(title_of(name), figure, "–", f"summary.json: {name}")


def plain_numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a summary by name, without what has a place of its own there."""
    return {name: value for name, value in summary.items() if isinstance(value, int | float)}


def title_of(name: str) -> str:
    """The name of a number as a title."""
    return name.replace("_", " ").capitalize()


def _saved(run: Run, prefix: str, saved: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of one held-out set, by the model as it was saved."""
    moved = saved["displacement"] or {}
    known = {**saved["figures"], "less_likely": moved.get("less_likely")}
    less_likely = "Chosen answers that are less likely than at the start, share"
    noun, rows = "comparison" if known.get("comparisons") else "row", []
    for name, title in {**HELD_OUT, "less_likely": less_likely}.items():
        if row := known.get(name):
            figure, title = Figure.read(row), _titled(title, prefix)
            source = f"environment.json: held_out, {prefix}{name}"
            n = _of_prompts(figure.count, noun, figure.prompts)
            rows.append(_row(title, figure, n, source, step=run["saved_step"]))
    return rows


def _of_prompts(count: int | None, noun: str, prompts: int | None) -> str:
    """`177 comparisons of 30 prompts`; one number where they are the same."""
    text = "–" if count is None else plural(count, noun)
    return (
        f"{text} of {plural(prompts, 'prompt')}" if count and prompts and prompts < count else text
    )


def _titled(title: str, prefix: str) -> str:
    return title if prefix == "eval_" else f"{title}, {prefix.removeprefix('eval_').rstrip('_')}"


def _held_out(
    rows: list[dict[str, Any]], prefix: str, account: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Of one held-out set. A share's interval counts no more looks than there are prompts:
    comparisons of one prompt may agree by themselves.
    """
    made, noun = [], "comparison" if account.get("comparisons") else "row"
    for name, title in HELD_OUT.items():
        if not (series := points(rows, f"{prefix}{name}")):
            continue
        key = "decided" if name.startswith(("rewards", "logratio")) else "comparisons"
        count = account.get(key) or account.get("used")
        step, value = series[-1]
        figure = Figure(value, None, None, 0, 0, UNKEPT)
        if name == "rewards/accuracies" and (many := looks(account)):
            figure = Figure(value, *wilson(value, many), many, many)
        n = _of_prompts(count, noun, account.get("used"))
        source = f"metrics.jsonl: {prefix}{name}"
        made.append(_row(_titled(title, prefix), figure, n, source, step=int(step)))
    return made


def _looked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a training on rewards' last look at its held-out prompts: an answer to each."""
    last = next((row for row in reversed(rows) if "eval_answers" in row), None)
    if last is None:
        return []
    count, made = last["eval_answers"], []
    for name, title in LOOKED.items():
        figure, source = Figure.logged(last, f"eval_{name}", count), f"metrics.jsonl: eval_{name}"
        made.append(_row(title, figure, plural(count, "prompt"), source, step=last["step"]))
    return made


def _own(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the last answers that were sampled while training: of an iteration's on rewards, whose
    prompts several share; else of one to each prompt.
    """
    last: Mapping[str, Any] = next((row for row in reversed(rows) if row.get("kl") is not None), {})
    many, prompts = last.get("kl_samples") or last.get("answers"), last.get("prompts")
    n = _of_prompts(many, "answer", prompts)
    made = []
    for name, title in OWN.items():
        # a run that is not on rewards keeps no spread of a score: its last steps are something
        if last.get(name) is None or (name == "score" and prompts is None):
            continue
        title += ", in training" if name == "kl" and "answers" in last else ""
        figure = Figure.logged(last, name, many or 0, prompts)
        if figure.low is None:
            figure = replace(figure, why=ONE if prompts == 1 else UNKEPT)
        made.append(_row(title, figure, n, f"metrics.jsonl: {name}", step=last["step"]))
    return made


def _trained(rows: list[dict[str, Any]], name: str, title: str) -> dict[str, Any] | None:
    """Mean of the last logged steps, and an interval over them: what the next few would be, not
    what other data would give.
    """
    series = points(rows, name)[-RECENT:]
    if not series:
        return None
    figure = mean([value for _, value in series], range(len(series)))
    if figure.low is None:
        figure = replace(figure, why="one step has no spread")
    n, source = plural(len(series), "logged step"), f"metrics.jsonl: {name}"
    return _row(title, figure, n, source, step=int(series[-1][0]))
