"""The commands as Python functions: the same settings as keyword arguments, the same run
folders.
"""

from __future__ import annotations

from typing import Any

from winnow.commands import eval as evaluation_recipe
from winnow.commands import train
from winnow.commands.eval import Evaluation
from winnow.config.options import DPOSettings, EvalSettings, RewardSettings, SFTSettings
from winnow.config.ppo import PPOSettings
from winnow.config.resolve import resolve
from winnow.system.run_folder import RunFolder


def sft(**settings: Any) -> RunFolder:
    """Supervised fine-tuning; settings as in `winnow sft --help`, e.g. sft(model="M",
    data=["d.jsonl"], out="RUN").
    """
    return train.sft(resolve(SFTSettings, settings, origin="argument"), "winnow.sft(...)")


def dpo(**settings: Any) -> RunFolder:
    """Preference training; settings as in `winnow dpo --help`, e.g. dpo(model="RUN",
    data=["p.jsonl"], out="RUN2", beta=0.1).
    """
    return train.dpo(resolve(DPOSettings, settings, origin="argument"), "winnow.dpo(...)")


def reward(**settings: Any) -> RunFolder:
    """A reward model; settings as in `winnow reward --help`, e.g. reward(model="RUN",
    data=["p.jsonl"], out="RUN2").
    """
    return train.reward(resolve(RewardSettings, settings, origin="argument"), "winnow.reward(...)")


def ppo(**settings: Any) -> RunFolder:
    """Training on rewards; settings as in `winnow ppo --help`, e.g. ppo(model="RUN",
    prompts="p.txt", reward="RUN2", out="RUN3").
    """
    return train.ppo(resolve(PPOSettings, settings, origin="argument"), "winnow.ppo(...)")


def evaluate(**settings: Any) -> Evaluation:
    """Held-out measures; settings as in `winnow eval --help`, e.g. evaluate(model="RUN",
    data=["held_out.jsonl"]).
    """
    return evaluation_recipe.run(
        resolve(EvalSettings, settings, origin="argument"), "winnow.evaluate(...)"
    )
