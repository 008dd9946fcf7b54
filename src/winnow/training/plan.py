"""What a training is going to be, known before any model is loaded: rate, tokens, data, steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from winnow.config.evaluation import EvalSettings
from winnow.config.model_spec import model_spec
from winnow.config.ppo import PPOSettings
from winnow.config.resolve import Resolved, read_text
from winnow.config.training import DPOSettings, TrainSettings, scores
from winnow.data.dataset import Dataset, Wanted, held_out_alone, prepare, window
from winnow.data.order import epoch_size
from winnow.data.packing import BUDGET, GPU_BUDGET, budget, largest, most_expensive
from winnow.data.pairs import Pairs
from winnow.data.render import Renderer
from winnow.data.streaming import Windows
from winnow.engine.batch import collate
from winnow.engine.fast import SEGMENTS, VARLEN
from winnow.engine.selection import LOGPS, SCALARS
from winnow.errors import DataError, ModelError, SettingsError
from winnow.models import loading, meta, model_folder, quantization
from winnow.models.device import available, pick_device, pick_dtype
from winnow.objectives.objective import Objective, objective
from winnow.system.launch import count
from winnow.training.loop import Plan
from winnow.training.memory import Memory, estimate, held, packed_share, remedies, together


def with_rate(resolved: Resolved[Any], full: float, adapter: float) -> Resolved[Any]:
    """The recipe's default rate where none was asked for: adapters take a higher one."""
    settings: TrainSettings | PPOSettings = resolved.settings
    if settings.lr is not None:
        return resolved
    light = settings.lora is not None or model_folder.is_adapter_folder(settings.model)
    return resolved.fill(
        f"default for {'an adapter' if light else 'full weights'}", lr=adapter if light else full
    )


def wanted(objective: Objective, pairs: Pairs | None) -> Wanted:
    """What an objective needs of preference data."""
    entries = {term.choice.name: term.entry for term in objective.terms}
    compares = any(entry.unit in ("comparison", "group") for entry in entries.values())
    picky = [
        name for name, entry in entries.items() if entry.certain_labels or entry.positive_margins
    ]
    return Wanted(
        "preference" if compares else "judged",
        pairs or "all",
        mismatched=any(entry.batch == "mismatched_baseline" for entry in entries.values()),
        certain_labels=any(entry.certain_labels for entry in entries.values()),
        positive_margins=any(entry.positive_margins for entry in entries.values()),
        whose=" and ".join(picky),
    )


def prepared(
    settings: TrainSettings, what: Wanted
) -> tuple[Renderer, Callable[[int], Dataset], dict[str, Dataset]]:
    """Renderer, training set by epoch (one and the same, or of a stream its window of that number)
    and held-out sets by metric prefix.
    """
    made = renderer(settings)
    if settings.stream is None:
        train_set, held_out = prepare(
            settings.data,
            made,
            settings,
            what,
            held_out=settings.eval_data,
            fraction=settings.eval_fraction,
            seed=settings.seed,
        )
        return made, lambda epoch: train_set, held_out
    held_out, texts = held_out_alone(settings.eval_data, made, settings, what, settings.seed)
    windows = Windows(settings.data[0], settings.stream, as_=settings.as_, limit=settings.limit)
    return (
        made,
        lambda epoch: window(windows.load(epoch), made, settings, what, settings.seed, texts),
        held_out,
    )


