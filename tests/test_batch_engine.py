"""The oracle against something slower still: one sequence at a time, unpadded, in a loop."""

from __future__ import annotations

import pytest
import torch

import tiny
from winnow.batch import collate
from winnow.engine import rows


def naive(model, groups):
    """log p of every scored token from single sequences."""
    found = []
    for group in groups:
        for sequence in group.sequences:
            logp_LV = model(input_ids=torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
            found += [logp_LV[t - 1, sequence.ids[t]] for t in range(sequence.start, len(sequence.ids))]
    return torch.stack(found)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_equals_a_loop_over_single_sequences(family):
    model, groups = tiny.model(family), tiny.groups(4)
    with torch.no_grad():
        logp_N = rows.logps(model, collate(groups))["logp"]
        expected_N = naive(model, groups)
    assert logp_N.dtype == torch.float32
    assert bool((logp_N <= 0).all())
    difference_N = (logp_N - expected_N).abs()
    assert float(difference_N.max()) < 1e-5
    assert float(difference_N.mean()) < 1e-6


# the grouped products of a mixture of experts exist in float32 only
@pytest.mark.parametrize(("family", "dtype", "tolerance"), [("llama", torch.float64, 1e-9), ("gpt2", torch.float64, 1e-9), ("qwen3_moe", torch.float32, 1e-4)])
def test_gradients_equal_the_loops(family, dtype, tolerance):
    model, groups = tiny.model(family, dtype=dtype), tiny.groups(3)
    slope_N = torch.linspace(-1, 1, len(collate(groups).target_N), dtype=dtype)
    (naive(model, groups) * slope_N).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    columns = rows.backward(model, collate(groups), lambda logp_N: slope_N)
    assert not columns["logp"].requires_grad
    for name, p in model.named_parameters():
        if name in expected:
            assert float((p.grad - expected[name]).norm()) <= tolerance * float(expected[name].norm()), name


def test_the_company_of_a_group_changes_nothing():
    model, groups = tiny.model("llama", dtype=torch.float64), tiny.groups(5)
    with torch.no_grad():
        together = rows.logps(model, collate(groups))["logp"]
        alone = torch.cat([rows.logps(model, collate([group]))["logp"] for group in groups])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_entropy_is_that_of_the_whole_distribution():
    model, groups = tiny.model("llama", dtype=torch.float64), tiny.groups(2)
    batch = collate(groups)
    entropy_N = rows.logps(model, batch, want=("entropy",))["entropy"]
    sequence = groups[0].sequences[0]
    p_V = model(input_ids=torch.tensor([sequence.ids])).logits[0, sequence.start - 1].softmax(-1)
    torch.testing.assert_close(entropy_N[0], -(p_V * p_V.log()).sum(), rtol=1e-10, atol=0)


def test_probabilities_of_all_next_tokens_sum_to_one():
    from winnow.data.render import RenderedGroup, TokenSequence

    model = tiny.model("llama", dtype=torch.float64)
    everything = RenderedGroup(tuple(TokenSequence((5, 6, v), 2) for v in range(97)), (), (None,) * 97, "all")
    logp_N = rows.logps(model, collate([everything]))["logp"]
    assert float(logp_N.exp().sum().detach()) == pytest.approx(1.0, abs=1e-12)


def test_shared_prompts_stand_once_and_the_shift_is_in_the_batch():
    groups = tiny.groups(3)
    batch = collate(groups, [7, 8, 9])
    distinct = sum(g.sequences[0].start + sum(len(s.ids) - s.start for s in g.sequences) for g in groups)
    assert len(batch.token_T) == distinct
    assert batch.items == (7, 8, 9)
    at = 0
    for group in groups:
        for sequence in group.sequences:
            n = len(sequence.ids) - sequence.start
            assert batch.target_N[at : at + n].tolist() == list(sequence.ids[sequence.start :])
            assert batch.token_T[batch.source_N[at : at + n]].tolist() == list(sequence.ids[sequence.start - 1 : -1])
            assert batch.position_T[batch.source_N[at : at + n]].tolist() == list(range(sequence.start - 1, len(sequence.ids) - 1))
            at += n
    ids_CL, mask_CL = rows.padded_rows(batch)
    whole = [list(s.ids) for g in groups for s in g.sequences]
    assert [row[mask == 1].tolist() for row, mask in zip(ids_CL, mask_CL)] == whole
