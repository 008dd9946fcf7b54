"""Every command once: its settings, its function, its words. The command line, the Python functions
and the reference page are made of this table.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from winnow.config.collection import (
    GenerateSettings,
    JudgeSettings,
    LabelSettings,
    OnlineSettings,
    SampleSettings,
    VotesExportSettings,
)
from winnow.config.evaluation import (
    CheckSettings,
    DemoSettings,
    EvalSettings,
    ExportSettings,
    FrontierSettings,
    WinrateSettings,
)
from winnow.config.options import Settings
from winnow.config.ppo import PPOSettings
from winnow.config.resolve import Resolved, resolve
from winnow.config.training import DPOSettings, RewardSettings, SFTSettings


@dataclass(frozen=True, slots=True)
class Command:
    """A command whose options are the fields of its settings.

    function: `module:function`, imported when the command is called, so that no help waits for
    torch; it returns False where what it examined is not right (exit code 2). group: its panel in
    `winnow --help`. positional: the field that is given without an option's name. records_line:
    its files record the command as it was typed.
    """

    settings: type[Settings]
    function: str
    group: str
    help: str
    example: str
    positional: str = ""
    records_line: bool = False

    def run(self, resolved: Resolved[Any], line: str) -> Any:
        """What the function returns. line: the command as it was typed, for the record."""
        module, _, name = self.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        return function(resolved, line) if self.records_line else function(resolved)

    def call(self, name: str, values: Mapping[str, Any]) -> Any:
        """The same from Python, where `values` are keyword arguments of `winnow.NAME(...)`."""
        resolved = resolve(self.settings, values, origin="argument")
        return self.run(resolved, f"winnow.{name}(...)")


GROUPS = ("Train", "Data", "Collect", "Evaluate", "Runs")
COMMANDS: dict[str, Command] = {
    "sft": Command(
        SFTSettings,
        "winnow.commands.train:sft",
        "Train",
        help=(
            "Supervised fine-tuning on demonstrations, or on the preferred answers of "
            "preference data."
        ),
        example=(
            "winnow sft --model MODEL --data demonstrations.jsonl --eval-fraction 0.05 --out "
            "runs/sft"
        ),
        records_line=True,
    ),
    "dpo": Command(
        DPOSettings,
        "winnow.commands.train:dpo",
        "Train",
        help=(
            "Preference training: DPO and its family. The reference is the model as it is "
            "before the first step."
        ),
        example=(
            "winnow dpo --model runs/sft --data pairs.jsonl --eval-fraction 0.1 --out runs/dpo "
            "--preset zephyr --save-best"
        ),
        records_line=True,
    ),
    "reward": Command(
        RewardSettings,
        "winnow.commands.train:reward",
        "Train",
        help=(
            "A reward model from comparisons: a number for each answer, for winnow judge, for "
            "PPO, or to be looked at."
        ),
        example=(
            "winnow reward --model runs/sft --data pairs.jsonl --eval-fraction 0.1 --out "
            "runs/reward"
        ),
        records_line=True,
    ),
    "ppo": Command(
        PPOSettings,
        "winnow.commands.train:ppo",
        "Train",
        help=(
            "PPO: the policy answers prompts, a reward model or a function scores the answers, "
            "and what scored well is made likelier."
        ),
        example=(
            "winnow ppo --model runs/sft --prompts prompts.jsonl --reward runs/reward --out "
            "runs/ppo"
        ),
        records_line=True,
    ),
    "online": Command(
        OnlineSettings,
        "winnow.commands.online:run",
        "Train",
        help=(
            "Rounds of sample, judge and train, each from the policy of the one before; every "
            "round judged on held-out prompts. Goes on where it stopped."
        ),
        example=(
            "winnow online --model runs/sft --prompts prompts.jsonl --judge length --rounds 3 "
            "--out runs/online"
        ),
        records_line=True,
    ),
    "demo": Command(
        DemoSettings,
        "winnow.experiments.frontier.run:demo_with_frontier",
        "Train",
        help=(
            "The whole way in three minutes on a small world made here: SFT, preferences, DPO, "
            "evaluation, report."
        ),
        example="winnow demo --out runs/demo",
        records_line=True,
    ),
    "check": Command(
        CheckSettings,
        "winnow.commands.check:run",
        "Data",
        help=(
            "Everything but training: layout, bad rows, tokens in colour, lengths, steps, "
            "memory. Exit code 2 on errors."
        ),
        example="winnow check --model runs/sft --data pairs.jsonl --eval-fraction 0.1",
    ),
    "sample": Command(
        SampleSettings,
        "winnow.commands.sample:run",
        "Collect",
        help=(
            "Several answers to each prompt, to be compared: by people (winnow label) or by a "
            "judge. Goes on where it stopped."
        ),
        example="winnow sample --model runs/sft --prompts prompts.jsonl --k 4 --out answers.jsonl",
    ),
    "label": Command(
        LabelSettings,
        "winnow.commands.label:run",
        "Collect",
        help=(
            "Compare answers on a page in the browser: blind, side by side, by keys. Every vote"
            " is kept at once; the same command goes on."
        ),
        example="winnow label answers.jsonl --out votes.db",
        positional="answers",
    ),
    "judge": Command(
        JudgeSettings,
        "winnow.preferences.judging.judge:run",
        "Collect",
        help=(
            "Answers compared by a language model, a reward model or a rule: groups that winnow"
            " dpo trains on. Goes on where it stopped."
        ),
        example=(
            "winnow judge answers.jsonl --judge http://localhost:8000/v1 --judge-model NAME "
            "--question summary --out judged.jsonl"
        ),
        positional="answers",
    ),
    "votes export": Command(
        VotesExportSettings,
        "winnow.commands.votes:export",
        "Collect",
        help=(
            "Votes as groups with comparisons that training takes as they are: probability is "
            "the share of votes."
        ),
        example="winnow votes export votes.db --out pairs.jsonl",
        positional="votes",
    ),
    "eval": Command(
        EvalSettings,
        "winnow.commands.eval:run",
        "Evaluate",
        help=(
            "Held-out accuracy, calibration, KL, displacement, slices and RewardBench of a "
            "policy or reward model, with intervals."
        ),
        example="winnow eval --model runs/dpo --data held_out.jsonl --out runs/eval",
        records_line=True,
    ),
    "generate": Command(
        GenerateSettings,
        "winnow.commands.generate:run",
        "Evaluate",
        help="What did it learn to say? Also two models side by side.",
        example="winnow generate --model runs/dpo --before runs/sft --prompts prompts.txt",
    ),
    "winrate": Command(
        WinrateSettings,
        "winnow.commands.winrate:run",
        "Evaluate",
        help=(
            "How often are answers of MODELS preferred to the last one's, the baseline's, and "
            "how sure is that? Of several a ranking too."
        ),
        example=(
            "winnow winrate runs/dpo runs/sft --prompts prompts.jsonl --judge "
            "http://localhost:8000/v1 --judge-model NAME --out runs/winrate"
        ),
        positional="models",
        records_line=True,
    ),
    "frontier": Command(
        FrontierSettings,
        "winnow.experiments.frontier.run:run",
        "Evaluate",
        help=(
            "Reward against KL: DPO, PPO and the paper's baselines on two small worlds, beside "
            "the most there can be. Half an hour; --quick takes minutes."
        ),
        example="winnow frontier --out runs/frontier --quick",
        records_line=True,
    ),
    "export": Command(
        ExportSettings,
        "winnow.commands.export:run",
        "Runs",
        help=(
            "A plain transformers folder of RUN (or of a model), loaded again and compared with"
            " the live model."
        ),
        example="winnow export runs/dpo --out final --merge",
        positional="model",
    ),
}
# Commands without settings, which only have arguments: their panel in `winnow --help`.
PLAIN = {"objectives": "Train", "votes": "Collect", "report": "Runs", "verify": "Runs"}
