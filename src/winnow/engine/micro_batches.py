"""What a training is fed: rendered groups with their reference, cut into micro-batches, of which
each process of the job gets its share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from winnow.data.order import MixShare
from winnow.data.packing import Work, pack, pack_all
from winnow.data.render import RenderedGroup
from winnow.engine.batch import Batch, collate
from winnow.engine.dataset_logps import Reference
from winnow.system.launch import count, rank


@dataclass(frozen=True)
class Micro:
    """The micro-batches of one step: this process's own, and where an objective must see the whole
    step all that count, by rank: from number `first` on they are its own.
    """

    own: Sequence[Batch]
    all: Sequence[Batch]
    first: int = 0


def alone(batches: Sequence[Batch]) -> Micro:
    """The micro-batches of a step that one process takes by itself."""
    return Micro(batches, batches)


@dataclass(frozen=True)
class Data:
    """A rendered data set, how epochs mix its parts, and its reference log-probs where the
    objective wants some.

    Every process gets as many micro-batches as the others, for the model's parts are computed
    together: where it has none left it goes through a first group again (`Batch.idle`), for
    nothing.
    """

    groups: Sequence[RenderedGroup]
    shares: Sequence[MixShare]
    reference: Reference | None
    whole: bool = False  # a number per answer, and not per scored token (`collate`)

    def micro_batches(
        self, items: Sequence[int], tokens: int, work: Work | None = None, *, whole: bool = False
    ) -> Micro:
        """The groups numbered `items`, packed under the token budget, on the CPU. whole: with those
        of the other processes.
        """
        groups = [self.groups[i] for i in items]
        parts = [[items[i] for i in part] for part in pack(groups, tokens, work, count())]
        own = [self._batch(part, items[0]) for part in parts[rank() :: count()]]
        if count() == 1:
            return alone(own)
        before = sum(bool(part) for number in range(rank()) for part in parts[number :: count()])
        return Micro(
            own, [self._batch(part, items[0]) for part in by_rank(parts)] if whole else [], before
        )

    def everything(self, tokens: int, work: Work | None = None) -> Iterator[Batch]:
        """This process's share of all groups, a micro-batch at a time."""
        for i, part in enumerate(pack_all(self.groups, tokens, work, count())):
            if i % count() == rank():
                yield self._batch(part, 0)

    def everyones(self, tokens: int, work: Work | None = None) -> Iterator[Batch]:
        """All groups, a micro-batch at a time, by the rank that has them in `everything`."""
        for part in by_rank(list(pack_all(self.groups, tokens, work, count()))):
            yield self._batch(part, 0)

    def batch(self, part: Sequence[int]) -> Batch:
        """The groups numbered `part` as they are, on the CPU."""
        batch = collate([self.groups[i] for i in part], part, whole=self.whole)
        return batch if self.reference is None else self.reference.into(batch)

    def _batch(self, part: Sequence[int], instead: int) -> Batch:
        return self.batch(part) if part else replace(self.batch([instead]), idle=True)


def by_rank(parts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Micro-batches that count, those of rank 0 first. Number i is rank i % count's."""
    return [part for number in range(count()) for part in parts[number :: count()] if part]
