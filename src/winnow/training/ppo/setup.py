"""A training on rewards before its models are loaded: prompts, their split, the plan, and what the
run folder records of them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from winnow.config.collection import SamplingSettings
from winnow.config.judges import RewardModelName
from winnow.config.model_spec import model_spec
from winnow.config.ppo import PPOSettings
from winnow.config.resolve import Resolved, read_text
from winnow.data.prompts import Prompt, prompts
from winnow.data.records import PreferenceGroup
from winnow.data.render import Renderer
from winnow.data.split import split_by_prompt
from winnow.errors import DataError, ModelError
from winnow.generation.prompts import PromptBatch, ask
from winnow.models import loading, model_folder
from winnow.models.device import pick_device
from winnow.models.loading import LoadedModel
from winnow.system import files
from winnow.system.files import sha256_json, tidy
from winnow.system.identity import Differences
from winnow.system.run_folder import RunFolder
from winnow.training import run_record
from winnow.training.job import refuse_half_on_cpu, refuse_untrainable
from winnow.training.loop import Plan
from winnow.training.metrics import require
from winnow.training.plan import plan_of, warmup_steps, with_rate
from winnow.training.ppo import rewards
from winnow.training.run_record import RunHead

RATE, ADAPTER_RATE, CRITIC_RATE = 3e-6, 3e-5, 9e-6
TIMES = 3  # the critic's rate over a policy's that was given: as the defaults are to each other


@dataclass(frozen=True)
class PPOJob:
    """A training before its models are loaded: prompts and where they stand, and the numbers of
    those trained on and of those held out.
    """

    run: RunFolder
    settings: PPOSettings
    plan: Plan
    tokenizer: Any
    asked: PromptBatch
    places: list[str]
    train: list[int]
    held_out: list[int]
    differ: Differences

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its longest answer."""
        return max(map(len, self.asked.ids)) + self.asked.how.max_new_tokens


def filled(resolved: Resolved[PPOSettings]) -> Resolved[PPOSettings]:
    """Defaults that hang on other settings."""
    settings = resolved.settings
    if settings.advantage == "gae" and settings.critic_lr is None:
        of_lr = settings.lr is not None
        resolved = resolved.fill(
            f"{TIMES} times lr" if of_lr else "default",
            critic_lr=TIMES * settings.lr if settings.lr is not None else CRITIC_RATE,
        )
    return with_rate(resolved, RATE, ADAPTER_RATE)


def begun(resolved: Resolved[PPOSettings], folder: RunFolder, command: str) -> PPOJob | None:
    """Everything up to the models; None where the run is finished."""
    settings = resolved.settings
    before = run_record.reopened(folder, resolved)
    if before is None:
        return None
    kept, differ = before
    _possible(resolved)
    said = prompts(settings.prompts, settings.limit)
    tokenizer = loading.load_tokenizer(model_spec(settings, settings.model))
    if settings.chat_template is not None:
        tokenizer.chat_template = read_text(settings.chat_template, "the chat template")
    asked = ask(
        settings.model,
        LoadedModel(None, tokenizer, settings.model, pick_device(settings.device)),
        said,
        _sampling(settings),
    )
    train, held = _split(said, asked, settings)
    plan = _plan(settings, asked, train)
    account = {
        "train": _account(settings, asked, train),
        "eval": {"eval_": _account(settings, asked, held)} if held else {},
    }
    if kept:
        other = _other_prompts(folder, account)
        differ = run_record.with_inputs(folder, differ, other, settings.allow_change)
    tidy(folder.root)
    tidy(folder.checkpoints)
    if not kept or differ:
        more = {"prompts": len(train), "answers_per_step": settings.batch_size * settings.k}
        account["rendered_by"] = run_record.rendered_by(Renderer(tokenizer))
        folder.unfinish()
        asked_for = run_record.asked(resolved)
        head = RunHead("ppo", command, resolved, asked_for, plan, more, differ)
        run_record.begin(folder, head, account)
    return PPOJob(
        folder, settings, plan, tokenizer, asked, [where for where, _ in said], train, held, differ
    )


