"""What a run folder records when it begins, and what is compared when it goes on."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from winnow.config.resolve import Resolved
from winnow.config.training import FREE, TrainSettings
from winnow.data.account import DataAccount
from winnow.data.dataset import Dataset
from winnow.data.layouts import unread
from winnow.data.packing import largest
from winnow.data.render import Renderer
from winnow.errors import NothingLeft, RunError
from winnow.models.loading import LoadedModel
from winnow.system.console import safe, say
from winnow.system.files import (
    RUN_FORMAT,
    read_json,
    refuse_format,
    sha256_json,
    versions,
    write_atomic,
    write_json,
)
from winnow.system.launch import count, leads
from winnow.system.run_folder import RunFolder
from winnow.training import checkpoint
from winnow.training.checkpoint import Checkpoint
from winnow.training.loop import Plan

# What else is another one when a setting is: whoever allows the setting allows that. First which
# settings decide what the training tokens are.
TOKENS = {
    "model",
    "data",
    "as",
    "chat_template",
    "max_length",
    "cut_budget",
    "on_bad_row",
    "limit",
    "stream",
    "eval_fraction",
    "pairs",
    "objective",
}
BRINGS: dict[str, set[str]] = {
    "data": {*TOKENS, "tokenizer", "template", "eval_data"},
    "tokenizer": TOKENS,
    "template": TOKENS,
    "weights": {"model", "dtype", "lora"},
    "reference": {
        *TOKENS,
        "tokenizer",
        "template",
        "eval_data",
        "weights",
        "dtype",
        "lora",
        "engine",
        "moving_reference",
    },
}
Differences = dict[str, tuple[Any, Any]]  # what is another one now: then, now


def other_settings(run: RunFolder, resolved: Resolved[Any]) -> Differences:
    """Settings that are others than those the run was begun with, and on which numbers depend.

    Raises RunError where the run is to go on and is of another format.
    """
    head = read_json(run.environment, "asked", "settings")
    # a default may be spelled out now: a run's own config.yaml does
    begun, now, filled = (
        head["asked"],
        asked(resolved),
        head["settings"],
    )
    # of a setting the run did not know yet
    blank = {
        field.alias or name: field.default
        for name, field in type(resolved.settings).model_fields.items()
    }
    names = sorted(
        name
        for name in {*begun, *now}
        if begun.get(name, blank.get(name)) != now.get(name)
        and filled.get(name, blank.get(name)) != now.get(name)
    )
    differ = {name: (begun.get(name), now.get(name)) for name in names if name not in FREE}
    if differ or not run.finished:
        refuse_format(run.root, head)
    return differ


def other_data(run: RunFolder, train_set: Dataset, renderer: Renderer) -> Differences:
    """Which of data, tokenizer and template are others than those the run was begun with, where
    training tokens are.
    """
    data = read_json(run.root / "data.json", "train")
    begun, now = data["train"], train_set.account
    if begun["fingerprint"] == now.fingerprint:
        return {}
    if begun.get("text_fingerprint") != now.text_fingerprint:
        return {
            "data": (
                f"{begun['used']:,} groups",
                f"{now.used:,} groups, or the same number with other texts",
            )
        }
    then, is_now = data.get("rendered_by", {}), rendered_by(renderer)
    return {
        name: (then.get(name), is_now[name]) for name in is_now if then.get(name) != is_now[name]
    } or {"tokenizer": ("other tokens", "of the same texts")}


def rendered_by(renderer: Renderer) -> dict[str, str]:
    """Hashes of what turned texts into tokens."""
    tokenizer = (
        renderer.tokenizer.backend_tokenizer.to_str()
        if renderer.tokenizer.is_fast
        else renderer.tokenizer.get_vocab()
    )
    return {
        "tokenizer": sha256_json(tokenizer)[:16],
        "template": sha256_json(renderer.template)[:16],
    }


def may_differ(name: str, allowed: Sequence[str]) -> bool:
    """Whether this was allowed to be another one, or follows from what was."""
    return bool({*allowed} & {name, *BRINGS.get(name, ())})


def refuse(run: RunFolder, differ: Differences, names: Sequence[str]) -> None:
    """Raises RunError that lists `names` of what differs, if there are any."""
    if names:
        told = "\n  ".join(
            f"{name}: {then!r} -> {now!r}"
            for name, (then, now) in ((name, differ[name]) for name in names)
        )
        flags = " ".join(f"--allow-change {name}" for name in differ)
        raise RunError(
            f"{run.root}: begun otherwise:\n  {told}",
            remedy=(
                f"choose another --out, or give the same again; to go on with the change: {flags}"
            ),
        )


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Of settings on which numbers depend."""
    return sha256_json({name: value for name, value in settings.items() if name not in FREE})


