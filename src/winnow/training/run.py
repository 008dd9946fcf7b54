"""What SFT and preference training share: from resolved settings to a finished run folder,
resumable anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from winnow.config.options import BESIDES, Follow, TrainSettings, parse_lora, scores
from winnow.config.resolve import Resolved
from winnow.data.dataset import Dataset, Wanted, stop_on_errors
from winnow.data.packing import most_expensive, pack
from winnow.data.render import Renderer
from winnow.engine.base import Engine
from winnow.engine.batch import collate
from winnow.engine.fast import SEGMENTS, VARLEN
from winnow.engine.micro_batches import Data
from winnow.engine.selection import engine_for
from winnow.errors import DataError, ModelError, NothingLeft, RunError, SettingsError
from winnow.generation import prompts as asking
from winnow.models import hashes, loading, meta, reward_models
from winnow.models.device import LITTLE, MUCH, keep_memory, pick_device
from winnow.models.fsdp import gathered, shard, whole
from winnow.models.layers import compile_layers, enable_checkpointing
from winnow.models.loading import LoadedModel
from winnow.objectives.objective import Objective
from winnow.system import distributed, signals
from winnow.system.console import ProgressBar, safe, say
from winnow.system.files import cache_folder, make_writable, read_json, tidy
from winnow.system.launch import count, leads
from winnow.system.run_folder import RunFolder
from winnow.training import checkpoint, monitoring, references, run_record
from winnow.training.checkpoint import Checkpoint, Progress
from winnow.training.final_evaluation import measured
from winnow.training.live import Live
from winnow.training.loop import Plan, Training, fit
from winnow.training.metrics import MetricsFile, require
from winnow.training.optimizer import Optimizer
from winnow.training.plan import memory_line, planned, prepared, refuse_quantized, wanted
from winnow.training.references import ReferenceModel, Scorer
from winnow.training.saver import Saver
from winnow.training.startup_checks import check_identity, rehearse
from winnow.training.utilization import limit_of


@dataclass(frozen=True)
class TrainingJob:
    """A training before its model is loaded. `epochs`: the training set by number of the epoch;
    `train_set` is the first.
    """

    run: RunFolder
    settings: TrainSettings
    plan: Plan
    renderer: Renderer
    epochs: Callable[[int], Dataset]
    train_set: Dataset
    held_out: dict[str, Dataset]  # by metric prefix
    objective: Objective
    reference: str | None  # another reference model than the policy at step 0
    follow: Follow | None  # how the reference follows the policy
    kl_samples: int
    differ: run_record.Differences  # what is another one than when the run was begun, as allowed
    settings_hash: str  # of what numbers depend on
    change: Callable[[], None]  # writes down that the run goes on otherwise

    @property
    def sets(self) -> list[Dataset]:
        """All that is known before the first step."""
        return [self.train_set, *self.held_out.values()]

    @property
    def live(self) -> bool:
        """Whether the reference is asked at every step, and not in advance."""
        return self.objective.live or self.follow is not None

    @property
    def stored(self) -> bool:
        """Whether the reference's log-probs are computed in advance."""
        return self.objective.reference and not self.live

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence; of a stream, of which nobody has seen it yet, the most
        there can be.
        """
        seen = max(one.account["tokens"]["longest"] for one in self.sets)
        return seen if self.settings.stream is None else self.renderer.limit or seen


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
            job = _job(
                resolved, run, recipe, objective, command, reference_model, follow, kl_samples
            )
        if job is not None:
            say(memory_line(job.settings, job.train_set, job.plan.tokens))
            _run(job)
    return run


def _job(
    resolved: Resolved[Any],
    run: RunFolder,
    recipe: str,
    objective: Objective,
    command: str,
    reference_model: str | None,
    follow: Follow | None,
    kl_samples: int,
) -> TrainingJob | None:
    """Everything up to the model; None where the run is finished. Raises before anything is written
    when settings or data cannot be used.
    """
    settings: TrainSettings = resolved.settings
    begun = checkpoint.saved(run.checkpoints)
    # a run that computed nothing yet may be begun again with other settings
    differ = run_record.other_settings(run, resolved) if begun or run.metrics.exists() else {}
    run_record.refuse(run, differ, [name for name in differ if name not in settings.allow_change])
    if run.finished and not differ:
        say(f"{safe(run.root)}: already finished (report: {safe(run.report_html)}); nothing to do")
        return None
    asked = run_record.asked(resolved)
    renderer, epochs, held_out = prepared(
        settings,
        Wanted("demonstration") if recipe == "sft" else wanted(objective, resolved.settings.pairs),
    )
    train_set = epochs(0)
    stop_on_errors(train_set, *held_out.values())
    # the memory that is free now, or beside another process, would cut micro-batches otherwise
    if (begun or not leads()) and settings.max_tokens == "auto" and "max_tokens" not in differ:
        resolved = resolved.fill(
            "auto, when the run began",
            max_tokens=read_json(run.environment)["settings"]["max_tokens"],
        )
    resolved, plan = planned(resolved, train_set)
    refuse_idle(objective, train_set, plan, follow)
    require(settings.trackers)
    if settings.dtype == "bfloat16" and pick_device(settings.device).type == "cpu":
        raise ModelError(
            "training in bfloat16 is for GPUs: a CPU emulates it, slower than float32",
            remedy="--dtype float32",
        )
    untried = "compile" if settings.compile else "quantize" if settings.quantize else ""
    if untried and count() > 1:
        raise SettingsError(
            f"{untried}: with several processes nobody has tried it",
            remedy=f"leave --{untried} away",
        )
    if objective.reference and not objective.live and follow is None:
        make_writable(cache_folder("reference"), "export WINNOW_CACHE=a folder with room")
    possible(settings, renderer, reference_model)
    if begun:
        other = run_record.other_data(run, train_set, renderer)
        run_record.refuse(
            run,
            differ | other,
            [name for name in other if not run_record.may_differ(name, settings.allow_change)],
        )
        differ |= other

    def head() -> None:
        if leads():
            run.unfinish()
            run_record.write_head(
                run, resolved, asked, recipe, plan, (train_set, held_out), renderer, command, differ
            )

    if leads():
        tidy(run.root)
        tidy(run.checkpoints)
    if not begun:
        head()
    known = run_record.settings_hash(resolved.settings.model_dump(by_alias=True, mode="json"))
    return TrainingJob(
        run,
        settings,
        plan,
        renderer,
        epochs,
        train_set,
        held_out,
        objective,
        reference_model,
        follow,
        kl_samples,
        differ,
        known,
        head,
    )


def refuse_idle(
    objective: Objective, train_set: Dataset, plan: Plan, follow: Follow | None
) -> None:
    """Raises for what would do nothing on this data: members without anything to count, margins
    that are not there, a reference that never moves.
    """
    account = train_set.account
    for term in objective.terms:
        lacks = [side for side in ("good", "bad") if not account[side]]
        if (term.entry.batch == "quantile_sides" and lacks) or (
            term.entry.unit == "token" and account["labels"] and "good" in lacks
        ):
            raise DataError(
                f"{term.choice.name}: the data has no {lacks[0]} answer to learn from",
                remedy="another objective, or labels of both kinds",
            )
    if objective.margins and not account["margins"]:
        raise DataError(
            "offset: the data has no margins or score gaps, so there is nothing to offset",
            remedy="leave offset away, or add a margin column",
        )
    if follow is not None and follow.every > plan.steps:
        raise SettingsError(
            f"moving_reference: every={follow.every} is more than the {plan.steps} steps, so it"
            " would never move",
            remedy="a smaller every",
        )


def possible(settings: TrainSettings, renderer: Renderer, reference_model: str | None) -> None:
    """Raises ModelError for what model, adapter, device and reference will not do, without loading
    a weight.
    """
    pick_device(settings.device)
    refuse_quantized(settings)
    lora = parse_lora(settings.lora)
    if lora is not None:
        loading.refuse_second_adapter(settings.model)
    if lora is not None or scores(settings):
        config = loading.load_config(settings.model, trust_remote_code=settings.trust_remote_code)
        meta.trained_outline(
            settings.model,
            config,
            torch.float32,
            lora,
            settings.trust_remote_code,
            scorer=scores(settings),
        )
    if reference_model is not None:
        loading.load_config(reference_model, trust_remote_code=settings.trust_remote_code)
        theirs = loading.load_tokenizer(
            reference_model, trust_remote_code=settings.trust_remote_code
        )
        loading.same_tokens(renderer.tokenizer, theirs, reference_model)


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
    probe = (
        asking.Probe([], 0, 0)
        if job.objective.rewards
        else asking.probe(job.held_out, job.train_set, job.renderer, job.settings.seed)
    )
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
            saver=Saver(
                job.run.checkpoints,
                scored.identity,
                keep=job.plan.keep,
                keep_best=job.plan.save_best,
                aside=job.settings.async_save,
            ),
            metrics=MetricsFile(
                job.run.metrics,
                trackers=job.settings.trackers,
                resume_at=progress.step,
                evaluated=progress.evaluated,
            ),
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
            "data": [one.account["fingerprint"] for one in job.sets],
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
        found.account["fingerprint"] if isinstance(found, Dataset) else "nothing is left of it",
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
