"""What stands at the top of a report: one sentence, and the key figures as cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from winnow.evaluation.statistics.intervals import mean
from winnow.reports import online_report
from winnow.reports.page import Card
from winnow.reports.run_figures import plain_numbers, title_of
from winnow.system.figure import Figure, interval, support
from winnow.system.format import (
    RECENT,
    Points,
    decided,
    first_set,
    held_out,
    looks,
    number,
    percent,
    points,
    recent,
    signed,
    wilson,
)

Run = Mapping[str, Any]

MOST = 8  # cards: two rows of four on a laptop


def verdict(report: Mapping[str, Any]) -> str:
    """The outcome in one sentence."""
    summary, runs = report["summary"], report["runs"]
    if "verdict" in summary:
        return str(summary["verdict"])
    if report["rounds"]:
        return online_report.sentence(report["rounds"])
    if len(runs) > 1:
        return f"{len(runs)} runs, side by side."
    run = runs[0]
    held, trained = (
        held_out(run["metrics"], "rewards/accuracies"),
        points(run["metrics"], "rewards/accuracies"),
    )
    if scores := held_out(run["metrics"], "score") or points(run["metrics"], "score"):
        return _score_sentence(run, scores)
    if held and held[-1][0] > 0:
        share = _accuracy(run, held)
        count = f"{number(share.count)} " if share.count else ""
        span = f" (95 % interval {interval(share, percent)})" if share.ends else ""
        return (
            f"Prefers the chosen answer in {percent(share.value or 0.0)} of {count}held-out"
            f" comparisons{span}."
        )
    if trained:
        return (
            f"Prefers the chosen answer in {percent(recent(trained))} of its latest training pairs;"
            " nothing was held out to check it on."
        )
    return _loss_sentence(run)


def _accuracy(run: Run, held: Points) -> Figure:
    """Of the first held-out set: of the saved model where that was measured, else of the last
    evaluation, whose interval counts no more looks than there are prompts. count 0: not known.
    """
    if row := _saved(run, "rewards/accuracies"):
        return Figure.read(row)
    count, many = decided(run), looks(first_set(run))
    low, high = wilson(held[-1][1], many) if many else (None, None)
    return Figure(held[-1][1], low, high, count or 0, many or 0)


def _saved(run: Run, name: str) -> Mapping[str, Any] | None:
    """A figure of the saved model on the first held-out set."""
    first: Mapping[str, Any] = next(iter((run.get("held_out") or {}).values()), {})
    figure: Mapping[str, Any] | None = first.get("figures", {}).get(name)
    return figure


def _score_sentence(run: Run, scores: Points) -> str:
    looks = [row for row in run["metrics"] if row.get("eval_score_low") is not None]
    kl = points(run["metrics"], "eval_kl" if looks else "kl")
    far = f", {number(kl[-1][1])} nats per answer from where it began" if kl else ""
    if looks:
        first, now = (
            Figure.logged(row, "eval_score", row["eval_answers"]) for row in (looks[0], looks[-1])
        )
        over = f", n = {number(now.count)}"
        apart = first.ends and now.ends and not _overlap(first.ends, now.ends)
        beside = "" if apart else "; the two intervals overlap, so it is not shown to have moved"
    else:
        late = [value for _, value in scores[-RECENT:]]
        now = mean(late, range(len(late)))
        over = f" over {now.count} iterations"
        moved = now.ends is not None and not now.contains(scores[0][1])
        beside = "; nothing was held out to check it on" + (
            "" if moved else ", and it is not shown to have moved"
        )
    span = f"95 % interval {interval(now)}{over}" if now.ends else "no interval"
    return (
        f"The mean score of its answers went from {number(float(scores[0][1]))} to"
        f" {number(float(now.value or 0.0))} ({span}){far}{beside}."
    )


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _loss_sentence(run: Run) -> str:
    held, trained = held_out(run["metrics"], "loss"), points(run["metrics"], "loss")
    if len(held) > 1:
        return (
            f"Held-out loss {'fell' if held[-1][1] < held[0][1] else 'rose'} from"
            f" {number(held[0][1])} to {number(held[-1][1])}."
        )
    if trained:
        now = recent(trained)
        return (
            f"Training loss {'fell' if now < trained[0][1] else 'rose'} from"
            f" {number(trained[0][1])} to {number(now)}; nothing was held out to check it on."
        )
    return "No step has been logged yet."


def subline(report: Mapping[str, Any]) -> str:
    """What was trained on what, where: of the run that came last."""
    run = report["runs"][-1]
    if len(report["runs"]) > 1 and not report["summary"]:
        return " · ".join(run["name"] for run in report["runs"])
    train = (run["data"] or {}).get("train") or {}
    pairs = train.get("comparisons")
    amounts = (
        ((run["parameters"] or {}).get("total"), "parameters"),
        (
            pairs or train.get("used"),
            "comparisons" if pairs else "rows",
        ),
    )
    parts = [f"{number(amount)} {unit}" for amount, unit in amounts if amount]
    version = run["versions"].get("winnow") or run["versions"].get("winnow-lm")
    return " · ".join(
        [
            *parts,
            *([str(run["device"])] if run["device"] else []),
            *([f"winnow {version}"] if version else []),
        ]
    )


def cards(report: Mapping[str, Any]) -> list[Card]:
    """At most eight figures, the most telling first; several runs without a summary have a table
    instead.
    """
    found = _summary_cards(report["summary"])
    named = {card.label for card in found}
    return [
        *found,
        *(
            card
            for run in report["runs"][:1]
            if len(report["runs"]) == 1
            for card in _run_cards(run)
            if card.label not in named
        ),
    ][:MOST]


def _summary_cards(summary: Mapping[str, Any]) -> list[Card]:
    """The cards of a summary as its maker gave them, else one for each number."""
    if "cards" in summary:
        return [
            Card(**{**card, "interval": card["interval"] and tuple(card["interval"])})
            for card in summary["cards"]
        ]
    known: Mapping[str, Any] = summary.get("figures", {})
    return [
        Card(title_of(name), number(value), _over_prompts(known.get(name, {})))
        for name, value in plain_numbers(summary).items()
    ]


def _over_prompts(row: Mapping[str, Any]) -> str:
    """Interval and n of a figure over prompts, where it has them."""
    return "" if row.get("low") is None else support(Figure.read(row))


def _run_cards(run: Run) -> list[Card]:
    rows = run["metrics"]
    found = [*_accuracy_cards(run), *_loss_cards(run), *_score_cards(rows)]
    for side in ("chosen", "rejected"):
        if series := points(rows, f"logratio/{side}"):
            found.append(
                Card(side.capitalize(), signed(recent(series), 2), "nats per token since the start")
            )
    if series := points(rows, "kl"):
        if any("eval_kl" in row for row in rows):
            found.append(
                Card(
                    "Held-out KL",
                    number(points(rows, "eval_kl")[-1][1]),
                    f"nats per answer, to the reference; {_looked_at(rows, 'kl')}",
                )
            )
        else:
            what = "KL in training" if "score" in run["final"] else "KL"
            found.append(
                Card(
                    what,
                    number(series[-1][1]),
                    f"nats per answer, to the reference{_of_answers(rows)}",
                )
            )
    if speed := points(rows, "tokens_per_second"):
        found.append(Card("Speed", number(round(recent(speed))), "tokens per second"))
    return found


def _accuracy_cards(run: Run) -> list[Card]:
    """On held-out pairs; on training pairs where none were held out."""
    rows, found = run["metrics"], list[Card]()
    held = held_out(rows, "rewards/accuracies")
    if held and held[-1][0] > 0:
        share = _accuracy(run, held)
        detail = support(share, percent) if share.ends else ""
        text = percent(share.value or 0.0)
        found.append(Card("Held-out accuracy", text, detail, share.value, share.ends))
    elif trained := points(rows, "rewards/accuracies"):
        found.append(
            Card(
                "Training accuracy",
                percent(recent(trained)),
                "nothing was held out",
                recent(trained),
            )
        )
    return found


def _loss_cards(run: Run) -> list[Card]:
    rows, found = run["metrics"], list[Card]()
    shown = (
        ("Held-out loss", held_out(rows, "loss"), 1),
        ("Training loss", points(rows, "loss"), RECENT),
        ("Reward margin", points(rows, "rewards/margins"), RECENT),
    )
    for label, series, last in shown:
        if series:
            now = recent(series[-last:])
            of = (
                f"{number(decided(run))} comparisons"
                if last == 1 and decided(run)
                else ""
                if last == 1
                else f"last {min(last, len(series))} logged steps"
            )
            if last == 1 and (one := _saved(run, "loss")):
                now = one["value"]
                figure = Figure.read(one)
                of = (f"95 % interval {interval(figure)}, " if figure.ends else "") + of
            found.append(
                Card(
                    label,
                    number(now),
                    ", ".join(
                        [f"{number(series[0][1])} at step {series[0][0]:,}", *([of] if of else [])]
                    ),
                )
            )
    return found


def _of_answers(rows: Sequence[Mapping[str, Any]]) -> str:
    """Interval and n of the last KL, where the run has them."""
    last = next(row for row in reversed(rows) if row.get("kl") is not None)
    spread = last.get("kl_low") is not None
    count = last.get("kl_samples") or (last.get("answers") if spread else None)
    if not count:
        return ""
    return f"; {support(Figure.logged(last, 'kl', count, last.get('prompts')))}"


def _looked_at(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Interval and n of the last look at held-out prompts."""
    last = next(row for row in reversed(rows) if row.get("eval_answers") is not None)
    return support(Figure.logged(last, f"eval_{name}", int(last["eval_answers"])), noun="prompts")


