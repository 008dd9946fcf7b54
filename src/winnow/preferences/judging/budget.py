"""A judge that a command of rounds or of win rates asks again and again: what `winnow judge` does,
under one budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from winnow.config.collection import ComparingSettings, JudgeSettings
from winnow.config.judges import EndpointURL, FunctionPath, RewardModelName
from winnow.config.model_spec import model_spec
from winnow.config.options import ModelSettings
from winnow.config.resolve import Resolved, resolve
from winnow.data.prompts import Prompt
from winnow.errors import JudgeError
from winnow.models import reward_models, scoring
from winnow.preferences.items import Item
from winnow.preferences.judging import judge as judging
from winnow.preferences.judging import rules, verdicts
from winnow.preferences.judging.endpoint import refuse_absent
from winnow.preferences.judging.judge_summary import unreached
from winnow.system.files import read_jsonl


@dataclass
class Referee:
    """Judges as a command's settings say. resolved: of a command that has JudgingSettings, and a
    seed; `sent`: requests to an endpoint since it began.
    """

    resolved: Resolved[Any]
    sent: int = 0

    def refuse(self) -> None:
        """Raises what judging would raise before it asks anybody."""
        judging.refuse(self._settings(Path("answers.jsonl"), Path("judged.jsonl")))

    def try_out(self, prompt: Prompt) -> None:
        """Raises what asking would raise at once, before hours are spent on answers: a function or
        a reward model that fails on two of them, a server that is not there.
        """
        settings, (where, text) = self.resolved.settings, prompt
        judge, said = settings.judge_name, ("Yes.", "No, not at all.")
        if isinstance(judge, EndpointURL):
            refuse_absent(judge.url)
        elif isinstance(judge, RewardModelName):
            scoring.scores(
                reward_models.load(model_spec(settings, judge.name)),
                [scoring.Dialogue(text, answer, (), f"a trial on {where}") for answer in said],
            )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # who samples next wants the room
        elif isinstance(judge, FunctionPath):
            rules.scores(
                rules.rule(judge.path, ""), Item("", text, said, (), f"a trial on {where}")
            )

    def judge(self, answers: Path, out: Path, **own: Any) -> list[dict[str, Any]]:
        """Compare the answers of a file; the judged rows. own: settings that are not the command's.

        Raises JudgeError where the budget is used up, and where questions got no reply at all: the
        next start asks them again.
        """
        settings = self.resolved.settings
        if settings.budget is not None:
            if self.sent >= settings.budget:
                raise JudgeError(
                    f"budget: {self.sent:,} requests are sent", remedy="the same command goes on"
                )
            own["budget"] = settings.budget - self.sent
        self.sent += judging.run(self._settings(answers, out, **own))
        rows = read_jsonl(out)
        lost = sum(unreached(vote) for row in rows for vote in verdicts.votes_of(row))
        if lost:
            raise JudgeError(
                f"{settings.judge}: {lost:,} questions got no reply",
                remedy="the same command goes on",
            )
        return rows

    def _settings(self, answers: Path, out: Path, **own: Any) -> Resolved[JudgeSettings]:
        """Settings of `winnow judge`. A reward model is computed where and how the policy is."""
        settings, origins = self.resolved.settings, self.resolved.origins
        names = ({*ComparingSettings.model_fields, "seed"} & {*type(settings).model_fields}) | (
            {*ModelSettings.model_fields} - {"model"}
            if isinstance(settings.judge_name, RewardModelName)
            else set()
        )
        given = {name: getattr(settings, name) for name in names if origins[name] != "default"}
        # who may ask for code was seen to by `resolve`
        made = resolve(
            JudgeSettings, {**given, "answers": str(answers), "out": out, **own}, origin="argument"
        )
        # a file may not name code
        return Resolved(made.settings, {**made.origins, "judge": origins["judge"]})
