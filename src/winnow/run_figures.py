"""The figures of a run as a reviewer wants them: value, interval, n, the step they are of, and which file they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from winnow.figures import RECENT, looks, points, wilson
from winnow.measures.clustered import mean

Run = Mapping[str, Any]

HELD_OUT = {
    "loss": "Held-out loss",
    "rewards/accuracies": "Held-out accuracy",
    "rewards/margins": "Held-out margin",
    "logratio/chosen": "Chosen, held out, nats per token since the start",
    "logratio/rejected": "Rejected, held out, nats per token since the start",
}
TRAINED = {"loss": "Training loss", "rewards/accuracies": "Training accuracy", "rewards/margins": "Training margin", "tokens_per_second": "Tokens per second"}
UNKEPT = "training keeps no spread of it; winnow eval gives it"


def figures(run: Run) -> list[dict[str, Any]]:
    """Rows with title, value, low, high, n, step, source and why there is no interval, of the last evaluation and the last logged steps."""
    rows = run["metrics"]
    found = [row for prefix, account in ((run["data"] or {}).get("eval") or {}).items() for row in _held_out(rows, prefix, account)]
    if series := points(rows, "kl"):
        last = next(row for row in reversed(rows) if row.get("kl") is not None)
        of, source = {"n": _several(last.get("kl_samples"), "answer"), "step": series[-1][0]}, "metrics.jsonl: kl"
        ends = {"low": last.get("kl_low"), "high": last.get("kl_high")}
        found.append(
            {
                "title": "KL to the reference, nats per answer",
                "value": last["kl"],
                **ends,
                **of,
                "source": source,
                "why": "" if ends["low"] is not None else UNKEPT,
            }
        )
        if "length/sampled" in last:
            length = {"title": "Length of own answers, tokens", "value": last["length/sampled"], "low": None, "high": None, **of}
            found.append({**length, "source": "metrics.jsonl: length/sampled", "why": UNKEPT})
    return found + [row for name, title in TRAINED.items() if (row := _trained(rows, name, title))]


def _held_out(rows: list[dict[str, Any]], prefix: str, account: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of one held-out set. A share's interval counts no more looks than there are prompts: comparisons of one prompt may agree by themselves."""
    found = []
    for name, title in HELD_OUT.items():
        if not (series := points(rows, f"{prefix}{name}")):
            continue
        count = account.get("decided" if name.startswith(("rewards", "logratio")) else "comparisons") or account.get("used")
        step, value = series[-1]
        low, high, why = None, None, UNKEPT
        if name == "rewards/accuracies" and (many := looks(account)):
            (low, high), why = wilson(value, many), ""
        title = title if prefix == "eval_" else f"{title}, {prefix.removeprefix('eval_').rstrip('_')}"
        n = _several(count, "comparison" if account.get("comparisons") else "row")
        if count and account.get("used") and account["used"] < count:
            n += f" of {_several(account['used'], 'prompt')}"
        found.append({"title": title, "value": value, "low": low, "high": high, "n": n, "step": step, "source": f"metrics.jsonl: {prefix}{name}", "why": why})
    return found


def _trained(rows: list[dict[str, Any]], name: str, title: str) -> dict[str, Any] | None:
    """Mean of the last logged steps, and an interval over them: what the next few would be, not what other data would give."""
    series = points(rows, name)[-RECENT:]
    if not series:
        return None
    made = mean([value for _, value in series], range(len(series)))
    n, why = _several(len(series), "logged step"), "" if made.low is not None else "one step has no spread"
    row = {"title": title, "value": made.value, "low": made.low, "high": made.high, "n": n, "step": series[-1][0]}
    return {**row, "source": f"metrics.jsonl: {name}", "why": why}


def _several(count: int | None, noun: str) -> str:
    return "–" if count is None else f"{count:,} {noun}{'' if count == 1 else 's'}"
