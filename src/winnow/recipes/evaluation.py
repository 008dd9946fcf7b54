"""`winnow eval`: a model against held-out preferences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from winnow import models
from winnow.batch import Batch, joined
from winnow.config import EvalSettings
from winnow.console import Steps, console, safe, say
from winnow.data.dataset import Dataset, prepare
from winnow.data.pack import budget
from winnow.device import DTYPES, keep_memory
from winnow.engine import rows
from winnow.errors import ModelError, RunError, SettingsError
from winnow.files import RunFolder, read_json, write_json, write_jsonl
from winnow.measures import heldout
from winnow.measures.clustered import flat
from winnow.objectives.terms import FLAGS, Known, Objective, objective
from winnow.recipes import flips
from winnow.recipes.engines import engine_for
from winnow.recipes.planning import wanted
from winnow.recipes.rendering import renderer
from winnow.resolved import Resolved, validated
from winnow.train.feed import Data
from winnow.train.reference import Reference, compute, offsets
from winnow.train.start import fingerprint, same_model


@dataclass(frozen=True)
class Evaluation:
    """Figures by metric name, and one row per comparison or labelled answer."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]


def run(resolved: Resolved[EvalSettings], command: str = "") -> Evaluation:
    """Loss, accuracies with intervals, margins; `report.json` and `rows.jsonl` where a folder was asked for."""
    settings, made, trained, began = _with_run_defaults(resolved.settings)
    keep_memory()
    if settings.out is not None:
        _may_write(settings.out)
    if settings.label_noise and settings.reference is None:
        raise SettingsError("label_noise: looks at implicit rewards, and there is no reference", remedy="--reference MODEL, the one training began with")
    if settings.label_noise and any(term.mean or not term.entry.reference for term in made.terms if term.entry.unit != "token"):
        raise SettingsError(f"label_noise: margins of {made.name} are no sums of log-ratios", remedy="--objective dpo --beta 0.1, to audit with summed ones")
    rendered = renderer(settings)
    what = wanted(made, settings.pairs)
    data, _ = prepare(settings.data, rendered, settings, replace(what, kind="any"), seed=began.get("settings", {}).get("seed", 0))
    tokens = budget(data.groups, settings.max_tokens)
    if settings.reference is not None:
        models.same_tokens(rendered.tokenizer, models.load_tokenizer(settings.reference, trust_remote_code=settings.trust_remote_code), settings.reference)
    policy = _token_logps(settings.model, settings, data, tokens, "policy")
    reference = _token_logps(settings.reference, settings, data, tokens, "reference", trained) if settings.reference else None
    ours, theirs = (None if value is None else heldout.by_completion(value, data.groups) for value in (policy, reference))
    assert ours is not None
    found, thumbs = heldout.rows(data.groups, ours, theirs, made.beta), heldout.thumbs(data.groups, ours, theirs, made.beta)
    summary = {**flat({"nll": heldout.nll(policy, data.groups)}), **heldout.summary(found), **heldout.thumbs_summary(thumbs)}
    if reference is not None or not made.reference:
        loss = _loss(made, _batches(data, policy, reference, tokens), began.get("known", {}))
        summary |= {} if loss is None else {"loss": loss}
    _say(settings, made, summary, bool(found or thumbs))
    told = flips.say_all(found, _trained_on(settings, data)) if settings.label_noise else {}
    if settings.out is not None:
        _write(settings.out, settings, made, summary, found + thumbs, data, command, told)
    return Evaluation(summary, found + thumbs)


INHERITED = ("as", "max_length", "cut_budget", "quantize")  # what a run's data looked like to it, and its frozen weights


def _with_run_defaults(settings: EvalSettings) -> tuple[EvalSettings, Objective, dict[str, Any] | None, dict[str, Any]]:
    """A run folder knows its objective, how it read its data, and what it was trained against (None where that is not the reference);
    last of all what else it recorded, empty for a model that is none or another objective.
    """
    run = RunFolder(settings.model)
    environment: dict[str, Any] = read_json(run.environment) if run.started else {"settings": {}}
    kept: dict[str, Any] = environment["settings"]
    name = settings.objective or kept.get("objective") or "dpo"
    own = kept if kept.get("objective") == name else {}
    given = {flag: own[flag] for flag in FLAGS if own.get(flag) is not None} | ({} if settings.beta is None else {"beta": settings.beta})
    made = objective(name, **{flag: value for flag, value in given.items() if value is not False})
    asked = settings.model_dump(by_alias=True)
    taken = {key: kept[key] for key in INHERITED if asked[key] is None and kept.get(key) is not None}
    if settings.pairs is None:
        listwise = any(term.entry.unit == "group" for term in made.terms)
        taken["pairs"] = own.get("pairs") or ("listwise" if listwise else "all")
    trained = environment.get("reference") if settings.reference is None and made.reference else None
    if trained is not None:
        taken["reference"] = trained["model"]
    told = {key: value for key, value in taken.items() if (key, value) != ("pairs", "all")}
    if told:
        say(f"from the run: {safe(', '.join(f'{key}={value}' for key, value in told.items()))}")
    if own.get("moving_reference") and trained is not None:
        say("[yellow]the run's reference moved:[/] this compares with the policy at step 0")
    return validated(EvalSettings, {**asked, **taken}), made, trained, environment if own else {}


