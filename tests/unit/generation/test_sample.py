"""Completions by a model: each drawn from its distribution, by random numbers of its own, with the
log-prob it was drawn with.
"""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

import tiny
from winnow.config.model_spec import ModelSpec
from winnow.engine import rows
from winnow.engine.dataset_logps import dataset_logps
from winnow.evaluation import kl
from winnow.generation.sampler import (
    ROWS,
    TOKENS,
    Answer,
    Sampling,
    _together,
    choose,
    drawn,
    sample,
    words,
)
from winnow.models import loading

END = 1


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    made = tiny.tokenizer()
    tiny.model(
        request.param, vocab_size=len(made), pad_token_id=None, bos_token_id=0, eos_token_id=END
    ).save_pretrained(folder)
    made.save_pretrained(folder)
    return loading.load(ModelSpec(str(folder), device="cpu"))


def prompts(count, seed=0):
    rng = random.Random(seed)
    return [tuple(rng.randrange(5, 90) for _ in range(rng.randrange(1, 20))) for _ in range(count)]


def test_neither_order_nor_neighbours_have_a_part(loaded, monkeypatch):
    asked, how = prompts(20), Sampling(END, 12, seed=3)
    whole = sample(loaded, asked, how, k=3)
    order = list(range(20))
    random.Random(1).shuffle(order)
    same(sample(loaded, [asked[i] for i in order], how, k=3), [whole[i] for i in order])
    monkeypatch.setattr("winnow.generation.sampler.ROWS", 4)
    same(sample(loaded, asked, how, k=3), whole)
    same(
        [made for _, made in sorted(drawn(loaded, asked, how, k=3, done=set(range(15))))],
        whole[15:],
    )
    # the third answer has no part in the first two
    same([many[:2] for many in whole], sample(loaded, asked, how, k=2))


def same(some, others):
    for ours, theirs in zip(some, others, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.ids, one.finished) == (other.ids, other.finished)
            assert one.logps == pytest.approx(other.logps, abs=1e-4)


def test_a_prompt_that_stands_twice_has_other_answers_and_so_has_another_seed(loaded):
    asked = [(7, 8, 9)] * 2
    first, second = sample(loaded, asked, Sampling(END, 12), k=2)
    assert len({one.ids for one in (*first, *second)}) == 4
    assert {
        one.ids for one in sample(loaded, asked[:1], Sampling(END, 12, seed=1), k=2)[0]
    }.isdisjoint({one.ids for one in first})


def test_the_log_probs_are_the_models_whatever_the_temperature(loaded):
    asked = prompts(6)
    for how in (Sampling(END, 10, 1.0), Sampling(END, 10, 0.5, 0.8), Sampling(END, 10, 0.0)):
        answers = sample(loaded, asked, how, k=2)
        told = [logp for many in answers for one in many for logp in one.logps]
        scored = dataset_logps(
            rows,
            loaded.model,
            kl.as_groups(asked, answers, END),
            10_000,
            loaded.device,
            whose="the model",
        )
        assert told == pytest.approx(scored.tolist(), abs=1e-4)
        assert all(
            len(one.logps) == len(one.ids) + one.finished for many in answers for one in many
        )


def test_drawn_as_often_as_likely():
    """First tokens of many answers against the exact distribution: a chi-squared test of a fixed
    seed.
    """
    torch.manual_seed(0)
    logits = torch.randn(12) * 1.5
    count = 40_000
    uniform = torch.rand(count, dtype=torch.float64)
    for top_p in (1.0, 0.7):
        found = Counter(choose(logits.expand(count, -1), uniform, top_p).tolist())
        exact = logits.double().softmax(-1)
        if top_p < 1:
            order = exact.argsort(descending=True)
            kept = order[: int((exact[order].cumsum(0) < top_p).sum()) + 1]
            exact = torch.zeros_like(exact).scatter(0, kept, exact[kept])
            exact /= exact.sum()
        assert set(found) == set(exact.nonzero().flatten().tolist())
        squares = sum(
            (found[i] - count * p) ** 2 / (count * p) for i, p in enumerate(exact.tolist()) if p > 0
        )
        assert squares < 2 * 12  # of at most 11 degrees of freedom, p = 0.017 at 23.0


def test_the_ends_of_the_unit_interval_choose_tokens_that_can_be():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    assert choose(logits, torch.tensor([0.0], dtype=torch.float64), 1.0).tolist() == [1]
    assert choose(logits, torch.tensor([1 - 2**-53], dtype=torch.float64), 1.0).tolist() == [3]
    assert choose(logits, torch.tensor([0.5], dtype=torch.float64), 1.0).tolist() == [3]


def test_the_most_likely_answer_is_the_same_k_times(loaded):
    for many in sample(loaded, prompts(3), Sampling(END, 8, 0.0), k=3):
        assert len(set(many)) == 1


def test_batches_hold_little_padding_and_no_more_than_fits():
    assert _together([10] * 1000, 1, 10) == ROWS
    assert _together([10] * 1000, 4, 10) == ROWS // 4
    # up to a quarter longer, of short ones up to twenty tokens
    assert _together([1, 5, 20, 21, 200], 1, 10) == 3
    assert _together([4000] * 100, 1, 96) == TOKENS // 4096
    assert _together([TOKENS * 2], 8, 96) == 1


@pytest.mark.parametrize("kind", ["words", "metaspace", "bytes"])
def test_an_answer_keeps_the_blank_it_begins_with(tmp_path, kind):
    """Tokenizers of three families: what is written behind the prompt is what the tokens spell
    there, so it is read back as the same tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from winnow.experiments import reviews_world

    if kind == "words":
        reviews_world.write_tokenizer(tmp_path)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    elif kind == "metaspace":
        made = Tokenizer(
            models.WordLevel(
                {"<unk>": 0, "▁the": 1, "▁plot": 2, "▁was": 3, "▁dull": 4, "▁and": 5},
                unk_token="<unk>",
            )
        )
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    else:
        tokenizer = tiny.tokenizer()
    ids = tokenizer("the plot was dull and the plot was dull").input_ids
    cut = len(tokenizer("the plot was dull and").input_ids)
    said = words(tokenizer, ids[:cut], Answer(tuple(ids[cut:]), True))
    assert said == " the plot was dull"
    assert tokenizer("the plot was dull and" + said).input_ids == ids
