"""`winnow reward`: a reward model, which gives each answer a number. Preference training on the
numbers of a scalar head, without a reference.
"""

from __future__ import annotations

from winnow.config.resolve import Resolved
from winnow.config.training import RewardSettings
from winnow.objectives.objective import Objective, reward
from winnow.system.run_folder import RunFolder
from winnow.training.plan import with_rate
from winnow.training.run import train

RATE, ADAPTER_RATE = 1e-5, 1e-4


def run(resolved: Resolved[RewardSettings], command: str = "") -> RunFolder:
    """Train on comparisons: each is won with probability s(r_w - r_l), arXiv 2305.18290 eq. 1, and
    the loss is eq. 2.
    """
    return train(
        with_rate(resolved, RATE, ADAPTER_RATE),
        "reward",
        chosen(resolved.settings),
        command=command,
    )


def chosen(settings: RewardSettings) -> Objective:
    """The objective the settings ask for."""
    return reward(
        listwise=settings.pairs == "listwise",
        label_smoothing=settings.label_smoothing,
        offset=settings.offset,
    )
