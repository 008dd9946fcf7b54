"""Preference training: DPO and its family against the policy at step 0."""

from __future__ import annotations

from winnow.config.options import parse_follow
from winnow.config.resolve import Resolved
from winnow.config.training import DPOSettings
from winnow.errors import SettingsError
from winnow.objectives.objective import FLAGS, Objective, objective
from winnow.objectives.table import Value
from winnow.system.run_folder import RunFolder
from winnow.training.plan import with_rate
from winnow.training.run import train

RATE, ADAPTER_RATE = 5e-7, 5e-6


def run(resolved: Resolved[DPOSettings], command: str = "") -> RunFolder:
    """Train on comparisons."""
    made, resolved = chosen(resolved)
    settings = resolved.settings
    resolved = with_rate(resolved, RATE, ADAPTER_RATE)
    follow = parse_follow(settings.moving_reference)
    return train(
        resolved,
        "dpo",
        made,
        command=command,
        reference_model=settings.reference,
        follow=follow,
        kl_samples=settings.kl_samples,
    )


def chosen(resolved: Resolved[DPOSettings]) -> tuple[Objective, Resolved[DPOSettings]]:
    """The objective the settings name, and the settings with its own defaults filled in. Raises
    SettingsError for what does not go together.
    """
    settings = resolved.settings
    name = (
        "plackett_luce"
        if (settings.objective, settings.pairs) == ("dpo", "listwise")
        else settings.objective
    )
    given: dict[str, Value | None] = {
        "beta": settings.beta,
        "label_smoothing": settings.label_smoothing,
        "score": settings.score,
        "offset": settings.offset,
    }
    given |= {
        "tail_weight": settings.tail_weight,
        "wpo": settings.wpo,
        "divergence": settings.divergence,
    }
    made = objective(name, **{key: value for key, value in given.items() if value is not None})
    _refuse_unfit(made, settings)
    listwise = any(term.entry.unit == "group" for term in made.terms)
    if settings.pairs is None:
        resolved = resolved.fill(
            "default" if not listwise else f"default of {name}",
            pairs="listwise" if listwise else "all",
        )
    if made.name != settings.objective:
        resolved = resolved.fill(resolved.origins["objective"], objective=made.name)
    if len(made.terms) == 1:
        own = made.terms[0].settings
        filled: dict[str, Value] = {
            key: own[key] for key in FLAGS if key in own and given[key] is None
        }
        resolved = resolved.fill(f"default of {name.partition(':')[0]}", **filled)
    return made, resolved


def _refuse_unfit(made: Objective, settings: DPOSettings) -> None:
    """Raises SettingsError for settings around the objective that cannot go with it."""
    listwise = [term.choice.name for term in made.terms if term.entry.unit == "group"]
    pairwise = [term.choice.name for term in made.terms if term.entry.unit == "comparison"]
    if listwise and settings.pairs not in (None, "listwise"):
        raise SettingsError(
            f"pairs: got {settings.pairs!r}, {listwise[0]} takes each ranking as a whole",
            remedy="--pairs listwise, or leave it away",
        )
    if listwise and pairwise:
        raise SettingsError(
            f"objective: {listwise[0]} takes each ranking as a whole and {pairwise[0]} compares two"
            " answers",
            remedy="one of the two",
        )
    if settings.pairs == "listwise" and not listwise and not pairwise:
        raise SettingsError(
            f"pairs: {made.name} judges answers one by one, and listwise takes the ranking as a"
            " whole",
            remedy="leave pairs away",
        )
    if pairwise and settings.pairs == "listwise":
        raise SettingsError(
            f"pairs: {pairwise[0]} compares two answers, and listwise takes the ranking as a whole",
            remedy="--objective plackett_luce, or --pairs all",
        )
    if not made.reference and (settings.reference or settings.moving_reference):
        name = "reference" if settings.reference else "moving_reference"
        raise SettingsError(
            f"{name}: {made.name} compares with no reference", remedy=f"leave {name} away"
        )
    if made.live and settings.reference:
        raise SettingsError(
            "reference: tdpo asks for the whole distribution of the policy at step 0, and not of"
            " another model",
            remedy="leave reference away",
        )
