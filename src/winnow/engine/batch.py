"""The only tensor form of data. Everything that must be shifted, masked or paired is decided here,
on Python ints.

Axes: T packed tokens, C completions, N scored tokens, U hidden states that predict one, M
comparisons, G groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.data.pairs import ranks
from winnow.data.prefix_tree import Segment, grow
from winnow.data.render import RenderedGroup

# What is known of a completion beside comparisons: nothing, a label, that it is a demonstration,
# that it answers another prompt.
UNKNOWN, BAD, GOOD, SHOWN, MISMATCHED = -1, 0, 1, 2, -2


class Run(NamedTuple):
    """A segment in the packed tokens: where it begins, its length, the segment before it (-1:
    none).
    """

    start: int
    length: int
    parent: int


class Ends(NamedTuple):
    """Where a group ends, counted from the batch's beginning."""

    states: int
    scored: int
    completions: int
    comparisons: int


@dataclass(frozen=True)
class Batch:
    """A micro-batch of whole groups.

    Scored token n of completion `completion_N[n]` is `target_N[n]`, predicted by the hidden state
    of packed token `source_N[n]`: the shift by one is done here and nowhere else. Scored tokens
    stand completion by completion. A hidden state that predicts several of a group's tokens (a
    branch, a shared beginning) stands once in `state_U`.
    """

    token_T: Int[Tensor, " T"]
    position_T: Int[Tensor, " T"]  # of the token in its own sequence
    runs: tuple[Run, ...]
    leaves: tuple[int, ...]  # last segment of each completion
    state_U: Int[Tensor, " U"]  # packed tokens whose hidden state predicts something
    state_N: Int[Tensor, " N"]  # of each scored token, in U
    target_N: Int[Tensor, " N"]
    completion_N: Int[Tensor, " N"]
    length_C: Int[Tensor, " C"]  # scored tokens
    label_C: Int[Tensor, " C"]
    # rank: how many of their group beat them; -1: an answer to another prompt, without a rank
    ranks: tuple[int, ...]
    pair_M2: Int[Tensor, "M 2"]  # winner, loser
    probability_M: Float[Tensor, " M"]
    weight_M: Float[Tensor, " M"]
    margin_M: Float[Tensor, " M"]
    ends: tuple[Ends, ...]  # of the groups
    items: tuple[int, ...]  # of the groups, in their data set
    wheres: tuple[str, ...]  # of the groups, for messages
    reference_N: Float[Tensor, " N"] | None = (
        None  # the reference's log-probs, where an objective wants some
    )
    idle: bool = (
        False  # computed for the sake of other processes alone: its numbers count for nothing
    )

    @property
    def source_N(self) -> Int[Tensor, " N"]:
        """The packed token that predicts each scored one."""
        return self.state_U[self.state_N]

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=device.type != "cpu")
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def parts(self, states: int) -> Iterator[tuple[int, Batch]]:
        """The batch cut into runs of whole groups of at most `states` hidden states, at least one
        group each, with the first state of each. Packed tokens stay whole: the parts are for what
        comes after the hidden states.
        """
        first = 0
        while first < len(self.ends):
            last = first + 1
            begin = self.ends[first - 1] if first else Ends(0, 0, 0, 0)
            while last < len(self.ends) and self.ends[last].states - begin.states <= states:
                last += 1
            yield begin.states, self._part(first, last, begin, self.ends[last - 1])
            first = last

    def _part(self, first: int, last: int, begin: Ends, end: Ends) -> Batch:
        scored, completions = (
            slice(begin.scored, end.scored),
            slice(begin.completions, end.completions),
        )
        comparisons = slice(begin.comparisons, end.comparisons)
        return dataclasses.replace(
            self,
            leaves=self.leaves[completions],
            state_U=self.state_U[begin.states : end.states],
            state_N=self.state_N[scored] - begin.states,
            target_N=self.target_N[scored],
            completion_N=self.completion_N[scored] - begin.completions,
            length_C=self.length_C[completions],
            label_C=self.label_C[completions],
            ranks=self.ranks[completions],
            pair_M2=self.pair_M2[comparisons] - begin.completions,
            probability_M=self.probability_M[comparisons],
            weight_M=self.weight_M[comparisons],
            margin_M=self.margin_M[comparisons],
            ends=tuple(Ends(*(a - b for a, b in zip(one, begin))) for one in self.ends[first:last]),
            items=self.items[first:last],
            wheres=self.wheres[first:last],
            reference_N=None if self.reference_N is None else self.reference_N[scored],
        )


