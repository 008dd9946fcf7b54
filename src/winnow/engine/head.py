"""log p of N targets from U hidden states, and its gradients, without keeping a U x V matrix for long.

Two ways. *Fused*: the logits of a part of the batch stay in memory while the objective says its slopes, so forward and
backward pass are 3 matrix products (2 with a frozen head). *Recomputed*: only the log-sum-exp is kept, the logits are formed
again in the backward pass: 4 products, memory of one tile; for parts too large to hold, and for plain autograd.

z = cap tanh(scale (h W^T + b) / cap);  log p(t) = z_t - log sum exp z;  d log p(t) / dz = onehot(t) - softmax(z).
Products in the weights' dtype; maxima, exponentials and sums in float32, or float64 for float64 weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.batch import Batch
from winnow.engine.api import Columns, Slope
from winnow.errors import ModelError

ROWS = 256  # hidden states whose logits are formed together: they stay in the processor's cache while exp and sums are taken
TILE = 2**27  # bytes of logits held for the fused way, and formed at a time in the recomputed one
LARGEST = 2**30  # bytes of logits up to which a single group is still held whole


@dataclass(frozen=True)
class Head:
    """The output layer: weights (which may have a graph, as a sum with an adapter has), and what happens to its logits."""

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None
    scale: float
    softcap: float | None

    def states(self, limit: int) -> int:
        """How many hidden states' logits fit in `limit` bytes."""
        return max(1, limit // (self.weight.shape[0] * _wide(self.weight.dtype).itemsize))


def head_of(model: Any) -> Head:
    """The model's output layer, with what its configuration declares about logits. Raises ModelError for one it cannot read."""
    layer = model.get_output_embeddings()
    if layer is None:
        raise ModelError("the model names no output layer")
    config = model.config.get_text_config()
    scale = 1.0
    for name, invert in (("logit_scale", False), ("logits_scaling", True), ("lm_head_multiplier", False)):
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
    """Weight and bias of a plain layer, or of one with adapters: their low-rank product is added, with its graph."""
    from peft.tuners.lora import Linear as LoraLinear
    from peft.utils import ModulesToSaveWrapper

    if isinstance(layer, ModulesToSaveWrapper):
        return _weights(layer.modules_to_save[layer.active_adapters[0]])
    if isinstance(layer, LoraLinear):
        if any(layer.use_dora.get(name, False) for name in layer.active_adapters):
            raise ModelError("the adapter on the output layer is DoRA, whose product is not a sum", remedy="leave the output layer out of --lora targets")
        weight, bias = _weights(layer.get_base_layer())
        return weight + sum(layer.get_delta_weight(name) for name in layer.active_adapters), bias
    if isinstance(layer, nn.Linear):
        return layer.weight, layer.bias
    raise ModelError(f"the output layer is a {type(layer).__name__}, which is no linear map")


def logps(head: Head, state_UH: Float[Tensor, "U H"], batch: Batch, want: Sequence[str]) -> Columns:
    """Columns of a batch from its hidden states; "logp" is differentiable, by recomputing the logits."""
    logp_N, entropy_N = _Recomputed.apply(state_UH, head.weight, head.bias, head, batch.state_N, batch.target_N, "entropy" in want)
    return {"logp": logp_N} | ({"entropy": entropy_N} if "entropy" in want else {})


def backward(head: Head, state_UH: Float[Tensor, "U H"], batch: Batch, slope: Slope, want: Sequence[str]) -> Columns:
    """Columns of a batch, detached; the gradients of hidden states and head are added where they belong."""
    ready_UH = state_UH.detach()
    gradients = _Gradients(head, ready_UH, direct=True)
    found: list[Columns] = []
    for first, part in batch.parts(head.states(TILE)):
        count = len(part.state_U)
        part_UH = ready_UH[first : first + count]
        with torch.no_grad():
            formed: Iterable[tuple[int, _Formed]]
            if count <= head.states(LARGEST):
                whole = _form(head, part_UH, "entropy" in want)
                columns = _columns(head, part_UH, part.state_N, part.target_N, whole.normaliser_U(), whole.entropy_U())
                formed = [(0, whole)]
            else:
                columns = logps(head, part_UH, part, want)
                formed = _tiles(head, part_UH)
            slope_N = slope(columns["logp"].detach(), part)
            _add_gradients(head, formed, part_UH, part.state_N, part.target_N, slope_N, gradients, first)
        found.append(columns)
    gradients.hand_over(head, state_UH)
    return {name: torch.cat([columns[name] for columns in found]) for name in found[0]}


class _Gradients:
    """What the hidden states and the head are owed, in float32 or better, until it is handed to autograd.

    A float32 weight's own gradient is added to where it is (`direct`): V x H numbers less to hold, to clear and to add.
    """

    def __init__(self, head: Head, state_UH: Tensor, *, direct: bool = False) -> None:
        wide = _wide(state_UH.dtype)
        self.state_UH = torch.empty_like(state_UH, dtype=wide)
        self.weight_VH: Tensor | None = None
        self.direct = direct and head.weight.is_leaf and head.weight.requires_grad and head.weight.dtype == wide
        if self.direct:
            if head.weight.grad is None:
                head.weight.grad = torch.zeros_like(head.weight)
            self.weight_VH = head.weight.grad
        elif head.weight.requires_grad:
            self.weight_VH = torch.zeros_like(head.weight, dtype=wide)
        self.bias_V = torch.zeros_like(head.bias, dtype=wide) if head.bias is not None and head.bias.requires_grad else None

    def hand_over(self, head: Head, state_UH: Tensor) -> None:
        """The rest of the backward pass."""
        owed = [(state_UH, self.state_UH), (head.weight, None if self.direct else self.weight_VH), (head.bias, self.bias_V)]
        pairs = [(tensor, g.to(tensor.dtype)) for tensor, g in owed if tensor is not None and g is not None and tensor.requires_grad]
        torch.autograd.backward([tensor for tensor, _ in pairs], [g for _, g in pairs])


@dataclass(frozen=True)
class _Formed:
    """Logits of some hidden states, as exp(z - peak): never larger than 1, and all that the gradients need."""

    head: Head
    state_UH: Tensor
    exp_UV: Tensor
    peak_U: Tensor
    total_U: Tensor  # of exp(z - peak)
    mean_U: Tensor | None  # sum of exp(z - peak) (z - peak), for the entropy
    bend_UV: Tensor | None  # d softcap(z) / dz

    def normaliser_U(self) -> Tensor:
        """log sum exp z."""
        return self.peak_U + self.total_U.log()

    def entropy_U(self) -> Tensor | None:
        """Of the whole distribution, where it was prepared."""
        return None if self.mean_U is None else self.total_U.log() - self.mean_U / self.total_U

    def backward(self, slope_U: Tensor, into: _Gradients, first: int) -> None:
        """Add the gradients of -sum_u slope_u log sum exp z_u; these hidden states are number `first` and on. Uses up the logits.

        d/dz = -w exp with w_u = slope_u / total_u. The factors w go to the U x H side.
        """
        head, exp_UV, wide = self.head, self.exp_UV, self.total_U.dtype
        weight_U = slope_U / self.total_U
        if self.bend_UV is not None:
            exp_UV = exp_UV.mul_(self.bend_UV)
        exp_UV = exp_UV.to(head.weight.dtype)
        into.state_UH[first : first + len(exp_UV)] = _product(exp_UV, head.weight, wide).mul_(-weight_U[:, None])
        if into.weight_VH is not None:
            side_UH = self.state_UH * -weight_U[:, None]
            if side_UH.dtype == head.weight.dtype:
                into.weight_VH.addmm_(exp_UV.T, side_UH)
            else:
                into.weight_VH.add_(_product(exp_UV.T, side_UH.to(head.weight.dtype), wide))
        if into.bias_V is not None:
            into.bias_V.sub_(weight_U @ exp_UV.to(wide))


def _columns(head: Head, state_UH: Tensor, state_N: Tensor, target_N: Tensor, normaliser_U: Tensor, entropy_U: Tensor | None) -> Columns:
    """log p of the targets and, where it was prepared, the entropy."""
    found = {"logp": _targets(head, state_UH, state_N, target_N) - normaliser_U[state_N]}
    return found if entropy_U is None else found | {"entropy": entropy_U[state_N]}


def _add_gradients(
    head: Head, formed: Iterable[tuple[int, _Formed]], state_UH: Tensor, state_N: Tensor, target_N: Tensor, slope_N: Tensor, into: _Gradients, first: int
) -> None:
    """Add the gradients of sum_n slope_n log p_n: those of the normalisers, run by run as `formed` gives them, and those of the targets' logits."""
    slope_N = slope_N * head.scale
    slope_U = torch.zeros(len(state_UH), dtype=slope_N.dtype, device=slope_N.device).index_add_(0, state_N, slope_N)
    for begin, one in formed:
        one.backward(slope_U[begin : begin + len(one.total_U)], into, first + begin)
    if head.softcap:
        slope_N = slope_N * (1 - (_targets(head, state_UH, state_N, target_N) / head.softcap) ** 2)
    into.state_UH[first : first + len(state_UH)].index_add_(0, state_N, slope_N[:, None] * head.weight[target_N].to(slope_N.dtype))
    if into.weight_VH is not None:
        into.weight_VH.index_add_(0, target_N, slope_N[:, None] * state_UH[state_N].to(slope_N.dtype))
    if into.bias_V is not None:
        into.bias_V.index_add_(0, target_N, slope_N)


def _form(head: Head, state_UH: Tensor, entropy: bool) -> _Formed:
    """Logits, row block by row block: each is turned into its exponentials while it still is in the cache."""
    wide = _wide(head.weight.dtype)
    count, vocabulary = len(state_UH), len(head.weight)
    exp_UV = _scratch("exp", count, vocabulary, wide, state_UH.device)
    block_RV = _scratch("block", min(count, ROWS), vocabulary, wide, state_UH.device) if entropy else None
    bend_UV = torch.empty_like(exp_UV) if head.softcap else None
    peak_U, total_U, mean_U = (torch.empty(count, dtype=wide, device=state_UH.device) for _ in range(3))
    for begin in range(0, count, ROWS):
        rows = slice(begin, begin + ROWS)
        z = exp_UV[rows]
        _logits(head, state_UH[rows], z)
        if bend_UV is not None and head.softcap:
            torch.sub(1, (z / head.softcap).square_(), out=bend_UV[rows])
        torch.amax(z, -1, out=peak_U[rows])
        z.sub_(peak_U[rows, None])
        if block_RV is not None:
            e = torch.exp(z, out=block_RV[: len(z)])
            mean_U[rows] = torch.linalg.vecdot(e, z)
            z.copy_(e)
        else:
            z.exp_()
        torch.sum(z, -1, out=total_U[rows])
    return _Formed(head, state_UH, exp_UV, peak_U, total_U, mean_U if entropy else None, bend_UV)


_SCRATCH: dict[tuple[str, torch.dtype], Tensor] = {}


@contextmanager
def own_scratch() -> Iterator[None]:
    """Scratch memory of one's own for a while: for tensors without content, which nobody else should be given."""
    held = dict(_SCRATCH)
    _SCRATCH.clear()
    try:
        yield
    finally:
        _SCRATCH.clear()
        _SCRATCH.update(held)


def _scratch(name: str, count: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for logits, the same each time on a CPU, where new pages cost as much as what is written into them. One user at a time."""
    if device.type != "cpu":
        return torch.empty(count, vocabulary, dtype=dtype, device=device)
    held = _SCRATCH.get((name, dtype))
    if held is None or len(held) < count * vocabulary:
        _SCRATCH[name, dtype] = held = torch.empty(count * vocabulary, dtype=dtype)
    return held[: count * vocabulary].view(count, vocabulary)


def _logits(head: Head, state_RH: Tensor, out_RV: Tensor) -> None:
    """z = cap tanh(scale (h W^T + b) / cap), into `out_RV`."""
    if out_RV.dtype == state_RH.dtype:
        torch.mm(state_RH, head.weight.T, out=out_RV)
    else:
        out_RV.copy_(_product(state_RH, head.weight.T, out_RV.dtype))
    _finish(head, out_RV, head.bias)


def _finish(head: Head, z: Tensor, bias: Tensor | None) -> None:
    """What happens to a product of states and weights until it is a logit, in place."""
    if bias is not None:
        z.add_(bias)
    if head.scale != 1:
        z.mul_(head.scale)
    if head.softcap:
        z.div_(head.softcap).tanh_().mul_(head.softcap)


def _targets(head: Head, state_UH: Tensor, state_N: Tensor, target_N: Tensor) -> Tensor:
    """The targets' logits alone, one dot product each."""
    wide = _wide(head.weight.dtype)
    z_N = torch.linalg.vecdot(state_UH[state_N].to(wide), head.weight[target_N].to(wide))
    _finish(head, z_N, None if head.bias is None else head.bias[target_N])
    return z_N


def _tiles(head: Head, state_UH: Tensor, entropy: bool = False) -> Iterator[tuple[int, _Formed]]:
    """All logits, a tile at a time: each is to be used up before the next is asked for."""
    step = head.states(TILE)
    for begin in range(0, len(state_UH), step):
        yield begin, _form(head, state_UH[begin : begin + step], entropy)


class _Recomputed(torch.autograd.Function):
    """Log-probs (and entropies) tile by tile; the backward pass forms the logits again."""

    @staticmethod
    def forward(ctx: Any, state_UH: Tensor, weight: Tensor, bias: Tensor | None, head: Head, state_N: Tensor, target_N: Tensor, entropy: bool) -> Any:
        formed = [(one.normaliser_U(), one.entropy_U()) for _, one in _tiles(head, state_UH, entropy)]
        entropy_U = torch.cat([e for _, e in formed if e is not None]) if entropy else None
        columns = _columns(head, state_UH, state_N, target_N, torch.cat([normaliser for normaliser, _ in formed]), entropy_U)
        entropy_N = columns.get("entropy")
        ctx.save_for_backward(state_UH, weight, bias, state_N, target_N)
        ctx.head = (head.scale, head.softcap)
        if entropy_N is not None:
            ctx.mark_non_differentiable(entropy_N)
        return columns["logp"], entropy_N

    @staticmethod
    def backward(ctx: Any, slope_N: Tensor, _: Any) -> Any:  # type: ignore[override]
        state_UH, weight, bias, state_N, target_N = ctx.saved_tensors
        head = Head(weight, bias, *ctx.head)
        gradients = _Gradients(head, state_UH)
        with torch.no_grad():
            _add_gradients(head, _tiles(head, state_UH), state_UH, state_N, target_N, slope_N, gradients, 0)
        owed = [(state_UH, gradients.state_UH), (weight, gradients.weight_VH), (bias, gradients.bias_V)]
        return *(g.to(tensor.dtype) if g is not None else None for tensor, g in owed), None, None, None, None


def _product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """a @ b in at least float32: a GPU sums and writes it so, elsewhere the result is widened."""
    if a.dtype != b.dtype:  # an adapter on the output layer is float32 beside half-precision states
        a, b = a.to(wide), b.to(wide)
    if a.dtype == wide:
        return a @ b
    return torch.mm(a, b, out_dtype=wide) if a.device.type == "cuda" else (a @ b).to(wide)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
