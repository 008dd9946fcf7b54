"""What `winnow demo` hands its report: a sentence, cards, titled figures and warnings, each from
the numbers of its summary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from winnow.reports.page import Card
from winnow.reports.run_figures import summary_figure, summary_number
from winnow.system.figure import Figure, support
from winnow.system.findings import Finding
from winnow.system.format import hundredths, number, percent

Summary = Mapping[str, Any]

# fall of the share of sentences of the grammar from which reward is bought with broken text
GRAMMAR_LOSS = 0.07
TITLES = {
    "true_reward_before": "True reward, before",
    "true_reward_after": "True reward, after",
    "grammatical_before": "Sentences of the grammar, before, share",
    "grammatical_after": "Sentences of the grammar, after, share",
    "win_rate": "Win rate over the model before, ties half",
    "true_ties": "True ties, share of games",
    "accuracy": "Accuracy of the implicit reward, held-out pairs in their true order",
    "kl": "KL to the reference, nats per answer, over the vocabulary",
    "length_ratio": "Length, of the answers before",
    "finished": "Answers that end by themselves, share",
    "repeated": "Answers with a sentiment word three times or more, share",
}
# of what figures are over, where it is not answers
NOUNS = {
    "win_rate": "game",
    "true_ties": "game",
    "accuracy": "comparison",
}
COUNTS = ("words_in_use", "flipped_labels", "seconds")


def parts(summary: Summary) -> dict[str, Any]:
    """The keys of summary.json that the report draws as they are."""
    rows = [
        summary_figure(name, title, summary["figures"][name], NOUNS.get(name, "answer"))
        for name, title in TITLES.items()
    ]
    rows += [summary_number(name, summary[name]) for name in COUNTS]
    cards = [asdict(card) for card in _cards(summary)]
    return {
        "verdict": verdict(summary),
        "titled": rows,
        "cards": cards,
        "warnings": [finding.to_json() for finding in signs(summary)],
        "looked_for": ["broken text"],
    }


def verdict(summary: Summary) -> str:
    """The outcome in one sentence."""
    figure = Figure.read(summary["figures"]["win_rate"])
    end = ": too close to tell them apart" if figure.contains(0.5) else ""
    return (
        f"The tuned model wins {percent(summary['win_rate'])} of held-out prompts against the model"
        f" it started from{end}."
    )


def signs(summary: Summary) -> list[Finding]:
    """Reward bought with broken text."""
    before, after = summary["grammatical_before"], summary["grammatical_after"]
    if before - after <= GRAMMAR_LOSS:
        return []
    text = (
        f"Grammatical samples fell from {percent(before)} to {percent(after)}: reward is being"
        " bought with broken text."
    )
    return [
        Finding(
            "warning",
            "unsound",
            text,
            remedy="Consider a higher beta, a lower rate, or fewer steps.",
        )
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


CARDS: tuple[tuple[str, str, Callable[[float], str], str], ...] = (
    ("win_rate", "Win rate", percent, ""),
    ("true_reward_after", "True reward", hundredths, ""),
    ("grammatical_after", "Grammatical text", percent, ""),
    ("accuracy", "Reward accuracy", percent, "held-out pairs, true order"),
    ("kl", "KL", number, "nats per answer, to the reference"),
    ("length_ratio", "Length", lambda ratio: f"{ratio:.2f}×", "of the answers before"),
    ("finished", "Finished", percent, "samples that end by themselves"),
    ("seconds", "Time", _duration, "training and evaluation"),
)


def _cards(summary: Summary) -> list[Card]:
    """The most telling figures, each with its interval over prompts; of two models with the value
    before.
    """
    cards = []
    for name, label, show, detail in CARDS:
        row = summary["figures"].get(name)
        before = (
            f"{show(summary[name.replace('_after', '_before')])} before"
            if name.endswith("_after")
            else detail
        )
        figure = Figure.read(row) if row else None
        span = support(figure, show) if figure and figure.ends else ""
        drawn = (
            {"at": summary[name], "interval": figure.ends} if name == "win_rate" and figure else {}
        )
        cards.append(
            Card(
                label,
                show(summary[name]),
                "; ".join(part for part in (before, span) if part),
                **drawn,
            )
        )
    return cards
