"""Who scores the answers a policy is trained on: a reward model, or somebody's Python function"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from winnow.config.judges import EndpointURL, RewardModelName
from winnow.config.model_spec import model_spec
from winnow.config.ppo import PPOSettings
from winnow.config.resolve import Resolved
from winnow.data.prompts import has_rows
from winnow.data.records import Text
from winnow.errors import JudgeError, SettingsError
from winnow.models import hashes, model_folder, reward_models, scoring
from winnow.models.loading import LoadedModel
from winnow.preferences.items import Item
from winnow.preferences.judging import rules
from winnow.system.files import sha256_json
from winnow.system.run_folder import RunFolder
from winnow.training import checkpoint


@dataclass(frozen=True)
class PromptAnswers:
    """A prompt, where it stands, and the words of answers to it."""

    prompt: Text
    where: str
    answers: Sequence[str]


@dataclass(frozen=True)
class Reward:
    """Scores of answers, prompt by prompt. identity: of weights, or of code and the columns it is
    given, None for a function that is built into Python; model: where it is one.
    """

    name: str
    identity: str | None
    scores: Callable[[Sequence[PromptAnswers]], list[list[float]]]
    model: LoadedModel | None = None


def refuse(resolved: Resolved[PPOSettings]) -> None:
    """Raises what a reward that cannot be asked raises, without loading a weight."""
    settings = resolved.settings
    if isinstance(settings.reward_name, EndpointURL):
        raise SettingsError(
            "reward: an address is asked for verdicts, and PPO needs scores",
            remedy=(
                "a run of winnow reward, a reward model, or a function: module:function,"
                " FILE.py:function"
            ),
        )
    if isinstance(settings.reward_name, RewardModelName):
        model_folder.load_config(model_spec(settings, settings.reward))
    elif resolved.origins["reward"] not in ("command line", "argument"):
        raise SettingsError(
            f"reward: {settings.reward} runs code, so a file cannot ask for it",
            remedy="give --reward on the command line",
        )
    else:
        _function(settings)


def reward(settings: PPOSettings) -> Reward:
    """The reward the settings name. Raises ModelError, JudgeError."""
    if not isinstance(settings.reward_name, RewardModelName):
        return _function(settings)
    loaded = reward_models.load(model_spec(settings, settings.reward))

    def scores(said: Sequence[PromptAnswers]) -> list[list[float]]:
        dialogues = [
            scoring.Dialogue(one.prompt, answer, (), f"{one.where}: answer {k}")
            for one in said
            for k, answer in enumerate(one.answers)
        ]
        found = iter(scoring.scores(loaded, dialogues))
        return [[next(found) for _ in one.answers] for one in said]

    return Reward(settings.reward, hashes.source_hash(loaded.model), scores, loaded)


def _function(settings: PPOSettings) -> Reward:
    name = settings.reward
    try:
        made = rules.rule(name, settings.prompts if has_rows(settings.prompts) else "", "reward")
    except JudgeError as error:
        raise SettingsError(error.what, remedy=error.remedy) from error

    def scores(said: Sequence[PromptAnswers]) -> list[list[float]]:
        try:
            return [
                rules.scores(made, Item("", one.prompt, tuple(one.answers), (), one.where))
                for one in said
            ]
        except JudgeError as error:
            kept = checkpoint.saved(RunFolder(settings.out).checkpoints)
            again = (
                f"goes on from {kept[-1].name}, with --allow-change reward"
                if kept
                else "begins again: nothing is saved yet"
            )
            raise JudgeError(
                error.what, remedy=f"mend it ({rules.SIGNATURE}, finite); the same command {again}"
            ) from error

    return Reward(
        name,
        sha256_json([made.code, list(made.cells.values())]) if made.cells else made.code,
        scores,
    )
