"""The learning rate as a pure function of the step, and the optimizer with float32 master weights
where it needs them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from winnow.errors import ModelError, RunError
from winnow.models.fsdp import local
from winnow.system import distributed as dist


def rate(step: int, *, lr: float, schedule: str, warmup: int, steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0). Warm-up: lr (step + 1) / warmup, so no step
    is wasted at 0.

    After it, with p = (step - warmup) / (steps - warmup): constant lr, linear lr (1 - p), cosine lr
    (1 + cos pi p) / 2.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    p = (step - warmup) / max(1, steps - warmup)
    return (
        lr * {"constant": 1.0, "linear": 1 - p, "cosine": (1 + math.cos(math.pi * p)) / 2}[schedule]
    )


class Optimizer:
    """AdamW or RMSprop over a model's trainable parameters.

    Parameters in bfloat16 get a float32 master copy; their gradients are summed in float32 as they
    appear. Of a sharded model each process updates its own rows. State can be taken and given back
    as named tensors, so a checkpoint holds no pickled object.
    """

    def __init__(
        self, model: nn.Module, *, kind: str, weight_decay: float, clip: float | None
    ) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ModelError(
                "no parameter of the model is trainable",
                remedy="an adapter needs --lora, or a folder that holds a trainable adapter",
            )
        self.clip = clip
        self.masters: list[tuple[str, nn.Parameter, nn.Parameter]] = []
        for name, p in named:
            if isinstance(p, DTensor):
                # the same memory: what is done to it is done to the shard
                master = nn.Parameter(local(p.detach()))
            elif p.dtype in (torch.float32, torch.float64):
                master = p
            else:
                master = nn.Parameter(p.detach().float())
                p.register_post_accumulate_grad_hook(_collect(master))
            self.masters.append((name, p, master))
        self.copied = [
            (name, p, master)
            for name, p, master in self.masters
            if master is not p and not isinstance(p, DTensor)
        ]
        self.matrices = [master for _, _, master in self.masters if master.ndim >= 2]
        self.weight_decay = weight_decay
        self.inner: torch.optim.Optimizer
        if kind == "adamw":
            self.inner = torch.optim.AdamW(
                self.parameters(),
                lr=0.0,
                betas=(0.9, 0.999),
                eps=1e-8,
                weight_decay=0.0,
                fused=True,
            )
        else:
            self.inner = torch.optim.RMSprop(self.parameters(), lr=0.0, alpha=0.99, eps=1e-8)

    def parameters(self) -> Iterable[nn.Parameter]:
        """What is updated: the float32 masters."""
        return [master for _, _, master in self.masters]

    def clip_gradients(self) -> float:
        """Norm of all gradients together (before clipping), of all processes, clipped to the limit
        in place. Not finite: the caller stops.
        """
        for _, p, master in self.masters:
            if isinstance(p, DTensor) and p.grad is not None:
                master.grad, p.grad = local(p.grad), None
        grads = [master.grad for master in self.parameters() if master.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        total = math.hypot(*dist.gather(float(norm)))
        nn.utils.clip_grads_with_norm_(
            self.parameters(),
            self.clip if self.clip is not None else math.inf,
            torch.tensor(total, dtype=norm.dtype),
        )
        return total

    def step(self, lr: float) -> None:
        """Update the masters at rate `lr`, copy them into the model, forget the gradients.

        Weight decay stands apart from the gradient, w <- w (1 - lr decay), for both kinds: torch's
        RMSprop would divide it by the gradient's size.
        """
        for group in self.inner.param_groups:
            group["lr"] = lr
        with torch.no_grad():
            for master in self.matrices if self.weight_decay else ():
                master.mul_(1 - lr * self.weight_decay)
        self.inner.step()
        self.forget()
        with torch.no_grad():
            for _, p, master in self.copied:
                p.copy_(master)

    def allocate(self) -> None:
        """All the memory that updates will need: gradients and moments of 0, counted as no step."""
        for master in self.parameters():
            master.grad = torch.zeros_like(master)
        for group in self.inner.param_groups:
            group["lr"] = 0.0
        self.inner.step()
        for slots in self.inner.state.values():
            slots["step"].zero_()

    def forget(self) -> None:
        """Drop all gradients."""
        self.inner.zero_grad(set_to_none=True)
        for _, p, _ in self.masters:
            p.grad = None

    def weights(self) -> dict[str, Tensor]:
        """The trainable weights by name, masters where there are some."""
        return {name: master.detach() for name, _, master in self.masters}

    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Put saved weights into masters and model. Raises RunError when names or shapes differ."""
        _same_names("model", {name for name, _, _ in self.masters}, set(tensors))
        with torch.no_grad():
            for name, _, master in self.masters:
                master.copy_(tensors[name])
            for _, p, master in self.copied:
                p.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's moments and counts, named `slot|parameter`."""
        found: dict[str, Tensor] = {}
        for name, _, master in self.masters:
            for slot, value in self.inner.state.get(master, {}).items():
                found[f"{slot}|{name}"] = value.detach()
        return found

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put a saved state back. Raises RunError when it is not of this model and optimizer."""
        slots = [{key.partition("|")[0] for key in one} for one in (self.state(), tensors)]
        if slots[0] and slots[0] != slots[1]:
            here, there = (", ".join(sorted(one)) for one in slots)
            raise RunError(
                f"the checkpoint's moments are of another optimizer: it holds {there or 'none'},"
                f" this one {here}"
            )
        state: dict[Tensor, dict[str, Tensor]] = {}
        by_name = {name: master for name, _, master in self.masters}
        _same_names("optimizer", set(by_name), {key.partition("|")[2] for key in tensors})
        for key, value in tensors.items():
            slot, _, name = key.partition("|")
            master = by_name[name]
            place = master.device if value.ndim or slot != "step" else value.device
            dtype = master.dtype if value.ndim else value.dtype
            state.setdefault(master, {})[slot] = value.to(place, dtype, copy=True)
        self.inner.state.update(state)


def _collect(master: nn.Parameter):  # type: ignore[no-untyped-def]
    def hook(p: Tensor) -> None:
        if p.grad is not None:
            master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
            p.grad = None

    return hook


def _same_names(what: str, expected: set[str], got: set[str]) -> None:
    if expected != got:
        missing, extra = sorted(expected - got)[:3], sorted(got - expected)[:3]
        raise RunError(
            f"the checkpoint's {what} is of another model: missing {missing}, unexpected {extra}"
        )
