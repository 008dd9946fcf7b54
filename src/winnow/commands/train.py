"""`winnow sft`, `dpo`, `reward` and `ppo`: a training, and its report after it."""

from __future__ import annotations

from winnow.config.ppo import PPOSettings
from winnow.config.resolve import Resolved
from winnow.config.training import DPOSettings, RewardSettings, SFTSettings
from winnow.reports import run_report
from winnow.system.run_folder import RunFolder
from winnow.training import dpo as preference_training
from winnow.training import reward as reward_training
from winnow.training import sft as supervised_training
from winnow.training.ppo import run as ppo_training


def sft(resolved: Resolved[SFTSettings], command: str = "") -> RunFolder:
    """Supervised fine-tuning."""
    return _with_report(supervised_training.run(resolved, command))


def dpo(resolved: Resolved[DPOSettings], command: str = "") -> RunFolder:
    """Preference training."""
    return _with_report(preference_training.run(resolved, command))


def reward(resolved: Resolved[RewardSettings], command: str = "") -> RunFolder:
    """Training of a reward model."""
    return _with_report(reward_training.run(resolved, command))


def ppo(resolved: Resolved[PPOSettings], command: str = "") -> RunFolder:
    """Training on rewards."""
    return _with_report(ppo_training.run(resolved, command))


def _with_report(run: RunFolder) -> RunFolder:
    """The run, whose report is drawn where it is missing: training does not wait for a drawing."""
    run_report.write_missing(run)
    return run
