"""Frozen weights in 4 bits (QLoRA, arXiv 2305.14314): where that can be had, how it is asked for,
and what is held then.

For GPUs, and never run on one: tests/unit/models/test_quantized.py runs it on a CPU, where
bitsandbytes computes the same slowly.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor, nn

from winnow.errors import ModelError

BLOCK, SCALES = 64, 256  # so many weights share a scale of 8 bits, so many of those one of 32
# bytes beside each matrix: the values that 4 and 8 bits stand for, and the scales' mean
TABLES = 4 * (16 + 256 + 1)


def refuse(device: torch.device) -> None:
    """Raises ModelError where weights cannot be held in 4 bits."""
    if device.type != "cuda":
        raise ModelError(
            f"quantize: weights are held in 4 bits on a GPU only, and the device is {device}",
            remedy=(
                "leave --quantize away; a run that was trained with it becomes a plain model by"
                " `winnow export RUN --out DIR --merge`"
            ),
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "quantize: bitsandbytes is not installed",
            remedy="pip install bitsandbytes (or 'winnow-lm[quantize]')",
        )


def nothing_packed(name: str) -> ModelError:
    """What is wrong with a model none of whose layers would be in 4 bits."""
    return ModelError(
        f"{name}: no layer of it can be held in 4 bits: its linear layers are of a kind of its own",
        remedy="leave --quantize away",
    )


def loading(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` must be told: normal-float weights with scales quantised once more,
    computed with in `dtype`.
    """
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def scales(parameter: Tensor) -> dict[str, Tensor]:
    """By name, all that packed weights are read with; empty for others."""
    state = getattr(parameter, "quant_state", None)
    return {} if state is None else state.as_dict(packed=True)


def count(parameter: Tensor) -> int:
    """How many weights a parameter holds: a packed one two in each byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def packable(model: Any) -> list[Tensor]:
    """Of a model that is not quantised, the weights that would be: matrices of frozen linear
    layers, but for the output layer's.
    """
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    kept = set() if head is None else set(head.modules())
    layers = [
        module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and module not in kept and ".lora_" not in name
    ]
    return [layer.weight for layer in layers if not layer.weight.requires_grad]


def packed_bytes(weights: int) -> int:
    """What a matrix of so many weights takes in 4 bits, scales included: 4.127 bits each."""
    blocks = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2) + blocks + 4 * math.ceil(blocks / SCALES) + TABLES