def _token_logps(name: str, settings: EvalSettings, data: Dataset, tokens: int, label: str, trained: dict[str, Any] | None = None) -> Tensor:
    """Log-probs of all scored tokens under one model, which is let go of before the next is loaded.

    trained: what a run recorded of its reference; a model of that name that says something else by now is refused.
    """
    loaded = models.load(name, dtype=settings.dtype, device=settings.device, quantize=settings.quantize, trust_remote_code=settings.trust_remote_code)
    if trained is not None:
        now, then = fingerprint(rows, loaded.model, trained["vocabulary"]), torch.tensor(trained["says"])
        if not same_model(now, then, [next(loaded.model.parameters()).dtype, DTYPES[trained["dtype"]]]):
            raise ModelError(f"{name}: no longer the model that {settings.model} was trained against", remedy="give the right one by --reference")
    engine = engine_for(loaded, settings.engine, data.account["tokens"]["longest"], train=False)
    with Steps(label, len(data.groups)) as steps:
        return compute(engine, loaded.model, data.groups, tokens, loaded.device, steps.advance)


def _batches(data: Dataset, policy: Tensor, reference: Tensor | None, tokens: int) -> list[tuple[Tensor, Batch]]:
    """All data as batches, with the policy's log-probs of each and the reference's in it."""
    start = offsets(data.groups)
    ours = Reference("", policy, start)
    theirs = None if reference is None else Reference("", reference, start)
    return [(ours.of(batch), batch) for batch in Data(data.groups, data.shares, theirs).everything(tokens)]


def _loss(made: Objective, batches: list[tuple[Tensor, Batch]], before: Known) -> float | None:
    """The objective's loss from stored log-probs; None where nothing in the data counts for it, or where they are not enough for it.

    before: what the training had come to know.
    """
    if made.want != ("entropy",) or not any(made.counts([batch for _, batch in batches])):
        return None
    columns, batch = {"logp": torch.cat([logp_N for logp_N, _ in batches])}, joined([batch for _, batch in batches])
    known = made.known(columns, batch, before, train=False)
    return made.losses([float(total) for total in made.totals(columns, batch, known)], made.counts([batch])).get("loss")


def _say(settings: EvalSettings, made: Objective, summary: dict[str, Any], compared: bool) -> None:
    table = Table(title=safe(f"{settings.model} on {', '.join(settings.data)}"), title_justify="left", box=None)
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval")
    for name, value in summary.items():
        if not name.endswith(("_low", "_high")):
            low, high = summary.get(f"{name}_low"), summary.get(f"{name}_high")
            table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:,.5g}", f"{low:.4f} to {high:.4f}" if low is not None else "")
    console.print(table)
    if compared and made.reference and settings.reference is None:
        say("no reference: give --reference for loss, implicit rewards and their accuracy")
    elif "loss" in summary:
        say(f"loss: {made.name} at beta {made.beta:g}" + (f", reference {safe(settings.reference)}" if settings.reference else ", which has no reference"))
    elif compared:
        why = "it looks at more than log-probs of tokens" if made.want != ("entropy",) else "nothing in the data counts for it"
        say(f"no loss of {made.name}: {why}; rewards are at beta {made.beta:g}")


def _trained_on(settings: EvalSettings, data: Dataset) -> bool:
    """Whether these are the rows the run was trained on."""
    run = RunFolder(settings.model)
    return run.started and bool(read_json(run.root / "data.json")["train"]["fingerprint"] == data.account["fingerprint"])


def _may_write(out: Path) -> None:
    if RunFolder(out).started:
        raise RunError(f"{out} is a run folder", remedy="give the evaluation a folder of its own")
    RunFolder(out).refuse_foreign(WRITTEN)
    RunFolder(out).promise()


WRITTEN = ("report.json", "rows.jsonl")


def _write(
    out: Path, settings: EvalSettings, made: Objective, summary: dict[str, Any], found: list[dict[str, Any]], data: Dataset, command: str, told: dict[str, Any]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "rows.jsonl", found)
    head = {
        "schema": 1,
        "command": command,
        "model": settings.model,
        "reference": settings.reference,
        "objective": made.name,
        "beta": made.beta,
        "data": data.account,
    }
    write_json(out / "report.json", {**head, "summary": {f"eval_{name}": value for name, value in summary.items()}, **told})
    say(f"written: {safe(out / 'report.json')} and {safe(out / 'rows.jsonl')}")
