"""The figures of a run, or of several with a summary, as a reviewer wants them: value, interval, n,
the step they are of, and which file they stand in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from winnow.evaluation.statistics.intervals import ONE, mean
from winnow.system.format import RECENT, looks, points, wilson

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


def summary_figure(name: str, title: str, figure: Mapping[str, Any], noun: str) -> dict[str, Any]:
    """A row for a figure of summary.json with its interval. noun: what it is over, beside
    prompts.
    """
    n = f"{_several(figure['count'], noun)} of " * (figure["prompts"] < figure["count"]) + _several(
        figure["prompts"], "prompt"
    )
    row = {
        "title": title,
        "value": figure["value"],
        "low": figure["low"],
        "high": figure["high"],
        "n": n,
    }
    return {**row, "why": figure["why"], "source": f"summary.json: figures, {name}"}


def summary_number(name: str, value: float, why: str = SINGLE) -> dict[str, Any]:
    """A row for a number of summary.json without an interval, and why it has none."""
    return {
        "title": title_of(name),
        "value": value,
        "low": None,
        "high": None,
        "n": "–",
        "why": why,
        "source": f"summary.json: {name}",
    }


def plain_numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a summary by name, without what has a place of its own there."""
    return {name: value for name, value in summary.items() if isinstance(value, int | float)}


def title_of(name: str) -> str:
    """The name of a number as a title."""
    return name.replace("_", " ").capitalize()


def _saved(run: Run, prefix: str, told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of one held-out set, by the model as it was saved."""
    moved = told["displacement"] or {}
    known = {**told["figures"], "less_likely": moved.get("less_likely")}
    found, noun = [], "comparison" if known.get("comparisons") else "row"
    for name, title in {
        **HELD_OUT,
        "less_likely": "Chosen answers that are less likely than at the start, share",
    }.items():
        if one := known.get(name):
            n = _several(one["count"], noun) + (
                f" of {_several(one['prompts'], 'prompt')}" if one["prompts"] < one["count"] else ""
            )
            row = {
                "title": _titled(title, prefix),
                "value": one["value"],
                "low": one["low"],
                "high": one["high"],
                "n": n,
                "step": run["saved_step"],
            }
            found.append(
                {**row, "source": f"environment.json: held_out, {prefix}{name}", "why": one["why"]}
            )
    return found


def _titled(title: str, prefix: str) -> str:
    return title if prefix == "eval_" else f"{title}, {prefix.removeprefix('eval_').rstrip('_')}"


def _held_out(
    rows: list[dict[str, Any]], prefix: str, account: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Of one held-out set. A share's interval counts no more looks than there are prompts:
    comparisons of one prompt may agree by themselves.
    """
    found = []
    for name, title in HELD_OUT.items():
        if not (series := points(rows, f"{prefix}{name}")):
            continue
        count = account.get(
            "decided" if name.startswith(("rewards", "logratio")) else "comparisons"
        ) or account.get("used")
        step, value = series[-1]
        low, high, why = None, None, UNKEPT
        if name == "rewards/accuracies" and (many := looks(account)):
            (low, high), why = wilson(value, many), ""
        n = _several(count, "comparison" if account.get("comparisons") else "row")
        if count and account.get("used") and account["used"] < count:
            n += f" of {_several(account['used'], 'prompt')}"
        row = {
            "title": _titled(title, prefix),
            "value": value,
            "low": low,
            "high": high,
            "n": n,
            "step": step,
        }
        found.append({**row, "source": f"metrics.jsonl: {prefix}{name}", "why": why})
    return found


def _looked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a training on rewards' last look at its held-out prompts: an answer to each."""
    last = next((row for row in reversed(rows) if "eval_answers" in row), None)
    if last is None:
        return []
    of = {"n": _several(last["eval_answers"], "prompt"), "step": last["step"], "why": ""}
    return [
        {
            "title": title,
            "value": last[f"eval_{name}"],
            "low": last[f"eval_{name}_low"],
            "high": last[f"eval_{name}_high"],
            **of,
        }
        | {"source": f"metrics.jsonl: eval_{name}"}
        for name, title in LOOKED.items()
    ]


def _own(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the last answers that were sampled while training: of an iteration's on rewards, whose
    prompts several share; else of one to each prompt.
    """
    last: Mapping[str, Any] = next((row for row in reversed(rows) if row.get("kl") is not None), {})
    many, prompts = last.get("kl_samples") or last.get("answers"), last.get("prompts")
    n = _several(many, "answer") + (
        f" of {_several(prompts, 'prompt')}" if prompts and prompts != many else ""
    )
    found = []
    for name, title in OWN.items():
        if last.get(name) is None or (
            name == "score" and prompts is None
        ):  # such a run keeps no spread of a score: its last steps are something
            continue
        low, high = last.get(f"{name}_low"), last.get(f"{name}_high")
        title += ", in training" if name == "kl" and "answers" in last else ""
        row = {
            "title": title,
            "value": last[name],
            "low": low,
            "high": high,
            "n": n,
            "step": last["step"],
            "source": f"metrics.jsonl: {name}",
        }
        found.append({**row, "why": "" if low is not None else ONE if prompts == 1 else UNKEPT})
    return found


def _trained(rows: list[dict[str, Any]], name: str, title: str) -> dict[str, Any] | None:
    """Mean of the last logged steps, and an interval over them: what the next few would be, not
    what other data would give.
    """
    series = points(rows, name)[-RECENT:]
    if not series:
        return None
    made = mean([value for _, value in series], range(len(series)))
    n, why = (
        _several(len(series), "logged step"),
        ("" if made.low is not None else "one step has no spread"),
    )
    row = {
        "title": title,
        "value": made.value,
        "low": made.low,
        "high": made.high,
        "n": n,
        "step": series[-1][0],
    }
    return {**row, "source": f"metrics.jsonl: {name}", "why": why}


def _several(count: int | None, noun: str) -> str:
    return "–" if count is None else f"{count:,} {noun}{'' if count == 1 else 's'}"
