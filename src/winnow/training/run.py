"""What SFT and preference training share: from resolved settings to a finished run folder,
resumable anywhere.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from winnow.config.model_spec import model_spec
from winnow.config.options import Follow, parse_lora
from winnow.config.resolve import Resolved
from winnow.config.training import TrainSettings
from winnow.data.packing import most_expensive, pack
from winnow.engine.base import Engine
from winnow.engine.batch import collate
from winnow.engine.fast import SEGMENTS, VARLEN
from winnow.engine.micro_batches import Data
from winnow.engine.selection import engine_for
from winnow.generation import prompts as asking
from winnow.models import loading, reward_models
from winnow.models.device import LITTLE, MUCH, keep_memory
from winnow.models.fsdp import shard
from winnow.models.layers import compile_layers, enable_checkpointing
from winnow.models.loading import LoadedModel
from winnow.objectives.objective import Objective
from winnow.system import distributed, signals
from winnow.system.console import ProgressBar, safe, say
from winnow.system.launch import leads
from winnow.system.run_folder import RunFolder
from winnow.training import checkpoint, monitoring, references, run_record
from winnow.training.checkpoint import Checkpoint, Progress, Saver
from winnow.training.final_evaluation import measured
from winnow.training.head import say_head
from winnow.training.job import TrainingJob, begin_job
from winnow.training.live import Live
from winnow.training.loop import Training, fit
from winnow.training.metrics import MetricsFile
from winnow.training.optimizer import Optimizer
from winnow.training.plan import memory_line
from winnow.training.scored_data import Scored, ask_reference, epochs
from winnow.training.startup_checks import check_identity, rehearse
from winnow.training.utilization import limit_of


def train(
    resolved: Resolved[Any],
    recipe: str,
    objective: Objective,
    *,
    command: str = "",
    reference_model: str | None = None,
    follow: Follow | None = None,
    kl_samples: int = 0,
) -> RunFolder:
    """Run, or resume, or notice that it is finished; the report is the caller's. Raises before
    anything is loaded when settings or data cannot be used.
    """
    run = RunFolder(resolved.settings.out)
    distributed.begin(resolved.settings.rank_timeout)
    with ExitStack() as held, distributed.watched():
        with distributed.leader_first():
            if leads():
                run.create()
                held.enter_context(run.lock())
            job = begin_job(
                resolved, run, recipe, objective, command, reference_model, follow, kl_samples
            )
        if job is not None:
            say(memory_line(job.settings, job.train_set, job.plan.tokens))
            _run(job)
    return run


def _run(job: TrainingJob) -> None:
    loaded = _scored_by(job) if job.objective.rewards else _policy(job.settings)
    counts = loading.parameter_counts(loaded.model)
    engine = _engine(job, loaded)
    distributed.same("the engine that is right for the model", engine.NAME)
    limit = limit_of(loaded.model, loaded.device)
    loaded = replace(loaded, shards=shard(loaded.model))
    live = (
        Live(loaded.net, engine, follow=job.follow, distributions=job.objective.live)
        if job.live
        else None
    )
    optimizer = _rehearsed(job, loaded, engine, live)
    probe = _probe(job)
    drift = job.kl_samples > 0 and bool(job.held_out and probe.prompts)
    # the next window's reference is asked later
    again = job.settings.stream is not None and job.stored
    source_model = references.model_of(job.settings, loaded, job.reference, later=drift or again)
    scored = ask_reference(job, loaded, engine, source_model)
    scorer = scored.scorer
    progress = _restore(job, optimizer, scored.kept, live)
    if job.differ:
        job.change()
    run_record.note(job.run, engine=engine.NAME, parameters=counts, **scored.told)
    say_head(loaded, counts, engine.NAME, job.plan, job.settings, job.train_set, job.held_out)
    if not probe.prompts and not job.objective.rewards:
        say(
            f"no prompt leaves room for an answer of {probe.room} tokens: there are no samples, and"
            " no kl"
        )
    if progress.step == 0:
        _check_start(job, loaded, scored.sets[0], engine, live)
        if probe.prompts:
            monitoring.write(job.run, loaded, job.renderer.tokenizer, probe, 0)
    with ProgressBar("training", job.plan.steps, progress.step) as steps, signals.patient():
        progress = fit(
            Training(loaded.net, optimizer, job.plan, job.objective, engine, limit, live),
            progress,
            epochs(job, scored.sets[0], source_model, scorer),
            dict(zip(job.held_out, scored.sets[1:])),
            saver=_saver(job, scored.identity),
            metrics=_metrics(job, progress),
            show=steps.show,
            besides=(
                monitoring.drift_from(
                    source_model,
                    loaded,
                    probe,
                    job.kl_samples,
                    job.settings.seed,
                    engine,
                    scorer.engine if scorer else engine,
                )
                if drift
                else None
            ),
        )
    _finish(job, loaded, optimizer, engine, probe, scored, progress)


def _finish(
    job: TrainingJob,
    loaded: LoadedModel,
    optimizer: Optimizer,
    engine: Engine,
    probe: asking.Probe,
    scored: Scored,
    progress: Progress,
) -> None:
    """The saved step measured and sampled from, the model written, the run sealed."""
    learnt, saved_step = progress.known, progress.step
    if (
        job.plan.save_best
        and progress.best_step is not None
        and progress.best_step != progress.step
    ):
        best = checkpoint.load(job.run.checkpoints / f"step_{progress.best_step}")
        optimizer.load_weights(best.weights)
        learnt, saved_step = best.progress.known, best.progress.step
        say(
            f"model/ is step {progress.best_step}, where the held-out loss was lowest:"
            f" {progress.best_loss:.4f}"
        )
    if probe.prompts:
        monitoring.write(job.run, loaded, job.renderer.tokenizer, probe, progress.step)
    told = measured(
        job.objective,
        loaded.net,
        dict(zip(job.held_out, scored.sets[1:])),
        engine,
        job.plan.tokens,
        loaded.device,
        learnt,
    )
    run_record.finish(
        job.run,
        loaded,
        job.renderer.tokenizer,
        held_out=told,
        saved_step=saved_step,
        known=learnt,
    )


def _probe(job: TrainingJob) -> asking.Probe:
    """Prompts to be answered meanwhile; a reward model answers none."""
    if job.objective.rewards:
        return asking.Probe([], 0, 0)
    return asking.probe(job.held_out, job.train_set, job.renderer, job.settings.seed)


def _saver(job: TrainingJob, identity: dict[str, Any]) -> Saver:
    return Saver(
        job.run.checkpoints,
        identity,
        keep=job.plan.keep,
        keep_best=job.plan.save_best,
        aside=job.settings.async_save,
    )


def _metrics(job: TrainingJob, progress: Progress) -> MetricsFile:
    return MetricsFile(
        job.run.metrics,
        trackers=job.settings.trackers,
        resume_at=progress.step,
        evaluated=progress.evaluated,
    )


def _policy(settings: TrainSettings) -> LoadedModel:
    return loading.load(
        model_spec(settings, settings.model),
        quantize=settings.quantize,
        lora=parse_lora(settings.lora),
        seed=settings.seed,
        train=True,
    )


def _scored_by(job: TrainingJob) -> LoadedModel:
    """The reward model that is trained."""
    settings = job.settings
    loaded = reward_models.load(
        model_spec(settings, settings.model),
        lora=parse_lora(settings.lora),
        seed=settings.seed,
        train=True,
    )
    reward_models.choose_padding(loaded.model, job.renderer)
    return loaded


def _engine(job: TrainingJob, loaded: LoadedModel) -> Engine:
    """How the policy is computed: its layers compiled or recomputed as asked, and the engine that
    is right for them.
    """
    keep_memory(LITTLE if job.settings.checkpointing else MUCH)
    if job.settings.compile:
        compile_layers(loaded.model)
    engine = engine_for(loaded, job.settings.engine, job.longest, train=True)
    if job.settings.engine == "auto" and engine.NAME not in (SEGMENTS.NAME, VARLEN.NAME):
        say(
            f"memory: engine {engine.NAME} holds more than was told above, which is for"
            f" {SEGMENTS.NAME}"
        )
    if job.settings.checkpointing:
        enable_checkpointing(loaded.model)
    return engine


def _rehearsed(
    job: TrainingJob, loaded: LoadedModel, engine: Engine, live: Live | None
) -> Optimizer:
    """The optimizer, after the most expensive micro-batch was computed once."""
    settings = job.settings
    optimizer = Optimizer(
        loaded.net, kind=settings.optimizer, weight_decay=settings.weight_decay, clip=settings.clip
    )
    groups = job.train_set.groups
    largest = most_expensive(groups, job.plan.tokens, job.plan.batch_size)
    rehearse(
        loaded.net,
        collate([groups[i] for i in largest], largest, whole=job.objective.rewards).to(
            loaded.device
        ),
        engine,
        optimizer,
        job.objective.want,
        live,
    )
    return optimizer


def _check_start(
    job: TrainingJob, loaded: LoadedModel, data: Data, engine: Engine, live: Live | None
) -> None:
    """Where the reference is the policy itself, its log-ratios at step 0 are 0: raises
    otherwise.
    """
    if not job.objective.reference:
        return
    if job.reference is not None:
        say(
            f"reference: {safe(job.reference)}, asked for by name, so the policy need not equal it"
            " at step 0: that check is skipped"
        )
        return
    few = [data.groups[i] for i in range(min(4, len(data.groups)))]
    batch, other = data.batch(pack(few, job.plan.tokens)[0]).to(loaded.device), None
    if live:
        batch, other = live.ask(loaded.net, batch)
    seen = check_identity(loaded.net, batch, objective=job.objective, engine=engine, other=other)
    say(
        f"start: policy = reference within {seen['noise']:.1e} nats per token; loss"
        f" {seen['loss']:.6f}, expected {seen['expected']:.6f}"
    )


def _restore(
    job: TrainingJob, optimizer: Optimizer, kept: Checkpoint | None, live: Live | None
) -> Progress:
    """The checkpoint's state put back; the start where there is none."""
    if kept is None:
        return Progress()
    progress = kept.progress
    optimizer.load_weights(kept.weights)
    if "optimizer" in job.differ:
        say("[yellow]changed:[/] another optimizer: its moments begin at 0")
    else:
        optimizer.load_state(kept.optimizer)
    if live:
        live.load(kept.reference)
    say(f"resumed at step {progress.step}")
    best = job.run.checkpoints / f"step_{progress.best_step}"
    gone = (
        job.plan.save_best
        and progress.best_step is not None
        and bool(checkpoint.complaints(best, share=True))
    )
    if gone or job.differ:  # a loss of other data, or of another objective, is none to compare with
        if gone:
            say(
                f"[yellow]best:[/] {safe(best)} is gone or damaged: the best one from here on is"
                " taken"
            )
        progress = replace(progress, best_step=None, best_loss=None)
    return progress
