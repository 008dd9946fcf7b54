"""Adapters: what they stand on, how they are put on and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from winnow.config.options import Lora
from winnow.errors import ModelError
from winnow.models import quantization
from winnow.models.model_folder import HEAD, base_of, is_adapter_folder, not_loaded


def merged(model: Any) -> Any:
    """The base model with its adapter added into the weights."""
    if not is_adapter(model):
        raise ModelError("there is no adapter to merge", remedy="leave --merge away")
    if any(quantization.scales(p) for p in model.parameters()):
        raise ModelError(
            "an adapter's product is lost in the rounding of 4 bits",
            remedy="load the base model without quantize, and merge into that",
        )
    return model.merge_and_unload(safe_merge=True)


def is_adapter(model: Any) -> bool:
    """Whether `model` is wrapped by peft."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def refuse_second_adapter(name: str) -> None:
    """Raises ModelError where a new adapter was asked for on a folder that is one."""
    if is_adapter_folder(name):
        raise ModelError(
            f"{name} already is an adapter",
            remedy=(
                "leave --lora away to train that adapter, or merge it first: winnow export RUN"
                " --out DIR --merge"
            ),
        )


def adapter_scores(name: str, source: str) -> bool:
    """Whether an adapter's file holds a head that was trained beside it."""
    try:
        with safe_open(Path(source) / "adapter_model.safetensors", framework="pt") as file:
            return any(key.endswith(f".{HEAD}.weight") for key in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise not_loaded("model", name, source, error) from error


def with_adapter(name: str, source: str, model: Any, train: bool) -> Any:
    """The model with the adapter that `source` is, if it is one."""
    from peft import PeftModel

    base = base_of(source)
    if base == source:
        return model
    try:
        model = PeftModel.from_pretrained(model, source, is_trainable=train)
    except Exception as error:
        raise not_loaded("model", name, base, error) from error
    for module in model.modules():  # an adapter's own dropout would make log-probs random
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def with_lora(model: Any, lora: Lora, seed: int) -> Any:
    """A new adapter on a model; on one that scores, its head trains whole."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = None if lora.targets == ("auto",) else list(lora.targets)
    # of a layer in 4 bits, what it was before
    kinds = {getattr(module, "source_cls", type(module)) for module in model.modules()}
    # GPT-2 keeps its matrices the other way round
    turned = any(issubclass(kind, Conv1D) for kind in kinds)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=targets or "all-linear",
        fan_in_fan_out=turned,
    )
    scores = model.get_output_embeddings() is None
    config.task_type, config.modules_to_save = (
        ("SEQ_CLS", [HEAD]) if scores else ("CAUSAL_LM", None)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(
                f"lora: {error}", remedy="name existing modules: targets=q_proj+v_proj, or auto"
            ) from error
