"""Where a model lies, and what is said of one that cannot be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from winnow.config.model_spec import ModelSpec
from winnow.errors import ModelError
from winnow.system import hub
from winnow.system.files import read_json
from winnow.system.run_folder import RunFolder

HEAD = "score"  # what transformers' decoders call the layer that scores


SAFE = "only safetensors are loaded (pickled weights can run code)"


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


def load_config(spec: ModelSpec) -> Any:
    """The configuration of a model folder, hub name, run folder, or of an adapter's base model."""
    from transformers import AutoConfig

    base = base_of(locate(spec.name))
    refuse_missing(spec.name, base)
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=spec.trust_remote_code)
    except Exception as error:
        raise not_loaded("model", spec.name, base, error) from error


def is_classifier(config: Any) -> bool:
    """Whether a configuration is a sequence classifier's."""
    return any(
        str(kind).endswith("ForSequenceClassification") for kind in config.architectures or ()
    )


REMEDY = "give a folder with config.json and model.safetensors, a hub name, or a run folder"


def refuse_missing(name: str, source: str, *enough: str) -> None:
    """Raises ModelError where `source`, which `name` stands for, is no folder of a model, and the
    hub does not have it. `enough`: files that will do.
    """
    folder, told = Path(source), f"{called('model', name, source)} cannot be loaded"
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


def not_loaded(what: str, name: str, source: str, error: Exception) -> ModelError:
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
    return ModelError(f"{called(what, name, source)} cannot be loaded: {first}", remedy=remedy)


def called(what: str, name: str, source: str) -> str:
    """A model in a message: by the name that was given, and where that is an adapter's, by its base
    model's too.
    """
    return (
        f"{what} {name!r}"
        if source == locate(name)
        else f"{what} {source!r}, the base of the adapter {name!r},"
    )


ADAPTER = "adapter_config.json"


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