def accepted_settings(run: RunFolder) -> list[str]:
    """Hashes of settings a checkpoint of this run may have been made with: those of now, and those
    before each allowed change.
    """
    head = read_json(run.environment)
    return [
        settings_hash(head["settings"]),
        sha256_json(head["settings"]),
        *(one["before"] for one in head.get("changes", [])),
    ]


def newest(
    run: RunFolder, identity: dict[str, Any], allowed: Sequence[str], besides: Sequence[str]
) -> Checkpoint | None:
    """The newest intact checkpoint, None where there is none. besides: what can change though it is
    no setting. Raises RunError when it is of another identity (weights, data, reference ...) than
    allowed.
    """
    kept, complaints = checkpoint.latest(run.checkpoints)
    for complaint in complaints:
        say(f"[yellow]passed over:[/] {safe(complaint)}")
    if kept is None:
        return None
    accepted = {"settings": accepted_settings(run)}
    changed = [
        name
        for name, value in identity.items()
        if kept.identity.get(name) not in accepted.get(name, [value])
    ]
    refused = [name for name in changed if not may_differ(name, allowed)]
    if refused:
        flags = " ".join(f"--allow-change {name}" for name in refused if name in besides)
        more = f"; to go on with the change: {flags}" if flags else ""
        raise RunError(
            f"{run.root}: cannot be resumed: {', '.join(refused)} changed since the checkpoint",
            remedy=f"choose another --out{more}",
        )
    for name in changed:
        say(
            f"[yellow]changed:[/] {name} is another one than before step {kept.progress.step}, as"
            " allowed"
        )
    return kept


def asked(resolved: Resolved[Any]) -> dict[str, Any]:
    """The settings as they were asked for, before anything was filled in from the data."""
    values = resolved.settings.model_dump(by_alias=True, mode="json")
    return {name: value for name, value in values.items() if name != "out"}


def write_head(
    run: RunFolder,
    resolved: Resolved[Any],
    begun: dict[str, Any],
    recipe: str,
    plan: Plan,
    sets: tuple[Dataset, Mapping[str, Dataset]],
    renderer: Renderer,
    command: str,
    differ: Differences,
) -> None:
    """config.yaml first, then data.json, then environment.json: with it the run has begun. `begun`:
    the settings as asked for; sets: for training, held out by prefix; differ: what is another one
    now, of a run that goes on.
    """
    train_set, held_out = sets
    accounts = {
        "train": train_set.account.to_json(),
        "eval": {prefix: one.account.to_json() for prefix, one in held_out.items()},
        "rendered_by": rendered_by(renderer),
    }
    per_step = train_set.account.comparisons / len(train_set.groups) * plan.batch_size
    more = {
        "groups": len(train_set.groups),
        "comparisons_per_step": per_step,
        "tokens_per_micro_batch": plan.tokens,
    }
    begin(
        run,
        resolved,
        begun,
        recipe,
        plan,
        accounts,
        more,
        command,
        changed(run, differ) if differ else [],
    )


def begin(
    run: RunFolder,
    resolved: Resolved[Any],
    begun: dict[str, Any],
    recipe: str,
    plan: Plan,
    accounts: dict[str, Any],
    more: dict[str, Any],
    command: str,
    changes: list[dict[str, Any]],
) -> None:
    """The same of any data. accounts: what data.json holds; more: of the plan."""
    settings = resolved.settings.model_dump(by_alias=True, mode="json")
    write_atomic(run.config, resolved.yaml())
    write_json(run.root / "data.json", accounts)
    head = {
        "schema": 1,
        "format": RUN_FORMAT,
        "recipe": recipe,
        "command": command,
        "started": _now(),
        "versions": versions(*(["bitsandbytes"] if settings.get("quantize") else [])),
        "device": _device(),
        "processes": count(),
        "settings": settings,
        "asked": begun,
        "origins": dict(resolved.origins),
        "plan": {"steps": plan.steps, "warmup": plan.warmup, **more},
        "changes": changes,
    }
    write_json(run.environment, head)


