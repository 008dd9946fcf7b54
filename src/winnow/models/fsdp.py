"""A model of which each process of the job holds a part: torch's FSDP2. Each layer's weights are
whole only while it computes.

Engines reach past a model's own `forward` (to hidden states, to the head's weights), so what they
do is handed to a wrapper whose forward runs it: there FSDP2 gathers and frees weights and sums
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from winnow.models.layers import layers_of
from winnow.system.launch import count, leads, rank

Found = TypeVar("Found")


class Shards(nn.Module):
    """A sharded model. Its parameters are the model's, under the model's names."""

    def __init__(self, model: nn.Module, half_precision: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.half_precision = model, half_precision

    def forward(self, run: Callable[[], Any]) -> Any:
        """Whatever `run` computes with the model."""
        return run()

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Under the names they have without shards."""
        if not recurse:
            return super().named_parameters(prefix, recurse, remove_duplicate)
        return self.model.named_parameters(prefix, recurse, remove_duplicate)


def shard(model: nn.Module) -> nn.Module:
    """The model cut into as many parts as there are processes, layer by layer; alone it stays what
    it is.

    Weights that train in half precision are kept in float32 (as a single process keeps its
    masters), computed with in half, summed in float32; beside an adapter that trains in float32 all
    stay what they are.
    """
    if count() == 1:
        return model
    trained = next(p for p in model.parameters() if p.requires_grad)
    half = trained.dtype if trained.dtype in (torch.bfloat16, torch.float16) else None
    how: dict[str, Any] = {
        "mesh": init_device_mesh(trained.device.type, (count(),)),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=half, reduce_dtype=half and torch.float32, cast_forward_inputs=False
        ),
    }
    for p in model.parameters() if half else ():
        p.data = p.data.float()  # not what the model keeps beside them, as `model.float()` would
    layers = layers_of(model)
    for layer in layers:
        fully_shard(layer, **how)
    made = Shards(model, half)
    fully_shard(made, **how)
    for part in _parts(made):
        part.set_gradient_divide_factor(1.0)  # sums, which a weight known before divides
        part.set_force_sum_reduction_for_comms(True)
    # What to fetch ahead in a backward pass is told, or FSDP2 goes by the forward passes it has
    # seen, of which one process may have had more.
    for part, ahead in zip([*layers, made], [made, *layers]):
        part.set_modules_to_backward_prefetch([ahead])
    return made


def bare(model: nn.Module) -> Any:
    """The model itself."""
    return model.model if isinstance(model, Shards) else model


def through(model: nn.Module, run: Callable[[], Found]) -> Found:
    """What `run` computes with the model, whose weights are whole where they are needed; afterwards
    the head's still are.
    """
    return model(run) if isinstance(model, Shards) else run()


def released(model: nn.Module) -> None:
    """Give back what a forward pass without a backward pass has left whole: after the next update
    it would be out of date.
    """
    if isinstance(model, Shards) and not torch.is_grad_enabled():
        model.reshard()  # type: ignore[operator]


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within it every process has all weights. All of them have to ask."""
    parts = _parts(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(not isinstance(part, Shards), recurse=False)
            part.reshard()


def gathered(model: nn.Module) -> dict[str, Tensor] | None:
    """All weights and buffers as they would be saved, on the CPU of the leader (the others get
    none); None of a model that is not sharded. All of them have to ask.
    """
    if not isinstance(model, Shards):
        return None
    kept = model.model.state_dict().keys()  # without what is made anew at each start
    with whole(model):
        tensors = {
            **dict(model.model.named_parameters(remove_duplicate=False)),
            **dict(model.model.named_buffers(remove_duplicate=False)),
        }
        # tied weights stay tied
        copies = {id(t): t.detach().cpu().clone() for t in tensors.values()} if leads() else {}
        return {
            name: copies[id(t)] for name, t in tensors.items() if name in kept and id(t) in copies
        }


def dtype_of(model: nn.Module) -> torch.dtype:
    """What a model computes in."""
    half = model.half_precision if isinstance(model, Shards) else None
    return half or next(model.parameters()).dtype


def local(parameter: Tensor) -> Tensor:
    """This process's part of a parameter or gradient, the same memory."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def rows(size: int, of: int | None = None, number: int | None = None) -> slice:
    """Which rows of a tensor of so many a process holds."""
    of, number = of or count(), rank() if number is None else number
    each = -(-size // of)
    return slice(min(number * each, size), min((number + 1) * each, size))


def _parts(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