def planned(resolved: Resolved[Any], train_set: Dataset) -> tuple[Resolved[Any], Plan]:
    """Settings that depend on the data, filled in with their origin, and the plan in steps."""
    settings: TrainSettings = resolved.settings
    size = epoch_size(train_set.shares)
    if size < settings.batch_size and resolved.origins["batch_size"] == "default":
        resolved = resolved.fill(
            f"default: {settings.batch_size}, or all there is", batch_size=size
        )
        settings = resolved.settings
    if size < settings.batch_size:
        what = "an epoch" if settings.stream is None else "the stream's first window"
        raise DataError(
            f"{what} has {size} groups, fewer than batch_size {settings.batch_size}",
            remedy=f"--batch-size {size} or less"
            + ("" if settings.stream is None else ", or a larger --stream"),
        )
    if settings.steps is None:
        epochs = 1.0 if settings.epochs is None else settings.epochs
        steps = max(1, math.ceil(math.ceil(size / settings.batch_size) * epochs - 1e-9))
        if settings.epochs is None:
            resolved = resolved.fill("default", epochs=epochs)
    else:
        steps = settings.steps
    warmup = warmup_steps(settings, steps)
    if resolved.origins["warmup"].startswith("preset") and warmup > steps // 10:
        warmup = max(1, steps // 10)
        resolved = resolved.fill(
            f"{resolved.origins['warmup']}, capped at 10 % of {steps} steps", warmup=float(warmup)
        )
    elif warmup > steps:
        raise DataError(
            f"warmup of {warmup} steps is longer than the run of {steps}", remedy="--warmup 0.1"
        )
    if settings.max_tokens is None:
        default = GPU_BUDGET if pick_device(settings.device).type == "cuda" else BUDGET
        why = f"default: {default}, or what the largest group needs"
        resolved = resolved.fill(why, max_tokens=budget(train_set.groups, None, default))
    elif settings.max_tokens == "auto":
        resolved = resolved.fill(
            "auto: what fits the memory", max_tokens=_fitting(settings, train_set)
        )
    settings = resolved.settings
    assert isinstance(settings.max_tokens, int)
    plan = plan_of(
        settings,
        steps,
        warmup,
        budget(train_set.groups, settings.max_tokens),
        save_best=settings.save_best,
        passes="epoch" if settings.stream is None else "window",
    )
    return resolved, plan


def warmup_steps(settings: TrainSettings | PPOSettings, steps: int) -> int:
    """The warm-up in steps; below 1 the setting is a share of all steps."""
    return round(settings.warmup * steps) if settings.warmup < 1 else round(settings.warmup)


def plan_of(
    settings: TrainSettings | PPOSettings,
    steps: int,
    warmup: int,
    tokens: int,
    *,
    save_best: bool,
    passes: str,
) -> Plan:
    """The plan of a training whose rate is known."""
    assert settings.lr is not None
    return Plan(
        steps=steps,
        warmup=warmup,
        lr=settings.lr,
        schedule=settings.schedule,
        batch_size=settings.batch_size,
        tokens=tokens,
        seed=settings.seed,
        eval_every=settings.eval_every or max(1, steps // 10),
        save_every=settings.save_every,
        keep=settings.keep,
        save_best=save_best,
        passes=passes,
    )


def refuse_quantized(settings: TrainSettings) -> None:
    """Raises ModelError where a training cannot have its frozen weights in 4 bits. Reads no
    weight.
    """
    if settings.quantize is None:
        return
    if settings.lora is None and not model_folder.is_adapter_folder(settings.model):
        raise ModelError(
            "quantize: weights in 4 bits cannot be trained, and there is no adapter to train beside"
            " them",
            remedy="--lora auto",
        )
    quantization.refuse(pick_device(settings.device))
    config = model_folder.load_config(model_spec(settings, settings.model))
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{settings.model}: its weights are quantised already",
            remedy="leave --quantize away, or give the model as it was before",
        )
    if not packed_share(config, settings.trust_remote_code):
        raise quantization.nothing_packed(settings.model)


LARGEST = 16_384  # tokens: beyond it micro-batches are no quicker
ROOM = 0.8  # of the free memory that may be planned for


def memory_of(settings: TrainSettings, train_set: Dataset, tokens: int) -> Memory:
    """What training takes with micro-batches of so many tokens, from the model's configuration and
    the data's most expensive micro-batch.
    """
    whole = scores(settings)
    batch = collate(
        [
            train_set.groups[i]
            for i in most_expensive(train_set.groups, tokens, settings.batch_size)
        ],
        whole=whole,
    )
    config = model_folder.load_config(model_spec(settings, settings.model))
    # auto: as a rule
    engine = SEGMENTS if settings.engine == "auto" else LOGPS.named(settings.engine)
    device = pick_device(settings.device)
    engine = SEGMENTS if engine is VARLEN else engine
    engine = SCALARS.named(engine.NAME) if whole else engine
    dtype = pick_dtype(settings.dtype, device)
    return estimate(
        config,
        batch,
        dtype,
        settings,
        engine,
        device=device,
        live=_asks_live(settings),
        processes=count(),
    )


def _asks_live(settings: TrainSettings) -> bool:
    """Whether the reference's weights stay beside the policy's, to be asked at every step."""
    if getattr(settings, "recipe", "dpo") != "dpo":
        return False
    return isinstance(settings, DPOSettings) and (
        settings.moving_reference is not None or objective(settings.objective).live
    )


def memory_line(settings: TrainSettings, train_set: Dataset, tokens: int) -> str:
    """What training takes, part by part, what is free, and where that is too little the one change
    that makes it fit.
    """
    device = pick_device(settings.device)
    memory, free = memory_of(settings, train_set, tokens), available(device)
    parts = ", ".join(
        f"{name} {size / 2**20:,.0f}"
        for name, size in dataclasses.asdict(memory).items()
        if count() > 1 or name != "whole"
    )
    each = f", in each of {count()} processes" if count() > 1 else ""
    line = (
        f"memory: about {memory.total / 2**30:.2f} GiB of {free / 2**30:.1f} free{each} (MiB:"
        f" {parts})" + _packed_line(settings) + _reference_line(settings)
    )
    if memory.total <= free:
        return line
    for words, change in (
        *remedies(settings, tokens, largest(train_set.groups), device),
        *together(settings, device),
    ):
        less = memory_of(
            settings.model_copy(update=change), train_set, change.get("max_tokens", tokens)
        )
        if less.total <= free:
            return f"{line}; it will not fit: {words} would need {less.total / 2**30:.2f} GiB"
    return (
        f"{line}; it will not fit, and no change makes it, nor several together: a smaller model,"
        " or a smaller --max-tokens besides"
    )


def _packed_line(settings: TrainSettings) -> str:
    """How many of the frozen weights are in 4 bits."""
    if settings.quantize is None:
        return ""
    config = model_folder.load_config(model_spec(settings, settings.model))
    return (
        f"; {packed_share(config, settings.trust_remote_code):.0%} of the frozen weights in 4 bits"
    )


def _reference_line(settings: TrainSettings) -> str:
    """What a reference model of its own takes while it is asked."""
    name = getattr(settings, "reference", None)
    if name is None:
        return ""
    config = model_folder.load_config(model_spec(settings, name))
    dtype = pick_dtype(settings.dtype, pick_device(settings.device))
    model = meta.trained_outline(
        name, config, dtype, None, settings.trust_remote_code
    ).requires_grad_(False)
    return (
        f"; while it is asked, the reference model {held(model, settings.quantize) / 2**20:,.0f}"
        " MiB besides"
    )


def _fitting(settings: TrainSettings, train_set: Dataset) -> int:
    """The largest budget that fits the memory, not below what the largest group needs."""
    least = largest(train_set.groups)
    tokens = LARGEST
    while tokens > least and memory_of(settings, train_set, tokens).total > ROOM * available(
        pick_device(settings.device)
    ):
        tokens //= 2
    return max(tokens, least)


def renderer(settings: TrainSettings | EvalSettings, *, scorer: bool = False) -> Renderer:
    """The renderer for settings that name a model and data. scorer: the model is a reward model,
    though no setting says so. Raises ModelError, SettingsError, DataError.
    """
    tokenizer = loading.load_tokenizer(model_spec(settings, settings.model))
    if settings.chat_template is not None:
        tokenizer.chat_template = read_text(settings.chat_template, "the chat template")
    longest = loading.length_limit(model_spec(settings, settings.model))
    if settings.max_length is not None and longest is not None and settings.max_length > longest:
        raise DataError(
            f"max_length {settings.max_length} is beyond the model's limit of {longest} tokens",
            remedy=f"--max-length {longest}",
        )
    whole = scorer or scores(settings)
    if whole and settings.as_ == "text" and tokenizer.chat_template:
        raise SettingsError(
            "as: text, and a reward model reads text as the chat template writes it, as whoever"
            " asks it will",
            remedy="leave --as away",
        )
    return Renderer(
        tokenizer,
        limit=settings.max_length or longest,
        may_cut=settings.max_length is not None,
        whole=whole,
    )
