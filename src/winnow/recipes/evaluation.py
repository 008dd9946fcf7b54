"""`winnow eval`: a model against held-out preferences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from winnow import models
from winnow.config import EvalSettings, Resolved
from winnow.console import Steps, console, safe, say
from winnow.data.dataset import Dataset, prepare
from winnow.data.pack import budget
from winnow.data.render import Renderer
from winnow.engine import rows as engine
from winnow.errors import DataError
from winnow.files import RunFolder, read_json, write_json, write_jsonl
from winnow.measures import heldout
from winnow.objectives.table import Preference, preference
from winnow.train.loop import Data
from winnow.train.reference import Reference, compute, offsets


@dataclass(frozen=True)
class Evaluation:
    """Figures by metric name, and one row per comparison."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]


def run(resolved: Resolved[EvalSettings], command: str = "") -> Evaluation:
    """Loss, accuracies with intervals, margins; `report.json` and `rows.jsonl` where a folder was asked for."""
    settings, objective = _with_run_defaults(resolved.settings)
    tokenizer = models.load_tokenizer(settings.model, trust_remote_code=settings.trust_remote_code)
    if settings.chat_template is not None:
        tokenizer.chat_template = settings.chat_template.read_text()
    longest = models.length_limit(settings.model, trust_remote_code=settings.trust_remote_code)
    renderer = Renderer(tokenizer, limit=settings.max_length or longest, may_cut=settings.max_length is not None)
    data, _ = prepare(settings.data, renderer, settings, "any")
    tokens = budget(data.groups, settings.max_tokens)
    policy = _token_logps(settings.model, settings, data, tokens, "policy")
    reference = _token_logps(settings.reference, settings, data, tokens, "reference") if settings.reference else None
    sums = heldout.by_completion(policy, data.groups)
    found = heldout.rows(data.groups, sums, heldout.by_completion(reference, data.groups) if reference is not None else None, objective.beta)
    summary = {"nll": -float(policy.double().mean()), **heldout.summary(found)}
    if found and reference is not None:
        summary["loss"] = _loss(objective, data, policy, reference, tokens)
    _say(settings, objective, summary, bool(found))
    if settings.out is not None:
        _write(settings.out, settings, objective, summary, found, data, command)
    return Evaluation(summary, found)


def _with_run_defaults(settings: EvalSettings) -> tuple[EvalSettings, Preference]:
    """A run folder knows its objective, its beta and what it was trained against."""
    run = RunFolder(settings.model)
    kept: dict[str, Any] = read_json(run.environment)["settings"] if run.started else {}
    name = settings.objective or kept.get("objective") or "dpo"
    beta = settings.beta or (kept.get("beta") if kept.get("objective") == name else None)
    score = kept.get("score") if kept.get("objective") == name else None
    objective = preference(name, beta=beta, score=score, label_smoothing=kept.get("label_smoothing", 0.0))
    reference = settings.reference or ((kept.get("reference") or kept.get("model")) if kept.get("objective") else None)
    return settings.model_copy(update={"reference": reference}), objective


def _token_logps(name: str, settings: EvalSettings, data: Dataset, tokens: int, label: str) -> Tensor:
    """Log-probs of all scored tokens under one model, which is let go of before the next is loaded."""
    loaded = models.load(name, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code)
    with Steps(label, len(data.groups)) as steps:
        return compute(engine, loaded.model, data.groups, tokens, loaded.device, steps.advance)


def _loss(objective: Preference, data: Dataset, policy: Tensor, reference: Tensor, tokens: int) -> float:
    """The objective's loss from stored log-probs of both sides."""
    start = offsets(data.groups)
    ours, theirs = Reference("", policy, start), Reference("", reference, start)
    batches = Data(data.groups, data.shares, None).micro_batches(range(len(data.groups)), tokens, torch.device("cpu"))
    total = math.fsum(float(objective.total(ours.of(batch), theirs.of(batch), batch)) for batch in batches)
    return total / sum(objective.weight(batch) for batch in batches)


def _say(settings: EvalSettings, objective: Preference, summary: dict[str, Any], compared: bool) -> None:
    table = Table(title=safe(f"{settings.model} on {', '.join(settings.data)}"), title_justify="left", box=None)
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval")
    for name, value in summary.items():
        if not name.endswith(("_low", "_high")):
            low, high = summary.get(f"{name}_low"), summary.get(f"{name}_high")
            table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:,.4f}", f"{low:.4f} to {high:.4f}" if low is not None else "")
    console.print(table)
    if compared and settings.reference is None:
        say("no reference: give --reference for loss, implicit rewards and their accuracy")
    elif compared:
        say(f"loss: {objective.name} at beta {objective.beta:g}, reference {safe(settings.reference)}")


def _write(out: Path, settings: EvalSettings, objective: Preference, summary: dict[str, Any], found: list[dict[str, Any]], data: Dataset, command: str) -> None:
    if RunFolder(out).started:
        raise DataError(f"{out} is a run folder", remedy="give the evaluation a folder of its own")
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "rows.jsonl", found)
    head = {
        "schema": 1,
        "command": command,
        "model": settings.model,
        "reference": settings.reference,
        "objective": objective.name,
        "beta": objective.beta,
        "data": data.account,
    }
    write_json(out / "report.json", {**head, "summary": {f"eval_{name}": value for name, value in summary.items()}})
    say(f"written: {safe(out / 'report.json')} and {safe(out / 'rows.jsonl')}")
