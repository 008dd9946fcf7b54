"""Which engine is right for this model? Each fast one is held against `rows` at start-up, in values
and gradients, on small trees.

25 of 117 decoder families tried give wrong numbers in silence when their attention is exchanged; so
it is measured, each time, on the user's own model. The first engine of the ladder that agrees is
taken; what was passed over is said, and why.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine import rows, scalar_head
from winnow.engine.base import Engine
from winnow.engine.batch import Batch, collate
from winnow.engine.fast import MASKS, SEGMENTS, SINGLE, VARLEN
from winnow.errors import ModelError
from winnow.models.layers import as_written
from winnow.models.loading import LoadedModel, has_experts
from winnow.system.console import safe, say

# What two right ways of computing may differ by at least and at most: largest log-prob difference
# (nats), relative norm of gradients. Between them four times the difference of padded and unpadded
# rows decides, which is what rounding does on this model.
LEAST = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2}
MOST = {torch.float64: 1e-5, torch.float32: 2e-3, torch.bfloat16: 3e-1}
# of a mixture of experts this share of the tokens must agree: rounding sends single tokens to other
# experts
ROUTED = 0.75


@dataclass(frozen=True)
class EngineChoice:
    """The engine to use, and a line per engine that was passed over."""

    engine: Engine
    passed_over: tuple[str, ...]


@dataclass(frozen=True)
class _Seen:
    """What an engine said about the probe's trees."""

    logp_N: Float[Tensor, " N"]
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Engines:
    """Engines of one kind: the fast ones, the quickest first (it needs a GPU), the last of them
    computing rows one by one; and the oracle.
    """

    ladder: tuple[Engine, ...]
    oracle: Engine

    def named(self, name: str) -> Engine:
        """The engine of this kind that is called so."""
        return next(engine for engine in (*self.ladder, self.oracle) if name == engine.NAME)


LOGPS = Engines((VARLEN, SEGMENTS, MASKS, SINGLE), rows)
SCALARS = Engines(
    tuple(scalar_head.Scalar(way) for way in (VARLEN, SEGMENTS, MASKS, SINGLE)), scalar_head.ORACLE
)


def kind_of(model: Any) -> Engines:
    """The engines for a model: by its head, which gives log-probs of a vocabulary or one number."""
    return SCALARS if scalar_head.is_scalar(model) else LOGPS


def choose(
    model: Any,
    vocabulary: int,
    longest: int,
    ladder: Sequence[Engine] | None = None,
    *,
    train: bool = True,
) -> EngineChoice:
    """The first engine of the ladder that equals the oracle on this model; the oracle itself where
    none does.

    vocabulary: tokens that may occur; longest: the data's longest sequence, so that windows it
    exceeds are looked at too; train: whether gradients are compared as well. Leaves none behind.
    """
    passed: list[str] = []
    kind = kind_of(model)
    alone = kind.ladder[-1]
    on_gpu = next(model.parameters()).device.type == "cuda"
    for engine in ladder or kind.ladder[0 if on_gpu else 1 :]:
        try:
            wrong = _wrong(engine, model, trees(vocabulary, longest), kind, train)
            reach = _reach(model, longest)
            if (
                wrong is None and reach and engine is not alone
            ):  # padded rows would form the logits of every position of a long row
                wrong = _wrong(
                    engine,
                    model,
                    [long_tree(vocabulary, reach)],
                    replace(kind, oracle=alone),
                    train,
                )
        except (
            Exception
        ) as error:  # whatever a model's own code raises when it is asked for something new
            wrong = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"
        if wrong is None:
            return EngineChoice(engine, tuple(passed))
        passed.append(f"{engine.NAME}: {wrong}")
    return EngineChoice(kind.oracle, tuple(passed))


def _wrong(
    engine: Engine, model: Any, groups: Sequence[RenderedGroup], kind: Engines, train: bool
) -> str | None:
    """What is wrong with an engine on these groups; None where it equals its kind's oracle up to
    rounding.
    """
    batch = collate(groups).to(next(model.parameters()).device)
    dtype = next(model.parameters()).dtype
    routed = has_experts(model.config)
    with as_written(model):  # where layers are compiled, the oracle is what they were before
        truth = _look(kind.oracle, model, batch, train)
    seen = _look(engine, model, batch, train)
    far, allowed = distance(truth, seen, routed), LEAST[dtype]
    alone = kind.ladder[-1]
    if far > allowed and engine is not alone:
        with as_written(model):
            rounding = distance(
                _look(kind_of(model).oracle, model, batch, train),
                _look(alone, model, batch, train),
                routed,
            )
        allowed = min(MOST[dtype], max(allowed, 4 * rounding))
    return (
        None
        if far <= allowed
        else f"differs from {kind.oracle.NAME} by {far:.1e} (allowed {allowed:.0e})"
    )


