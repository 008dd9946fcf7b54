"""Names of judges and rewards."""

from __future__ import annotations

from pathlib import Path

import pytest

from winnow.config.judges import (
    RULES,
    EndpointURL,
    FunctionPath,
    RewardModelName,
    RuleName,
    parse_judge,
    parse_reward,
)
from winnow.preferences.judging import rules


@pytest.mark.parametrize(
    ("text", "judge"),
    [
        ("http://127.0.0.1:8000/v1", EndpointURL("http://127.0.0.1:8000/v1")),
        ("https://host/v1", EndpointURL("https://host/v1")),
        ("reward:runs/reward", RewardModelName("runs/reward")),
        ("reward:C:x", RewardModelName("C:x")),
        ("length", RuleName("length")),
        ("regex:a:b", RuleName("regex:a:b")),
        ("column:stars", RuleName("column:stars")),
        ("package.module:score", FunctionPath("package.module:score")),
        ("score.py:score", FunctionPath("score.py:score")),
        ("reward", RuleName("reward")),
    ],
)
def test_parse_judge(text: str, judge: object) -> None:
    assert parse_judge(text) == judge


def test_parse_reward(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    assert parse_reward("http://host/v1") == EndpointURL("http://host/v1")
    assert parse_reward("runs/reward") == RewardModelName("runs/reward")
    assert parse_reward("module:score") == FunctionPath("module:score")
    assert parse_reward("reward:score") == FunctionPath("reward:score")  # a module of that name
    assert parse_reward(str(folder)) == RewardModelName(str(folder))


def test_the_rules_are_those_of_the_package() -> None:
    assert {*RULES} == {*rules.PLAIN, *rules.GIVEN}
