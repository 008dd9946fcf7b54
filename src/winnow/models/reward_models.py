"""Load reward models: a sequence classifier with one label, or an adapter beside its head; to be
trained, with a new head on a language model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from winnow.config.model_spec import ModelSpec
from winnow.config.options import Lora
from winnow.data.render import Renderer
from winnow.errors import ModelError
from winnow.models import adapters, loading, model_folder
from winnow.models.device import pick_device, pick_dtype
from winnow.models.loading import LoadedModel
from winnow.models.model_folder import HEAD


def load(
    spec: ModelSpec, *, lora: Lora | None = None, seed: int = 0, train: bool = False
) -> LoadedModel:
    """A reward model by name: a sequence classifier with one label, or an adapter on a model with
    the head that was trained beside it.

    train: to be trained, and then a language model will do: it gets a new head (`new_head`). With
    `lora` an adapter is laid on it, beside which the head trains. Raises ModelError as
    `models.load` does, and for what was not trained to score.
    """
    source = model_folder.locate(spec.name)
    place = pick_device(spec.device)
    kind = pick_dtype(spec.dtype, place)
    tokenizer = loading.load_tokenizer(spec)
    model = _weights(spec, source, kind, seed, train)
    if model.config.num_labels != 1:
        raise ModelError(
            f"{spec.name}: has {model.config.num_labels} labels, a reward model has one",
            remedy="give a sequence classifier with num_labels 1",
        )
    if lora is not None:
        adapters.refuse_second_adapter(spec.name)
        model = adapters.with_lora(model, lora, seed)
    return loading.ready(spec.name, LoadedModel(model.to(place), tokenizer, source, place))


def new_head(layer: nn.Linear, seed: int) -> None:
    """Weights of a head that is to score, from N(0, 1 / (d + 1)), d its input's size (arXiv
    2009.01325, app. B), so that scores begin at about 1.

    They are not 0, for then all scores would be, whatever an engine computes, and no engine could
    be told from a wrong one.
    """
    made = torch.Generator().manual_seed(seed)
    drawn = (
        torch.randn(layer.weight.shape, generator=made, dtype=torch.float32)
        / (layer.weight.shape[1] + 1) ** 0.5
    )
    with torch.no_grad():
        layer.weight.copy_(drawn)


def _weights(spec: ModelSpec, source: str, dtype: torch.dtype, seed: int, train: bool) -> Any:
    """The weights of a model that scores. transformers draws a head that is not in the file at
    random: such a score means nothing.
    """
    from transformers import AutoModelForSequenceClassification

    name = spec.name

    config, base = (
        model_folder.load_config(spec),
        model_folder.base_of(source),
    )
    classifies = model_folder.is_classifier(config)
    of_one = {} if classifies else {"num_labels": 1}
    model, missing = loading.read_weights(
        name,
        source,
        AutoModelForSequenceClassification,
        {"dtype": dtype, "trust_remote_code": spec.trust_remote_code, **of_one},
    )
    if model_folder.is_adapter_folder(name):
        missing -= {f"{HEAD}.weight"} if adapters.adapter_scores(name, source) else set()
    if missing and not (
        train and missing == {f"{HEAD}.weight"} and not classifies and base == source
    ):
        raise ModelError(
            f"{name}: is no reward model: there is no {', '.join(sorted(missing))} in its file",
            remedy="give a model that was trained to score answers",
        )
    if missing:
        new_head(model.score, seed)
    return adapters.with_adapter(name, source, model, train)


def choose_padding(model: Any, renderer: Renderer) -> None:
    """Rows of a model that scores are filled up with the tokenizer's token for that, unless answers
    end with it: transformers takes the score at the last token that is another one. Then with none,
    and transformers scores one row at a time.
    """
    pad, last = renderer.tokenizer.pad_token_id, renderer.whole_ids("a", "b")[-1]
    model.config.get_text_config().pad_token_id = None if pad == last else pad
