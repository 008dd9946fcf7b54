"""Winnow: align language models with what people prefer.

The public surface is `__all__`; everything else may change. Names are imported when first used, so
that `winnow --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from winnow.api import dpo, evaluate, ppo, reward, sft
    from winnow.data.records import Comparison, Completion, Message, PreferenceGroup
    from winnow.data.render import Renderer
    from winnow.errors import (
        DataError,
        ModelError,
        RunError,
        SettingsError,
        TrainingError,
        WinnowError,
    )
    from winnow.objectives import losses
    from winnow.objectives.completion_logps import completion_logps
    from winnow.objectives.losses import dpo_loss, preference_loss

__version__ = "0.1.0"

_HOME = {
    "sft": "winnow.api",
    "dpo": "winnow.api",
    "reward": "winnow.api",
    "evaluate": "winnow.api",
    "ppo": "winnow.api",
    "Comparison": "winnow.data.records",
    "Completion": "winnow.data.records",
    "Message": "winnow.data.records",
    "PreferenceGroup": "winnow.data.records",
    "Renderer": "winnow.data.render",
    "DataError": "winnow.errors",
    "ModelError": "winnow.errors",
    "RunError": "winnow.errors",
    "SettingsError": "winnow.errors",
    "TrainingError": "winnow.errors",
    "WinnowError": "winnow.errors",
    "losses": "winnow.objectives",
    "dpo_loss": "winnow.objectives.losses",
    "preference_loss": "winnow.objectives.losses",
    "completion_logps": "winnow.objectives.completion_logps",
}

__all__ = [
    "Comparison",
    "Completion",
    "DataError",
    "Message",
    "ModelError",
    "PreferenceGroup",
    "Renderer",
    "RunError",
    "SettingsError",
    "TrainingError",
    "WinnowError",
    "completion_logps",
    "dpo",
    "dpo_loss",
    "evaluate",
    "losses",
    "ppo",
    "preference_loss",
    "reward",
    "sft",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'winnow' has no attribute {name!r}")
    if name == "losses":
        return importlib.import_module("winnow.objectives.losses")
    return getattr(importlib.import_module(_HOME[name]), name)
