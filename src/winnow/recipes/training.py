"""What SFT and preference training share: from resolved settings to a finished run folder, resumable anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from winnow import models, report
from winnow.config import Resolved, TrainSettings, parse_lora
from winnow.console import Steps, safe, say
from winnow.data.dataset import Dataset, prepare, stop_on_errors
from winnow.data.pack import budget
from winnow.data.render import Renderer
from winnow.data.stream import epoch_size
from winnow.engine import rows as engine
from winnow.errors import DataError, RunError
from winnow.files import RunFolder, read_json, sha256_json
from winnow.models import LoadedModel
from winnow.objectives.table import Objective, Preference
from winnow.recipes import record, samples
from winnow.train import checkpoint, reference
from winnow.train.checkpoint import Progress
from winnow.train.loop import Data, Plan, fit
from winnow.train.metrics import MetricsFile, Row, require
from winnow.train.optim import Optimizer
from winnow.train.reference import Frozen, Reference
from winnow.train.start import check_identity


def train(
    resolved: Resolved[Any], recipe: str, objective: Objective, *, command: str = "", reference_model: str | None = None, kl_samples: int = 0
) -> RunFolder:
    """Run, or resume, or notice that it is finished. Raises before anything is loaded when settings or data cannot be used."""
    settings: TrainSettings = resolved.settings
    run = RunFolder(settings.out)
    run.create()
    with run.lock():
        if run.started:
            record.same_settings(run, resolved)
            if run.finished:
                say(f"{safe(run.root)}: already finished (report: {safe(run.report_html)}); nothing to do")
                return run
        asked = record.asked(resolved)
        renderer, train_set, held_out = prepared(settings, "demonstration" if recipe == "sft" else "preference")
        stop_on_errors(train_set, *held_out.values())
        resolved, plan = planned(resolved, train_set)
        models.pick_device(settings.device)
        require(settings.trackers)
        if checkpoint.saved(run.checkpoints):
            record.same_data(run, train_set)
        else:
            record.write_head(run, resolved, asked, recipe, plan, train_set, held_out, command)
        loaded = models.load(
            settings.model,
            dtype=settings.dtype,
            device=settings.device,
            lora=parse_lora(settings.lora),
            seed=settings.seed,
            train=True,
            trust_remote_code=settings.trust_remote_code,
        )
        _run(run, settings, plan, loaded, renderer, train_set, held_out, objective, reference_model, kl_samples)
    return run


def with_rate(resolved: Resolved[Any], full: float, adapter: float) -> Resolved[Any]:
    """The recipe's default rate where none was asked for: adapters take a higher one."""
    settings: TrainSettings = resolved.settings
    if settings.lr is not None:
        return resolved
    light = settings.lora is not None or models.is_adapter_folder(settings.model)
    return resolved.fill(f"default for {'an adapter' if light else 'full weights'}", lr=adapter if light else full)


def prepared(settings: TrainSettings, kind: Any) -> tuple[Renderer, Dataset, dict[str, Dataset]]:
    """Tokenizer and data, before any model is loaded."""
    tokenizer = models.load_tokenizer(settings.model, trust_remote_code=settings.trust_remote_code)
    if settings.chat_template is not None:
        tokenizer.chat_template = settings.chat_template.read_text()
    longest = models.length_limit(settings.model, trust_remote_code=settings.trust_remote_code)
    if settings.max_length is not None and longest is not None and settings.max_length > longest:
        raise DataError(f"max_length {settings.max_length} is beyond the model's limit of {longest} tokens")
    renderer = Renderer(tokenizer, limit=settings.max_length or longest, may_cut=settings.max_length is not None)
    train_set, held_out = prepare(settings.data, renderer, settings, kind, held_out=settings.eval_data, fraction=settings.eval_fraction, seed=settings.seed)
    return renderer, train_set, held_out


