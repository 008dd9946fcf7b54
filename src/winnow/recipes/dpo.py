"""Preference training: DPO and its family against the policy at step 0."""

from __future__ import annotations

from winnow.config import DPOSettings
from winnow.files import RunFolder
from winnow.objectives.table import Preference, preference
from winnow.recipes.planning import with_rate
from winnow.recipes.training import train
from winnow.resolved import Resolved

RATE, ADAPTER_RATE = 5e-7, 5e-6


def run(resolved: Resolved[DPOSettings], command: str = "") -> RunFolder:
    """Train on comparisons."""
    objective, resolved = chosen(resolved)
    settings = resolved.settings
    resolved = with_rate(resolved, RATE, ADAPTER_RATE)
    return train(resolved, "dpo", objective, command=command, reference_model=settings.reference, kl_samples=settings.kl_samples)


def chosen(resolved: Resolved[DPOSettings]) -> tuple[Preference, Resolved[DPOSettings]]:
    """The objective the settings name, and the settings with its own defaults filled in."""
    settings = resolved.settings
    objective = preference(settings.objective, beta=settings.beta, label_smoothing=settings.label_smoothing, score=settings.score)
    if settings.beta is None:
        resolved = resolved.fill(f"default of {objective.name}", beta=objective.beta)
    return objective, resolved
