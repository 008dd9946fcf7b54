"""`winnow export`: a plain model folder that is proved, after saving, to be the model that was
trained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from winnow.config.evaluation import ExportSettings
from winnow.config.model_spec import model_spec
from winnow.config.resolve import Resolved
from winnow.data.render import Renderer
from winnow.engine import rows, scalar_head
from winnow.engine.fingerprint import fingerprint, same_model
from winnow.errors import ModelError, RunError
from winnow.models import adapters, loading, model_folder, reward_models
from winnow.system.console import safe, say
from winnow.system.run_folder import RunFolder


def run(resolved: Resolved[ExportSettings]) -> Path:
    """Save, load again, compare on fixed token sequences: log-probs, or of a reward model scores.
    Raises ModelError when they differ.
    """
    settings = resolved.settings
    if settings.out.is_dir() and any(settings.out.iterdir()):
        raise RunError(f"{settings.out}: not empty", remedy="choose a new folder")
    RunFolder(settings.out).promise()
    spec = model_spec(settings, settings.model)
    scorer = loading.is_scorer(spec)
    load, engine, what = (
        (reward_models.load, scalar_head.ORACLE, "score")
        if scorer
        else (loading.load, rows, "log-prob")
    )
    loaded = load(spec)
    live = fingerprint(engine, loaded.model, len(loaded.tokenizer))
    dtype = next(loaded.model.parameters()).dtype
    model = adapters.merged(loaded.model) if settings.merge else loaded.model
    if scorer and settings.merge:  # beside an adapter lies no configuration that would say so
        reward_models.choose_padding(model, Renderer(loaded.tokenizer, whole=True))
    loading.save(model, loaded.tokenizer, settings.out)
    name = str(dtype).removeprefix("torch.")
    again = load(replace(spec, name=str(settings.out), dtype=name))
    saved = fingerprint(engine, again.model, len(loaded.tokenizer))
    difference = float((live - saved).abs().max())
    if not same_model(live, saved, [dtype]):
        raise ModelError(
            f"{settings.out}: the saved model differs from the live one: a token's {what} by"
            f" {difference:.3g} nats",
            remedy="do not use this folder; report the model's architecture",
        )
    if model_folder.quantized_as(settings.model):
        say(
            "trained beside weights in 4 bits, saved beside the base model's own: log-probs differ"
            " from the training's by what 4 bits round away"
        )
    say(
        f"saved: {safe(settings.out)}; loaded again, {what}s differ by at most {difference:.1e}"
        " nats"
    )
    return settings.out
