"""Have both answers become less likely? How far the log-probs of chosen and rejected answers have
moved from the reference.

Pair losses ask for a gap alone, and a gap can also grow while the preferred answer loses
probability, only slower than the other one (Razin et al., "Unintentional unalignment: likelihood
displacement in direct preference optimization", arXiv 2410.08847; Pal et al., arXiv 2402.13228).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from winnow.evaluation.statistics.intervals import mean, share
from winnow.system.figure import Figure


@dataclass(frozen=True, slots=True)
class Displacement:
    """Of the decided comparisons. chosen, rejected: log pi - log pi_ref of the answers, nats per
    answer; *_token: nats per token, all tokens alike.

    less_likely: share of comparisons whose chosen answer the policy finds less likely than the
    reference did; both: whose two answers it does.
    """

    chosen: Figure
    rejected: Figure
    chosen_token: Figure
    rejected_token: Figure
    less_likely: Figure
    both: Figure


def displacement(rows: Sequence[Mapping[str, Any]]) -> Displacement | None:
    """From rows of `heldout.rows`; None where they have no reference, or no comparison is
    decided.
    """
    decided = [row for row in rows if row["probability"] != 0.5 and "moved/chosen" in row]
    if not decided:
        return None
    prompts = [row["prompt"] for row in decided]
    sides = []
    for side in ("chosen", "rejected"):
        moved, lengths = (
            [row[f"{name}/{side}"] for row in decided] for name in ("moved", "length")
        )
        sides.append(
            (
                mean(moved, prompts),
                mean([one / n for one, n in zip(moved, lengths)], prompts, lengths),
            )
        )
    fell = [row["moved/chosen"] < 0 for row in decided]
    both = [row["moved/chosen"] < 0 and row["moved/rejected"] < 0 for row in decided]
    (chosen, chosen_token), (rejected, rejected_token) = sides
    return Displacement(
        chosen, rejected, chosen_token, rejected_token, share(fell, prompts), share(both, prompts)
    )
