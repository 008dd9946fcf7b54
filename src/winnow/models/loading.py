"""Load and save causal language models with their tokenizers: full weights or adapters, safetensors
only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from winnow.config.options import Lora
from winnow.errors import ModelError
from winnow.models import hashes, quantization
from winnow.models.device import pick_device, pick_dtype
from winnow.models.fsdp import dtype_of
from winnow.system import hub
from winnow.system.files import folder_atomic, read_json
from winnow.system.run_folder import RunFolder

ADAPTER = "adapter_config.json"
HEAD = "score"  # what transformers' decoders call the layer that scores
SAFE = "only safetensors are loaded (pickled weights can run code)"


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


def locate(name: str) -> str:
    """A run folder stands for its `model/`; everything else is left as it is. Raises ModelError for
    an unfinished run.
    """
    run = RunFolder(name)
    if not run.started:
        return name
    if not run.finished or not run.model.exists():
        raise ModelError(
            f"{name}: a run folder without a model yet",
            remedy="let the run finish: the same command resumes it",
        )
    return str(run.model)


def quantized_as(name: str) -> str | None:
    """How a run held its frozen weights while it was trained; None where it did not pack them, and
    for what is no run.
    """
    run = RunFolder(name)
    return read_json(run.environment)["settings"].get("quantize") if run.started else None


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder, hub name or run folder."""
    from transformers import AutoTokenizer

    source = locate(name)
    _must_be_there(name, source, "tokenizer.json", "tokenizer_config.json")
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _not_loaded("tokenizer", name, source, error) from error


def length_limit(name: str, *, trust_remote_code: bool = False) -> int | None:
    """Most tokens the model can attend to, from its configuration alone; None where it does not
    say.
    """
    return _limit(load_config(name, trust_remote_code=trust_remote_code))


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model folder, hub name, run folder, or of an adapter's base model."""
    from transformers import AutoConfig

    base = base_of(locate(name))
    _must_be_there(name, base)
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _not_loaded("model", name, base, error) from error


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
    lora: Lora | None = None,
    seed: int = 0,
    train: bool = False,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Model and tokenizer by name. With `lora` a new adapter (seeded) is laid on it; a folder that
    is one stays one.

    auto dtype: float32 on CPU, bfloat16 on GPU; quantize: all but adapters and the output layer in
    4 bits. Raises ModelError where something is missing, not finite (of what is in 4 bits, the
    scales), or does not fit.
    """
    source = locate(name)
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    if quantize is not None:
        quantization.refuse(place)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    model = _load_weights(
        name,
        source,
        kind,
        train,
        trust_remote_code,
        {} if quantize is None else quantization.loading(kind, place),
    )
    if quantize is not None and not any(quantization.scales(p) for p in model.parameters()):
        raise quantization.nothing_packed(name)
    if lora is not None:
        refuse_second_adapter(name)
        model = with_lora(model, lora, seed)
    return ready(name, LoadedModel(model.to(place), tokenizer, source, place))


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


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """All parameters, and those that train."""
    counts = [(quantization.count(p), p.requires_grad) for p in model.parameters()]
    return {
        "total": sum(n for n, _ in counts),
        "trainable": sum(n for n, trains in counts if trains),
    }


def is_adapter_folder(name: str) -> bool:
    """Whether a model folder or run folder holds an adapter."""
    return (Path(locate(name)) / ADAPTER).exists()


def base_of(source: str) -> str:
    """An adapter folder stands on a base model, everything else on itself. Raises ModelError for an
    adapter that could bring more than weights.
    """
    file = Path(source) / ADAPTER
    if not file.exists():
        return source
    try:
        adapter = json.loads(file.read_text())
        base = str(adapter["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file}: damaged: no base_model_name_or_path in it",
            remedy="save the adapter again with peft",
        ) from error
    if adapter.get("peft_type") != "LORA" or adapter.get("megatron_config"):
        found = (
            f"peft_type {adapter.get('peft_type')!r}, megatron_config"
            f" {adapter.get('megatron_config')!r}"
        )
        raise ModelError(
            f"{file}: {found}: only LoRA's adapters are loaded, others can name more files and"
            " modules",
            remedy="merge it into its model with peft",
        )
    if not (Path(source) / "adapter_model.safetensors").exists():
        raise ModelError(
            f"{source}: no adapter_model.safetensors in it",
            remedy=f"{SAFE}: convert the adapter once",
        )
    return base


def has_experts(config: Any) -> bool:
    """Whether the model routes tokens to experts."""
    text = config.get_text_config()
    return any(
        getattr(text, name, None)
        for name in ("num_experts", "num_local_experts", "n_routed_experts")
    )


def _limit(config: Any) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


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


def _load_weights(
    name: str,
    source: str,
    dtype: torch.dtype,
    train: bool,
    trust_remote_code: bool,
    how: dict[str, Any],
) -> Any:
    """The weights of a language model. Raises ModelError for a reward model, whose missing output
    layer transformers would draw at random.
    """
    from transformers import AutoModelForCausalLM

    if is_scorer(name, trust_remote_code=trust_remote_code):
        raise ModelError(
            f"{name}: is a reward model: it scores answers and writes none",
            remedy=(
                "give a language model, such as the one it was made from; what asks this one:"
                " winnow ppo --reward RUN, winnow judge --judge reward:RUN"
            ),
        )
    model, _ = read_weights(
        name,
        source,
        AutoModelForCausalLM,
        {"dtype": dtype, "trust_remote_code": trust_remote_code, **how},
    )
    return with_adapter(name, source, model, train)


def is_scorer(name: str, *, trust_remote_code: bool = False) -> bool:
    """Whether a model scores answers: by its configuration, an adapter also by the head it brings.
    Raises ModelError where neither can be read.
    """
    classifies = is_classifier(load_config(name, trust_remote_code=trust_remote_code))
    return classifies or (is_adapter_folder(name) and adapter_scores(name, locate(name)))


def is_classifier(config: Any) -> bool:
    """Whether a configuration is a sequence classifier's."""
    return any(
        str(kind).endswith("ForSequenceClassification") for kind in config.architectures or ()
    )