def changed(run: RunFolder, differ: Differences) -> list[dict[str, Any]]:
    """What was changed so far on the way, and what is changed now."""
    head = read_json(run.environment)
    now = {
        "at": _now(),
        "changed": {name: list(pair) for name, pair in differ.items()},
        "before": settings_hash(head["settings"]),
    }
    return [*head.get("changes", []), now]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def note(run: RunFolder, **values: Any) -> None:
    """Add to environment.json what is known only later."""
    if not leads():
        return
    write_json(run.environment, {**read_json(run.environment), **values})


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def window(run: RunFolder, number: int, one: Dataset, tokens: int) -> None:
    """Say what became of a stream's window (from 0 on), with the data's warnings, and add it to
    data.json. tokens: of a micro-batch.
    """
    account = one.account
    row = {
        name: getattr(account, name)
        for name in ("read", "dropped", "identical", "used", "comparisons", "fingerprint")
    }
    _add_window(run, number, row)
    if number == 0:  # told with the model and the plan
        return
    dropped = ", ".join(f"{n} {reason}" for reason, n in account.dropped.items()) or "none"
    say(
        f"window {number + 1}: {account.read:,} rows read, dropped: {dropped};"
        f" {account.used:,} groups, {account.comparisons:,} comparisons"
    )
    needs = largest(one.groups)
    if needs > tokens:
        say(
            f"[yellow]window {number + 1}:[/] its largest group needs {needs:,} tokens,"
            f" micro-batches have {tokens:,}: it goes alone, and takes more memory"
        )
    _say_warnings(one)


def same_window(run: RunFolder, number: int, one: Dataset, allowed: Sequence[str]) -> None:
    """Raises RunError where a stream's window is another one than when this run first read it."""
    rows = read_json(run.root / "data.json").get("windows", [])
    then = next((row.get("fingerprint") for row in rows if row["window"] == number + 1), None)
    if then is not None and then != one.account.fingerprint and "data" not in allowed:
        raise RunError(
            f"{run.root}: window {number + 1} of the data is another one than when it was first"
            " read",
            remedy=(
                "give the data the run was begun with; to go on with the change: --allow-change"
                " data"
            ),
        )


def empty_window(run: RunFolder, number: int, error: NothingLeft) -> None:
    """The same of a window without a usable row."""
    say(f"[yellow]window {number + 1} passed over:[/] {safe(error.what)}")
    _add_window(
        run,
        number,
        {
            "read": sum(error.dropped.values()),
            "dropped": error.dropped,
            "identical": 0,
            "used": 0,
            "comparisons": 0,
        },
    )


def _add_window(run: RunFolder, number: int, row: dict[str, Any]) -> None:
    if not leads():
        return
    data = read_json(run.root / "data.json")
    # a run that was resumed comes by again
    others = [one for one in data.get("windows", []) if one["window"] != number + 1]
    rows = sorted([*others, {"window": number + 1, **row}], key=lambda one: int(one["window"]))
    write_json(run.root / "data.json", {**data, "windows": rows})


def say_head(
    loaded: LoadedModel,
    counts: dict[str, int],
    engine: str,
    plan: Plan,
    settings: TrainSettings,
    train_set: Dataset,
    held_out: dict[str, Dataset],
) -> None:
    """Model, data, plan and the data's warnings, before the first step."""
    account, weight = train_set.account, next(loaded.model.parameters())
    dropped = ", ".join(f"{n} {reason}" for reason, n in account.dropped.items()) or "none"
    dropped += (
        f" (and {account.identical} comparisons of identical completions)"
        if account.identical
        else ""
    )
    kept = f"{_judged(account)}, {account.tokens.cut_share:.1%} of tokens cut"
    dtype = (
        f"{weight.dtype}, {settings.quantize} where frozen," if settings.quantize else weight.dtype
    )
    say(
        f"model: {safe(settings.model)}, {counts['total']:,} parameters, {counts['trainable']:,}"
        f" train, {dtype} on {loaded.device}, engine {engine}"
    )
    first = "" if settings.stream is None else "the first window: "
    say(f"data:  {first}{account.read:,} rows read, dropped: {dropped}; {kept}")
    for source in account.sources:
        if source.ignored:
            say(
                f"       columns of {safe(source.name)} that are not read:"
                f" {safe(unread(source.layout, source.ignored))}"
            )
    for prefix, one in held_out.items():
        say(f"{prefix.rstrip('_')}:  {_judged(one.account)}")
    say(
        f"plan:  {plan.steps} steps of {plan.batch_size} groups, warm-up {plan.warmup}, peak rate"
        f" {plan.lr:g}, micro-batches of {plan.tokens:,} tokens"
    )
    _say_warnings(train_set)


def _judged(account: DataAccount) -> str:
    """Groups, and what was said about them."""
    labels = (
        f"{account.labels:,} labels"
        if account.labels and not account.comparisons
        else f"{account.comparisons:,} comparisons"
    )
    return f"{account.used:,} groups, {labels}"


def _say_warnings(one: Dataset) -> None:
    for finding in one.account.findings:
        if finding.level == "warning":
            say(f"[yellow]{finding.code}:[/] {safe(finding.message)}")
