"""What the policy itself says while it is trained: answers for the report, and how far they have
gone from the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from winnow.data.packing import budget
from winnow.data.render import RenderedGroup
from winnow.engine.base import Engine
from winnow.engine.dataset_logps import dataset_logps
from winnow.evaluation import kl as drift
from winnow.evaluation.statistics.intervals import flat, mean
from winnow.generation.prompts import SHOWN, Probe
from winnow.generation.sampler import Sampling, sample, words
from winnow.models.fsdp import whole
from winnow.models.loading import LoadedModel
from winnow.system import distributed
from winnow.system.files import read_jsonl, write_jsonl
from winnow.system.launch import leads
from winnow.system.run_folder import RunFolder
from winnow.training.metrics import Row
from winnow.training.references import ReferenceModel


def write(run: RunFolder, loaded: LoadedModel, tokenizer: Any, asked: Probe, step: int) -> None:
    """One sampled answer to each of a few prompts, into samples.jsonl beside those of earlier
    steps. Of several processes one answers.

    The same random numbers at every step, so that what differs is the policy.
    """
    prompts = asked.prompts[:SHOWN]
    with whole(loaded.net):
        answers = (
            sample(loaded, prompts, Sampling(asked.end, max_new_tokens=asked.room, seed=asked.seed))
            if leads()
            else []
        )
    if not leads():
        return
    rows = [
        {
            "step": step,
            "index": i,
            "prompt": tokenizer.decode(prompt, skip_special_tokens=True),
            "completion": words(tokenizer, prompt, answer[0]),
            "finished": answer[0].finished,
            "of": asked.of,
            "held_out": asked.held_out,
        }
        for i, (prompt, answer) in enumerate(zip(prompts, answers))
    ]
    write_jsonl(
        run.samples, [row for row in read_jsonl(run.samples, "step") if row["step"] < step] + rows
    )


def drift_from(
    reference: ReferenceModel,
    loaded: LoadedModel,
    asked: Probe,
    count: int,
    seed: int,
    engine: Engine,
    theirs: Engine,
) -> Callable[[int], Row]:
    """step -> `kl` to the reference in nats per answer and `length/sampled` in tokens, each with
    its interval (`_low`, `_high`), and their count `kl_samples`, over the policy's answers to
    `count` prompts.

    engine, theirs: how the policy is computed, and the reference. The same random numbers at every
    step, so that what changes is the policy. Of several processes one answers, and has the figures.
    """
    prompts = asked.prompts[:count]
    how = Sampling(asked.end, max_new_tokens=asked.room, seed=seed)

    def measure(step: int) -> Row:
        with whole(loaded.net):
            answers = sample(loaded, prompts, how) if leads() else []
            groups = drift.as_groups(prompts, answers, asked.end)
            policy = _logps(engine, loaded, groups, "the policy")
        distributed.obey()
        with reference() as other, whole(other.net):
            said = _logps(theirs, other, groups, "the reference")
        if not groups:
            return {}
        lengths = [len(group.sequences[0].ids) - group.sequences[0].start for group in groups]
        found = mean(
            [drift.kl(a, b, 1) for a, b in zip(policy.split(lengths), said.split(lengths))],
            range(len(groups)),
        )
        return {
            **flat({"kl": found, "length/sampled": mean(lengths, range(len(groups)))}),
            "kl_samples": found.count,
        }

    return measure


def _logps(engine: Engine, loaded: LoadedModel, groups: list[RenderedGroup], whose: str) -> Any:
    return (
        dataset_logps(
            engine, loaded.model, groups, budget(groups, None), loaded.device, whose=whose
        )
        if groups
        else None
    )
