"""Trees keep every sequence, packs keep every group, the order keeps every promise."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.data.order import Cursor, MixShare, batches, epoch_size, order
from winnow.data.packing import Work, budget, cost, largest, most_expensive, pack
from winnow.data.prefix_tree import SHARED, grow, size
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.data.tokens import tokens_of
from winnow.engine.batch import collate
from winnow.engine.rows import sequences as rows_of
from winnow.errors import DataError

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=6)
rows = st.tuples(tokens, st.lists(st.tuples(tokens, st.integers(0, 2)), min_size=1, max_size=4))


def group(made):
    """A group from (prompt, (answer, how far before the answer scoring starts) ...)."""
    prompt, answers = made
    found = tuple(
        TokenSequence((*prompt, *answer), min(len(prompt), max(1, len(prompt) - back)))
        for answer, back in answers
    )
    return RenderedGroup(found, (), (None,) * len(found), "made")


@given(rows)
def test_a_tree_holds_each_sequence_and_what_they_share_once(row):
    made = group(row).sequences
    tree = grow([made])
    for sequence, leaf in zip(made, tree.leaves):
        assert tuple(t for s in tree.chain(leaf) for t in tree.segments[s].tokens) == sequence.ids
    prefixes = {sequence.ids[: i + 1] for sequence in made for i in range(len(sequence.ids))}
    # a trie has a node for each
    assert sum(len(s.tokens) for s in tree.segments) == len(prefixes) == size([made])
    for i, segment in enumerate(
        tree.segments
    ):  # a parent stands before its children, its first child directly after it
        assert segment.parent < i
        assert segment.tokens
    assert {segment.parent + 1 for segment in tree.segments if segment.parent >= 0} <= {
        i for i, s in enumerate(tree.segments) if s.parent == i - 1
    }


def test_sequences_share_what_they_share_and_no_more():
    """Prompts that were cut into other tokens by a merge: the trunk ends where they part, or there
    is none.
    """
    parting = grow([[TokenSequence((5, 6, 7, 1), 1), TokenSequence((5, 8, 7, 1), 3)]])
    assert [s.tokens for s in parting.segments] == [(5,), (6, 7, 1), (8, 7, 1)]
    strangers = grow([[TokenSequence((5, 6, 1), 2), TokenSequence((4, 6, 1), 2)]])
    assert [(s.tokens, s.parent) for s in strangers.segments] == [((5, 6, 1), -1), ((4, 6, 1), -1)]


@given(st.lists(rows, min_size=1, max_size=4))
def test_a_batch_points_from_each_token_to_the_one_before_it(many):
    """The shift, whatever the shape of the trees: read back over each scored token's own chain of
    segments.
    """
    made = [group(row) for row in many]
    batch = collate(made)
    sequences = [s for one in made for s in one.sequences]
    expected = [
        (s.ids[t - 1], s.ids[t], t - 1, c)
        for c, s in enumerate(sequences)
        for t in range(s.start, len(s.ids))
    ]
    found = zip(
        batch.token_T[batch.source_N].tolist(),
        batch.target_N.tolist(),
        batch.position_T[batch.source_N].tolist(),
        batch.completion_N.tolist(),
    )
    assert list(found) == expected
    assert [tuple(row.tolist()) for row in rows_of(batch)] == [s.ids for s in sequences]


@given(st.lists(rows, min_size=1, max_size=8), st.integers(30, 200))
def test_packing_keeps_every_group_within_the_budget(many, tokens):
    made = [group(row) for row in many]
    packed = pack(made, tokens)
    assert sorted(i for part in packed for i in part) == list(range(len(made)))
    assert packed == pack(made, tokens)
    for part in packed:
        assert len(part) == 1 or size([made[i].sequences for i in part]) <= tokens


def test_a_group_above_the_budget_is_named_before_training():
    big = RenderedGroup(
        tuple(TokenSequence((1, *range(k, k + 50)), 1) for k in (100, 200)),
        (),
        (None, None),
        "rows.jsonl:7",
    )
    assert budget([big], None) == 1024
    assert budget([big], 101) == 101
    with pytest.raises(DataError, match=r"rows\.jsonl:7: needs 101 tokens"):
        budget([big], 100)
    huge = RenderedGroup((TokenSequence(tuple(range(5000)), 1),), (), (None,), "rows.jsonl:8")
    assert budget([big, huge], None) == 5000


def test_tokens_are_bounded_without_building_a_group():
    """Exact where answers begin apart; above where they share words; the answers whole where even
    the prompts differ.
    """
    prompt = (1, 2, 3)
    apart = RenderedGroup(
        (TokenSequence((*prompt, 4, 5), 3), TokenSequence((*prompt, 6), 3)), (), (None,) * 2, "d:1"
    )
    alike = RenderedGroup(
        (TokenSequence((*prompt, 4, 5), 3), TokenSequence((*prompt, 4, 6), 3)),
        (),
        (None,) * 2,
        "d:2",
    )
    other = RenderedGroup(
        (TokenSequence((1, 2, 9, 4), 3), TokenSequence((*prompt, 4), 3)), (), (None,) * 2, "d:3"
    )
    groups = [apart, alike, other]
    assert [cost(group) for group in groups] == [6, 6, 8]
    assert tokens_of(groups).at_most.tolist() == [6, 7, 8]
    assert largest(groups) == 8
    assert [largest(pairs_of(seed, 40)) for seed in range(3)] == [
        max(map(cost, pairs_of(seed, 40))) for seed in range(3)
    ]


@pytest.mark.parametrize(
    ("tokens", "most", "expected"),
    [
        (1024, 8, [0, 1, 3]),
        (600, 8, [0]),
        (1300, 8, [0, 1, 2, 3]),
        (10_000, 2, [0, 1]),
        (650, 8, [0, 3]),
    ],
)
def test_the_fullest_micro_batch_of_a_step(tokens, most, expected):
    """No step can have more in one: as many of the largest groups as there is room for, and no more
    than a step draws.
    """
    groups = [
        RenderedGroup((TokenSequence((i, *range(n - 1)), 1),), (), (None,), f"d:{i}")
        for i, n in enumerate([600, 300, 300, 40])
    ]
    assert most_expensive(groups, tokens, most) == expected


def test_packing_groups_of_more_than_half_the_budget_is_quick():
    groups = [
        RenderedGroup((TokenSequence((i, *range(600 + i % 7)), 1),), (), (None,), f"d:{i}")
        for i in range(2048)
    ]
    began = time.perf_counter()
    assert len(pack(groups, 1024)) == 2048
    assert time.perf_counter() - began < 10


def some(rng, n):
    return tuple(rng.randrange(50) for _ in range(n))


def pairs_of(seed, count, *, prompts=None):
    """Groups of two answers, lognormal lengths; `prompts`: so many different ones."""
    rng = random.Random(seed)
    heads = [
        some(rng, max(1, round(rng.lognormvariate(3.5, 0.8)))) for _ in range(prompts or count)
    ]
    found = []
    for i in range(count):
        head = heads[i % len(heads)]
        answers = tuple(
            TokenSequence(head + some(rng, max(1, round(rng.lognormvariate(3.5, 0.6)))), len(head))
            for _ in range(2)
        )
        found.append(RenderedGroup(answers, (), (None, None), f"made:{i}"))
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_and_micro_batches_have_equal_work(ranks):
    """The most expensive micro-batch first, rank i % ranks; over 64 groups no rank has 5 % more to
    do than another.
    """
    work = Work(token=1.0, scored=0.3, position=0.002)
    groups = pairs_of(ranks, 64)
    packed = pack(groups, 1500, work, ranks)
    assert len(packed) % ranks == 0
    assert sorted(i for part in packed for i in part) == list(range(64))
    costs = [sum(work.of(groups[i]) for i in part) for part in packed]
    assert costs == sorted(costs, reverse=True)
    per_rank = [sum(costs[rank::ranks]) for rank in range(ranks)]
    assert max(per_rank) <= 1.05 * min(per_rank)
    assert max(costs) <= 1.35 * sum(costs) / len(costs)


def test_groups_with_one_prompt_go_together():
    groups = list(pairs_of(1, 24, prompts=6))
    packed = pack(groups, 800)
    together = sum(size([groups[i].sequences for i in part]) for part in packed)
    prefixes = {s.ids[: i + 1] for g in groups for s in g.sequences for i in range(len(s.ids))}
    apart = sum(cost(g) for g in groups)
    assert together < apart
    assert together - len(prefixes) < 0.1 * (apart - len(prefixes))


def test_prompts_share_a_trunk_only_where_it_pays():
    """Two prompts that begin with one word are two roots; with SHARED equal tokens, one."""

    def prompts(shared):
        return [[TokenSequence((*range(shared), 90 + k, 7), shared + 1)] for k in range(2)]

    assert len(grow(prompts(SHARED - 1)).segments) == 2
    assert len(grow(prompts(SHARED)).segments) == 3


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from([0.5, 1.0, 2.0, 2.5])), min_size=1, max_size=3
    ),
    st.integers(0, 9),
    st.integers(0, 3),
)
def test_an_epoch_takes_its_share_of_every_set(parts, seed, epoch):
    shares = [MixShare(size, weight) for size, weight in parts]
    items = order(shares, seed, epoch)
    assert items.tolist() == order(shares, seed, epoch).tolist()
    assert len(items) == epoch_size(shares)
    start = 0
    for share in shares:
        mine = [i for i in items if start <= i < start + share.size]
        assert len(mine) == round(share.size * share.weight)
        counts = [mine.count(i) for i in range(start, start + share.size)]
        assert max(counts) - min(counts) <= 1
        start += share.size


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 5))
def test_any_cursor_continues_the_same_stream(size, batch, skip):
    stream = batches([MixShare(size)], batch, 3, Cursor())
    seen = [next(stream) for _ in range(skip + 4)]
    cursor = seen[skip - 1][1] if skip else Cursor()
    again = batches([MixShare(size)], batch, 3, cursor)
    assert [next(again) for _ in range(4)] == seen[skip : skip + 4]
    per_epoch = -(-size // batch)
    for first in range(0, len(seen) - per_epoch + 1, per_epoch):
        assert sorted(i for items, _ in seen[first : first + per_epoch] for i in items) == list(
            range(size)
        )


def test_a_half_is_another_half_each_epoch():
    halves = [frozenset(order([MixShare(40, 0.5)], 0, epoch)) for epoch in range(4)]
    assert all(len(half) == 20 for half in halves)
    assert len(set(halves)) == 4


def test_seed_and_epoch_change_the_order():
    assert (
        len({tuple(order([MixShare(20)], seed, epoch)) for seed in range(3) for epoch in range(3)})
        == 9
    )
