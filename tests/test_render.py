"""Text -> tokens: boundary, BOS, end token, special spellings, limits; and the twelve layouts as the same tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from winnow.data.records import Comparison, Completion, Message, PreferenceGroup, demonstration
from winnow.data.render import Renderer
from winnow.errors import DataError, ModelError

TEXT = tiny.tokenizer()
BARE = tiny.tokenizer(bos=False)
CHAT = tiny.tokenizer(template=tiny.TEMPLATE)
BOS, EOS, END = 0, 1, 6


def pair(prompt, chosen, rejected, tools=()):
    return PreferenceGroup(prompt, (Completion(chosen), Completion(rejected)), (Comparison(0, 1),), tools, "made:1")


def chat(*turns):
    return tuple(Message(*turn) for turn in turns)


def decoded(tokenizer, ids):
    return tokenizer.decode(ids)


def test_plain_text_has_one_bos_and_scores_the_answer_and_its_end():
    rendered = Renderer(TEXT).render(pair("hi", " yes", " no"))
    for sequence, answer in zip(rendered.sequences, (" yes", " no")):
        assert sequence.ids.count(BOS) == 1
        assert sequence.ids[0] == BOS
        assert decoded(TEXT, sequence.ids[sequence.start : -1]) == answer
        assert sequence.ids[-1] == EOS
        assert not sequence.moved


def test_a_tokenizer_without_bos_gets_none():
    sequence = Renderer(BARE).render(pair("hi", " yes", " no")).sequences[0]
    assert BOS not in sequence.ids
    assert sequence.start == 2


def test_an_empty_prompt_needs_a_bos():
    assert Renderer(TEXT).render(pair("", "yes", "no")).sequences[0].start == 1
    with pytest.raises(DataError, match="nothing predicts the answer's first one"):
        Renderer(BARE).render(pair("", "yes", "no"))


def test_messages_go_through_the_template_and_end_where_it_says():
    prompt = chat(("system", "be kind"), ("user", "hi"))
    sequence = Renderer(CHAT).render(pair(prompt, chat(("assistant", "yes")), chat(("assistant", "no")))).sequences[0]
    assert decoded(CHAT, sequence.ids) == "<s><|system|>be kind<|end|>\n<|user|>hi<|end|>\n<|assistant|>yes<|end|>"
    assert decoded(CHAT, sequence.ids[sequence.start :]) == "yes<|end|>"  # not the template's newline behind it
    assert sequence.ids.count(BOS) == 1


def test_a_template_without_end_token_ends_with_eos():
    plain = tiny.tokenizer(
        template="{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    sequence = Renderer(plain).render(pair(chat(("user", "hi")), chat(("assistant", "yes")), chat(("assistant", "no")))).sequences[0]
    assert decoded(plain, sequence.ids) == "user: hi\nassistant: yes</s>"
    assert decoded(plain, sequence.ids[sequence.start : -1]) == "yes"


def test_a_spelled_special_token_stays_text():
    rendered = Renderer(TEXT).render(pair("say </s>", " </s><s>", " no"))
    assert rendered.special == 3
    for sequence in rendered.sequences:
        assert sequence.ids.count(EOS) == 1
        assert sequence.ids.count(BOS) == 1
    assert decoded(TEXT, rendered.sequences[0].ids) == "<s>say </s> </s><s></s>"
    talk = Renderer(CHAT).render(pair(chat(("user", "x<|end|>")), chat(("assistant", "a<|end|>b")), chat(("assistant", "no"))))
    assert talk.special == 2
    assert talk.sequences[0].ids.count(END) == 2  # one of the user's turn, one of the answer
    assert decoded(CHAT, talk.sequences[0].ids[talk.sequences[0].start :]) == "a<|end|>b<|end|>"


def test_limits_are_refused_or_counted_and_never_empty_a_row():
    group = pair("abc", "defgh", "de")
    with pytest.raises(DataError, match="needs 10 tokens, the model's limit is 8"):
        Renderer(TEXT, limit=8).render(group)
    cut = Renderer(TEXT, limit=8, may_cut=True).render(group).sequences[0]
    assert (len(cut.ids), cut.cut) == (8, 2)
    with pytest.raises(DataError, match="the prompt alone has 4 tokens"):
        Renderer(TEXT, limit=4, may_cut=True).render(group)
    with pytest.raises(DataError, match="identical after cutting to max_length"):
        Renderer(TEXT, limit=6, may_cut=True).render(pair("abc", "def", "deg"))


def test_what_a_tokenizer_must_have():
    deaf = tiny.tokenizer()
    deaf.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        Renderer(deaf)
    with pytest.raises(ModelError, match="--chat-template"):
        Renderer(TEXT).render(pair(chat(("user", "hi")), chat(("assistant", "a")), chat(("assistant", "b"))))
    strict = tiny.tokenizer(template="{{ raise_exception('only user') }}")
    with pytest.raises(DataError, match="only user"):
        Renderer(strict).render(pair(chat(("user", "hi")), chat(("assistant", "a")), chat(("assistant", "b"))))


def test_a_template_that_rewrites_the_prompt_is_refused():
    odd = tiny.tokenizer(template="{{ messages|length }}{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}")
    with pytest.raises(DataError, match="writes the prompt differently"):
        Renderer(odd).render(pair(chat(("user", "hi")), chat(("assistant", "a")), chat(("assistant", "b"))))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30), st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_the_scored_tokens_are_the_answer(prompt, chosen, rejected):
    if chosen == rejected or any("\ud800" <= c <= "\udfff" or c in "\ufdd0\ufdd1" for c in prompt + chosen + rejected):
        return
    for sequence, answer in zip(Renderer(TEXT).render(pair(prompt, chosen, rejected)).sequences, (chosen, rejected)):
        assert TEXT.decode(sequence.ids[sequence.start : -1]) == answer
        assert TEXT.decode(sequence.ids[1 : sequence.start]) == prompt


def test_a_merge_across_the_boundary_is_scored_and_counted(shared_data):
    from transformers import GPT2TokenizerFast

    gpt2 = GPT2TokenizerFast(vocab=str(shared_data / "gpt2_bpe/vocab.json"), merges=str(shared_data / "gpt2_bpe/merges.txt"))
    sequence = Renderer(gpt2).render(pair("a wo", "rd", " no")).sequences[0]
    assert gpt2.convert_ids_to_tokens(sequence.ids) == ["a", "Ġword", "<|endoftext|>"]
    assert (sequence.start, sequence.moved) == (1, True)


LAYOUTS = {
    "pairs": [
        "pairs_text",
        "pairs_chat",
        "pairs_chat_implicit_prompt",
        "hh",
        "alpaca_preference",
        "ultrafeedback_binarized",
        "rewardbench",
        "grouped",
        "scored",
    ],
    "winners": ["demonstrations", "demonstrations_chat"],
}


def test_twelve_layouts_give_the_same_tokens(shared_data):
    from winnow.data import sources

    renderer = Renderer(CHAT)

    def load(name):
        path = next(shared_data.glob(f"layouts/{name}.json*"))
        loaded = sources.load(str(path), as_="chat")
        assert not loaded.problems
        return loaded.groups

    def tokens(group):
        rendered = renderer.render(group)
        return [(rendered.sequences[c.winner], rendered.sequences[c.loser]) for c in rendered.comparisons]

    expected = [tokens(group) for group in load("pairs_chat")]
    assert len(expected) == 12
    for name in LAYOUTS["pairs"]:
        assert [tokens(group) for group in load(name)] == expected, name
    for name in LAYOUTS["winners"]:
        assert [renderer.render(group).sequences[0] for group in load(name)] == [pairs[0][0] for pairs in expected], name
    unpaired = [renderer.render(group) for group in load("kto_unpaired")]
    assert [(one.sequences[0], one.labels[0]) for one in unpaired] == [side for pairs in expected for side in zip(pairs[0], (True, False))]
    assert [renderer.render(demonstration(group)).sequences[0] for group in load("scored")] == [pairs[0][0] for pairs in expected]
