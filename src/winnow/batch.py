"""The only tensor form of data. Everything that must be shifted, masked or paired is decided here, on Python ints.

Axes: T packed tokens, S segments, C completions, N scored tokens, M comparisons, G groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.data.render import RenderedGroup
from winnow.data.tree import grow


@dataclass(frozen=True)
class Batch:
    """A micro-batch of whole groups.

    Scored token n of completion `completion_N[n]` is `target_N[n]`, predicted by the hidden state of packed token
    `source_N[n]`: the shift by one is done here and nowhere else. Scored tokens stand completion by completion.
    """

    token_T: Int[Tensor, " T"]
    position_T: Int[Tensor, " T"]  # of the token in its own sequence
    segment_S3: Int[Tensor, "S 3"]  # first token in T, length, parent segment (-1: root)
    leaf_C: Int[Tensor, " C"]  # last segment of each completion
    source_N: Int[Tensor, " N"]
    target_N: Int[Tensor, " N"]
    completion_N: Int[Tensor, " N"]
    length_C: Int[Tensor, " C"]  # scored tokens
    pair_M2: Int[Tensor, "M 2"]  # winner, loser
    probability_M: Float[Tensor, " M"]
    weight_M: Float[Tensor, " M"]
    group_C: Int[Tensor, " C"]
    items: tuple[int, ...]  # of the groups, in their data set
    wheres: tuple[str, ...]  # of the groups, for messages

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        moved: dict[str, Any] = {f.name: value.to(device) for f in dataclasses.fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return dataclasses.replace(self, **moved)


def collate(groups: Sequence[RenderedGroup], items: Sequence[int] | None = None) -> Batch:
    """Groups as one Batch; `items` are their numbers in the data set (default 0, 1, ...)."""
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[tuple[int, int, int]] = []
    leaves: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    pairs: list[tuple[int, int]] = []
    group_of: list[int] = []
    for g, group in enumerate(groups):
        tree = grow(group.sequences)
        first_segment, first_completion = len(segments), len(leaves)
        begins: list[int] = []  # position of each segment's first token in its sequence
        for segment in tree.segments:
            begin = 0 if segment.parent < 0 else begins[segment.parent] + len(tree.segments[segment.parent].tokens)
            begins.append(begin)
            segments.append((len(tokens), len(segment.tokens), -1 if segment.parent < 0 else first_segment + segment.parent))
            positions += range(begin, begin + len(segment.tokens))
            tokens += segment.tokens
        for sequence, leaf in zip(group.sequences, tree.leaves):
            at: list[int] = []  # packed index of each token of the sequence
            for s in tree.chain(leaf):
                start, length, _ = segments[first_segment + s]
                at += range(start, start + length)
            sources += at[sequence.start - 1 : -1]
            targets += sequence.ids[sequence.start :]
            lengths.append(len(sequence.ids) - sequence.start)
            leaves.append(first_segment + leaf)
            group_of.append(g)
        pairs += [(first_completion + c.winner, first_completion + c.loser) for c in group.comparisons]
    comparisons = [c for group in groups for c in group.comparisons]
    length_C = torch.tensor(lengths)
    return Batch(
        token_T=torch.tensor(tokens),
        position_T=torch.tensor(positions),
        segment_S3=torch.tensor(segments),
        leaf_C=torch.tensor(leaves),
        source_N=torch.tensor(sources),
        target_N=torch.tensor(targets),
        completion_N=torch.repeat_interleave(torch.arange(len(lengths)), length_C),
        length_C=length_C,
        pair_M2=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        probability_M=torch.tensor([c.probability for c in comparisons], dtype=torch.float32),
        weight_M=torch.tensor([c.weight for c in comparisons], dtype=torch.float32),
        group_C=torch.tensor(group_of),
        items=tuple(range(len(groups)) if items is None else items),
        wheres=tuple(group.where for group in groups),
    )
