"""log p of N targets from U hidden states, and its gradients, without keeping a U x V matrix for
long.

Two ways. *Fused*: the logits of a part of the batch stay in memory while the objective says its
slopes, so forward and backward pass are 3 matrix products (2 with a frozen head). *Recomputed*:
only the log-sum-exp is kept, the logits are formed again in the backward pass: 4 products, memory
of one tile; for parts too large to hold, and for plain autograd.

z = cap tanh(scale (h W^T + b) / cap);  log p(t) = z_t - log sum exp z;  d log p(t) / dz = onehot(t)
- softmax(z). Products in the weights' dtype; maxima, exponentials and sums in float32, or float64
for float64 weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.engine.base import Columns, NextTokenDistribution, Slope
from winnow.engine.batch import Batch
from winnow.engine.head import (
    Head,
    HeadGradients,
    logits,
    product,
    scratch,
    target_logits,
    wide_dtype,
)

# hidden states whose logits are formed together: they stay in the processor's cache while exp and
# sums are taken
ROWS = 256
TILE = 2**27  # bytes of logits held for the fused way, and formed at a time in the recomputed one
LARGEST = 2**30  # bytes of logits up to which a single group is still held whole

# log-probs another model gives, U x V, for the states from one number to another
Other = Callable[[int, int], Tensor] | None


@dataclass(frozen=True)
class Distribution:
    """What a model says at some hidden states; the logits are formed when they are asked for."""

    head: Head
    state_UH: Float[Tensor, "U H"]

    def logp(self, first: int, last: int) -> Float[Tensor, "U V"]:
        """Log-probs of the whole vocabulary at the states from `first` to `last`."""
        part_UH = self.state_UH[first:last]
        z = torch.empty(
            len(part_UH),
            len(self.head.weight),
            dtype=wide_dtype(self.head.weight.dtype),
            device=part_UH.device,
        )
        logits(self.head, part_UH, z)
        return z.sub_(z.logsumexp(-1, keepdim=True))

    def targets(self, batch: Batch) -> Float[Tensor, " N"]:
        """Of the batch's scored tokens alone."""
        return logps(self.head, self.state_UH, batch, (), None)["logp"]


def logps(
    head: Head,
    state_UH: Float[Tensor, "U H"],
    batch: Batch,
    want: Sequence[str],
    other: NextTokenDistribution | None,
) -> Columns:
    """Columns of a batch from its hidden states; "logp" is differentiable, by recomputing the
    logits.
    """
    values = _Recomputed.apply(
        state_UH,
        head.weight,
        head.bias,
        head,
        batch.state_N,
        batch.target_N,
        tuple(want),
        _from(other, 0),
    )
    return dict(zip(("logp", *want), values))


def backward(
    head: Head,
    state_UH: Float[Tensor, "U H"],
    batch: Batch,
    slope: Slope,
    want: Sequence[str],
    other: NextTokenDistribution | None,
) -> Columns:
    """Columns of a batch, detached; the gradients of hidden states and head are added where they
    belong.
    """
    ready_UH = state_UH.detach()
    gradients = HeadGradients(head, ready_UH, direct=True)
    found: list[Columns] = []
    for first, part in batch.parts(head.states(TILE)):
        count = len(part.state_U)
        part_UH = ready_UH[first : first + count]
        with torch.no_grad():
            q = _from(other, first)
            formed: Iterable[tuple[int, _Formed]]
            if count <= head.states(LARGEST):
                whole = _form(head, part_UH, want, q)
                columns = _columns(head, part_UH, part.state_N, part.target_N, whole.column_U)
                formed = [(0, whole)]
            else:
                values = _Recomputed.apply(
                    part_UH,
                    head.weight,
                    head.bias,
                    head,
                    part.state_N,
                    part.target_N,
                    tuple(want),
                    q,
                )
                columns = dict(zip(("logp", *want), values))
                formed = _tiles(head, part_UH)
            columns = {name: value.detach() for name, value in columns.items()}
            _add_gradients(
                head,
                formed,
                part_UH,
                part.state_N,
                part.target_N,
                slope(dict(columns), part),
                q,
                gradients,
                first,
            )
        found.append(columns)
    gradients.hand_over(head, state_UH)
    return {name: torch.cat([columns[name] for columns in found]) for name in found[0]}


def _from(other: NextTokenDistribution | None, first: int) -> Other:
    """What another model says, its states counted from `first` on."""
    return None if other is None else lambda a, b: other.logp(first + a, first + b)


