"""How a model's layers run: computed again in the backward pass, compiled, or as they are
written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from winnow.errors import ModelError


def layers_of(model: Any) -> list[Any]:
    """The layers a transformer is a stack of; none of a model that does not say so."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def enable_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass. Dropout stays off.

    A layer recomputes only while its own `training` flag is set, and some (OPT, Falcon) drop by the
    same flag: so it is set when the layer is called and unset inside. Models of the older kind ask
    the flag of the whole stack.
    """
    # the name since transformers 5.20 or so
    renamed = getattr(model, "activation_checkpointing_enable", None)
    if renamed is not None:
        renamed()
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    flagged = [
        module for module in model.modules() if getattr(module, "gradient_checkpointing", False)
    ]
    if not flagged:
        raise ModelError(
            "this model has no layers that can be checkpointed", remedy="leave --checkpointing away"
        )
    layers = [layer for layer in layers_of(model) if layer in flagged]
    for layer in layers:
        layer._gradient_checkpointing_func = _calm(layer, layer._gradient_checkpointing_func)
    for module in layers or flagged:
        module.training = True


def compile_layers(model: Any, backend: str | Callable[..., Any] = "inductor") -> None:
    """Each layer becomes a compiled function of token sequences of any length; attention is called
    from it as it is.

    One function for all layers of a kind, and no other one for another length. Raises ModelError
    for a model without such layers.
    """
    layers = layers_of(model)
    if not layers:
        raise ModelError(
            "this model has no layers that can be compiled one by one",
            remedy="leave --compile away",
        )
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)


def as_written(model: Any) -> AbstractContextManager[None]:
    """Within it the model's layers run as they are written, compiled or not."""
    compiled = any(
        getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _calm(layer: Any, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """`checkpoint(function, ...)` that unsets the layer's training flag while `function` runs, the
    second time too.
    """

    def call(function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        def run(*args: Any, **named: Any) -> Any:
            layer.training = False
            try:
                return function(*args, **named)
            finally:
                layer.training = True

        return checkpoint(run, *args, **settings)

    return call
