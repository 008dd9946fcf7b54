"""What a model's log-probs come from, as a hash: its weights, the scale of each adapter, its
configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from winnow.models import quantization
from winnow.system.files import sha256_json

# in a configuration, about log-probs
SAYS_NOTHING = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "architectures",
    "use_cache",
)


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters by name; behind each one in 4 bits what it is read with, without which its
    bytes mean nothing.
    """
    for name, parameter in model.named_parameters():
        yield name, parameter
        yield from (
            (f"{name}.{part}", value) for part, value in quantization.scales(parameter).items()
        )


def weights_hash(model: nn.Module, *, base: bool = False) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all weights, adapters included; base:
    without them, under the base model's own names.
    """
    digest = hashlib.sha256()
    named = [*weights(model), *model.named_buffers()]
    if base:
        named = [
            (name.removeprefix("base_model.model.").replace(".base_layer.", "."), p)
            for name, p in named
            if ".lora_" not in name
        ]
    for name, parameter in sorted(named):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)};".encode())
        # memory that numpy has looked at cannot be given back, as that of shards must be
        own = parameter.detach().cpu().contiguous().clone()
        digest.update(own.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def source_hash(model: Any, *, new_adapter: bool = False) -> str:
    """SHA-256 over all that a model's log-probs come from: weights, the scale of each adapter, and
    what the configuration says.

    An adapter that is new adds nothing yet: the model is its base model, whatever the adapter's
    rank and seed.
    """
    config = json.loads(model.config.to_json_string(use_diff=True))
    says = {name: value for name, value in config.items() if name not in SAYS_NOTHING}
    scales = {
        name: module.scaling
        for name, module in model.named_modules()
        if isinstance(getattr(module, "scaling", None), dict) and not new_adapter
    }
    return sha256_json([weights_hash(model, base=new_adapter), says, scales])
