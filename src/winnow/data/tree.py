"""Sequences of one group as a tree of segments: what they share stands once, each branch is predicted by its trunk.

This first form has depth 1: the prompt (as far as all completions share it) and one branch per completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from winnow.data.render import TokenSequence


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that belong together. `parent` is the index of the segment before it, -1 for the root."""

    tokens: tuple[int, ...]
    parent: int


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Segments, parents before children; `leaves[k]` is the last segment of sequence k."""

    segments: tuple[Segment, ...]
    leaves: tuple[int, ...]

    def chain(self, leaf: int) -> list[int]:
        """Indices of the segments from the root to `leaf`."""
        path = [leaf]
        while self.segments[path[-1]].parent >= 0:
            path.append(self.segments[path[-1]].parent)
        return path[::-1]


def grow(sequences: Sequence[TokenSequence]) -> TokenTree:
    """The tree of a group's sequences: the shared unscored prefix as trunk, the rest as branches."""
    shared = min(sequence.start for sequence in sequences)
    first = sequences[0].ids
    for sequence in sequences[1:]:
        while sequence.ids[:shared] != first[:shared]:
            shared -= 1
    if shared == 0 or len(sequences) == 1:
        return TokenTree(tuple(Segment(s.ids, -1) for s in sequences), tuple(range(len(sequences))))
    branches = tuple(Segment(s.ids[shared:], 0) for s in sequences)
    return TokenTree((Segment(first[:shared], -1), *branches), tuple(range(1, len(sequences) + 1)))
