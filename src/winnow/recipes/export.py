"""`winnow export`: a plain model folder that is proved, after saving, to be the model that was trained."""

from __future__ import annotations

from pathlib import Path

import torch

from winnow import models
from winnow.batch import collate
from winnow.config import ExportSettings, Resolved
from winnow.console import safe, say
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine import rows as engine
from winnow.errors import ModelError, RunError

# Largest difference of a token's log-prob between the live and the saved model: merging adds in another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.25}


def run(resolved: Resolved[ExportSettings]) -> Path:
    """Save, load again, compare log-probs on fixed token sequences. Raises ModelError when they differ."""
    settings = resolved.settings
    if settings.out.exists() and any(settings.out.iterdir()):
        raise RunError(f"{settings.out}: not empty", remedy="choose a new folder")
    loaded = models.load(settings.model, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code)
    batch = collate([_probe(len(loaded.tokenizer))]).to(loaded.device)
    with torch.no_grad():
        live_N = engine.logps(loaded.model, batch)["logp"]
    model = models.merged(loaded.model) if settings.merge else loaded.model
    models.save(model, loaded.tokenizer, settings.out)
    again = models.load(
        str(settings.out),
        dtype=str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
    )
    with torch.no_grad():
        saved_N = engine.logps(again.model, batch)["logp"]
    difference = float((live_N - saved_N).abs().max())
    if not difference <= TOLERANCE[next(again.model.parameters()).dtype]:
        raise ModelError(
            f"{settings.out}: the saved model differs from the live one: a token's log-prob by {difference:.3g} nats",
            remedy="do not use this folder; report the model's architecture",
        )
    say(f"saved: {safe(settings.out)}; loaded again, log-probs differ by at most {difference:.1e} nats")
    return settings.out


def _probe(vocabulary: int) -> RenderedGroup:
    """Token sequences spread over the vocabulary, long enough that every layer matters."""
    ids = [tuple((7919 * (i + 1) * (k + 1)) % vocabulary for i in range(32)) for k in range(4)]
    return RenderedGroup(tuple(TokenSequence(row, 1) for row in ids), (), (None,) * 4, "probe")