def planned(resolved: Resolved[Any], train_set: Dataset) -> tuple[Resolved[Any], Plan]:
    """Settings that depend on the data, filled in with their origin, and the plan in steps."""
    settings: TrainSettings = resolved.settings
    size = epoch_size(train_set.shares)
    if size < settings.batch_size:
        raise DataError(f"an epoch has {size} groups, fewer than batch_size {settings.batch_size}", remedy=f"--batch-size {size} or less")
    if settings.steps is None:
        epochs = 1.0 if settings.epochs is None else settings.epochs
        steps = max(1, math.ceil(math.ceil(size / settings.batch_size) * epochs - 1e-9))
        if settings.epochs is None:
            resolved = resolved.fill("default", epochs=epochs)
    else:
        steps = settings.steps
    warmup = round(settings.warmup * steps) if settings.warmup < 1 else round(settings.warmup)
    if resolved.origins["warmup"].startswith("preset") and warmup > steps // 10:
        warmup = max(1, steps // 10)
        resolved = resolved.fill(f"{resolved.origins['warmup']}, capped at 10 % of {steps} steps", warmup=float(warmup))
    elif warmup > steps:
        raise DataError(f"warmup of {warmup} steps is longer than the run of {steps}", remedy="--warmup 0.1")
    if settings.max_tokens is None:
        resolved = resolved.fill("default: 4096, or what the largest group needs", max_tokens=budget(train_set.groups, None))
    settings = resolved.settings
    assert settings.lr is not None
    plan = Plan(
        steps=steps,
        warmup=warmup,
        lr=settings.lr,
        schedule=settings.schedule,
        batch_size=settings.batch_size,
        tokens=budget(train_set.groups, settings.max_tokens),
        seed=settings.seed,
        eval_every=settings.eval_every or max(1, steps // 10),
        save_every=settings.save_every,
        keep=settings.keep,
        save_best=settings.save_best,
    )
    return resolved, plan


def _run(
    run: RunFolder,
    settings: TrainSettings,
    plan: Plan,
    loaded: LoadedModel,
    renderer: Renderer,
    train_set: Dataset,
    held_out: dict[str, Dataset],
    objective: Objective,
    reference_model: str | None,
    kl_samples: int,
) -> None:
    counts = models.parameter_counts(loaded.model)
    if settings.checkpointing:
        models.enable_checkpointing(loaded.model)
    optimizer = Optimizer(loaded.model, kind=settings.optimizer, weight_decay=settings.weight_decay, clip=settings.clip)
    sets = [train_set, *held_out.values()]
    weights = models.weights_hash(loaded.model)
    found = _references(run, settings, plan, loaded, weights, sets, objective, reference_model)
    data, *rest = (Data(one.groups, one.shares, ref) for one, ref in zip(sets, found))
    identity = {
        "settings": sha256_json(read_json(run.environment)["settings"]),
        "data": [one.account["fingerprint"] for one in sets],
        "weights": weights,
        "reference": [r.identity if r else None for r in found],
    }
    record.note(
        run,
        weights_hash=weights,
        parameters=counts,
        reference={"identity": found[0].identity, "model": reference_model or settings.model} if found[0] else None,
    )
    record.say_head(loaded, counts, plan, settings, train_set, held_out)
    probe = samples.probe(held_out, train_set, renderer)
    besides = _drift(settings, loaded, reference_model, probe, kl_samples) if kl_samples and held_out else None
    progress = _restore(run, optimizer, identity)
    if progress.step == 0:
        if isinstance(objective, Preference) and data.reference is not None:
            _check_start(loaded, data, plan, objective, reference_model)
        samples.write(run, loaded, renderer.tokenizer, probe, 0)
    metrics = MetricsFile(run.metrics, trackers=settings.trackers, resume_at=progress.step)
    with Steps("training", plan.steps, progress.step) as steps:
        progress = fit(
            loaded.model,
            optimizer,
            progress,
            plan,
            data,
            dict(zip(held_out, rest)),
            objective=objective,
            engine=engine,
            run=run,
            metrics=metrics,
            identity=identity,
            show=steps.show,
            besides=besides,
        )
    if plan.save_best and progress.best_step is not None and progress.best_step != progress.step:
        optimizer.load_weights(checkpoint.load(run.checkpoints / f"step_{progress.best_step}").weights)
        say(f"model/ is step {progress.best_step}, where the held-out loss was lowest: {progress.best_loss:.4f}")
    samples.write(run, loaded, renderer.tokenizer, probe, progress.step)
    models.save(loaded.model, renderer.tokenizer, run.model)
    report.write(run.root)
    say(f"model:  {safe(run.model)}\nreport: {safe(run.report_html)}")


def _references(
    run: RunFolder,
    settings: TrainSettings,
    plan: Plan,
    loaded: LoadedModel,
    weights: str,
    sets: Sequence[Dataset],
    objective: Objective,
    reference_model: str | None,
) -> list[Reference | None]:
    """The reference log-probs of every set: read where they are stored, computed where not."""
    if not objective.reference:
        return [None] * len(sets)
    other = None
    if reference_model is not None:
        other = models.load(reference_model, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code)
        weights = models.weights_hash(other.model)
    source = other or loaded
    dtype = next(source.model.parameters()).dtype
    found: list[Reference | None] = []
    for one in sets:
        name = reference.identity(weights, one.groups, dtype, engine)
        kept = reference.stored(run.reference, name, one.groups)
        if kept is None:
            with Steps("reference", len(one.groups)) as steps:
                value = reference.compute(engine, source.model, one.groups, plan.tokens, source.device, steps.advance)
            kept = Reference(name, value, reference.offsets(one.groups))
            reference.store(run.reference, kept)
        found.append(kept)
    return found


def _drift(settings: TrainSettings, loaded: LoadedModel, reference_model: str | None, probe: samples.Probe, count: int) -> Callable[[int], Row]:
    """What an evaluation measures on the policy's own samples. To be called while the policy still is what training starts from."""
    start = Frozen(loaded.model) if reference_model is None else None

    @contextmanager
    def reference() -> Iterator[LoadedModel]:
        if start is not None:
            with start.inside(loaded.model):
                yield loaded
        else:
            yield models.load(str(reference_model), dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code)

    return samples.drift_from(reference, loaded, probe, count, settings.seed)


def _check_start(loaded: LoadedModel, data: Data, plan: Plan, objective: Preference, reference_model: str | None) -> None:
    if reference_model is not None:
        say(f"reference: {safe(reference_model)}, asked for by name, so the policy need not equal it at step 0: that check is skipped")
        return
    batch = data.micro_batches(range(min(4, len(data.groups))), plan.tokens, loaded.device)[0]
    assert data.reference is not None
    seen = check_identity(loaded.model, batch, objective=objective, reference=data.reference, engine=engine)
    say(f"start: policy = reference within {seen['noise']:.1e} nats per token; loss {seen['loss']:.6f}, expected {seen['expected']:.6f}")


def _restore(run: RunFolder, optimizer: Optimizer, identity: dict[str, Any]) -> Progress:
    """Progress of the newest intact checkpoint, its state put back; the start where there is none."""
    kept, complaints = checkpoint.latest(run.checkpoints)
    for complaint in complaints:
        say(f"[yellow]passed over:[/] {safe(complaint)}")
    if kept is None:
        return Progress()
    changed = [name for name, value in identity.items() if kept.identity.get(name) != value]
    if changed:
        raise RunError(f"{run.root}: cannot be resumed: {', '.join(changed)} changed since the checkpoint", remedy="choose another --out")
    optimizer.load_weights(kept.weights)
    optimizer.load_state(kept.optimizer)
    say(f"resumed at step {kept.progress.step}")
    return kept.progress