def prove(engine: Engine, model: Any, vocabulary: int, longest: int, *, train: bool = True) -> None:
    """Raises ModelError unless this engine, asked for by name, is right for the model."""
    if engine is kind_of(model).oracle:
        return
    choice = choose(model, vocabulary, longest, [engine], train=train)
    if choice.engine is not engine:
        raise ModelError(f"engine {choice.passed_over[0]}", remedy="--engine auto")


def distance(truth: _Seen, seen: _Seen, routed: bool = False) -> float:
    """The larger of the log-probs' difference and the gradients' relative one; infinite where
    anything is not finite.
    """
    difference_N = (truth.logp_N - seen.logp_N).abs().double()
    values = float(difference_N.quantile(ROUTED) if routed else difference_N.max())
    wrong = sum(
        float((g - seen.gradients[name]).double().square().sum())
        for name, g in truth.gradients.items()
    )
    whole = sum(float(g.double().square().sum()) for g in truth.gradients.values())
    gradients = (wrong / whole) ** 0.5 if whole else 0.0
    far = max(values, gradients)
    return far if far == far else float("inf")


def trees(vocabulary: int, longest: int) -> list[RenderedGroup]:
    """Two groups of random tokens, one deep, one wide. Where the data has longer sequences, some
    items are too large to share an attention call, as some of the data's will be.
    """
    some = _random(vocabulary)
    prompt, shared = some(11), some(5)
    deep = [
        prompt + some(6),
        prompt + shared + some(4),
        prompt + shared + some(7),
        prompt + some(9),
    ]
    start = max(17, min(60, longest // 2))
    prompt, answer = some(start), max(8, min(72, longest - start))
    wide = [prompt + some(n) for n in (5, answer, 3)]
    return [_group(deep, 11), _group(wide, start)]


def long_tree(vocabulary: int, reach: int) -> RenderedGroup:
    """Two answers to a prompt of `reach` tokens."""
    some = _random(vocabulary)
    prompt = some(reach)
    return _group([prompt + some(12), prompt + some(9)], reach)


def _random(vocabulary: int) -> Callable[[int], tuple[int, ...]]:
    rng = random.Random(0)
    return lambda count: tuple(rng.randrange(vocabulary) for _ in range(count))


def _group(sequences: Sequence[tuple[int, ...]], start: int) -> RenderedGroup:
    return RenderedGroup(
        tuple(TokenSequence(ids, start) for ids in sequences), (), (None,) * len(sequences), "probe"
    )


def _reach(model: Any, longest: int) -> int:
    """A little more than the model's window, where the data goes beyond it."""
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    reached = [window for window in windows if isinstance(window, int) and 17 < window < longest]
    return max(reached) + 4 if reached else 0


def _look(engine: Engine, model: Any, batch: Batch, train: bool) -> _Seen:
    parameters = (
        [(name, p) for name, p in model.named_parameters() if p.requires_grad] if train else []
    )
    before = [p.grad for _, p in parameters]
    for _, p in parameters:
        p.grad = None
    try:
        columns = (
            engine.backward(model, batch, lambda columns, part: {"logp": _slope(columns["logp"])})
            if parameters
            else _scored(engine, model, batch)
        )
        return _Seen(
            columns["logp"].cpu(),
            {
                name: torch.zeros_like(p, device="cpu") if p.grad is None else p.grad.cpu()
                for name, p in parameters
            },
        )
    finally:
        for (_, p), grad in zip(parameters, before):
            p.grad = grad


def _scored(engine: Engine, model: Any, batch: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        return engine.logps(model, batch)


def _slope(logp_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Something smooth that tells tokens apart, the same however the batch is cut."""
    return torch.cos(3 * logp_N)


def engine_for(loaded: LoadedModel, asked: str, longest: int, *, train: bool) -> Engine:
    """The engine for this model and sequences of up to `longest` tokens; train: its gradients too.
    Raises ModelError where the one asked for is wrong.
    """
    vocabulary = len(loaded.tokenizer)
    if asked == VARLEN.NAME and loaded.device.type != "cuda":
        raise ModelError(
            f"engine {asked} is made of flash kernels, which need a GPU", remedy="--engine auto"
        )
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
