"""A training before its models are loaded: what is trained on what, and what the run folder records
of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from winnow.config.model_spec import model_spec
from winnow.config.options import Follow, ModelSettings, parse_lora
from winnow.config.ppo import PPOSettings
from winnow.config.resolve import Resolved
from winnow.config.training import TrainSettings, scores
from winnow.data.dataset import Dataset, Wanted, stop_on_errors
from winnow.data.render import Renderer
from winnow.errors import DataError, ModelError, SettingsError
from winnow.models import adapters, loading, meta, model_folder
from winnow.models.device import pick_device
from winnow.objectives.objective import Objective
from winnow.system.files import cache_folder, make_writable, read_json, tidy
from winnow.system.identity import Differences
from winnow.system.launch import count, leads
from winnow.system.run_folder import RunFolder
from winnow.training import run_record
from winnow.training.loop import Plan
from winnow.training.metrics import require
from winnow.training.plan import planned, prepared, refuse_quantized, wanted
from winnow.training.run_record import RunHead


@dataclass(frozen=True)
class TrainingJob:
    """A training before its model is loaded. `epochs`: the training set by number of the epoch;
    `train_set` is the first.
    """

    run: RunFolder
    settings: TrainSettings
    plan: Plan
    renderer: Renderer
    epochs: Callable[[int], Dataset]
    train_set: Dataset
    held_out: dict[str, Dataset]  # by metric prefix
    objective: Objective
    reference: str | None  # another reference model than the policy at step 0
    follow: Follow | None  # how the reference follows the policy
    kl_samples: int
    differ: Differences  # what is another one than when the run was begun, as allowed
    settings_hash: str  # of what numbers depend on
    change: Callable[[], None]  # writes down that the run goes on otherwise

    @property
    def sets(self) -> list[Dataset]:
        """All that is known before the first step."""
        return [self.train_set, *self.held_out.values()]

    @property
    def live(self) -> bool:
        """Whether the reference is asked at every step, and not in advance."""
        return self.objective.live or self.follow is not None

    @property
    def stored(self) -> bool:
        """Whether the reference's log-probs are computed in advance."""
        return self.objective.reference and not self.live

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence; of a stream, of which nobody has seen it yet, the most
        there can be.
        """
        seen = max(one.account.tokens.longest for one in self.sets)
        return seen if self.settings.stream is None else self.renderer.limit or seen


def begin_job(
    resolved: Resolved[Any],
    run: RunFolder,
    recipe: str,
    objective: Objective,
    command: str,
    reference_model: str | None,
    follow: Follow | None,
    kl_samples: int,
) -> TrainingJob | None:
    """Everything up to the model, None where the run is finished. Raises before it writes."""
    settings: TrainSettings = resolved.settings
    before = run_record.reopened(run, resolved)
    if before is None:
        return None
    begun, differ = before
    asked = run_record.asked(resolved)
    renderer, epochs, train_set, held_out = _data(resolved, recipe, objective)
    if (begun or not leads()) and settings.max_tokens == "auto" and "max_tokens" not in differ:
        resolved = _with_tokens_of(resolved, run)
    resolved, plan = planned(resolved, train_set)
    refuse_idle(objective, train_set, plan, follow)
    _refuse_machine(settings)
    if objective.reference and not objective.live and follow is None:
        make_writable(cache_folder("reference"), "export WINNOW_CACHE=a folder with room")
    possible(settings, renderer, reference_model)
    if begun:
        other = run_record.other_data(run, train_set, renderer)
        differ = run_record.with_inputs(run, differ, other, settings.allow_change)

    def head() -> None:
        if leads():
            run.unfinish()
            besides = run_record.plan_of_pairs(train_set, plan)
            begun_with = RunHead(recipe, command, resolved, asked, plan, besides, differ)
            accounts = run_record.accounts_of(train_set, held_out, renderer)
            run_record.begin(run, begun_with, accounts)

    if leads():
        tidy(run.root)
        tidy(run.checkpoints)
    if not begun:
        head()
    return TrainingJob(
        run,
        settings,
        plan,
        renderer,
        epochs,
        train_set,
        held_out,
        objective,
        reference_model,
        follow,
        kl_samples,
        differ,
        run_record.settings_hash(resolved.settings.model_dump(by_alias=True, mode="json")),
        head,
    )


def _data(
    resolved: Resolved[Any], recipe: str, objective: Objective
) -> tuple[Renderer, Callable[[int], Dataset], Dataset, dict[str, Dataset]]:
    """How texts become tokens, the data by epoch, the first of it, and what is held out. Raises
    DataError.
    """
    sft = recipe == "sft"
    wants = Wanted("demonstration") if sft else wanted(objective, resolved.settings.pairs)
    renderer, epochs, held_out = prepared(resolved.settings, wants)
    train_set = epochs(0)
    stop_on_errors(train_set, *held_out.values())
    return renderer, epochs, train_set, held_out


def _with_tokens_of(resolved: Resolved[Any], run: RunFolder) -> Resolved[Any]:
    """With the micro-batches the run began with: the memory that is free now, or beside another
    process, would cut others.
    """
    tokens = read_json(run.environment)["settings"]["max_tokens"]
    return resolved.fill("auto, when the run began", max_tokens=tokens)


def refuse_half_on_cpu(settings: ModelSettings) -> None:
    """Raises ModelError for a training in bfloat16 on a CPU."""
    if settings.dtype == "bfloat16" and pick_device(settings.device).type == "cpu":
        raise ModelError(
            "training in bfloat16 is for GPUs: a CPU emulates it, slower than float32",
            remedy="--dtype float32",
        )


def _refuse_machine(settings: TrainSettings) -> None:
    """Raises for what this machine has not, and what was never run with several processes."""
    require(settings.trackers)
    refuse_half_on_cpu(settings)
    untried = "compile" if settings.compile else "quantize" if settings.quantize else ""
    if untried and count() > 1:
        raise SettingsError(
            f"{untried}: with several processes nobody has tried it",
            remedy=f"leave --{untried} away",
        )


def refuse_idle(
    objective: Objective, train_set: Dataset, plan: Plan, follow: Follow | None
) -> None:
    """Raises for what would do nothing on this data: members without anything to count, margins
    that are not there, a reference that never moves.
    """
    account = train_set.account
    for term in objective.terms:
        lacks = [side for side in ("good", "bad") if not getattr(account, side)]
        if (term.entry.batch == "quantile_sides" and lacks) or (
            term.entry.unit == "token" and account.labels and "good" in lacks
        ):
            raise DataError(
                f"{term.choice.name}: the data has no {lacks[0]} answer to learn from",
                remedy="another objective, or labels of both kinds",
            )
    if objective.margins and not account.margins:
        raise DataError(
            "offset: the data has no margins or score gaps, so there is nothing to offset",
            remedy="leave offset away, or add a margin column",
        )
    if follow is not None and follow.every > plan.steps:
        raise SettingsError(
            f"moving_reference: every={follow.every} is more than the {plan.steps} steps, so it"
            " would never move",
            remedy="a smaller every",
        )


def possible(settings: TrainSettings, renderer: Renderer, reference_model: str | None) -> None:
    """Raises ModelError for what model, adapter, device and reference will not do, without loading
    a weight.
    """
    pick_device(settings.device)
    refuse_quantized(settings)
    refuse_untrainable(settings, scorer=scores(settings))
    if reference_model is not None:
        model_folder.load_config(model_spec(settings, reference_model))
        theirs = loading.load_tokenizer(model_spec(settings, reference_model))
        loading.same_tokens(renderer.tokenizer, theirs, reference_model)


def refuse_untrainable(settings: TrainSettings | PPOSettings, *, scorer: bool) -> None:
    """Raises ModelError for an adapter, or a reward model's head, that the model cannot have."""
    lora = parse_lora(settings.lora)
    if lora is not None:
        adapters.refuse_second_adapter(settings.model)
    if lora is not None or scorer:
        config = model_folder.load_config(model_spec(settings, settings.model))
        meta.trained_outline(
            settings.model, config, torch.float32, lora, settings.trust_remote_code, scorer=scorer
        )
