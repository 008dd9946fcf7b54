"""The names of judges and rewards, parsed: an address, a reward model, a Python function or a
rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RULES = ("length", "shorter", "regex", "exact", "column")  # names.partition(":")[0]


@dataclass(frozen=True, slots=True)
class EndpointURL:
    """A language model behind an address."""

    url: str


@dataclass(frozen=True, slots=True)
class RewardModelName:
    """A reward model, by its folder or its name on the Hub."""

    name: str


@dataclass(frozen=True, slots=True)
class FunctionPath:
    """A Python function, which runs somebody's code: module:function or FILE.py:function."""

    path: str


@dataclass(frozen=True, slots=True)
class RuleName:
    """A rule of the package, with what follows its name: length, regex:PATTERN, column:NAME."""

    name: str


JudgeName = EndpointURL | RewardModelName | FunctionPath | RuleName
RewardName = EndpointURL | RewardModelName | FunctionPath


def parse_judge(text: str) -> JudgeName:
    """The judge that a setting names."""
    kind, colon, name = text.partition(":")
    if text.startswith(("http://", "https://")):
        return EndpointURL(text)
    if colon and kind == "reward":
        return RewardModelName(name)
    return FunctionPath(text) if colon and kind not in RULES else RuleName(text)


def parse_reward(text: str) -> RewardName:
    """The reward that a setting of `winnow ppo` names: a judge without its verdicts, so that a
    model stands without `reward:`, and a path that exists is a model.
    """
    kind, colon, _ = text.partition(":")
    if isinstance(judge := parse_judge(text), EndpointURL):
        return judge
    if colon and kind not in RULES and not Path(text).exists():
        return FunctionPath(text)
    return RewardModelName(text)
