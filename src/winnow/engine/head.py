"""The output layer of a model: what it is made of, and the product with hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.errors import ModelError


@dataclass(frozen=True)
class Head:
    """The output layer: weights (which may have a graph, as a sum with an adapter has), and what
    happens to its logits.
    """

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None
    scale: float
    softcap: float | None

    def states(self, limit: int) -> int:
        """How many hidden states' logits fit in `limit` bytes."""
        return max(1, limit // (self.weight.shape[0] * wide_dtype(self.weight.dtype).itemsize))

    def detached(self, *, copy: bool = False) -> Head:
        """The weights as they are, whatever their parameters hold later; copy: also where their
        memory is used for others.
        """
        weight, bias = (
            None if one is None else one.detach().clone() if copy else one.detach()
            for one in (self.weight, self.bias)
        )
        assert weight is not None
        return replace(self, weight=weight, bias=bias)


def head_of(model: Any) -> Head:
    """The model's output layer, with what its configuration declares about logits. Raises
    ModelError for one it cannot read.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        raise ModelError("the model names no output layer")
    config = model.config.get_text_config()
    scale = 1.0
    for name, invert in (
        ("logit_scale", False),
        ("logits_scaling", True),
        ("lm_head_multiplier", False),
    ):
        value = getattr(config, name, None)
        if isinstance(value, (int, float)):
            scale *= 1 / value if invert else value
    weight, bias = _weights(layer)
    return Head(weight, bias, scale, getattr(config, "final_logit_softcapping", None))


def body(model: Any) -> Any:
    """The model without its output layer. Raises ModelError where it cannot be told."""
    inner = model.get_decoder()
    if inner is model:  # transformers found none by its own rules
        inner = getattr(model, "model", None)
    if inner is None:
        raise ModelError("the model names no body beside its output layer")
    return inner


def _weights(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a plain layer, or of one with adapters: their low-rank product is added,
    with its graph.
    """
    from peft.tuners.lora import Linear as LoraLinear
    from peft.utils import ModulesToSaveWrapper

    if isinstance(layer, ModulesToSaveWrapper):
        return _weights(layer.modules_to_save[layer.active_adapters[0]])
    if isinstance(layer, LoraLinear):
        if any(layer.use_dora.get(name, False) for name in layer.active_adapters):
            raise ModelError(
                "the adapter on the output layer is DoRA, whose product is not a sum",
                remedy="leave the output layer out of --lora targets",
            )
        weight, bias = _weights(layer.get_base_layer())
        return weight + sum(layer.get_delta_weight(name) for name in layer.active_adapters), bias
    if isinstance(layer, nn.Linear):
        return layer.weight, layer.bias
    raise ModelError(f"the output layer is a {type(layer).__name__}, which is no linear map")


_SCRATCH: dict[tuple[str, torch.dtype], Tensor] = {}


@contextmanager
def own_scratch() -> Iterator[None]:
    """Scratch memory of one's own for a while: for tensors without content, which nobody else
    should be given.
    """
    held = dict(_SCRATCH)
    _SCRATCH.clear()
    try:
        yield
    finally:
        _SCRATCH.clear()
        _SCRATCH.update(held)


def scratch(
    name: str, count: int, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Memory for logits, the same each time on a CPU, where new pages cost as much as what is
    written into them. One user at a time.
    """
    if device.type != "cpu":
        return torch.empty(count, vocabulary, dtype=dtype, device=device)
    held = _SCRATCH.get((name, dtype))
    if held is None or len(held) < count * vocabulary:
        _SCRATCH[name, dtype] = held = torch.empty(count * vocabulary, dtype=dtype)
    return held[: count * vocabulary].view(count, vocabulary)


def logits(head: Head, state_RH: Tensor, out_RV: Tensor) -> None:
    """z = cap tanh(scale (h W^T + b) / cap), into `out_RV`."""
    if out_RV.dtype == state_RH.dtype:
        torch.mm(state_RH, head.weight.T, out=out_RV)
    else:
        out_RV.copy_(product(state_RH, head.weight.T, out_RV.dtype))
    finish(head, out_RV, head.bias)


def finish(head: Head, z: Tensor, bias: Tensor | None) -> None:
    """What happens to a product of states and weights until it is a logit, in place."""
    if bias is not None:
        z.add_(bias)
    if head.scale != 1:
        z.mul_(head.scale)
    if head.softcap:
        z.div_(head.softcap).tanh_().mul_(head.softcap)


def target_logits(head: Head, state_UH: Tensor, state_N: Tensor, target_N: Tensor) -> Tensor:
    """The targets' logits alone, one dot product each."""
    wide = wide_dtype(head.weight.dtype)
    z_N: Tensor = torch.linalg.vecdot(state_UH[state_N].to(wide), head.weight[target_N].to(wide))
    finish(head, z_N, None if head.bias is None else head.bias[target_N])
    return z_N


def product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """a @ b in at least float32: a GPU sums and writes it so, elsewhere the result is widened."""
    if a.dtype != b.dtype:  # an adapter on the output layer is float32 beside half-precision states
        a, b = a.to(wide), b.to(wide)
    if a.dtype == wide:
        return a @ b
    return torch.mm(a, b, out_dtype=wide) if a.device.type == "cuda" else (a @ b).to(wide)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


class HeadGradients:
    """What the hidden states and the head are owed, in float32 or better, until it is handed to
    autograd.

    A float32 weight's own gradient is added to where it is (`direct`): V x H numbers less to hold,
    to clear and to add.
    """

    def __init__(self, head: Head, state_UH: Tensor, *, direct: bool = False) -> None:
        wide = wide_dtype(state_UH.dtype)
        self.state_UH = torch.empty_like(state_UH, dtype=wide)
        self.weight_VH: Tensor | None = None
        self.direct = (
            direct
            and head.weight.is_leaf
            and head.weight.requires_grad
            and head.weight.dtype == wide
        )
        if self.direct:
            if head.weight.grad is None:
                head.weight.grad = torch.zeros_like(head.weight)
            self.weight_VH = head.weight.grad
        elif head.weight.requires_grad:
            self.weight_VH = torch.zeros_like(head.weight, dtype=wide)
        self.bias_V = (
            torch.zeros_like(head.bias, dtype=wide)
            if head.bias is not None and head.bias.requires_grad
            else None
        )

    def hand_over(self, head: Head, state_UH: Tensor) -> None:
        """The rest of the backward pass."""
        owed = [
            (state_UH, self.state_UH),
            (head.weight, None if self.direct else self.weight_VH),
            (head.bias, self.bias_V),
        ]
        pairs = [
            (tensor, g.to(tensor.dtype))
            for tensor, g in owed
            if tensor is not None and g is not None and tensor.requires_grad
        ]
        torch.autograd.backward([tensor for tensor, _ in pairs], [g for _, g in pairs])
