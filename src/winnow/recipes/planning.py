"""What a training is going to be, known before any model is loaded: rate, tokens, data, steps."""

from __future__ import annotations

import math
from typing import Any

from winnow import models
from winnow.config import Resolved, TrainSettings
from winnow.data.dataset import Dataset, prepare
from winnow.data.pack import BUDGET, budget
from winnow.data.render import Renderer
from winnow.data.stream import epoch_size
from winnow.data.tokens import heavier
from winnow.errors import DataError
from winnow.recipes.rendering import renderer
from winnow.train.loop import Plan


def with_rate(resolved: Resolved[Any], full: float, adapter: float) -> Resolved[Any]:
    """The recipe's default rate where none was asked for: adapters take a higher one."""
    settings: TrainSettings = resolved.settings
    if settings.lr is not None:
        return resolved
    light = settings.lora is not None or models.is_adapter_folder(settings.model)
    return resolved.fill(f"default for {'an adapter' if light else 'full weights'}", lr=adapter if light else full)


def prepared(settings: TrainSettings, kind: Any) -> tuple[Renderer, Dataset, dict[str, Dataset]]:
    """Renderer, training set and held-out sets by metric prefix."""
    made = renderer(settings)
    train_set, held_out = prepare(settings.data, made, settings, kind, held_out=settings.eval_data, fraction=settings.eval_fraction, seed=settings.seed)
    return made, train_set, held_out


def planned(resolved: Resolved[Any], train_set: Dataset) -> tuple[Resolved[Any], Plan]:
    """Settings that depend on the data, filled in with their origin, and the plan in steps."""
    settings: TrainSettings = resolved.settings
    size = epoch_size(train_set.shares)
    if size < settings.batch_size:
        raise DataError(f"an epoch has {size} groups, fewer than batch_size {settings.batch_size}", remedy=f"--batch-size {size} or less")
    if settings.steps is None:
        epochs = 1.0 if settings.epochs is None else settings.epochs
        steps = max(1, math.ceil(math.ceil(size / settings.batch_size) * epochs - 1e-9))
        if settings.epochs is None:
            resolved = resolved.fill("default", epochs=epochs)
    else:
        steps = settings.steps
    warmup = round(settings.warmup * steps) if settings.warmup < 1 else round(settings.warmup)
    if resolved.origins["warmup"].startswith("preset") and warmup > steps // 10:
        warmup = max(1, steps // 10)
        resolved = resolved.fill(f"{resolved.origins['warmup']}, capped at 10 % of {steps} steps", warmup=float(warmup))
    elif warmup > steps:
        raise DataError(f"warmup of {warmup} steps is longer than the run of {steps}", remedy="--warmup 0.1")
    if settings.max_tokens is None:
        resolved = resolved.fill("default: 4096, or what the largest group needs", max_tokens=budget(heavier(train_set.groups, BUDGET), None))
    settings = resolved.settings
    assert settings.lr is not None
    plan = Plan(
        steps=steps,
        warmup=warmup,
        lr=settings.lr,
        schedule=settings.schedule,
        batch_size=settings.batch_size,
        tokens=budget(heavier(train_set.groups, settings.max_tokens or BUDGET), settings.max_tokens),
        seed=settings.seed,
        eval_every=settings.eval_every or max(1, steps // 10),
        save_every=settings.save_every,
        keep=settings.keep,
        save_best=settings.save_best,
    )
    return resolved, plan