def _score_cards(rows: Sequence[Mapping[str, Any]]) -> list[Card]:
    """Of a training on rewards: the scores of its answers."""
    found = []
    if series := points(rows, "eval_score"):
        found.append(Card("Held-out score", number(series[-1][1]), _looked_at(rows, "score")))
    for label, name, detail in (
        ("Score in training", "score", "own answers"),
        ("Finished", "finished", "own answers that end by themselves"),
    ):
        if series := points(rows, name):
            now = recent(series)
            found.append(Card(label, percent(now) if name == "finished" else number(now), detail))
    if series := points(rows, "num_answers"):
        found.append(
            Card(
                "Answers scored",
                number(int(series[-1][1])),
                f"{number(int(points(rows, 'num_tokens')[-1][1]))} tokens",
            )
        )
    return found


COLUMNS = (
    ("Loss", "loss"),
    ("Score", "score"),
    ("Held-out score", "eval_score"),
    ("Held-out loss", "eval_loss"),
    ("Accuracy", "rewards/accuracies"),
    ("Held-out accuracy", "eval_rewards/accuracies"),
    ("Margin", "rewards/margins"),
    ("Chosen / token", "logratio/chosen"),
    ("Rejected / token", "logratio/rejected"),
    ("KL", "kl"),
)


def table(runs: Sequence[Run]) -> dict[str, Any]:
    """Several runs in one table of their latest figures; columns nobody has are left out."""
    columns = [
        (title, name) for title, name in COLUMNS if any(name in run["final"] for run in runs)
    ]
    return {
        "titles": [title for title, _ in columns],
        "rows": [[number(run["final"].get(name)) for _, name in columns] for run in runs],
    }


def differences(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Settings in which the runs differ: (name, value of each run); `None` where a run has no such
    setting.
    """
    names = dict.fromkeys(name for run in runs for name in run["settings"])
    rows = [(name, [run["settings"].get(name) for run in runs]) for name in names if name != "out"]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]
