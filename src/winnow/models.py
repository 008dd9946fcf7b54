"""Load and save causal language models with their tokenizers: full weights or adapters, safetensors only."""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.config import Lora
from winnow.errors import ModelError
from winnow.files import RunFolder, folder_atomic

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
ADAPTER = "adapter_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be scored or trained: no dropout, no cache, on its device. `source` is where it was found."""

    model: Any
    tokenizer: Any
    source: str
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype


def locate(name: str) -> str:
    """A run folder stands for its `model/`; everything else is left as it is. Raises ModelError for an unfinished run."""
    run = RunFolder(name)
    if not run.started:
        return name
    if not run.model.exists():
        raise ModelError(f"{name}: a run folder without a model yet", remedy="let the run finish: the same command resumes it")
    return str(run.model)


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} cannot be used: {error}", remedy="--device cpu, or auto") from error
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # saturated margins fill the backward pass with subnormal floats: 8x slower
        keep_memory(2**25)
    return device


def keep_memory(largest: int) -> None:
    """Freed tensors of up to `largest` bytes stay with this process: a page the system hands out anew is zeroed first, a third of a
    training step in all.

    glibc gives blocks back at once unless it is told not to (`mallopt`); other C libraries lack the call. Larger blocks still go back:
    they would leave holes that nothing fits into.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, largest)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU, else float32."""
    return DTYPES["bfloat16" if device.type == "cuda" else "float32"] if name == "auto" else DTYPES[name]


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder, hub name or run folder."""
    from transformers import AutoTokenizer

    source = locate(name)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _not_loaded("tokenizer", name, error) from error


def length_limit(name: str, *, trust_remote_code: bool = False) -> int | None:
    """Most tokens the model can attend to, from its configuration alone; None where it does not say."""
    return _limit(load_config(name, trust_remote_code=trust_remote_code))


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model folder, hub name, run folder, or of an adapter's base model."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(_base(locate(name)), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _not_loaded("model", name, error) from error


def load(
    name: str, *, dtype: str = "auto", device: str = "auto", lora: Lora | None = None, seed: int = 0, train: bool = False, trust_remote_code: bool = False
) -> LoadedModel:
    """Model and tokenizer by name. With `lora` a new adapter (seeded) is laid on it; a folder that is one stays one.

    auto dtype: float32 on CPU, bfloat16 on GPU. Raises ModelError where something is missing, not finite, or does not fit.
    """
    source = locate(name)
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    model = _load_weights(name, source, kind, train, trust_remote_code)
    if lora is not None:
        refuse_second_adapter(name)
        model = with_lora(model, lora, seed)
    model = model.to(place)
    model.eval()  # dropout off, for every log-prob of policy and reference alike
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(f"{name}: the tokenizer has {len(tokenizer):,} tokens, the model's embedding {rows:,} rows", remedy="use the model's own tokenizer")
    for parameter_name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{name}: weight {parameter_name} holds NaN or infinity", remedy="the file is damaged, or was saved by a run that diverged")
    return LoadedModel(model, tokenizer, source, place)


def enable_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass. Dropout stays off.

    A layer recomputes only while its own `training` flag is set, and some (OPT, Falcon) drop by the same flag: so it is set
    when the layer is called and unset inside. Models of the older kind ask the flag of the whole stack.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    renamed = getattr(model, "activation_checkpointing_enable", None)  # the name since transformers 5.20 or so
    if renamed is not None:
        renamed()
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    flagged = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    if not flagged:
        raise ModelError("this model has no layers that can be checkpointed", remedy="leave --checkpointing away")
    layers: list[Any] = [module for module in flagged if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer._gradient_checkpointing_func = _calm(layer, layer._gradient_checkpointing_func)
    for module in layers or flagged:
        module.training = True


def compile_layers(model: Any, backend: str | Callable[..., Any] = "inductor") -> None:
    """Each layer becomes a compiled function of token sequences of any length; attention is called from it as it is.

    One function for all layers of a kind, and no other one for another length. Raises ModelError for a model without such layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError("this model has no layers that can be compiled one by one", remedy="leave --compile away")
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)


