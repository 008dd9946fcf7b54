"""Supervised fine-tuning: demonstrations, or the preferred completions of preference data."""

from __future__ import annotations

from winnow.config.resolve import Resolved
from winnow.config.training import SFTSettings
from winnow.objectives.objective import DEMONSTRATION
from winnow.system.run_folder import RunFolder
from winnow.training.plan import with_rate
from winnow.training.run import train

RATE, ADAPTER_RATE = 2e-5, 2e-4


def run(resolved: Resolved[SFTSettings], command: str = "") -> RunFolder:
    """Train on the completions' negative log-likelihood, per scored token."""
    return train(with_rate(resolved, RATE, ADAPTER_RATE), "sft", DEMONSTRATION, command=command)
