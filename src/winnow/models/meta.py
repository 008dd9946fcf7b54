"""A model's outline: its shapes with random weights or none, to be measured before anything is
read.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from winnow.config.options import Lora
from winnow.errors import ModelError
from winnow.models.adapters import with_lora
from winnow.models.model_folder import HEAD, is_adapter_folder, locate


def outline(
    config: Any, dtype: torch.dtype, trust_remote_code: bool = False, *, scorer: bool = False
) -> Any:
    """The model with random weights: cheap where tensors have no content. scorer: with a head that
    scores, instead of its own.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if not scorer:
        return AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code, dtype=dtype
        ).eval()
    one = copy.deepcopy(config)
    one.num_labels = 1
    try:
        model = AutoModelForSequenceClassification.from_config(
            one, trust_remote_code=trust_remote_code, dtype=dtype
        ).eval()
    except ValueError as error:
        raise _no_scorer(config) from error
    if not isinstance(getattr(model, HEAD, None), nn.Linear):
        raise _no_scorer(config)
    return model


def _no_scorer(config: Any) -> ModelError:
    return ModelError(
        f"transformers has no sequence classifier with a linear head called {HEAD} for models of"
        f" type {config.model_type}, so a reward model cannot be one",
        remedy="begin with a model of another family: llama, qwen3, mistral, gpt2 ...",
    )


def trained_outline(
    name: str,
    config: Any,
    dtype: torch.dtype,
    lora: Lora | None,
    trust_remote_code: bool = False,
    *,
    scorer: bool = False,
) -> Any:
    """What a training of the model `name` would train, on no device: with the new adapter, or the
    one that `name` is.
    """
    from peft import PeftConfig, get_peft_model

    with torch.device("meta"):
        model = outline(config, dtype, trust_remote_code, scorer=scorer)
        if lora is not None:
            return with_lora(model, lora, 0)
        if is_adapter_folder(name):
            adapter = PeftConfig.from_pretrained(locate(name))
            adapter.inference_mode = False
            return get_peft_model(model, adapter)
        return model
