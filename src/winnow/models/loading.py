"""Load and save causal language models with their tokenizers: full weights or adapters, safetensors
only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.config.model_spec import ModelSpec
from winnow.config.options import Lora
from winnow.errors import ModelError
from winnow.models import hashes, quantization
from winnow.models.adapters import adapter_scores, refuse_second_adapter, with_adapter, with_lora
from winnow.models.device import pick_device, pick_dtype
from winnow.models.fsdp import dtype_of
from winnow.models.model_folder import (
    base_of,
    is_adapter_folder,
    is_classifier,
    load_config,
    locate,
    not_loaded,
    refuse_missing,
)
from winnow.system.files import folder_atomic


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be scored or trained: no dropout, no cache, on its device. `source` is where
    it was found.
    """

    model: Any
    tokenizer: Any
    source: str
    device: torch.device
    shards: Any = None

    @property
    def net(self) -> Any:
        """What an engine is given: the model, or its wrapper where this process holds a part of
        it.
        """
        return self.shards or self.model

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return dtype_of(self.net)


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer of a model folder, hub name or run folder."""
    from transformers import AutoTokenizer

    source = locate(spec.name)
    refuse_missing(spec.name, source, "tokenizer.json", "tokenizer_config.json")
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=spec.trust_remote_code)
    except Exception as error:
        raise not_loaded("tokenizer", spec.name, source, error) from error


def length_limit(spec: ModelSpec) -> int | None:
    """Most tokens the model can attend to, from its configuration alone; None where it does not
    say.
    """
    return _limit(load_config(spec))


def load(
    spec: ModelSpec,
    *,
    quantize: str | None = None,
    lora: Lora | None = None,
    seed: int = 0,
    train: bool = False,
) -> LoadedModel:
    """Model and tokenizer by name. With `lora` a new adapter (seeded) is laid on it; a folder that
    is one stays one.

    auto dtype: float32 on CPU, bfloat16 on GPU; quantize: all but adapters and the output layer in
    4 bits. Raises ModelError where something is missing, not finite (of what is in 4 bits, the
    scales), or does not fit.
    """
    source = locate(spec.name)
    place = pick_device(spec.device)
    kind = pick_dtype(spec.dtype, place)
    if quantize is not None:
        quantization.refuse(place)
    tokenizer = load_tokenizer(spec)
    model = _load_weights(
        spec,
        source,
        kind,
        train,
        {} if quantize is None else quantization.loading(kind, place),
    )
    if quantize is not None and not any(quantization.scales(p) for p in model.parameters()):
        raise quantization.nothing_packed(spec.name)
    if lora is not None:
        refuse_second_adapter(spec.name)
        model = with_lora(model, lora, seed)
    return ready(spec.name, LoadedModel(model.to(place), tokenizer, source, place))


def ready(name: str, loaded: LoadedModel) -> LoadedModel:
    """The model without dropout. Raises ModelError where tokenizer and model do not fit, or a
    weight is not finite.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    model.eval()  # dropout off, for every log-prob of policy and reference alike
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"{name}: the tokenizer has {len(tokenizer):,} tokens, the model's embedding {rows:,}"
            " rows",
            remedy="use the model's own tokenizer",
        )
    for weight_name, weight in hashes.weights(model):
        if not torch.isfinite(weight).all():
            raise ModelError(
                f"{name}: weight {weight_name} holds NaN or infinity",
                remedy="the file is damaged, or was saved by a run that diverged",
            )
    return loaded


def save(
    model: Any, tokenizer: Any, folder: Path, state: dict[str, torch.Tensor] | None = None
) -> None:
    """A plain transformers (or peft adapter) folder, written atomically, replacing what was there.
    state: the weights, where the model holds a part.
    """
    with folder_atomic(folder) as temporary, _no_bars():
        model.save_pretrained(
            temporary, safe_serialization=True, **({} if state is None else {"state_dict": state})
        )
        tokenizer.save_pretrained(temporary)
        readme = temporary / "README.md"  # peft writes a model card of placeholders
        readme.unlink(missing_ok=True)


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers' own progress bars tear ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def create(folder: Path, tokenizer: Any, *, seed: int, **shape: Any) -> None:
    """A new Llama-shaped model with random weights in `folder`, beside its tokenizer, to be trained
    from scratch.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    save(model, tokenizer, folder)


def same_tokens(tokenizer: Any, reference: Any, name: str, who: str = "reference") -> None:
    """Raises ModelError unless each token id of the policy's tokenizer means the same token to the
    reference's, or whoever reads the policy's tokens.
    """
    mine, theirs = tokenizer.get_vocab(), reference.get_vocab()
    other = [token for token, number in mine.items() if theirs.get(token) != number]
    if other:
        raise ModelError(
            f"{who} {name}: its tokenizer is another one: {len(other):,} of {len(mine):,} tokens"
            f" have another id or none, {other[0]!r} for one",
            remedy=f"a {who} must read the policy's tokens: give a model of the same family",
        )


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """All parameters, and those that train."""
    counts = [(quantization.count(p), p.requires_grad) for p in model.parameters()]
    return {
        "total": sum(n for n, _ in counts),
        "trainable": sum(n for n, trains in counts if trains),
    }


def has_experts(config: Any) -> bool:
    """Whether the model routes tokens to experts."""
    text = config.get_text_config()
    return any(
        getattr(text, name, None)
        for name in ("num_experts", "num_local_experts", "n_routed_experts")
    )


def _limit(config: Any) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _load_weights(
    spec: ModelSpec, source: str, dtype: torch.dtype, train: bool, how: dict[str, Any]
) -> Any:
    """The weights of a language model. Raises ModelError for a reward model, whose missing output
    layer transformers would draw at random.
    """
    from transformers import AutoModelForCausalLM

    if is_scorer(spec):
        raise ModelError(
            f"{spec.name}: is a reward model: it scores answers and writes none",
            remedy=(
                "give a language model, such as the one it was made from; what asks this one:"
                " winnow ppo --reward RUN, winnow judge --judge reward:RUN"
            ),
        )
    model, _ = read_weights(
        spec.name,
        source,
        AutoModelForCausalLM,
        {"dtype": dtype, "trust_remote_code": spec.trust_remote_code, **how},
    )
    return with_adapter(spec.name, source, model, train)


def is_scorer(spec: ModelSpec) -> bool:
    """Whether a model scores answers: by its configuration, an adapter also by the head it brings.
    Raises ModelError where neither can be read.
    """
    name = spec.name
    classifies = is_classifier(load_config(spec))
    return classifies or (is_adapter_folder(name) and adapter_scores(name, locate(name)))


def read_weights(name: str, source: str, kind: Any, how: dict[str, Any]) -> tuple[Any, set[str]]:
    """The model of a folder, of an adapter its base model; and what is not in its file."""
    from transformers.utils.peft_utils import find_adapter_config_file

    base = base_of(source)
    refuse_missing(name, base)
    try:
        if (
            find_adapter_config_file(base) is not None
        ):  # transformers would lay it on by itself, from a pickle if need be
            raise ModelError(
                f"{name}: {base} is an adapter",
                remedy="give a folder that holds it (hf download), or merge it first",
            )
        model, found = kind.from_pretrained(
            base, use_safetensors=True, output_loading_info=True, **how
        )
    except ModelError:
        raise
    except Exception as error:
        raise not_loaded("model", name, base, error) from error
    return model, set(found["missing_keys"])
