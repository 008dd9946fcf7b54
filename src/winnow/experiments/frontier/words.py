"""What `winnow frontier` found, in words: names of methods, numbers with their intervals, the
paper's claims. No figure is made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from winnow.system.figure import Figure, Writer, cell
from winnow.system.format import number, percent, signed

Figures = Mapping[str, Any]

STYLES = {  # method -> its name, colour, dash, marker
    "dpo": ("DPO", "r1", "solid", "o"),
    "ppo": ("PPO, learned reward", "r2", "solid", "s"),
    "ppo_true": ("PPO, true reward", "r3", "solid", "^"),
    "best_of_learned": ("Best of n, learned reward", "r4", "solid", "D"),
    "best_of": ("Best of n, true reward", "r4", "dashed", "D"),
    "preferred_ft": ("Preferred-FT", "r6", "solid", "P"),
    "unlikelihood": ("Unlikelihood", "r5", "solid", "v"),
    "dpo+sft": ("DPO + a fixed NLL term", "muted", "dashed", "o"),
}
TITLES = {"small": "A world that is counted", "reviews": "Film reviews"}


def mean_of(row: Figures, write: Writer = number) -> str:
    """A mean with its interval in brackets, where there is one."""
    return cell(Figure.read(row), write, count=False)


def shared(row: Figures, write: Writer = percent) -> str:
    """A share as percent, with its interval, which cannot leave 0 to 100."""
    return mean_of(row, lambda share: write(min(1.0, max(0.0, share))))


def setting(row: Figures) -> str:
    """A method's knob and where it stands."""
    knobs = {"beta": "β", "alpha": "α", "target_kl": "target", "n": "n"}
    return (
        "one setting"
        if row["value"] is None
        else f"{knobs.get(row['knob'], row['knob'])} {row['value']:g}"
    )


def claims(ledger: Figures) -> list[dict[str, str]]:
    """Each claim with its answer and the numbers it rests on."""
    return [
        _above(claim) if claim["name"] == "above" else _order(claim) for claim in ledger["claims"]
    ]


def _above(claim: Figures) -> dict[str, str]:
    against, difference = STYLES[claim["against"]][0], claim["difference"]
    head = f"{TITLES[claim['world']]}: DPO’s frontier is at or above that of {against}"
    if difference is None:
        return {"claim": head, "answer": "undecided", "why": f"{claim['why'].capitalize()}."}
    low, high = (number(kl) for kl in claim["reach"])
    why = (
        f"At equal KL, from {low} to {high} nats, which both reached, DPO’s reward is"
        f" {mean_of(difference, signed)} beside it"
    )
    return {"claim": head, "answer": claim["verdict"], "why": f"{why}, {by_seeds(claim['seeds'])}."}


def _order(claim: Figures) -> dict[str, str]:
    changes = [
        f"from {c['low']:g} to {c['high']:g} by {mean_of(c['change'], signed)}"
        for c in claim["changes"]
    ]
    why = f"As β rises KL changes {', '.join(changes)} nats, {by_seeds(claim['seeds'])}."
    if claim["method"] == "dpo":
        return {
            "claim": f"{TITLES[claim['world']]}: a higher β means less KL, for DPO alone",
            "answer": claim["verdict"],
            "why": why,
        }
    answer = {"yes": "no", "no": "yes"}.get(claim["verdict"], "undecided")
    more = (
        " DPO’s gradient grows with β and the NLL term’s does not: where β is small the NLL term"
        " decides where the policy goes."
    )
    return {
        "claim": f"{TITLES[claim['world']]}: a fixed NLL term beside DPO breaks that order",
        "answer": answer,
        "why": why + more,
    }


def by_seeds(count: int) -> str:
    """How many there were."""
    return f"{count} seeds" if count > 1 else "one seed, so no interval over seeds"


def sentences(ledger: Figures) -> list[str]:
    """The claims for a terminal."""
    return (
        [f"{one['claim']}: {one['answer']}. {one['why']}" for one in claims(ledger)]
        if ledger["points"]
        else []
    )


def methods_shown(ledger: Figures) -> list[str]:
    """The methods that may stand on the page: PPO only where it has proved itself."""
    return [method for method in STYLES if ledger["ppo"]["shown"] or not method.startswith("ppo")]
