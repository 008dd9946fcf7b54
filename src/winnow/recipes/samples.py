"""What the policy itself says while it is trained: answers for the report, and how far they have gone from the reference."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from winnow import dist
from winnow.data.dataset import Dataset
from winnow.data.pack import budget
from winnow.data.render import RenderedGroup, Renderer
from winnow.engine.api import Engine
from winnow.files import RunFolder, read_jsonl, write_jsonl
from winnow.measures import drift
from winnow.measures.clustered import flat, mean
from winnow.models import LoadedModel
from winnow.ranks import leads
from winnow.recipes.references import ReferenceModel
from winnow.sample import Sampling, sample, words
from winnow.shards import whole
from winnow.train.metrics import Row
from winnow.train.reference import compute

SHOWN = 6  # prompts whose answers stand in the report
LONGEST = 128  # tokens of an answer
LOOKED = 20 * SHOWN  # rows of the training data that are looked at for prompts that leave room


@dataclass(frozen=True)
class Probe:
    """Prompts to be answered while training goes on, in random order, how long an answer may be, and the token that ends it.

    of: how many prompts they were drawn from (of training data: rows), which are held out or not; seed: of the order and of the answers.
    """

    prompts: list[tuple[int, ...]]
    room: int
    end: int
    of: int = 0
    held_out: bool = False
    seed: int = 0


def probe(held_out: dict[str, Dataset], train_set: Dataset, renderer: Renderer, seed: int = 0) -> Probe:
    """The distinct prompts of the first held-out set that leave room for an answer, in an order of chance; of the training data, where nothing is held
    out, a few, for there may be millions.
    """
    source = next(iter(held_out.values()), train_set)
    room = LONGEST if renderer.limit is None else max(1, min(LONGEST, renderer.limit // 2))
    count, rng = len(source.groups), random.Random(seed)
    numbers = range(count) if held_out else rng.sample(range(count), min(count, LOOKED))
    prompts = (first.ids[: first.start] for first in (source.groups[i].sequences[0] for i in numbers))
    fitting = list(_distinct(prompt for prompt in prompts if renderer.limit is None or len(prompt) + room <= renderer.limit))
    asked = shuffled(fitting, room, renderer.end_id(train_set.chat), held_out=bool(held_out), seed=seed)
    return asked if held_out else replace(asked, prompts=asked.prompts[:SHOWN], of=count)


def shuffled(prompts: Sequence[tuple[int, ...]], room: int, end: int, *, held_out: bool, seed: int) -> Probe:
    """These prompts in an order of chance."""
    order = random.Random(f"prompts {seed}").sample(range(len(prompts)), len(prompts))
    return Probe([prompts[i] for i in order], room, end, len(prompts), held_out, seed)


def _distinct(prompts: Iterable[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """The prompts in their order, each once."""
    seen: set[tuple[int, ...]] = set()
    for prompt in prompts:
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


def write(run: RunFolder, loaded: LoadedModel, tokenizer: Any, asked: Probe, step: int) -> None:
    """One sampled answer to each of a few prompts, into samples.jsonl beside those of earlier steps. Of several processes one answers.

    The same random numbers at every step, so that what differs is the policy.
    """
    prompts = asked.prompts[:SHOWN]
    with whole(loaded.net):
        answers = sample(loaded, prompts, Sampling(asked.end, max_new_tokens=asked.room, seed=asked.seed)) if leads() else []
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
    write_jsonl(run.samples, [row for row in read_jsonl(run.samples, "step") if row["step"] < step] + rows)


def drift_from(reference: ReferenceModel, loaded: LoadedModel, asked: Probe, count: int, seed: int, engine: Engine, theirs: Engine) -> Callable[[int], Row]:
    """step -> `kl` to the reference in nats per answer and `length/sampled` in tokens, each with its interval (`_low`, `_high`), and their count
    `kl_samples`, over the policy's answers to `count` prompts.

    engine, theirs: how the policy is computed, and the reference.
    The same random numbers at every step, so that what changes is the policy. Of several processes one answers, and has the figures.
    """
    prompts = asked.prompts[:count]
    how = Sampling(asked.end, max_new_tokens=asked.room, seed=seed)

    def measure(step: int) -> Row:
        with whole(loaded.net):
            answers = sample(loaded, prompts, how) if leads() else []
            groups = drift.as_groups(prompts, answers, asked.end)
            policy = _scores(engine, loaded, groups)
        dist.obey()
        with reference() as other, whole(other.net):
            said = _scores(theirs, other, groups)
        if not groups:
            return {}
        lengths = [len(group.sequences[0].ids) - group.sequences[0].start for group in groups]
        found = mean([drift.kl(a, b, 1) for a, b in zip(policy.split(lengths), said.split(lengths))], range(len(groups)))
        return {**flat({"kl": found, "length/sampled": mean(lengths, range(len(groups)))}), "kl_samples": found.count}

    return measure


def _scores(engine: Engine, loaded: LoadedModel, groups: list[RenderedGroup]) -> Any:
    return compute(engine, loaded.model, groups, budget(groups, None), loaded.device, lambda n: None) if groups else None