def as_written(model: Any) -> AbstractContextManager[None]:
    """Within it the model's layers run as they are written, compiled or not."""
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _calm(layer: Any, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """`checkpoint(function, ...)` that unsets the layer's training flag while `function` runs, the second time too."""

    def call(function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        def run(*args: Any, **named: Any) -> Any:
            layer.training = False
            try:
                return function(*args, **named)
            finally:
                layer.training = True

        return checkpoint(run, *args, **settings)

    return call


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all weights, adapters included: what the numbers come from."""
    digest = hashlib.sha256()
    for name, parameter in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)};".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """A plain transformers (or peft adapter) folder, written atomically, replacing what was there."""
    with folder_atomic(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
        readme = temporary / "README.md"  # peft writes a model card of placeholders
        readme.unlink(missing_ok=True)


def create(folder: Path, tokenizer: Any, *, seed: int, **shape: Any) -> None:
    """A new Llama-shaped model with random weights in `folder`, beside its tokenizer, to be trained from scratch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    save(model, tokenizer, folder)


def same_tokens(tokenizer: Any, reference: Any, name: str) -> None:
    """Raises ModelError unless each token id of the policy's tokenizer means the same token to the reference's."""
    mine, theirs = tokenizer.get_vocab(), reference.get_vocab()
    other = [token for token, number in mine.items() if theirs.get(token) != number]
    if other:
        raise ModelError(
            f"reference {name}: its tokenizer is another one: {len(other):,} of {len(mine):,} tokens have another id or none, {other[0]!r} for one",
            remedy="a reference must read the policy's tokens: give a model of the same family",
        )


def merged(model: Any) -> Any:
    """The base model with its adapter added into the weights."""
    if not is_adapter(model):
        raise ModelError("there is no adapter to merge", remedy="leave --merge away")
    return model.merge_and_unload(safe_merge=True)


def is_adapter(model: Any) -> bool:
    """Whether `model` is wrapped by peft."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """All parameters, and those that train."""
    return {"total": sum(p.numel() for p in model.parameters()), "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def is_adapter_folder(name: str) -> bool:
    """Whether a model folder or run folder holds an adapter."""
    return (Path(locate(name)) / ADAPTER).exists()


def _base(source: str) -> str:
    """An adapter folder stands on a base model, everything else on itself."""
    adapter = Path(source) / ADAPTER
    if not adapter.exists():
        return source
    try:
        return str(json.loads(adapter.read_text())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{adapter}: damaged: no base_model_name_or_path in it", remedy="save the adapter again with peft") from error


def _limit(config: Any) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def refuse_second_adapter(name: str) -> None:
    """Raises ModelError where a new adapter was asked for on a folder that is one."""
    if is_adapter_folder(name):
        raise ModelError(
            f"{name} already is an adapter", remedy="leave --lora away to train that adapter, or merge it first: winnow export RUN --out DIR --merge"
        )


def outline(config: Any, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """The model with random weights: cheap where tensors have no content."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=dtype).eval()


def count_from_config(config: Any, lora: Lora | None, trust_remote_code: bool = False) -> tuple[int, int]:
    """All and trainable parameters of a model that is not loaded: its shape alone, on no device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        counts = parameter_counts(with_lora(model, lora, 0) if lora else model)
    return counts["total"], counts["trainable"]


def _load_weights(name: str, source: str, dtype: torch.dtype, train: bool, trust_remote_code: bool) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = _base(source)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code)
        if base == source:
            return model
        model = PeftModel.from_pretrained(model, source, is_trainable=train)
    except Exception as error:
        raise _not_loaded("model", name, error) from error
    for module in model.modules():  # an adapter's own dropout would make log-probs random
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def with_lora(model: Any, lora: Lora, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = None if lora.targets == ("auto",) else list(lora.targets)
    turned = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2 keeps its matrices the other way round
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets or "all-linear", task_type="CAUSAL_LM", fan_in_fan_out=turned)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(f"lora: {error}", remedy="name existing modules: targets=q_proj+v_proj, or auto") from error


def _not_loaded(what: str, name: str, error: Exception) -> ModelError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    remedy = "give a folder with config.json and model.safetensors, a hub name, or a run folder"
    if "trust_remote_code" in str(error):
        remedy = "it brings its own code: read that code, then give --trust-remote-code"
    elif "safetensors" in str(error):
        remedy = "only safetensors are loaded (pickled weights can run code): convert the model once"
    here = "" if Path(name).exists() else "there is no such folder here, and "
    return ModelError(f"{what} {name!r} cannot be loaded: {here}{first}", remedy=remedy)
