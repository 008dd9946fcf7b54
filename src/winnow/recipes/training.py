"""What SFT and preference training share: from resolved settings to a finished run folder, resumable anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from winnow import models, report
from winnow.batch import collate
from winnow.config import Resolved, TrainSettings, parse_lora
from winnow.console import Steps, safe, say
from winnow.data.dataset import Dataset, stop_on_errors
from winnow.data.pack import most_expensive
from winnow.data.render import Renderer
from winnow.engine import rows
from winnow.engine.api import Engine
from winnow.errors import RunError
from winnow.files import RunFolder, cache_folder, read_json, sha256_json
from winnow.models import LoadedModel
from winnow.objectives.table import Objective, Preference
from winnow.recipes import record, samples
from winnow.recipes.engines import engine_for
from winnow.recipes.planning import memory_line, planned, prepared
from winnow.train import checkpoint, reference
from winnow.train.checkpoint import Checkpoint, Progress
from winnow.train.limit import limit_of
from winnow.train.loop import Data, Plan, fit
from winnow.train.metrics import MetricsFile, require
from winnow.train.optim import Optimizer
from winnow.train.reference import Frozen, Reference
from winnow.train.start import check_identity, fingerprint, rehearse


def train(
    resolved: Resolved[Any], recipe: str, objective: Objective, *, command: str = "", reference_model: str | None = None, kl_samples: int = 0
) -> RunFolder:
    """Run, or resume, or notice that it is finished. Raises before anything is loaded when settings or data cannot be used."""
    settings: TrainSettings = resolved.settings
    run = RunFolder(settings.out)
    run.create()
    with run.lock():
        if run.metrics.exists() or checkpoint.saved(run.checkpoints):  # a run that computed nothing yet may be begun again with other settings
            record.same_settings(run, resolved)
            if run.finished:
                say(f"{safe(run.root)}: already finished (report: {safe(run.report_html)}); nothing to do")
                return run
        asked = record.asked(resolved)
        renderer, epochs, held_out = prepared(settings, "demonstration" if recipe == "sft" else "preference")
        train_set = epochs(0)
        stop_on_errors(train_set, *held_out.values())
        resolved, plan = planned(resolved, train_set)
        require(settings.trackers)
        possible(settings, renderer, reference_model)
        if checkpoint.saved(run.checkpoints):
            record.same_data(run, train_set)
        else:
            record.write_head(run, resolved, asked, recipe, plan, train_set, held_out, command)
        say(memory_line(settings, train_set, plan.tokens))
        loaded = models.load(
            settings.model,
            dtype=settings.dtype,
            device=settings.device,
            lora=parse_lora(settings.lora),
            seed=settings.seed,
            train=True,
            trust_remote_code=settings.trust_remote_code,
        )
        _run(run, settings, plan, loaded, renderer, train_set, epochs, held_out, objective, reference_model, kl_samples)
    return run


def possible(settings: TrainSettings, renderer: Renderer, reference_model: str | None) -> None:
    """Raises ModelError for what model, adapter, device and reference will not do, without loading a weight."""
    models.pick_device(settings.device)
    lora = parse_lora(settings.lora)
    if lora is not None:
        models.refuse_second_adapter(settings.model)
        models.count_from_config(models.load_config(settings.model, trust_remote_code=settings.trust_remote_code), lora, settings.trust_remote_code)
    if reference_model is not None:
        models.load_config(reference_model, trust_remote_code=settings.trust_remote_code)
        theirs = models.load_tokenizer(reference_model, trust_remote_code=settings.trust_remote_code)
        models.same_tokens(renderer.tokenizer, theirs, reference_model)


def _run(
    run: RunFolder,
    settings: TrainSettings,
    plan: Plan,
    loaded: LoadedModel,
    renderer: Renderer,
    train_set: Dataset,
    epochs: Callable[[int], Dataset],
    held_out: dict[str, Dataset],
    objective: Objective,
    reference_model: str | None,
    kl_samples: int,
) -> None:
    counts = models.parameter_counts(loaded.model)
    longest = max(one.account["tokens"]["longest"] for one in (train_set, *held_out.values()))
    if settings.stream is not None and renderer.limit is not None:
        longest = renderer.limit  # nobody has seen the longest row yet
    if settings.compile:
        models.compile_layers(loaded.model)
    engine = engine_for(loaded, settings.engine, longest, train=True)
    if settings.checkpointing:
        models.enable_checkpointing(loaded.model)
        models.keep_memory(2**20)  # what is asked for is little memory
    optimizer = Optimizer(loaded.model, kind=settings.optimizer, weight_decay=settings.weight_decay, clip=settings.clip)
    largest = most_expensive(train_set.groups, plan.tokens)
    rehearse(loaded.model, collate([train_set.groups[i] for i in largest], largest).to(loaded.device), engine)
    optimizer.forget()
    sets = [train_set, *held_out.values()]
    weights = models.weights_hash(loaded.model)
    source = _load(reference_model, settings) if reference_model else loaded
    scorer = engine if source is loaded else engine_for(source, settings.engine, longest, train=False)
    theirs = weights if source is loaded else models.weights_hash(source.model)
    names = [reference.identity(theirs, one.groups, source.dtype, scorer) if objective.reference else None for one in sets]
    identity = {
        "settings": sha256_json(read_json(run.environment)["settings"]),
        "data": [one.account["fingerprint"] for one in sets],
        "weights": weights,
        "reference": names,
    }
    kept = _newest(run, identity)
    shown = {
        "model": reference_model or settings.model,
        "identity": names[0],
        "dtype": str(source.dtype).removeprefix("torch."),
        "vocabulary": len(renderer.tokenizer),
        "says": fingerprint(rows, source.model, len(renderer.tokenizer)).tolist(),
    }
    record.note(run, engine=engine.NAME, weights_hash=weights, parameters=counts, reference=shown if objective.reference else None)
    found = [_reference(name, one, source, scorer, plan) if name else None for name, one in zip(names, sets)]
    del source
    data, *rest = (Data(one.groups, one.shares, ref) for one, ref in zip(sets, found))
    record.say_head(loaded, counts, engine.NAME, plan, settings, train_set, held_out)
    probe = samples.probe(held_out, train_set, renderer)
    if not probe.prompts:
        say(f"no prompt leaves room for an answer of {probe.room} tokens: there are no samples, and no kl")
    drift = kl_samples > 0 and bool(held_out and probe.prompts)
    scored = settings.stream is not None and objective.reference
    start = _start(settings, loaded, reference_model) if drift or scored else None
    besides = samples.drift_from(start, loaded, probe, kl_samples, settings.seed, engine) if start and drift else None

    def epoch(number: int) -> Data:
        """The training data of an epoch: of a stream its window of that number, scored by the model that training started from."""
        if settings.stream is None or number == 0:
            return data
        one = epochs(number)
        stop_on_errors(one)
        record.say_window(number, one)
        if start is None or not scored:
            return Data(one.groups, one.shares, None)
        with start() as source:
            name = reference.identity(theirs, one.groups, source.dtype, scorer)
            return Data(one.groups, one.shares, _reference(name, one, source, scorer, plan))

    progress = _restore(optimizer, kept)
    if progress.step == 0:
        if isinstance(objective, Preference) and data.reference is not None:
            _check_start(loaded, data, plan, objective, reference_model, engine)
        samples.write(run, loaded, renderer.tokenizer, probe, 0)
    metrics = MetricsFile(run.metrics, trackers=settings.trackers, resume_at=progress.step)
    with Steps("training", plan.steps, progress.step) as steps:
        progress = fit(
            loaded.model,
            optimizer,
            progress,
            plan,
            epoch,
            dict(zip(held_out, rest)),
            objective=objective,
            engine=engine,
            run=run,
            metrics=metrics,
            identity=identity,
            show=steps.show,
            besides=besides,
            limit=limit_of(loaded.model, loaded.device),
        )
    if plan.save_best and progress.best_step is not None and progress.best_step != progress.step:
        optimizer.load_weights(checkpoint.load(run.checkpoints / f"step_{progress.best_step}").weights)
        say(f"model/ is step {progress.best_step}, where the held-out loss was lowest: {progress.best_loss:.4f}")
    samples.write(run, loaded, renderer.tokenizer, probe, progress.step)
    models.save(loaded.model, renderer.tokenizer, run.model)
    report.write(run.root)
    say(f"model:  {safe(run.model)}\nreport: {safe(run.report_html)}")


def _load(name: str, settings: TrainSettings) -> LoadedModel:
    return models.load(name, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code)


def _reference(name: str, one: Dataset, source: LoadedModel, engine: Engine, plan: Plan) -> Reference:
    """The reference log-probs of one set: read where any run has stored them (a few are computed again and compared), else computed."""
    store = cache_folder("reference")
    kept = reference.stored(store, name, one.groups)
    if kept is not None:
        noise = reference.spot_check(engine, source.model, one.groups, kept, plan.tokens, source.device)
        say(f"reference: {len(kept.value):,} log-probs read from {safe(reference.file_of(store, name))}; of a few computed again, all within {noise:.1e} nats")
        return kept
    with Steps("reference", len(one.groups)) as steps:
        value = reference.compute(engine, source.model, one.groups, plan.tokens, source.device, steps.advance)
    kept = Reference(name, value, reference.offsets(one.groups))
    reference.store(store, kept)
    say(f"reference: {len(kept.value):,} log-probs, kept for other runs in {safe(reference.file_of(store, name))}")
    return kept


def _start(settings: TrainSettings, loaded: LoadedModel, reference_model: str | None) -> Callable[[], AbstractContextManager[LoadedModel]]:
    """The model that training starts from, or the reference asked for, whenever it is needed again. To be called before the first step."""
    frozen = Frozen(loaded.model) if reference_model is None else None

    @contextmanager
    def start() -> Iterator[LoadedModel]:
        if frozen is not None:
            with frozen.inside(loaded.model):
                yield loaded
        else:
            yield _load(str(reference_model), settings)

    return start


def _check_start(loaded: LoadedModel, data: Data, plan: Plan, objective: Preference, reference_model: str | None, engine: Engine) -> None:
    if reference_model is not None:
        say(f"reference: {safe(reference_model)}, asked for by name, so the policy need not equal it at step 0: that check is skipped")
        return
    batch = data.micro_batches(range(min(4, len(data.groups))), plan.tokens)[0].to(loaded.device)
    assert data.reference is not None
    seen = check_identity(loaded.model, batch, objective=objective, reference=data.reference, engine=engine)
    say(f"start: policy = reference within {seen['noise']:.1e} nats per token; loss {seen['loss']:.6f}, expected {seen['expected']:.6f}")


def _newest(run: RunFolder, identity: dict[str, Any]) -> Checkpoint | None:
    """The newest intact checkpoint, None where there is none. Raises RunError when it is of other weights, data or reference."""
    kept, complaints = checkpoint.latest(run.checkpoints)
    for complaint in complaints:
        say(f"[yellow]passed over:[/] {safe(complaint)}")
    changed = [name for name, value in identity.items() if kept is not None and kept.identity.get(name) != value]
    if changed:
        raise RunError(f"{run.root}: cannot be resumed: {', '.join(changed)} changed since the checkpoint", remedy="choose another --out")
    return kept


def _restore(optimizer: Optimizer, kept: Checkpoint | None) -> Progress:
    """The checkpoint's state put back; the start where there is none."""
    if kept is None:
        return Progress()
    optimizer.load_weights(kept.weights)
    optimizer.load_state(kept.optimizer)
    say(f"resumed at step {kept.progress.step}")
    return kept.progress
