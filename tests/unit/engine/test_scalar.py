"""Scalar heads on the engines' hidden states: against single sequences, one after the other,
through transformers' own classifiers.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import tiny
from winnow.engine import scalar_head
from winnow.engine.batch import collate
from winnow.engine.selection import SCALARS, choose, kind_of
from winnow.errors import ModelError

# whose classifier transformers keeps apart from its text model
FAMILIES = [name for name in tiny.FAMILIES if name != "gemma3_text"]
# float64, but transformers turns positions into angles in float32: the last digits are those of
# 1e-7
ENGINES = [*SCALARS.ladder[1:], scalar_head.ORACLE]


def classifier(family, dtype=torch.float64):
    """A tiny sequence classifier with one label, random."""
    own = {name: value for name, value in tiny.FAMILIES[family].items() if name != "pad_token_id"}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = AutoConfig.for_model(family, **own, num_labels=1, pad_token_id=None)
        return AutoModelForSequenceClassification.from_config(
            config, dtype=dtype, attn_implementation="eager"
        ).eval()


def single(model, groups, *, whole):
    """The head's number for every scored token, from sequences alone: transformers' own forward
    pass of what stands up to it.
    """
    found = []
    for group in groups:
        for sequence in group.sequences:
            upto = [len(sequence.ids)] if whole else range(sequence.start, len(sequence.ids))
            found += [
                model(input_ids=torch.tensor([sequence.ids[:length]])).logits[0, 0]
                for length in upto
            ]
    return torch.stack(found)


@pytest.mark.parametrize("whole", [True, False], ids=["answers", "tokens"])
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.NAME)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_values_and_gradients_equal_single_sequences(family, engine, whole):
    model, groups = classifier(family), tiny.groups(3)
    batch = collate(groups, whole=whole)
    expected_N = single(model, groups, whole=whole)
    weight_N = torch.linspace(-1, 2, len(expected_N), dtype=torch.float64)
    (weight_N * expected_N).sum().backward()
    truth = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with torch.no_grad():
        assert torch.allclose(engine.logps(model, batch)["logp"], expected_N, atol=1e-6, rtol=0)
    columns = engine.backward(model, batch, lambda columns, part: {"logp": weight_N})
    assert torch.allclose(columns["logp"], expected_N, atol=1e-6, rtol=0)
    assert len(truth) > 5
    for name, expected in truth.items():
        assert torch.allclose(
            dict(model.named_parameters())[name].grad, expected, atol=1e-6, rtol=1e-6
        ), name


def test_whole_answers_have_one_number_per_completion():
    groups = tiny.groups(4)
    batch = collate(groups, whole=True)
    lasts = [sequence.ids[-1] for group in groups for sequence in group.sequences]
    assert batch.target_N.tolist() == lasts
    assert batch.length_C.tolist() == [1] * len(lasts)
    # the last token's own state, not the one before it
    assert batch.token_T[batch.source_N].tolist() == lasts
    tokens = collate(groups)
    assert batch.runs == tokens.runs
    assert torch.equal(batch.pair_M2, tokens.pair_M2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fastest_engine_is_proved_on_a_scalar_head_too(family):
    model = classifier(family, torch.float32)
    assert kind_of(model) is SCALARS
    found = choose(model, 97, 40)
    assert found.engine in SCALARS.ladder, found.passed_over
    assert all(p.grad is None for p in model.parameters())


def test_a_language_model_has_no_scalar_head():
    model = tiny.model("llama")
    assert not scalar_head.is_scalar(model)
    with pytest.raises(ModelError, match="has no head called score"):
        scalar_head.ORACLE.logps(model, collate(tiny.groups(1)))
    with pytest.raises(ModelError, match="says nothing of a vocabulary"):
        scalar_head.ORACLE.said(classifier("llama"), collate(tiny.groups(1)))
