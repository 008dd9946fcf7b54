"""Will it fit? What a training step holds at most, measured on the model's outline, and the one
change that makes it fit.

The outline is the model with tensors that have shapes and no content: a forward and a backward pass
run in a second whatever its size, and they make and drop the same tensors as the real ones. What is
alive at once is counted.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from winnow.config.options import parse_lora
from winnow.config.training import TrainSettings, scores
from winnow.engine import output_head as head
from winnow.engine.base import Engine
from winnow.engine.batch import Batch
from winnow.engine.fast import SEGMENTS, bare
from winnow.engine.head import head_of, own_scratch
from winnow.engine.scalar_head import is_scalar
from winnow.models import loading, meta, model_folder, quantization
from winnow.models.layers import enable_checkpointing, layers_of

# The process takes more than what is alive: holes between blocks, which nothing of the right size
# fills. An adapter's small tensors among the large ones leave more of them; with checkpointing
# memory is given back to the system. Measured: docs/benchmarks.md.
HOLES, HOLES_ADAPTER, HOLES_CHECKPOINTING = 1.4, 1.85, 1.0
HOLES_GPU = 1.1  # torch's own allocator there; a guess, not measured
BUFFERS = 2**26  # of the libraries that multiply matrices
CPU = torch.device("cpu")

Change = tuple[str, dict[str, Any]]  # what to say, and the settings that differ


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the moment of most memory, by what they are for, of each process. The program itself
    (about 0.5 GiB) is not in it.
    """

    weights: int  # of several processes: the own part, and what is whole while a layer computes
    gradients: int
    optimizer: int
    reference: int  # weights of one that is asked at every step
    activations: int
    head: int
    # of several processes: all weights at once, when the model is read, proved, sampled from and
    # written, but not in a step
    whole: int = 0

    @property
    def total(self) -> int:
        """All of them together: of a step, or where that is more, beside whole weights."""
        return (
            self.weights
            + self.optimizer
            + self.reference
            + max(self.gradients + self.activations + self.head, self.whole)
        )