def collate(
    groups: Sequence[RenderedGroup], items: Sequence[int] | None = None, *, whole: bool = False
) -> Batch:
    """Groups as one Batch; `items` are their numbers in the data set (default 0, 1, ...).

    whole: for a scalar head that judges whole answers. Each completion's one scored token is its
    last, and the state that has a number for it is that token's own, not the one before it.
    """
    tree = grow([group.sequences for group in groups])
    tokens, positions, runs = _packed(tree.segments)
    states: list[int] = []
    state: list[int] = []  # of each scored token
    targets: list[int] = []
    lengths: list[int] = []
    labels: list[int] = []
    rank: list[int] = []
    pairs: list[tuple[int, int]] = []
    ends: list[Ends] = []
    for group in groups:
        first = len(lengths)
        known: dict[int, int] = {}  # packed token -> its number among the states, within the group
        for sequence in group.sequences:
            at: list[int] = []  # packed index of each token of the sequence
            for s in tree.chain(tree.leaves[len(lengths)]):
                at += range(runs[s].start, runs[s].start + runs[s].length)
            sources = at[-1:] if whole else at[sequence.start - 1 : -1]
            for source in sources:
                if source not in known:
                    known[source] = len(states)
                    states.append(source)
                state.append(known[source])
            targets += sequence.ids[len(sequence.ids) - len(sources) :]
            lengths.append(len(sources))
        labels += _labels(group)
        own = len(group.sequences) - group.mismatched
        rank += [*ranks(group.comparisons, own), *[-1] * group.mismatched]
        pairs += [(first + c.winner, first + c.loser) for c in group.comparisons]
        ends.append(Ends(len(states), len(targets), len(lengths), len(pairs)))
    comparisons = [c for group in groups for c in group.comparisons]
    length_C = torch.tensor(lengths)
    return Batch(
        token_T=torch.tensor(tokens),
        position_T=torch.tensor(positions),
        runs=tuple(runs),
        leaves=tree.leaves,
        state_U=torch.tensor(states),
        state_N=torch.tensor(state),
        target_N=torch.tensor(targets),
        completion_N=torch.repeat_interleave(torch.arange(len(lengths)), length_C),
        length_C=length_C,
        label_C=torch.tensor(labels, dtype=torch.int8),
        ranks=tuple(rank),
        pair_M2=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        probability_M=torch.tensor([c.probability for c in comparisons], dtype=torch.float32),
        weight_M=torch.tensor([c.weight for c in comparisons], dtype=torch.float32),
        margin_M=torch.tensor([c.margin for c in comparisons], dtype=torch.float32),
        ends=tuple(ends),
        items=tuple(range(len(groups)) if items is None else items),
        wheres=tuple(group.where for group in groups),
    )


def _packed(segments: Sequence[Segment]) -> tuple[list[int], list[int], list[Run]]:
    """Tokens of all segments one after the other, each one's place in its sequence, and where each
    segment lies.
    """
    tokens: list[int] = []
    positions: list[int] = []
    runs: list[Run] = []
    begins: list[int] = []  # position of each segment's first token in its sequence
    for segment in segments:
        begin = 0 if segment.parent < 0 else begins[segment.parent] + runs[segment.parent].length
        begins.append(begin)
        runs.append(Run(len(tokens), len(segment.tokens), segment.parent))
        positions += range(begin, begin + len(segment.tokens))
        tokens += segment.tokens
    return tokens, positions, runs


def joined(batches: Sequence[Batch]) -> Batch:
    """Micro-batches laid end to end as one batch, for what must be seen of a whole step at once; no
    prefix is shared between them.
    """
    base = Ends(0, 0, 0, 0)
    packed = segments = 0
    runs: list[Run] = []
    leaves: list[int] = []
    ends: list[Ends] = []
    moved: dict[str, list[Tensor]] = {
        name: [] for name in ("state_U", "state_N", "completion_N", "pair_M2")
    }
    for batch in batches:
        runs += [
            Run(run.start + packed, run.length, run.parent + segments if run.parent >= 0 else -1)
            for run in batch.runs
        ]
        leaves += [leaf + segments for leaf in batch.leaves]
        for name, by in (
            ("state_U", packed),
            ("state_N", base.states),
            ("completion_N", base.completions),
            ("pair_M2", base.completions),
        ):
            moved[name].append(getattr(batch, name) + by)
        ends += [Ends(*(a + b for a, b in zip(end, base))) for end in batch.ends]
        base, packed, segments = ends[-1], packed + len(batch.token_T), segments + len(batch.runs)
    alike = (
        "token_T",
        "position_T",
        "target_N",
        "length_C",
        "label_C",
        "probability_M",
        "weight_M",
        "margin_M",
    )
    given = [batch.reference_N for batch in batches if batch.reference_N is not None]
    return Batch(
        runs=tuple(runs),
        leaves=tuple(leaves),
        ends=tuple(ends),
        ranks=tuple(rank for batch in batches for rank in batch.ranks),
        items=tuple(item for batch in batches for item in batch.items),
        wheres=tuple(where for batch in batches for where in batch.wheres),
        reference_N=torch.cat(given) if given else None,
        idle=False,
        **{name: torch.cat(parts) for name, parts in moved.items()},
        **{name: torch.cat([getattr(batch, name) for batch in batches]) for name in alike},
    )


def _labels(group: RenderedGroup) -> list[int]:
    """What is known of each completion beside comparisons. Where nobody judged anything, they are
    demonstrations.
    """
    judged = bool(group.comparisons) or any(label is not None for label in group.labels)
    own = [
        (UNKNOWN if judged else SHOWN) if label is None or group.comparisons else int(label)
        for label in group.labels
    ]
    return own[: len(own) - group.mismatched] + [MISMATCHED] * group.mismatched
