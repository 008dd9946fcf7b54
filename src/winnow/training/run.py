"""What SFT and preference training share: from resolved settings to a finished run folder,
resumable anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from winnow.config.options import Follow, parse_lora
from winnow.config.resolve import Resolved
from winnow.config.training import BESIDES, TrainSettings
from winnow.data.dataset import Dataset, stop_on_errors
from winnow.data.packing import most_expensive, pack
from winnow.engine.base import Engine
from winnow.engine.batch import collate
from winnow.engine.fast import SEGMENTS, VARLEN
from winnow.engine.micro_batches import Data
from winnow.engine.selection import engine_for
from winnow.errors import DataError, NothingLeft, RunError
from winnow.generation import prompts as asking
from winnow.models import hashes, loading, reward_models
from winnow.models.device import LITTLE, MUCH, keep_memory
from winnow.models.fsdp import gathered, shard, whole
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
from winnow.training.job import TrainingJob, begin_job
from winnow.training.live import Live
from winnow.training.loop import Training, fit
from winnow.training.metrics import MetricsFile
from winnow.training.optimizer import Optimizer
from winnow.training.plan import memory_line
from winnow.training.references import ReferenceModel, Scorer
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
    scored = _scored(job, loaded, engine, source_model)
    scorer = scored.scorer
    progress = _restore(job, optimizer, scored.kept, live)
    if job.differ:
        job.change()
    run_record.note(job.run, engine=engine.NAME, parameters=counts, **scored.told)
    run_record.say_head(
        loaded, counts, engine.NAME, job.plan, job.settings, job.train_set, job.held_out
    )
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
            _epochs(job, scored.sets[0], source_model, scorer),
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
    run_record.note(job.run, held_out=told, saved_step=saved_step, known=learnt, sealed=True)
    state = gathered(loaded.net)
    with whole(loaded.net):  # so that the model's configuration tells the dtype it computes in
        if leads():
            loading.save(loaded.model, job.renderer.tokenizer, job.run.model, state)
    if leads():
        job.run.seal()
    say(f"model:  {safe(job.run.model)}")


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
        settings.model,
        dtype=settings.dtype,
        device=settings.device,
        quantize=settings.quantize,
        lora=parse_lora(settings.lora),
        seed=settings.seed,
        train=True,
        trust_remote_code=settings.trust_remote_code,
    )


def _scored_by(job: TrainingJob) -> LoadedModel:
    """The reward model that is trained."""
    settings = job.settings
    loaded = reward_models.load(
        settings.model,
        dtype=settings.dtype,
        device=settings.device,
        lora=parse_lora(settings.lora),
        seed=settings.seed,
        train=True,
        trust_remote_code=settings.trust_remote_code,
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


@dataclass(frozen=True)
class Scored:
    """Who scores the reference; the checkpoint to go on from; the identity of both; all sets with
    their reference log-probs; and what is recorded of weights and reference.
    """

    scorer: Scorer | None
    kept: Checkpoint | None
    identity: dict[str, Any]
    sets: list[Data]
    told: dict[str, Any]


def _scored(
    job: TrainingJob, loaded: LoadedModel, engine: Engine, source_model: ReferenceModel
) -> Scored:
    """What is known when the reference has been asked. Another reference model than the policy is
    in memory while this runs, and not after.
    """
    with source_model() as source:
        with whole(loaded.net):
            scorer = _scorer(job, loaded, source, engine) if job.stored else None
            names = [scorer.identity(source, one) if scorer else None for one in job.sets]
            weights = hashes.weights_hash(loaded.model)
            shown = None
            if job.objective.reference:
                shown = references.described(
                    job.reference or job.settings.model,
                    source,
                    names[0],
                    len(job.renderer.tokenizer),
                )
        identity = {
            "settings": job.settings_hash,
            "data": [one.account.fingerprint for one in job.sets],
            "weights": weights,
            "reference": names,
        }
        distributed.same("settings, data, weights or reference", identity)
        distributed.same("the plan", asdict(job.plan))
        kept = run_record.newest(job.run, identity, job.settings.allow_change, BESIDES)
        told = {"weights_hash": weights, "reference": shown}
        asked = [
            scorer.score(source, one, name) if scorer and name else None
            for one, name in zip(job.sets, names)
        ]
        sets = [
            Data(one.groups, one.shares, known, whole=job.objective.rewards)
            for one, known in zip(job.sets, asked)
        ]
        return Scored(scorer, kept, identity, sets, told)


def _scorer(job: TrainingJob, loaded: LoadedModel, source: LoadedModel, engine: Engine) -> Scorer:
    """How the reference is asked: as the policy is, where it is the policy."""
    theirs = (
        engine
        if source.model is loaded.model
        else engine_for(source, job.settings.engine, job.longest, train=False)
    )
    new_adapter = source.model is loaded.model and job.settings.lora is not None
    return Scorer(
        theirs, job.plan.tokens, hashes.source_hash(source.model, new_adapter=new_adapter)
    )


def _epochs(
    job: TrainingJob, first: Data, source_model: ReferenceModel, scorer: Scorer | None
) -> Callable[[int], Data]:
    """The training data by number of the epoch: always the same, or of a stream the next window,
    scored when it comes.
    """

    def epoch(number: int) -> Data:
        if job.settings.stream is None:
            return first
        if number == 0:
            run_record.window(job.run, number, job.train_set, job.plan.tokens)
            return first
        try:
            one = _window(job, number)
        except NothingLeft as empty:
            run_record.empty_window(job.run, number, empty)
            return Data([], [], None)
        run_record.window(job.run, number, one, job.plan.tokens)
        if scorer is None:
            return Data(one.groups, one.shares, None, whole=job.objective.rewards)
        with source_model() as source:
            with whole(source.net):
                name = scorer.identity(source, one)
            return Data(one.groups, one.shares, scorer.score(source, one, name))

    return epoch


def _window(job: TrainingJob, number: int) -> Dataset:
    """Window `number` of a stream. Raises DataError, in all processes where it is unusable in one
    of them; NothingLeft; RunError where it is another one than when it was first read.
    """
    found: Dataset | DataError
    try:
        found = job.epochs(number)
        stop_on_errors(found)
    except DataError as error:
        found = error
    wrong = [
        text
        for text in distributed.gather(
            "" if isinstance(found, Dataset | NothingLeft) else found.what
        )
        if text
    ]
    if wrong:
        rest = f"{found.remedy}; " if isinstance(found, DataError) and found.remedy else ""
        raise DataError(
            wrong[0],
            remedy=f"{rest}mend the data and give the same command again: it goes on from here",
        )
    distributed.same(
        f"window {number + 1} of the data",
        found.account.fingerprint if isinstance(found, Dataset) else "nothing is left of it",
    )
    if isinstance(found, DataError):
        raise found
    run_record.same_window(job.run, number, found, job.settings.allow_change)
    return found


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
    """The checkpoint's state put back; the start where there is none. Raises RunError where it is
    not this training's, or beyond its end.
    """
    if kept is None:
        return Progress()
    progress = kept.progress
    if progress.step > job.plan.steps:
        raise RunError(
            f"{job.run.root}: {progress.step} steps are done, and steps is {job.plan.steps}",
            remedy=f"--steps {progress.step} or more",
        )
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
