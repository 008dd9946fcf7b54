"""The founding documents' own numbers, and the rulings where they are wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import tiny
import winnow
from winnow.data.records import Comparison, Completion, PreferenceGroup
from winnow.data.render import RenderedGroup, Renderer, TokenSequence
from winnow.engine import rows
from winnow.engine.batch import collate
from winnow.objectives.objective import objective
from winnow.objectives.scores import per_completion

# The example batch of the first document.
CHOSEN = torch.tensor([-10.5, -12.1, -9.8, -11.0, -13.5, -10.1, -11.8, -12.5])
REJECTED = torch.tensor([-11.2, -11.9, -10.5, -11.5, -12.8, -10.9, -12.3, -13.0])
REF_CHOSEN = torch.tensor([-10.2, -11.8, -9.5, -10.7, -13.0, -9.8, -11.5, -12.1])
REF_REJECTED = torch.tensor([-11.0, -11.5, -10.1, -11.1, -12.2, -10.5, -11.9, -12.5])

PROMPT = (
    "Below is an instruction that describes a task.\nWrite a response that appropriately completes"
    " the request.\n\n### Instruction:\nWhat is an antonym of 'complicated'?"
)
GOOD = "\n\n### Response:\nA suitable antonym for 'complicated' would be 'simple'."
BAD = "\n\n### Response:\nAn antonym of 'complicated' is 'simple'."
# What the third document prints for the chosen text, its end token included.
PRINTED = """
21106 318 281 12064 326 8477 257 4876 13 198 16594 257 2882 326 20431 32543 262 2581 13 198 198
21017 46486 25 198 2061 318 281 281 1122 4948 286 705 23855 3474 30960 198 198 21017 18261 25
198 32 11080 281 1122 4948 329 705 23855 3474 6 561 307 705 36439 4458 50256
"""


def test_the_example_batch_gives_its_golden_loss():
    assert float(winnow.dpo_loss(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, 0.1)) == pytest.approx(
        0.689410, abs=5e-7
    )
    assert float(winnow.dpo_loss(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)) == pytest.approx(
        0.689410, abs=5e-7
    )


def test_the_papers_index_form_is_the_same_loss():
    policy, reference = torch.cat([CHOSEN, REJECTED]), torch.cat([REF_CHOSEN, REF_REJECTED])
    losses, rewards = winnow.preference_loss(
        policy, reference, torch.arange(8), torch.arange(8, 16), 0.1
    )
    assert losses.shape == (8,)
    assert float(losses.mean()) == pytest.approx(0.689410, abs=5e-7)
    # scaled by beta, which one document leaves out
    torch.testing.assert_close(rewards, 0.1 * (policy - reference))
    # wins once, loses once
    twice, _ = winnow.preference_loss(
        policy, reference, torch.tensor([0, 1]), torch.tensor([1, 0]), 0.1
    )
    assert float(torch.exp(-twice[0]) + torch.exp(-twice[1])) == pytest.approx(1.0, abs=1e-6)


def test_the_sign_of_a_2_and_a_4():
    """P(winner) = s(r_w - r_l), and the gradient's weight s(r_l - r_w) shrinks as the winner is
    preferred.
    """
    margins = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    winnow.losses.logistic(margins, 1.0).sum().backward()
    expected = [-1 / (1 + math.exp(m)) for m in (-2.0, 0.0, 2.0)]
    assert margins.grad.tolist() == pytest.approx(expected, abs=1e-12)
    assert margins.grad[2].abs() < margins.grad[0].abs()


@pytest.fixture(scope="module")
def gpt2(shared_data):
    from transformers import GPT2TokenizerFast

    return GPT2TokenizerFast(
        vocab=str(shared_data / "gpt2_bpe/vocab.json"),
        merges=str(shared_data / "gpt2_bpe/merges.txt"),
    )


@pytest.fixture(scope="module")
def example(gpt2):
    group = PreferenceGroup(
        PROMPT, (Completion(GOOD), Completion(BAD)), (Comparison(0, 1),), (), "document:1"
    )
    return Renderer(gpt2).render(group)


def test_the_worked_examples_tokens_and_masks(example):
    chosen, rejected = example.sequences
    assert list(chosen.ids) == [int(i) for i in PRINTED.split()]
    assert (len(chosen.ids), len(rejected.ids)) == (57 + 1, 55 + 1)
    assert chosen.start == rejected.start == 36
    # the document masks the end token out: then nobody learns to stop
    printed_mask = [0] * 36 + [1] * 21 + [0]
    ours = [int(i >= chosen.start) for i in range(58)]
    assert ours == [*printed_mask[:-1], 1]
    batch = collate([example])
    assert batch.length_C.tolist() == [22, 20]
    assert batch.target_N[0] == 198
    # the token at t is predicted by the position before it
    assert batch.token_T[batch.source_N[0]] == 30960
    assert batch.target_N[21] == 50256


def test_the_worked_examples_loss_and_its_cross_entropy(example):
    model = tiny.model("gpt2", vocab_size=50257)
    batch = collate([example])
    with torch.no_grad():
        logp_C = per_completion(rows.logps(model, batch)["logp"], batch)
        chosen = example.sequences[0]
        logits = model(input_ids=torch.tensor([chosen.ids])).logits[0]
    labels = torch.tensor([-100] * 35 + list(chosen.ids[36:]))  # already shifted by one
    assert float(-logp_C[0] / 22) == pytest.approx(
        float(F.cross_entropy(logits[:-1], labels)), abs=1e-5
    )
    # one document returns the negative: its loss would teach the rejected answer
    assert bool((logp_C < 0).all())
    losses, rewards = winnow.preference_loss(
        logp_C, logp_C.clone(), torch.tensor([0]), torch.tensor([1]), 0.1
    )
    assert float(losses) == pytest.approx(0.6931, abs=5e-5)
    assert rewards.tolist() == [0.0, 0.0]


def loss(made, logp_N, batch):
    return float(made.totals({"logp": logp_N}, batch, {})[0])


def test_scores_are_sums_not_means():
    """An answer twice as long with the same log-ratio per token counts twice; the mean is another
    objective's.
    """
    long_and_short = RenderedGroup(
        (TokenSequence((1, *[2] * 10), 1), TokenSequence((1, *[3] * 5), 1)),
        (Comparison(0, 1),),
        (None, None),
        "made",
    )
    reference_N = torch.full((15,), -2.0, dtype=torch.float64)
    batch = replace(collate([long_and_short]), reference_N=reference_N)
    policy_N = reference_N + 0.4  # log-ratios 4.0 and 2.0
    assert loss(objective("dpo", beta=0.5), policy_N, batch) == pytest.approx(
        math.log1p(math.exp(-0.5 * 2.0)), abs=1e-12
    )
    assert loss(objective("dpo_norm", beta=0.5), policy_N, batch) == pytest.approx(
        math.log(2), abs=1e-12
    )


def test_only_the_answer_is_scored_and_padding_is_no_token(example):
    """What stands in the prompt, or behind the end of a shorter row, has no slope; an end token
    inside an answer has one.
    """
    batch = collate([example])
    scored = [
        (int(batch.completion_N[n]), int(batch.position_T[batch.source_N[n]]) + 1)
        for n in range(len(batch.target_N))
    ]
    assert scored == [(c, t) for c, n in enumerate((58, 56)) for t in range(36, n)]
    ids_CL = rows.padded_rows(batch)
    assert ids_CL.shape == (2, 58)
    # told apart by place: the end token of the shorter row is none of the padding
    assert ids_CL[:, 55].tolist() == [
        36439,
        50256,
    ]
    assert ids_CL[1, 55:].tolist() == [50256, 0, 0]
    assert 55 in [t for c, t in scored if c == 1]


def test_higher_beta_keeps_the_policy_closer():
    """At the optimum of a soft label the margin is logit(p) / beta: less movement for a higher
    beta.
    """
    moved = {}
    for beta in (0.1, 1.0):
        margin = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        inner = torch.optim.LBFGS(
            [margin],
            max_iter=200,
            tolerance_grad=1e-14,
            tolerance_change=1e-16,
            line_search_fn="strong_wolfe",
        )

        def closure(margin=margin, inner=inner, beta=beta):
            inner.zero_grad()
            won, lost = winnow.losses.logistic(margin, beta), winnow.losses.logistic(-margin, beta)
            loss = winnow.losses.soft(torch.tensor([0.8], dtype=torch.float64), won, lost).sum()
            loss.backward()
            return loss

        inner.step(closure)
        moved[beta] = float(margin.detach())
        assert moved[beta] == pytest.approx(math.log(4) / beta, rel=1e-4)
    assert moved[1.0] < moved[0.1]
