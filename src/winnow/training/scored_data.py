"""A training's data with the reference's log-probs, and the identity of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from winnow.config.training import BESIDES
from winnow.data.dataset import Dataset, stop_on_errors
from winnow.engine.base import Engine
from winnow.engine.micro_batches import Data
from winnow.engine.selection import engine_for
from winnow.errors import DataError, NothingLeft
from winnow.models import hashes
from winnow.models.fsdp import whole
from winnow.models.loading import LoadedModel
from winnow.system import distributed
from winnow.training import references, run_record, stream_record
from winnow.training.checkpoint import Checkpoint
from winnow.training.job import TrainingJob
from winnow.training.references import ReferenceModel, Scorer


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


def ask_reference(
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
        kept = run_record.newest(
            job.run, identity, job.settings.allow_change, BESIDES, job.plan.steps
        )
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


def epochs(
    job: TrainingJob, first: Data, source_model: ReferenceModel, scorer: Scorer | None
) -> Callable[[int], Data]:
    """The training data by number of the epoch: always the same, or of a stream the next window,
    scored when it comes.
    """

    def epoch(number: int) -> Data:
        if job.settings.stream is None:
            return first
        if number == 0:
            stream_record.window(job.run, number, job.train_set, job.plan.tokens)
            return first
        try:
            one = _window(job, number)
        except NothingLeft as empty:
            stream_record.empty_window(job.run, number, empty)
            return Data([], [], None)
        stream_record.window(job.run, number, one, job.plan.tokens)
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
    stream_record.same_window(job.run, number, found, job.settings.allow_change)
    return found