@dataclass(frozen=True)
class _Formed:
    """Logits of some hidden states, as exp(z - peak): never larger than 1, and all that the
    gradients need.
    """

    head: Head
    state_UH: Tensor
    exp_UV: Tensor
    total_U: Tensor  # of exp(z - peak)
    column_U: dict[str, Tensor]  # "normaliser", log sum exp z, and what was asked for
    bend_UV: Tensor | None  # d softcap(z) / dz

    def backward(self, slope_U: Tensor, into: HeadGradients, first: int) -> None:
        """Add the gradients of -sum_u slope_u log sum exp z_u; these hidden states are number
        `first` and on. Uses up the logits.

        d/dz = -w exp with w_u = slope_u / total_u. The factors w go to the U x H side.
        """
        head, exp_UV, wide = self.head, self.exp_UV, self.total_U.dtype
        weight_U = slope_U / self.total_U
        if self.bend_UV is not None:
            exp_UV = exp_UV.mul_(self.bend_UV)
        exp_UV = exp_UV.to(head.weight.dtype)
        into.state_UH[first : first + len(exp_UV)] = product(exp_UV, head.weight, wide).mul_(
            -weight_U[:, None]
        )
        if into.weight_VH is not None:
            side_UH = self.state_UH * -weight_U[:, None]
            if side_UH.dtype == head.weight.dtype:
                into.weight_VH.addmm_(exp_UV.T, side_UH)
            else:
                into.weight_VH.add_(product(exp_UV.T, side_UH.to(head.weight.dtype), wide))
        if into.bias_V is not None:
            into.bias_V.sub_(weight_U @ exp_UV.to(wide))


def _columns(
    head: Head, state_UH: Tensor, state_N: Tensor, target_N: Tensor, column_U: dict[str, Tensor]
) -> Columns:
    """log p of the targets, and what was asked for beside it, per scored token."""
    logp_N = target_logits(head, state_UH, state_N, target_N) - column_U["normaliser"][state_N]
    return {
        "logp": logp_N,
        **{name: value_U[state_N] for name, value_U in column_U.items() if name != "normaliser"},
    }


def _add_gradients(
    head: Head,
    formed: Iterable[tuple[int, _Formed]],
    state_UH: Tensor,
    state_N: Tensor,
    target_N: Tensor,
    slopes: Columns,
    q: Other,
    into: HeadGradients,
    first: int,
) -> None:
    """Add the gradients of sum_n slope_n log p_n (and of kl): those of the normalisers, run by run
    as `formed` gives them, those of the targets' logits, and those of the logits another model's
    distribution weighs: KL = sum_v q_v (log q_v - z_v) + log sum exp z.
    """
    slope_N = slopes["logp"] * head.scale
    zero_U = torch.zeros(len(state_UH), dtype=slope_N.dtype, device=slope_N.device)
    slope_U = zero_U.index_add(0, state_N, slope_N)
    if "kl" in slopes and q is not None:
        kl_U = zero_U.index_add(0, state_N, slopes["kl"] * head.scale)
        slope_U = slope_U - kl_U
    for begin, one in formed:
        one.backward(slope_U[begin : begin + len(one.total_U)], into, first + begin)
    if "kl" in slopes and q is not None:
        _add_crossed(head, state_UH, kl_U, q, into, first)
    if head.softcap:
        slope_N = slope_N * (
            1 - (target_logits(head, state_UH, state_N, target_N) / head.softcap) ** 2
        )
    into.state_UH[first : first + len(state_UH)].index_add_(
        0, state_N, slope_N[:, None] * head.weight[target_N].to(slope_N.dtype)
    )
    if into.weight_VH is not None:
        into.weight_VH.index_add_(
            0, target_N, slope_N[:, None] * state_UH[state_N].to(slope_N.dtype)
        )
    if into.bias_V is not None:
        into.bias_V.index_add_(0, target_N, slope_N)


def _add_crossed(
    head: Head,
    state_UH: Tensor,
    kl_U: Tensor,
    q: Callable[[int, int], Tensor],
    into: HeadGradients,
    first: int,
) -> None:
    """Add the gradients of -sum_u kl_u sum_v q_uv z_uv, block by block."""
    for begin in range(0, len(state_UH), ROWS):
        rows = slice(begin, min(begin + ROWS, len(state_UH)))
        side_RV = q(rows.start, rows.stop).exp_().mul_(-kl_U[rows, None])
        if head.softcap:
            z = torch.empty_like(side_RV)
            logits(head, state_UH[rows], z)
            side_RV.mul_(1 - (z / head.softcap).square_())
        into.state_UH[first + rows.start : first + rows.stop] += side_RV @ head.weight.to(
            side_RV.dtype
        )
        if into.weight_VH is not None:
            into.weight_VH.add_(side_RV.T @ state_UH[rows].to(side_RV.dtype))
        if into.bias_V is not None:
            into.bias_V.add_(side_RV.sum(0))


