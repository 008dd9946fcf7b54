"""The reference as numbers with an identity: one log-prob per scored token, computed once, for
every run that needs it.

The identity is the hash of what the numbers came from: the model (weights, adapter, configuration),
tokens, dtype, engine. It is the name they are stored under, in a folder that all runs share, so
another rate, beta or objective computes nothing again. A store with another identity is never read;
a damaged one is an error; one of another format is computed again, and that is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from winnow.data.render import RenderedGroup
from winnow.data.tokens import tokens_of
from winnow.engine.base import Engine
from winnow.engine.dataset_logps import Reference, dataset_logps, offsets
from winnow.errors import RunError
from winnow.models.fsdp import dtype_of, local
from winnow.system.console import safe, say
from winnow.system.files import sha256_json, write_atomic

FORMAT = "1"  # of the files that are stored
SPOTS = 4  # groups of a stored set that are computed again when it is read
# Largest per-token difference (nats) two passes over the same tokens may show when only padding and
# summation order differ.
NOISE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 0.5}


class Frozen:
    """The trainable weights as they are now, kept on `device`: for a reference that must be asked
    later on.

    They change places with the model's own for a moment, tensor by tensor, so no second model is
    computed with.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        self.weights = {
            name: local(p.detach()).clone().to(device)
            for name, p in model.named_parameters()
            if p.requires_grad
        }

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """`model` with these weights; afterwards its own again, bit for bit."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    def _exchange(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            if name not in self.weights:
                continue
            if isinstance(
                p, DTensor
            ):  # its memory is the shard's, so the numbers move and not the tensors
                mine, own = local(p.detach()), local(p.detach()).clone()
                mine.copy_(self.weights[name])
            else:
                own, p.data = p.data, self.weights[name].to(p.device)
            self.weights[name] = own.to(self.device)


def identity(
    source: str, groups: Sequence[RenderedGroup], dtype: torch.dtype, engine: Engine
) -> str:
    """Hash of everything the numbers depend on. source: the model's (`hashes.source_hash`)."""
    tokens = tokens_of(groups).identity("ids", "length", "start", "sequences")
    return sha256_json(
        {
            "schema": 3,
            "source": source,
            "tokens": tokens,
            "dtype": str(dtype),
            "engine": engine.NAME,
        }
    )


def only_noise(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether log-probs of the same tokens differ by rounding alone: little at each, and in the
    mean ten times less. A model that is another one differs everywhere.
    """
    difference = (one - other).abs().double()
    return bool(difference.max() <= NOISE[dtype]) and bool(difference.mean() <= NOISE[dtype] / 10)


def spot_check(
    engine: Engine,
    model: nn.Module,
    groups: Sequence[RenderedGroup],
    kept: Reference,
    tokens: int,
    device: torch.device,
) -> float:
    """The largest difference (nats) between stored numbers and those of a few groups computed
    again, spread over the data.

    Raises RunError where it is more than rounding.
    """
    chosen = sorted({round(i * (len(groups) - 1) / (SPOTS - 1)) for i in range(SPOTS)})
    again = dataset_logps(
        engine, model, [groups[i] for i in chosen], tokens, device, whose="the reference"
    )
    then = torch.cat([kept.value[kept.start[i] : kept.start[i + 1]] for i in chosen])
    noise = float((again - then).abs().max())
    if not only_noise(again, then, dtype_of(model)):
        raise RunError(
            f"stored reference log-probs differ from the model's by up to {noise:.3g} nats",
            remedy=(
                f"the store {kept.identity[:16]}.safetensors is from another library version or"
                " machine: delete it, it is computed again"
            ),
        )
    return noise


def store(folder: Path, reference: Reference) -> None:
    """Write the numbers under their identity, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = {
        "format": FORMAT,
        "identity": reference.identity,
        "sha256": _digest(reference.value, FORMAT),
    }
    data = save({"logp": reference.value}, notes)
    write_atomic(file_of(folder, reference.identity), data)


def stored(folder: Path, name: str, groups: Sequence[RenderedGroup]) -> Reference | None:
    """The numbers with identity `name`; None where there are none, or where they are of another
    format.

    Raises RunError when the file is there but damaged.
    """
    path = file_of(folder, name)
    if not path.exists():
        return None
    start = offsets(groups)
    try:
        with safe_open(path, framework="pt") as file:
            value, notes = file.get_tensor("logp"), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{path}: damaged: {error}", remedy="delete the file: it is computed again"
        ) from error
    form = notes.get("format", "")  # files of the first versions have none
    if (
        notes.get("identity") != name
        or notes.get("sha256") != _digest(value, form)
        or len(value) != start[-1]
    ):
        raise RunError(
            f"{path}: damaged: its numbers are not those that were stored",
            remedy="delete the file: it is computed again",
        )
    if form != FORMAT:
        say(
            f"reference: {safe(path)} is in the format of another version of winnow: computed again"
        )
        return None
    return Reference(name, value, start)


def file_of(folder: Path, name: str) -> Path:
    """Where the numbers with identity `name` are stored."""
    return folder / f"{name[:16]}.safetensors"


def _digest(value: Tensor, form: str) -> str:
    return hashlib.sha256(value.numpy().tobytes() + form.encode()).hexdigest()
