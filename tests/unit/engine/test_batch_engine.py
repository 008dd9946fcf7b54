"""The oracle against something slower still: one sequence at a time, unpadded, in a loop."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError

import tiny
from winnow.engine import rows
from winnow.engine.batch import collate
from winnow.objectives.objective import objective
from winnow.objectives.scores import per_completion


def naive(model, groups):
    """log p of every scored token from single sequences."""
    found = []
    for group in groups:
        for sequence in group.sequences:
            logp_LV = model(input_ids=torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
            found += [
                logp_LV[t - 1, sequence.ids[t]] for t in range(sequence.start, len(sequence.ids))
            ]
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


def gradients(model):
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }
    model.zero_grad()
    return found


def assert_gradients(model, expected, tolerance):
    """Tensor by tensor, relative to its own norm; most tensors have a gradient at all."""
    assert sum(bool(g.norm() > 0) for g in expected.values()) > 0.9 * len(expected)
    for name, g in gradients(model).items():
        assert float((g - expected[name]).norm()) <= tolerance * float(expected[name].norm()), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_gradients_equal_the_loops(family):
    # the grouped products of a mixture of experts exist in float32 only, its plain loop in float64
    # too
    model = tiny.model(
        family, dtype=torch.float64, experts="eager" if family == "qwen3_moe" else None
    )
    groups = tiny.groups(3)
    slope_N = torch.linspace(-1, 1, len(collate(groups).target_N), dtype=torch.float64)
    (naive(model, groups) * slope_N).sum().backward()
    expected = gradients(model)
    columns = rows.backward(model, collate(groups), lambda columns, part: {"logp": slope_N})
    assert not columns["logp"].requires_grad
    assert_gradients(model, expected, 1e-10)


def test_slopes_carry_the_whole_gradient_of_a_loss():
    """backward(slope) with DPO's slope at the log-probs = autograd through the loss written out,
    over single sequences.
    """
    model, groups = tiny.model("llama", dtype=torch.float64), tiny.groups(4)
    batch = collate(groups)
    torch.manual_seed(1)
    reference_N = -torch.rand(len(batch.target_N), dtype=torch.float64)
    logp_N = naive(model, groups)
    ratio = [part.sum() for part in (logp_N - reference_N).split(batch.length_C.tolist())]
    total, first = torch.zeros((), dtype=torch.float64), 0
    for group in groups:
        for c in group.comparisons:
            margin = 0.3 * (ratio[first + c.winner] - ratio[first + c.loser])
            total = total - c.weight * (
                c.probability * margin.sigmoid().log()
                + (1 - c.probability) * (-margin).sigmoid().log()
            )
        first += len(group.sequences)
    total.backward()
    expected = gradients(model)

    made = objective("dpo", beta=0.3)
    rows.backward(
        model,
        replace(batch, reference_N=reference_N),
        lambda columns, part: made.slopes(columns, part, (1.0,), {})[1],
    )
    assert_gradients(model, expected, 2e-7)  # label probabilities are float32 in a batch


def test_shapes_in_signatures_are_executed():
    batch = collate(tiny.groups(1))
    with pytest.raises(TypeCheckError):
        per_completion(torch.zeros(1, len(batch.target_N)), batch)
    with pytest.raises(TypeCheckError):
        dataclasses.replace(batch, pair_M2=torch.zeros(2, 3, dtype=torch.long))


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
    everything = RenderedGroup(
        tuple(TokenSequence((5, 6, v), 2) for v in range(97)), (), (None,) * 97, "all"
    )
    logp_N = rows.logps(model, collate([everything]))["logp"]
    assert float(logp_N.exp().sum().detach()) == pytest.approx(1.0, abs=1e-12)


def test_shared_prompts_stand_once_and_the_shift_is_in_the_batch():
    groups = tiny.groups(3)
    batch = collate(groups, [7, 8, 9])
    distinct = sum(
        g.sequences[0].start + sum(len(s.ids) - s.start for s in g.sequences) for g in groups
    )
    assert len(batch.token_T) == distinct
    assert batch.items == (7, 8, 9)
    at = 0
    for group in groups:
        for sequence in group.sequences:
            n = len(sequence.ids) - sequence.start
            assert batch.target_N[at : at + n].tolist() == list(sequence.ids[sequence.start :])
            assert batch.token_T[batch.source_N[at : at + n]].tolist() == list(
                sequence.ids[sequence.start - 1 : -1]
            )
            assert batch.position_T[batch.source_N[at : at + n]].tolist() == list(
                range(sequence.start - 1, len(sequence.ids) - 1)
            )
            at += n
    whole = [list(s.ids) for g in groups for s in g.sequences]
    assert [row.tolist() for row in rows.sequences(batch)] == whole
