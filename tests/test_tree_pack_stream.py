"""Trees keep every sequence, packs keep every group, the order keeps every promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.batch import collate
from winnow.data.pack import budget, cost, pack
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.data.stream import Cursor, Share, batches, epoch_size, order
from winnow.data.tree import grow
from winnow.engine.rows import padded_rows
from winnow.errors import DataError

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=6)
rows = st.tuples(tokens, st.lists(st.tuples(tokens, st.integers(0, 2)), min_size=1, max_size=4))


def group(made):
    """A group from (prompt, (answer, how far before the answer scoring starts) ...)."""
    prompt, answers = made
    found = tuple(TokenSequence((*prompt, *answer), min(len(prompt), max(1, len(prompt) - back))) for answer, back in answers)
    return RenderedGroup(found, (), (None,) * len(found), "made")


@given(rows)
def test_a_tree_holds_each_sequence_and_the_shared_prompt_once(row):
    made = group(row).sequences
    tree = grow(made)
    for sequence, leaf in zip(made, tree.leaves):
        assert tuple(t for s in tree.chain(leaf) for t in tree.segments[s].tokens) == sequence.ids
    if len(made) > 1:
        assert tree.segments[0].tokens == made[0].ids[: min(s.start for s in made)]  # all of the prompt but what someone scores
        assert sum(len(s.tokens) for s in tree.segments) == sum(len(s.ids) for s in made) - (len(made) - 1) * len(tree.segments[0].tokens)


def test_sequences_share_what_they_share_and_no_more():
    """Prompts that were cut into other tokens by a merge: the trunk ends where they part, or there is none."""
    parting = grow([TokenSequence((5, 6, 7, 1), 3), TokenSequence((5, 8, 7, 1), 3)])
    assert [s.tokens for s in parting.segments] == [(5,), (6, 7, 1), (8, 7, 1)]
    strangers = grow([TokenSequence((5, 6, 1), 2), TokenSequence((4, 6, 1), 2)])
    assert [(s.tokens, s.parent) for s in strangers.segments] == [((5, 6, 1), -1), ((4, 6, 1), -1)]


@given(st.lists(rows, min_size=1, max_size=4))
def test_a_batch_points_from_each_token_to_the_one_before_it(many):
    """The shift, whatever the shape of the trees: read back over each scored token's own chain of segments."""
    made = [group(row) for row in many]
    batch = collate(made)
    sequences = [s for one in made for s in one.sequences]
    expected = [(s.ids[t - 1], s.ids[t], t - 1, c) for c, s in enumerate(sequences) for t in range(s.start, len(s.ids))]
    found = zip(batch.token_T[batch.source_N].tolist(), batch.target_N.tolist(), batch.position_T[batch.source_N].tolist(), batch.completion_N.tolist())
    assert list(found) == expected
    ids_CL, mask_CL = padded_rows(batch)
    assert [tuple(row[mask == 1].tolist()) for row, mask in zip(ids_CL, mask_CL)] == [s.ids for s in sequences]


@given(st.lists(rows, min_size=1, max_size=8), st.integers(30, 200))
def test_packing_keeps_every_group_within_the_budget(many, tokens):
    made = [group(row) for row in many]
    packed = pack(made, tokens)
    assert sorted(i for part in packed for i in part) == list(range(len(made)))
    assert packed == pack(made, tokens)
    longest = [max(len(s.ids) for s in made[i].sequences) for part in packed for i in part]
    assert longest == sorted(longest, reverse=True)  # the largest micro-batch comes first: memory fails at once or never
    for part in packed:
        assert len(part) == 1 or cost([made[i] for i in part]) <= tokens


def test_a_group_above_the_budget_is_named_before_training():
    big = RenderedGroup((TokenSequence(tuple(range(50)), 1),) * 2, (), (None, None), "rows.jsonl:7")
    assert budget([big], None) == 4096
    with pytest.raises(DataError, match=r"rows\.jsonl:7: needs 100 tokens"):
        budget([big], 99)


@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.5, 1.0, 2.0, 2.5])), min_size=1, max_size=3), st.integers(0, 9), st.integers(0, 3))
def test_an_epoch_takes_its_share_of_every_set(parts, seed, epoch):
    shares = [Share(size, weight) for size, weight in parts]
    items = order(shares, seed, epoch)
    assert items == order(shares, seed, epoch)
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
    stream = batches([Share(size)], batch, 3, Cursor())
    seen = [next(stream) for _ in range(skip + 4)]
    cursor = seen[skip - 1][1] if skip else Cursor()
    again = batches([Share(size)], batch, 3, cursor)
    assert [next(again) for _ in range(4)] == seen[skip : skip + 4]
    per_epoch = -(-size // batch)
    for first in range(0, len(seen) - per_epoch + 1, per_epoch):
        assert sorted(i for items, _ in seen[first : first + per_epoch] for i in items) == list(range(size))


def test_a_half_is_another_half_each_epoch():
    halves = [frozenset(order([Share(40, 0.5)], 0, epoch)) for epoch in range(4)]
    assert all(len(half) == 20 for half in halves)
    assert len(set(halves)) == 4


def test_seed_and_epoch_change_the_order():
    assert len({tuple(order([Share(20)], seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
