"""Everything a held-out set tells of a model: figures with intervals over prompts, displacement,
calibration. For `winnow eval` and the end of a training

A model has said of all answers what it has to say: log-probs of tokens, or a reward model's scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from winnow.data.order import MixShare
from winnow.data.render import RenderedGroup
from winnow.evaluation import heldout
from winnow.evaluation.heldout_loss import loss
from winnow.evaluation.statistics.calibration import calibration, sureness
from winnow.evaluation.statistics.displacement import displacement
from winnow.evaluation.statistics.intervals import told
from winnow.objectives.objective import Objective
from winnow.objectives.terms import Known
from winnow.system.figure import Figure

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Spoken:
    """Of one set. policy, reference: log-probs (nats) of all its scored tokens; scores: a reward
    model's, by group and completion, and then nothing else.
    """

    policy: Tensor | None = None
    reference: Tensor | None = None
    scores: list[list[float]] | None = None


def rows(made: Objective, groups: Sequence[RenderedGroup], said: Spoken) -> Rows:
    """A row per comparison, then one per labelled answer."""
    if said.scores is not None:
        return heldout.scored(groups, said.scores) + heldout.scored_thumbs(groups, said.scores)
    assert said.policy is not None
    ours, theirs = (
        heldout.by_completion(said.policy, groups),
        (None if said.reference is None else heldout.by_completion(said.reference, groups)),
    )
    return heldout.rows(groups, ours, theirs, made.beta) + heldout.thumbs(
        groups, ours, theirs, made.beta
    )


def described(
    made: Objective,
    groups: Sequence[RenderedGroup],
    shares: Sequence[MixShare],
    found: Rows,
    said: Spoken,
    tokens: int,
    before: Known,
) -> dict[str, Any]:
    """figures, displacement and calibration of the set, for a file. found: its `rows`; tokens: of a
    micro-batch; before: what the training had come to know.
    """
    compared = [row for row in found if "rejected" in row]
    figures: dict[str, Figure | int] = {}
    if said.policy is not None:
        figures["nll"] = heldout.nll(said.policy, groups)
    figures |= {
        **heldout.figures(compared),
        **heldout.thumbs_figures([row for row in found if "label" in row]),
    }
    if said.policy is not None and (said.reference is not None or not made.reference):
        value = loss(made, groups, shares, said.policy, said.reference, tokens, before)
        figures |= {} if value is None else {"loss": value}
    moved = displacement(compared)
    return {
        "figures": told(figures),
        "displacement": None if moved is None else asdict(moved),
        "calibration": _calibration(made, compared, said.scores is not None),
    }


def _calibration(
    made: Objective, compared: Sequence[Mapping[str, Any]], scorer: bool
) -> dict[str, Any] | None:
    """Is s(margin) a probability? None where there are no margins; of margins that are no log-odds,
    why not.
    """
    decided = [row for row in compared if row["probability"] != 0.5 and "rewards/margins" in row]
    if not decided:
        return None
    if not scorer and not summed(made):
        return {
            "why": (
                f"margins of {made.name} are no differences of summed log-ratios, so s(margin) is"
                " no probability it claims"
            )
        }
    soft = sum(row["probability"] != 1 for row in decided)
    if soft:
        return {
            "why": (
                f"{soft:,} of {len(decided):,} labels are shares of votes or probabilities: what a"
                " margin claims is to be near them, and not to be right"
            )
        }
    margin_M = np.array([row["rewards/margins"] for row in decided])
    return asdict(calibration(margin_M)) | {
        "sureness": asdict(sureness(margin_M, [row["prompt"] for row in decided]))
    }


def summed(made: Objective) -> bool:
    """Whether the objective's own margins are beta times a difference of summed log-ratios."""
    return not any(
        term.mean or not term.entry.reference for term in made.terms if term.entry.unit != "token"
    )
