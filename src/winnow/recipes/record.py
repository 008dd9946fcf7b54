"""What a run folder records when it begins, and what is compared when it goes on."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from typing import Any

import torch

from winnow.config import TrainSettings
from winnow.console import safe, say
from winnow.data.dataset import Dataset
from winnow.data.pack import largest
from winnow.errors import NothingLeft, RunError
from winnow.files import RunFolder, read_json, write_atomic, write_json
from winnow.models import LoadedModel
from winnow.resolved import Resolved
from winnow.train.loop import Plan


def same_settings(run: RunFolder, resolved: Resolved[Any]) -> None:
    """Raises RunError listing what differs from the settings the run was begun with."""
    begun = read_json(run.environment)["asked"]
    now = asked(resolved)
    filled = read_json(run.environment)["settings"]  # a default may be spelled out now: a run's own config.yaml does
    names = sorted(name for name in {*begun, *now} if begun.get(name) != now.get(name) and filled.get(name) != now.get(name))
    differ = [f"{name}: {begun.get(name)!r} -> {now.get(name)!r}" for name in names]
    if differ:
        raise RunError(f"{run.root}: begun with other settings:\n  " + "\n  ".join(differ), remedy="choose another --out, or give the same settings to resume")


def same_data(run: RunFolder, train_set: Dataset) -> None:
    """Raises RunError when the training tokens are not those the run was begun with."""
    begun = read_json(run.root / "data.json")["train"]
    if begun["fingerprint"] != train_set.account["fingerprint"]:
        raise RunError(
            f"{run.root}: begun with other data: {begun['used']:,} groups then, {train_set.account['used']:,} now, or other tokens (rows, tokenizer, template)",
            remedy="choose another --out, or give the data and tokenizer the run was begun with",
        )


def asked(resolved: Resolved[Any]) -> dict[str, Any]:
    """The settings as they were asked for, before anything was filled in from the data."""
    values = resolved.settings.model_dump(by_alias=True, mode="json")
    return {name: value for name, value in values.items() if name != "out"}


def write_head(
    run: RunFolder, resolved: Resolved[Any], begun: dict[str, Any], recipe: str, plan: Plan, train_set: Dataset, held_out: dict[str, Dataset], command: str
) -> None:
    """config.yaml first, then data.json, then environment.json: with it the run has begun. `begun`: the settings as asked for."""
    settings = resolved.settings.model_dump(by_alias=True, mode="json")
    write_atomic(run.config, resolved.yaml())
    write_json(run.root / "data.json", {"train": train_set.account, "eval": {prefix: one.account for prefix, one in held_out.items()}})
    per_step = train_set.account["comparisons"] / len(train_set.groups) * plan.batch_size
    head = {
        "schema": 1,
        "recipe": recipe,
        "command": command,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("winnow-lm", "torch", "transformers", "peft", "datasets", *(["bitsandbytes"] if settings["quantize"] else []))
        }
        | {"python": platform.python_version()},
        "device": _device(),
        "settings": settings,
        "asked": begun,
        "origins": dict(resolved.origins),
        "plan": {
            "steps": plan.steps,
            "warmup": plan.warmup,
            "groups": len(train_set.groups),
            "comparisons_per_step": per_step,
            "tokens_per_micro_batch": plan.tokens,
        },
    }
    write_json(run.environment, head)


def note(run: RunFolder, **values: Any) -> None:
    """Add to environment.json what is known only later."""
    write_json(run.environment, {**read_json(run.environment), **values})


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def window(run: RunFolder, number: int, one: Dataset, tokens: int) -> None:
    """Say what became of a stream's window (from 0 on), with the data's warnings, and add it to data.json. tokens: of a micro-batch."""
    account = one.account
    row = {name: account[name] for name in ("read", "dropped", "identical", "used", "comparisons")}
    _add_window(run, number, row)
    if number == 0:  # told with the model and the plan
        return
    dropped = ", ".join(f"{n} {reason}" for reason, n in account["dropped"].items()) or "none"
    say(f"window {number + 1}: {account['read']:,} rows read, dropped: {dropped}; {account['used']:,} groups, {account['comparisons']:,} comparisons")
    needs = largest(one.groups)
    if needs > tokens:
        say(f"[yellow]window {number + 1}:[/] its largest group needs {needs:,} tokens, micro-batches have {tokens:,}: it goes alone, and takes more memory")
    _say_warnings(one)


def empty_window(run: RunFolder, number: int, error: NothingLeft) -> None:
    """The same of a window without a usable row."""
    say(f"[yellow]window {number + 1} passed over:[/] {safe(error.what)}")
    _add_window(run, number, {"read": sum(error.dropped.values()), "dropped": error.dropped, "identical": 0, "used": 0, "comparisons": 0})


def _add_window(run: RunFolder, number: int, row: dict[str, Any]) -> None:
    data = read_json(run.root / "data.json")
    before = [one for one in data.get("windows", []) if one["window"] <= number]  # a run that was resumed comes by again
    write_json(run.root / "data.json", {**data, "windows": [*before, {"window": number + 1, **row}]})


def say_head(
    loaded: LoadedModel, counts: dict[str, int], engine: str, plan: Plan, settings: TrainSettings, train_set: Dataset, held_out: dict[str, Dataset]
) -> None:
    """Model, data, plan and the data's warnings, before the first step."""
    account, weight = train_set.account, next(loaded.model.parameters())
    dropped = ", ".join(f"{n} {reason}" for reason, n in account["dropped"].items()) or "none"
    dropped += f" (and {account['identical']} comparisons of identical completions)" if account["identical"] else ""
    kept = f"{_judged(account)}, {account['tokens']['cut_share']:.1%} of tokens cut"
    dtype = f"{weight.dtype}, {settings.quantize} where frozen," if settings.quantize else weight.dtype
    say(f"model: {safe(settings.model)}, {counts['total']:,} parameters, {counts['trainable']:,} train, {dtype} on {loaded.device}, engine {engine}")
    first = "" if settings.stream is None else "the first window: "
    say(f"data:  {first}{account['read']:,} rows read, dropped: {dropped}; {kept}")
    for prefix, one in held_out.items():
        say(f"{prefix.rstrip('_')}:  {_judged(one.account)}")
    say(f"plan:  {plan.steps} steps of {plan.batch_size} groups, warm-up {plan.warmup}, peak rate {plan.lr:g}, micro-batches of {plan.tokens:,} tokens")
    _say_warnings(train_set)


def _judged(account: dict[str, Any]) -> str:
    """Groups, and what was said about them."""
    labels = f"{account['labels']:,} labels" if account["labels"] and not account["comparisons"] else f"{account['comparisons']:,} comparisons"
    return f"{account['used']:,} groups, {labels}"


def _say_warnings(one: Dataset) -> None:
    for finding in one.findings:
        if finding.level == "warning":
            say(f"[yellow]{finding.code}:[/] {safe(finding.message)}")
