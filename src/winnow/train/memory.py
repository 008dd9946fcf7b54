"""Will it fit? What a training step holds at most, measured on the model's outline, and the one change that makes it fit.

The outline is the model with tensors that have shapes and no content: it runs in a blink whatever its size, and autograd keeps
the same things for the backward pass as it will of the real one. They are counted.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from winnow import models
from winnow.batch import Batch
from winnow.config import TrainSettings, parse_lora
from winnow.engine import head, segments

WASTE = 1.35  # what comes and goes takes that much more: results on their way, holes between blocks (measured: docs/benchmarks.md)
BUFFERS = 2**26  # of the libraries that multiply matrices


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the moment of most memory, by what they are for. The program itself (about 0.5 GiB) is not in it."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.head


def estimate(config: Any, batch: Batch, dtype: torch.dtype, settings: TrainSettings) -> Memory:
    """Memory of a training step whose largest micro-batch is `batch`, for a model of this configuration with weights of `dtype`.

    Weights; gradients in float32; moments and, for half precision, master weights; what the backward pass needs of the body;
    the logits of one part of the batch with the gradients of the output layer. An adapter is counted in all but the activations,
    where the model it stands on keeps about the same.
    """
    total, trainable = models.count_from_config(config, parse_lora(settings.lora), settings.trust_remote_code)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = models.outline(config, dtype, settings.trust_remote_code)
        layer = head.head_of(model)
        kept = _kept(model, _faked(batch, mode), config, settings)
    text = config.get_text_config()
    hidden = layer.weight.shape[1]
    if settings.checkpointing:
        kept = kept // text.num_hidden_layers + text.num_hidden_layers * len(batch.token_T) * hidden * dtype.itemsize
    states = max(len(part.state_U) for _, part in batch.parts(layer.states(head.TILE)))
    if states > layer.states(head.LARGEST):
        states = layer.states(head.TILE)
    logits = (states * (2 if layer.softcap else 1) + min(states, head.ROWS)) * len(layer.weight) * 4
    embedding = len(layer.weight) * hidden * 4 if settings.lora is None else 0  # its gradient of one micro-batch, before it is added
    moments = 2 if settings.optimizer == "adamw" else 1
    return Memory(
        weights=total * dtype.itemsize,
        gradients=trainable * 4,
        optimizer=trainable * 4 * (moments + (1 if dtype.itemsize < 4 else 0)),
        activations=round(WASTE * kept) + BUFFERS,
        head=round(WASTE * (logits + embedding)),
    )


def remedies(settings: TrainSettings, tokens: int, largest: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Single changes that need less memory, the cheapest first: what to say, and the settings that differ.

    tokens: the budget now; largest: tokens of the largest group, which is never cut apart.
    """
    smaller = tokens // 2
    while smaller >= max(largest, 256):
        yield f"--max-tokens {smaller}", {"max_tokens": smaller}
        smaller //= 2
    if not settings.checkpointing:
        yield "--checkpointing (a third slower)", {"checkpointing": True}
    if settings.lora is None:
        yield "--lora auto (an adapter's moments instead of the model's)", {"lora": "auto"}
    if settings.optimizer == "adamw":
        yield "--optimizer rmsprop (one moment instead of two)", {"optimizer": "rmsprop"}


def available(device: torch.device) -> int:
    """Bytes this process may still take: of the GPU, or of the machine within its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text()) if Path("/proc/meminfo").exists() else None
    free = int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


def _kept(model: Any, batch: Batch, config: Any, settings: TrainSettings) -> int:
    """Bytes that autograd keeps of the body's forward pass."""
    try:
        return _counted(model, batch)
    except RuntimeError:
        if model.dtype == torch.bfloat16:
            raise
        # the outline of a mixture of experts runs in bfloat16 only; what is kept is in proportion
        half = models.outline(config, torch.bfloat16, settings.trust_remote_code)
        return _counted(half, batch) * model.dtype.itemsize // torch.bfloat16.itemsize


def _counted(model: Any, batch: Batch) -> int:
    own = {_storage(p) for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), segments.inside(model, batch):
        segments.hidden(model, batch)
    return sum(storage.nbytes() for storage in kept.values())


def _storage(tensor: Tensor) -> int:
    """The same for two views of one piece of memory."""
    return int(tensor.untyped_storage()._cdata)


def _faked(batch: Batch, mode: FakeTensorMode) -> Batch:
    fields: dict[str, Any] = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    faked: dict[str, Any] = {name: mode.from_tensor(value) for name, value in fields.items() if isinstance(value, Tensor)}
    return dataclasses.replace(batch, **faked)
