"""What a run folder records when it begins, and what is compared when it goes on."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from winnow.config.resolve import Resolved
from winnow.config.training import FREE
from winnow.data.dataset import Dataset
from winnow.data.render import Renderer
from winnow.errors import RunError
from winnow.models import loading
from winnow.models.fsdp import gathered, whole
from winnow.models.loading import LoadedModel
from winnow.system.console import safe, say
from winnow.system.files import (
    read_json,
    sha256_json,
    versions,
    write_atomic,
    write_json,
)
from winnow.system.identity import (
    RUN_FORMAT,
    SAME_AGAIN,
    Differences,
    differences,
    refuse_format,
    refuse_other,
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


def other_settings(run: RunFolder, resolved: Resolved[Any]) -> Differences:
    """Settings that are others than those the run was begun with, and on which numbers depend.

    Raises RunError where the run is to go on and is of another format.
    """
    head = read_json(run.environment, "asked", "settings")
    begun, now = head["asked"], asked(resolved)
    now = dict.fromkeys(begun) | now
    # of a setting the run did not know yet
    blank = {
        field.alias or name: field.default
        for name, field in type(resolved.settings).model_fields.items()
    }
    # a default may be spelled out now: a run's own config.yaml does
    filled = differences(blank | head["settings"], now)
    differ = {
        name: (begun.get(name), now[name])
        for name in sorted(differences(blank | begun, now))
        if name in filled and name not in FREE
    }
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
    return differences(data.get("rendered_by", {}), rendered_by(renderer)) or {
        "tokenizer": ("other tokens", "of the same texts")
    }


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


def reopened(run: RunFolder, resolved: Resolved[Any]) -> tuple[list[Path], Differences] | None:
    """Checkpoints of a run, and settings that are others now, as allowed; None where the run is
    finished. Raises RunError for other settings that are not allowed.
    """
    saved = checkpoint.saved(run.checkpoints)
    # a run that computed nothing yet may be begun again with other settings
    differ = other_settings(run, resolved) if saved or run.metrics.exists() else {}
    allowed = resolved.settings.allow_change
    _refuse(run, differ, [name for name in differ if name not in allowed])
    if run.finished and not differ:
        say(f"{safe(run.root)}: already finished (report: {safe(run.report_html)}); nothing to do")
        return None
    return saved, differ


def with_inputs(
    run: RunFolder, differ: Differences, inputs: Differences, allowed: Sequence[str]
) -> Differences:
    """What differs in settings and in inputs. Raises RunError for inputs that are not allowed to
    differ.
    """
    both = differ | inputs
    _refuse(run, both, [name for name in inputs if not may_differ(name, allowed)])
    return both


def may_differ(name: str, allowed: Sequence[str]) -> bool:
    """Whether this was allowed to be another one, or follows from what was."""
    return bool({*allowed} & {name, *BRINGS.get(name, ())})


def _refuse(run: RunFolder, differ: Differences, names: Sequence[str]) -> None:
    """Raises RunError that lists `names` of what differs, if there are any."""
    flags = " ".join(f"--allow-change {name}" for name in differ)
    refuse_other(
        run.root,
        "begun otherwise",
        {name: differ[name] for name in names},
        remedy=f"{SAME_AGAIN}; to go on with the change: {flags}",
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
    run: RunFolder,
    identity: dict[str, Any],
    allowed: Sequence[str],
    besides: Sequence[str],
    steps: int,
) -> Checkpoint | None:
    """The newest intact checkpoint, None where there is none. besides: what can change though it is
    no setting. Raises RunError when it is of another identity (weights, data, reference ...) than
    allowed, or beyond the run's end.
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
    if kept.progress.step > steps:
        raise RunError(
            f"{run.root}: {kept.progress.step} steps are done, and steps is {steps}",
            remedy=f"--steps {kept.progress.step} or more",
        )
    return kept


def asked(resolved: Resolved[Any]) -> dict[str, Any]:
    """The settings as they were asked for, before anything was filled in from the data."""
    values = resolved.settings.model_dump(by_alias=True, mode="json")
    return {name: value for name, value in values.items() if name != "out"}


@dataclass(frozen=True, slots=True)
class RunHead:
    """What a run is begun with. resolved: all of its settings; begun: those that were asked for,
    before the data filled any in; besides: what else is known of the plan; differ: what is another
    one now, of a run that goes on.
    """

    recipe: str
    command: str
    resolved: Resolved[Any]
    begun: dict[str, Any]
    plan: Plan
    besides: dict[str, Any]
    differ: Differences

    def to_json(self, changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The head as environment.json holds it. changes: of a run that goes on, all so far."""
        settings = self.resolved.settings.model_dump(by_alias=True, mode="json")
        return {
            "schema": 1,
            "format": RUN_FORMAT,
            "recipe": self.recipe,
            "command": self.command,
            "started": _now(),
            "versions": versions(*(["bitsandbytes"] if settings.get("quantize") else [])),
            "device": _device(),
            "processes": count(),
            "settings": settings,
            "asked": self.begun,
            "origins": dict(self.resolved.origins),
            "plan": {"steps": self.plan.steps, "warmup": self.plan.warmup, **self.besides},
            "changes": list(changes),
        }


def begin(run: RunFolder, head: RunHead, accounts: dict[str, Any]) -> None:
    """config.yaml first, then data.json, which holds the `accounts`, then environment.json: with it
    the run has begun.
    """
    changes = _changes(run, head.differ) if head.differ else []
    write_atomic(run.config, head.resolved.yaml())
    write_json(run.root / "data.json", accounts)
    write_json(run.environment, head.to_json(changes))


def accounts_of(
    train_set: Dataset, held_out: Mapping[str, Dataset], renderer: Renderer
) -> dict[str, Any]:
    """What data.json holds: what became of the rows, held out by prefix."""
    return {
        "train": train_set.account.to_json(),
        "eval": {prefix: held.account.to_json() for prefix, held in held_out.items()},
        "rendered_by": rendered_by(renderer),
    }


def plan_of_pairs(train_set: Dataset, plan: Plan) -> dict[str, Any]:
    """What is known of the plan of a training on comparisons, beside steps and warm-up."""
    comparisons = train_set.account.comparisons / len(train_set.groups)
    return {
        "groups": len(train_set.groups),
        "comparisons_per_step": comparisons * plan.batch_size,
        "tokens_per_micro_batch": plan.tokens,
    }


def _changes(run: RunFolder, differ: Differences) -> list[dict[str, Any]]:
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


def finish(run: RunFolder, loaded: LoadedModel, tokenizer: Any, **values: Any) -> None:
    """Write the model, and seal the run; values: what environment.json is to say besides."""
    note(run, **values, sealed=True)
    state = gathered(loaded.net)
    with whole(loaded.net):  # so that the model's configuration tells the dtype it computes in
        if leads():
            loading.save(loaded.model, tokenizer, run.model, state)
    if leads():
        run.seal()
    say(f"model:  {safe(run.model)}")


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
