"""Token sequences as a forest of segments: what several of them begin with stands once, each branch
is predicted by its trunk.

A trie over token ids with its chains compressed (a radix tree), of any depth: prompt, history,
beginnings that answers share, answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from winnow.data.render import TokenSequence

# fewest tokens that different prompts share: below it a branch costs more (gathered keys, a mask)
# than it saves
SHARED = 32

Root = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that belong together. `parent` is the index of the segment before it, -1 for
    a root.
    """

    tokens: tuple[int, ...]
    parent: int


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Segments, each parent directly before its first child and that one's descendants; `leaves[k]`
    is the last segment of sequence k, which is an inner one where another sequence goes on from
    there.
    """

    segments: tuple[Segment, ...]
    leaves: tuple[int, ...]

    def chain(self, leaf: int) -> list[int]:
        """Indices of the segments from the root to `leaf`."""
        path = [leaf]
        while self.segments[path[-1]].parent >= 0:
            path.append(self.segments[path[-1]].parent)
        return path[::-1]


def root(sequences: Sequence[TokenSequence]) -> Root:
    """What groups have in common that may stand on one trunk: how their prompt begins."""
    return sequences[0].ids[: min(SHARED, min(sequence.start for sequence in sequences))]


@dataclass(eq=False, slots=True)
class _Node:
    tokens: tuple[int, ...]
    children: dict[int, _Node] = field(default_factory=dict)


class PrefixTreeBuilder:
    """A forest that sequences are added to. `tokens` counts what stands in it."""

    def __init__(self) -> None:
        self.tokens = 0
        self._roots: dict[Root, _Node] = {}
        self._leaves: list[_Node] = []

    def add(self, sequences: Sequence[TokenSequence]) -> None:
        """The sequences of one group. They share whatever they begin with; other groups share at
        least SHARED tokens, or the whole of a shorter prompt.
        """
        begin = len(root(sequences))
        for sequence in sequences:
            self._leaves.append(self._insert(sequence.ids, sequence.ids[:begin]))

    def tree(self) -> TokenTree:
        """The forest as it stands."""
        segments: list[Segment] = []
        number: dict[int, int] = {}
        waiting = [(node, -1) for node in reversed(self._roots.values())]
        while waiting:
            node, parent = waiting.pop()
            number[id(node)] = len(segments)
            segments.append(Segment(node.tokens, parent))
            waiting += [(child, number[id(node)]) for child in reversed(node.children.values())]
        return TokenTree(tuple(segments), tuple(number[id(leaf)] for leaf in self._leaves))

    def _insert(self, ids: tuple[int, ...], begin: Root) -> _Node:
        """Walk along what is there, split where the sequence leaves it, add what is new. The node
        it ends in.
        """
        node = self._roots.get(begin)
        if node is None:
            self._roots[begin] = made = _Node(ids)
            self.tokens += len(ids)
            return made
        siblings: dict[Root, _Node] | dict[int, _Node] = self._roots
        name: Root | int = begin
        at = 0
        while True:
            same = _common(node.tokens, ids[at : at + len(node.tokens)])
            at += same
            if same < len(node.tokens):  # whoever ends in this node ends in its lower part
                upper = _Node(node.tokens[:same], {node.tokens[same]: node})
                node.tokens = node.tokens[same:]
                siblings[name] = upper  # type: ignore[index]
                node = upper
            if at == len(ids):
                return node
            if ids[at] not in node.children:
                node.children[ids[at]] = made = _Node(ids[at:])
                self.tokens += len(made.tokens)
                return made
            siblings, name = node.children, ids[at]
            node = node.children[ids[at]]


def grow(groups: Sequence[Sequence[TokenSequence]]) -> TokenTree:
    """The forest of several groups' sequences; its leaves stand in their order."""
    growing = PrefixTreeBuilder()
    for sequences in groups:
        growing.add(sequences)
    return growing.tree()


def size(groups: Sequence[Sequence[TokenSequence]]) -> int:
    """Distinct tokens of these groups together."""
    growing = PrefixTreeBuilder()
    for sequences in groups:
        growing.add(sequences)
    return growing.tokens


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens both begin with."""
    short = min(len(one), len(other))
    if one[:short] == other[:short]:
        return short
    return next(i for i in range(short) if one[i] != other[i])