def adapter_scores(name: str, source: str) -> bool:
    """Whether an adapter's file holds a head that was trained beside it."""
    try:
        with safe_open(Path(source) / "adapter_model.safetensors", framework="pt") as file:
            return any(key.endswith(f".{HEAD}.weight") for key in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _not_loaded("model", name, source, error) from error


def read_weights(name: str, source: str, kind: Any, how: dict[str, Any]) -> tuple[Any, set[str]]:
    """The model of a folder, of an adapter its base model; and what is not in its file."""
    from transformers.utils.peft_utils import find_adapter_config_file

    base = base_of(source)
    _must_be_there(name, base)
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
        raise _not_loaded("model", name, base, error) from error
    return model, set(found["missing_keys"])


def with_adapter(name: str, source: str, model: Any, train: bool) -> Any:
    """The model with the adapter that `source` is, if it is one."""
    from peft import PeftModel

    base = base_of(source)
    if base == source:
        return model
    try:
        model = PeftModel.from_pretrained(model, source, is_trainable=train)
    except Exception as error:
        raise _not_loaded("model", name, base, error) from error
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


REMEDY = "give a folder with config.json and model.safetensors, a hub name, or a run folder"


def _must_be_there(name: str, source: str, *enough: str) -> None:
    """Raises ModelError where `source`, which `name` stands for, is no folder of a model, and the
    hub does not have it. `enough`: files that will do.
    """
    folder, told = Path(source), f"{_called('model', name, source)} cannot be loaded"
    if source and folder.exists():
        if not any((folder / file).exists() for file in ("config.json", ADAPTER, *enough)):
            raise ModelError(f"{told}: there is no config.json in it", remedy=REMEDY)
    elif not hub.may_hold(source):
        raise ModelError(f"{told}: there is no such folder", remedy=REMEDY)
    else:
        try:
            hub.ask("model", source)
        except hub.NotThere as error:
            elsewhere = (
                "download it where there is a network and give the folder; HF_HUB_OFFLINE=1 takes"
                " it from the hub's cache, if it is there"
            )
            raise ModelError(
                f"{told}: there is no such folder here, and the hub {error}", remedy=elsewhere
            ) from error


def _not_loaded(what: str, name: str, source: str, error: Exception) -> ModelError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    remedy = REMEDY
    if "trust_remote_code" in str(error):
        remedy = "it brings its own code: read that code, then give --trust-remote-code"
    elif "safetensors" in str(error):
        remedy = f"{SAFE}: convert the model once"
    elif not Path(source).exists() and hub.offline():
        first = (
            "there is no such folder here, and the hub's cache does not have it (HF_HUB_OFFLINE is"
            " set)"
        )
    elif "backend tokenizer" in first:
        first = "there is no tokenizer.json in it"
    return ModelError(f"{_called(what, name, source)} cannot be loaded: {first}", remedy=remedy)


def _called(what: str, name: str, source: str) -> str:
    """A model in a message: by the name that was given, and where that is an adapter's, by its base
    model's too.
    """
    return (
        f"{what} {name!r}"
        if source == locate(name)
        else f"{what} {source!r}, the base of the adapter {name!r},"
    )
