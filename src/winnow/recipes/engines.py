"""Which engine computes: the one asked for, or the fastest that is proved right on the model at hand. Either way it is said."""

from __future__ import annotations

from winnow.console import safe, say
from winnow.engine.api import Engine
from winnow.engine.probe import choose, kind_of, prove
from winnow.engine.tiled import VARLEN
from winnow.errors import ModelError
from winnow.models import LoadedModel


def engine_for(loaded: LoadedModel, asked: str, longest: int, *, train: bool) -> Engine:
    """The engine for this model and sequences of up to `longest` tokens; train: its gradients too. Raises ModelError where the one asked for is wrong."""
    vocabulary = len(loaded.tokenizer)
    if asked == VARLEN.NAME and loaded.device.type != "cuda":
        raise ModelError(f"engine {asked} is made of flash kernels, which need a GPU", remedy="--engine auto")
    if asked != "auto":
        engine = kind_of(loaded.model).named(asked)
        prove(engine, loaded.model, vocabulary, longest, train=train)
        return engine
    choice = choose(loaded.model, vocabulary, longest, train=train)
    for line in choice.passed_over:
        say(f"[yellow]engine passed over:[/] {safe(line)}")
    if choice.passed_over:
        say(f"engine: {choice.engine.NAME}, the next that gives this model's own numbers")
    return choice.engine