def _possible(resolved: Resolved[PPOSettings]) -> None:
    """Raises for what models, reward and device will not do, without loading a weight."""
    settings = resolved.settings
    refuse_half_on_cpu(settings)
    require(settings.trackers)
    rewards.refuse(resolved)
    model_folder.load_config(model_spec(settings, settings.model))
    refuse_untrainable(settings, scorer=False)
    if settings.advantage == "gae":
        name = critic_name(settings)
        if model_folder.is_adapter_folder(name):
            raise ModelError(
                f"{name} is an adapter, and a critic begins with a whole model",
                remedy="--critic MODEL, or merge it: winnow export --merge",
            )
        if name != settings.model:
            ours, theirs = (
                loading.load_tokenizer(model_spec(settings, one)) for one in (settings.model, name)
            )
            loading.same_tokens(ours, theirs, name, "critic")


def critic_name(settings: PPOSettings) -> str:
    return settings.critic or (
        settings.reward if isinstance(settings.reward_name, RewardModelName) else settings.model
    )


def _sampling(settings: PPOSettings) -> SamplingSettings:
    """At temperature 1, over the whole vocabulary: the policy that is trained is the one that is
    sampled.
    """
    own: dict[str, Any] = {
        "model": settings.model,
        "as": settings.as_,
        "chat_template": settings.chat_template,
        "max_new_tokens": settings.max_new_tokens,
    }
    return SamplingSettings(**own, trust_remote_code=settings.trust_remote_code)


def _split(
    said: Sequence[Prompt], asked: PromptBatch, settings: PPOSettings
) -> tuple[list[int], list[int]]:
    """Numbers of the prompts to train on, and of those held out. Raises DataError for fewer than an
    iteration asks.
    """
    groups = [PreferenceGroup(text, (), where=str(i)) for i, text in enumerate(asked.texts)]
    train, held = (
        [int(group.where) for group in side]
        for side in split_by_prompt([groups], settings.eval_fraction, settings.seed)[0]
    )
    if len(train) < settings.batch_size:
        raise DataError(
            f"{settings.prompts}: {len(train):,} prompts to train on, fewer than batch_size"
            f" {settings.batch_size:,}",
            remedy=(
                f"--batch-size {len(train)} or less"
                if train
                else "more prompts, or a smaller --eval-fraction"
            ),
        )
    if len(held) == 1:
        raise DataError(
            f"{settings.prompts}: one held-out prompt has no interval",
            remedy="a larger --eval-fraction",
        )
    return train, held


def _plan(settings: PPOSettings, asked: PromptBatch, train: Sequence[int]) -> Plan:
    """Raises DataError where a prompt with its answers may not fit a micro-batch."""
    most = max(len(asked.ids[i]) for i in train) + settings.k * asked.how.max_new_tokens
    if settings.max_tokens is not None and settings.max_tokens < most:
        raise DataError(
            f"max_tokens {settings.max_tokens:,}: a prompt with {settings.k} answers may have"
            f" {most:,}",
            remedy=f"--max-tokens {most}, or a smaller --k",
        )
    steps = settings.steps
    return plan_of(
        settings,
        steps,
        warmup_steps(settings, steps),
        settings.max_tokens or 0,
        save_best=False,
        passes="epoch",
    )


def _account(settings: PPOSettings, asked: PromptBatch, items: Sequence[int]) -> dict[str, Any]:
    """What became of the prompts, as data.json tells it of any data."""
    ids = [asked.ids[i] for i in items]
    source = {
        "name": settings.prompts,
        "layout": "prompts",
        "rows": len(asked.ids),
        "used": len(ids),
        "weight": 1.0,
        "ignored": [],
    }
    tokens = {"prompt": sum(map(len, ids)), "scored": 0, "cut": 0, "longest": max(map(len, ids))}
    return {
        "sources": [source],
        "read": len(asked.ids),
        "dropped": {},
        "used": len(ids),
        "prompts": len(set(ids)),
        "tokens": tokens,
        "findings": [],
        "fingerprint": sha256_json(ids),
    }


def _other_prompts(folder: RunFolder, account: dict[str, Any]) -> Differences:
    """What the prompts are now, where they are not those the run was begun with."""
    begun = files.read_json(folder.root / "data.json", "train", "eval")
    sides = [
        (begun["train"], account["train"]),
        *((begun["eval"].get(name, {}), one) for name, one in account["eval"].items()),
    ]
    changed = [
        (then.get("used"), now["used"])
        for then, now in sides
        if then.get("fingerprint") != now["fingerprint"]
    ]
    return (
        {"prompts": (f"{changed[0][0]} prompts", f"{changed[0][1]} prompts, or as many others")}
        if changed
        else {}
    )