def _form(head: Head, state_UH: Tensor, want: Collection[str], q: Other) -> _Formed:
    """Logits, row block by row block: each is turned into its exponentials while it still is in the
    cache.
    """
    wide = wide_dtype(head.weight.dtype)
    count, vocabulary = len(state_UH), len(head.weight)
    exp_UV = scratch("exp", count, vocabulary, wide, state_UH.device)
    block_RV = (
        scratch("block", min(count, ROWS), vocabulary, wide, state_UH.device)
        if "entropy" in want
        else None
    )
    bend_UV = torch.empty_like(exp_UV) if head.softcap else None
    peak_U, total_U, mean_U, squares_U, kl_U = (
        torch.empty(count, dtype=wide, device=state_UH.device) for _ in range(5)
    )
    for begin in range(0, count, ROWS):
        rows = slice(begin, begin + ROWS)
        z = exp_UV[rows]
        logits(head, state_UH[rows], z)
        if bend_UV is not None and head.softcap:
            torch.sub(1, (z / head.softcap).square_(), out=bend_UV[rows])
        torch.amax(z, -1, out=peak_U[rows])
        z.sub_(peak_U[rows, None])
        if "kl" in want and q is not None:
            said_RV = q(begin, begin + len(z))
            difference_RV = said_RV - z
            kl_U[rows] = torch.linalg.vecdot(said_RV.exp_(), difference_RV)
        if block_RV is not None:
            e = torch.exp(z, out=block_RV[: len(z)])
            mean_U[rows] = torch.linalg.vecdot(e, z)
            z.copy_(e)
        else:
            z.exp_()
        torch.sum(z, -1, out=total_U[rows])
        if "collision" in want:
            squares_U[rows] = torch.linalg.vecdot(z, z)
    log_U = total_U.log()
    known = {
        "entropy": log_U - mean_U / total_U,
        "collision": squares_U.log() - 2 * log_U,
        "kl": kl_U + log_U,
    }
    return _Formed(
        head,
        state_UH,
        exp_UV,
        total_U,
        {"normaliser": peak_U + log_U, **{name: known[name] for name in want}},
        bend_UV,
    )


def _tiles(
    head: Head, state_UH: Tensor, want: Sequence[str] = (), q: Other = None
) -> Iterator[tuple[int, _Formed]]:
    """All logits, a tile at a time: each is to be used up before the next is asked for."""
    step = head.states(TILE)
    for begin in range(0, len(state_UH), step):
        yield (
            begin,
            _form(
                head,
                state_UH[begin : begin + step],
                want,
                None if q is None else partial(_shifted, q, begin),
            ),
        )


def _shifted(q: Callable[[int, int], Tensor], begin: int, first: int, last: int) -> Tensor:
    return q(begin + first, begin + last)


class _Recomputed(torch.autograd.Function):
    """Log-probs (and what is wanted beside them) tile by tile; the backward pass, of the log-probs
    alone, forms the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        state_UH: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        state_N: Tensor,
        target_N: Tensor,
        want: tuple[str, ...],
        q: Other,
    ) -> Any:
        formed = [one.column_U for _, one in _tiles(head, state_UH, want, q)]
        column_U = {name: torch.cat([one[name] for one in formed]) for name in formed[0]}
        columns = _columns(head, state_UH, state_N, target_N, column_U)
        ctx.save_for_backward(state_UH, weight, bias, state_N, target_N)
        ctx.head = (head.scale, head.softcap)
        ctx.mark_non_differentiable(*(columns[name] for name in want))
        return tuple(columns[name] for name in ("logp", *want))

    @staticmethod
    def backward(ctx: Any, slope_N: Tensor, *_: Any) -> Any:
        state_UH, weight, bias, state_N, target_N = ctx.saved_tensors
        head = Head(weight, bias, *ctx.head)
        gradients = HeadGradients(head, state_UH)
        with torch.no_grad():
            _add_gradients(
                head,
                _tiles(head, state_UH),
                state_UH,
                state_N,
                target_N,
                {"logp": slope_N},
                None,
                gradients,
                0,
            )
        owed = [
            (state_UH, gradients.state_UH),
            (weight, gradients.weight_VH),
            (bias, gradients.bias_V),
        ]
        return (
            *(g.to(tensor.dtype) if g is not None else None for tensor, g in owed),
            None,
            None,
            None,
            None,
            None,
        )