def estimate(
    config: Any,
    batch: Batch,
    dtype: torch.dtype,
    settings: TrainSettings,
    engine: Engine = SEGMENTS,
    *,
    device: torch.device = CPU,
    live: bool = False,
    processes: int = 1,
) -> Memory:
    """Memory of a training step on `device` whose largest micro-batch is `batch`, for a model of
    this configuration with weights of `dtype`.

    engine: how the model is asked; `segments` as a rule (the flash kernels of a GPU hold no more).
    Weights; gradients in float32; moments and, for half precision, master weights; where the
    reference is asked `live`, the trainable weights as they were; the logits of one part of the
    batch; and everything else that is alive at the worst moment of the forward and backward pass.
    processes: of the job, each of which holds its part of all but the last two
    (`winnow.models.fsdp`).
    """
    model = _outline(config, dtype, settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    # of the gradients, and of each moment
    wide = sum(p.numel() * max(4, p.itemsize) for p in trained)
    holes = HOLES if len(trained) == len(list(model.parameters())) else HOLES_ADAPTER
    holes = HOLES_CHECKPOINTING if settings.checkpointing else holes
    weights = held(model, settings.quantize)
    packed = quantization.packable(model) if settings.quantize else []
    masters = sum(4 * p.numel() for p in trained if p.itemsize < 4)
    moments = wide * (2 if settings.optimizer == "adamw" else 1)
    step = Memory(weights, wide, moments + masters, sum(p.nbytes for p in trained) * live, 0, 0)
    step = _shared(step, model, masters, processes) if processes > 1 else step
    # the outline of experts runs in bfloat16 only: what is alive is in proportion
    kind = torch.bfloat16 if loading.has_experts(config) else dtype
    alive, logits = _alive(
        model if kind == dtype else _outline(config, kind, settings), batch, settings, engine
    )
    # a layer in 4 bits makes its matrix while it computes, one at a time
    unpacked = max((p.nbytes for p in packed), default=0)
    inside = (alive - logits) * dtype.itemsize // kind.itemsize + unpacked
    # of several processes: weights that come and go leave holes among activations, which on a CPU
    # stay (given back they cost a third of the speed)
    gone = step.whole if device.type == "cpu" and not settings.checkpointing else 0
    return dataclasses.replace(
        step,
        activations=round((HOLES_GPU if device.type == "cuda" else holes) * inside)
        + BUFFERS
        + gone,
        head=logits * dtype.itemsize // kind.itemsize,
    )


def _shared(alone: Memory, model: Any, masters: int, processes: int) -> Memory:
    """What one of several processes holds of that: its part, and what is whole in a step. That is
    all that lies outside of layers, and two layers, one that computes and one that is fetched
    meanwhile; their gradients too, until they are summed in float32, the largest of them once more.
    """
    layers = [[*layer.parameters()] for layer in layers_of(model)]
    inside = {id(p) for layer in layers for p in layer}
    outside = [p for p in model.parameters() if id(p) not in inside]
    at_once = [*outside, *(p for layer in sorted(layers, key=_bytes)[-2:] for p in layer)]
    summed = max(sum(4 * p.numel() for p in part if p.requires_grad) for part in (outside, *layers))
    # the masters are the weights, of which layers make halves
    kept = sum(p.numel() * (4 if masters else p.itemsize) for p in model.parameters())
    each = lambda size: -(-size // processes)  # noqa: E731
    return Memory(
        weights=each(kept) + _bytes(at_once),
        gradients=each(alone.gradients) + _bytes([p for p in at_once if p.requires_grad]) + summed,
        optimizer=each(alone.optimizer - masters),
        reference=each(alone.reference),
        activations=0,
        head=0,
        whole=alone.weights,
    )


def _bytes(parameters: list[nn.Parameter]) -> int:
    return sum(p.nbytes for p in parameters)


def held(model: Any, quantize: str | None) -> int:
    """Bytes of an outline's weights, the frozen matrices packed where that is asked for."""
    packed = quantization.packable(model) if quantize else []
    saved = sum(p.nbytes - quantization.packed_bytes(p.numel()) for p in packed)
    return int(sum(p.nbytes for p in model.parameters()) - saved)


def packed_share(config: Any, trust_remote_code: bool) -> float:
    """Of a model's weights, how many would be in 4 bits: of a mixture of experts few, since its
    experts are no linear layers.
    """
    with torch.device("meta"):
        model = meta.outline(config, torch.bfloat16, trust_remote_code).requires_grad_(False)
    packed = sum(p.numel() for p in quantization.packable(model))
    return float(packed / sum(p.numel() for p in model.parameters()))


def remedies(
    settings: TrainSettings, tokens: int, largest: int, device: torch.device = CPU
) -> Iterator[Change]:
    """Single changes that need less memory, the cheapest first.

    tokens: the budget now; largest: tokens of the largest group, which is never cut apart.
    """
    smaller = tokens // 2
    while smaller >= max(largest, 256):
        yield f"--max-tokens {smaller}", {"max_tokens": smaller}
        smaller //= 2
    adapter = settings.lora is not None or model_folder.is_adapter_folder(settings.model)
    if not settings.checkpointing and not settings.compile:
        yield "--checkpointing (a third slower)", {"checkpointing": True}
    if not adapter:
        yield "--lora auto (an adapter's moments instead of the model's)", {"lora": "auto"}
    elif (
        device.type == "cuda"
        and not settings.quantize
        and not settings.compile
        and settings.dtype in ("auto", "bfloat16")
    ):
        yield "--quantize nf4 (frozen weights in 4 bits, by bitsandbytes)", {"quantize": "nf4"}
    if settings.optimizer == "adamw":
        yield "--optimizer rmsprop (one moment instead of two)", {"optimizer": "rmsprop"}


def together(settings: TrainSettings, device: torch.device = CPU) -> Iterator[Change]:
    """The same changes at this budget, several at once: the first two, then one more each time."""
    said: list[str] = []
    change: dict[str, Any] = {}
    while following := list(remedies(settings.model_copy(update=change), 0, 1, device)):
        said.append(following[0][0])
        change = change | following[0][1]
        if len(said) > 1:
            yield " and ".join(said) + " together", change


def _alive(model: Any, batch: Batch, settings: TrainSettings, engine: Engine) -> tuple[int, int]:
    """Bytes alive at the worst moment of a forward and backward pass of an outline, weights and
    their gradients aside; and those of the logits.

    Uses up the outline.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, own_scratch():
        _put_on_cpu(model)
        layer = None if is_scalar(model) else head_of(bare(model))
        if settings.checkpointing:
            enable_checkpointing(model)
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.zeros_like(p)
        known = [
            *model.parameters(),
            *model.buffers(),
            *(p.grad for p in model.parameters() if p.grad is not None),
        ]
        part = _faked(batch, mode)
        with _Alive(known) as alive:
            engine.backward(
                model,
                part,
                lambda columns, part: {"logp": torch.zeros_like(columns["logp"])},
                ("entropy",),
            )
    if layer is None:
        return alive.most, 0
    states = max(len(part.state_U) for _, part in batch.parts(layer.states(head.TILE)))
    states = states if states <= layer.states(head.LARGEST) else layer.states(head.TILE)
    return alive.most, min(
        alive.most, states * len(layer.weight) * max(4, layer.weight.dtype.itemsize)
    )


def _outline(config: Any, dtype: torch.dtype, settings: TrainSettings) -> Any:
    return meta.trained_outline(
        settings.model,
        config,
        dtype,
        parse_lora(settings.lora),
        settings.trust_remote_code,
        scorer=scores(settings),
    )


def _put_on_cpu(model: Any) -> None:
    """Weights and buffers without a device become ones of the CPU, without content still; what was
    tied stays tied.
    """
    made: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        empty = torch.empty_like(tensor, device="cpu")
                        made[id(tensor)] = (
                            nn.Parameter(empty, tensor.requires_grad)
                            if isinstance(tensor, nn.Parameter)
                            else empty
                        )
                    tensors[name] = made[id(tensor)]


class _Alive(TorchDispatchMode):
    """Counts the bytes of all memory that operations give out and that is not given back yet, but
    for `known`.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.held: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in known}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.held:
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self.held[key]

        self.now += size
        self.held[key] = weakref.ref(storage, gone)


def _faked(batch: Batch, mode: FakeTensorMode) -> Batch:
    fields: dict[str, Any] = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    faked: dict[str, Any] = {
        name: mode.from_tensor(value) for name, value in fields.items() if isinstance(value, Tensor)
    }
    return dataclasses.replace(batch, **faked)
