"""Text -> tokens: boundary, BOS, end token, special spellings, limits; and the twelve layouts as
the same tokens.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

import tiny
from winnow.data.records import Comparison, Completion, Message, PreferenceGroup, demonstration
from winnow.data.render import Renderer
from winnow.errors import DataError, ModelError

TEXT = tiny.tokenizer()
BARE = tiny.tokenizer(bos=False)
CHAT = tiny.tokenizer(template=tiny.TEMPLATE)
BOS, EOS, END = 0, 1, 6


def pair(prompt, chosen, rejected, tools=()):
    return PreferenceGroup(
        prompt, (Completion(chosen), Completion(rejected)), (Comparison(0, 1),), tools, "made:1"
    )


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


def test_no_padding_token_is_needed():
    assert TEXT.pad_token_id is None
    assert CHAT.pad_token_id is None


def test_a_padding_token_that_is_eos_changes_nothing():
    padded = tiny.tokenizer()
    padded.pad_token = padded.eos_token
    assert Renderer(padded).render(pair("hi", " yes", " no")) == Renderer(TEXT).render(
        pair("hi", " yes", " no")
    )


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
    sequence = (
        Renderer(CHAT)
        .render(pair(prompt, chat(("assistant", "yes")), chat(("assistant", "no"))))
        .sequences[0]
    )
    assert (
        decoded(CHAT, sequence.ids)
        == "<s><|system|>be kind<|end|>\n<|user|>hi<|end|>\n<|assistant|>yes<|end|>"
    )
    # not the template's newline behind it
    assert decoded(CHAT, sequence.ids[sequence.start :]) == "yes<|end|>"
    assert sequence.ids.count(BOS) == 1


def test_tools_and_their_answers_go_through_the_template():
    knows = tiny.tokenizer(
        template="{% for t in tools or [] %}[{{ t['function']['name'] }}]{% endfor %}"
        + tiny.TEMPLATE
    )
    tools = ({"type": "function", "function": {"name": "clock"}},)
    prompt = chat(
        ("system", "be kind"), ("user", "when?"), ("assistant", "I look"), ("tool", "noon")
    )
    sequence = (
        Renderer(knows)
        .render(pair(prompt, chat(("assistant", "at noon")), chat(("assistant", "no")), tools))
        .sequences[0]
    )
    head = (
        "[clock]<s><|system|>be kind<|end|>\n<|user|>when?<|end|>\n<|assistant|>I"
        " look<|end|>\n<|tool|>noon<|end|>\n<|assistant|>"
    )
    assert decoded(knows, sequence.ids) == f"{head}at noon<|end|>"
    # not the turn the assistant had before
    assert decoded(knows, sequence.ids[sequence.start :]) == "at noon<|end|>"
    assert tuple(Renderer(knows).prompt_ids(prompt, tools)) == sequence.ids[: sequence.start]


def test_a_template_given_beside_the_tokenizer_comes_first():
    group = pair(chat(("user", "hi")), chat(("assistant", "yes")), chat(("assistant", "no")))
    assert Renderer(TEXT, chat_template=tiny.TEMPLATE).render(group) == Renderer(CHAT).render(group)
    other = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    assert (
        decoded(CHAT, Renderer(CHAT, chat_template=other).render(group).sequences[0].ids)
        == "hi<|end|>yes<|end|>"
    )


def test_a_template_without_end_token_ends_with_eos():
    plain = tiny.tokenizer(
        template=(
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if"
            " add_generation_prompt %}assistant: {% endif %}"
        )
    )
    sequence = (
        Renderer(plain)
        .render(pair(chat(("user", "hi")), chat(("assistant", "yes")), chat(("assistant", "no"))))
        .sequences[0]
    )
    assert decoded(plain, sequence.ids) == "user: hi\nassistant: yes</s>"
    assert decoded(plain, sequence.ids[sequence.start : -1]) == "yes"


def test_a_spelled_special_token_stays_text():
    rendered = Renderer(TEXT).render(pair("say </s>", " </s><s>", " no"))
    assert rendered.special == 3
    for sequence in rendered.sequences:
        assert sequence.ids.count(EOS) == 1
        assert sequence.ids.count(BOS) == 1
    assert decoded(TEXT, rendered.sequences[0].ids) == "<s>say </s> </s><s></s>"
    talk = Renderer(CHAT).render(
        pair(
            chat(("user", "x<|end|>")), chat(("assistant", "a<|end|>b")), chat(("assistant", "no"))
        )
    )
    assert talk.special == 2
    assert talk.sequences[0].ids.count(END) == 2  # one of the user's turn, one of the answer
    assert decoded(CHAT, talk.sequences[0].ids[talk.sequences[0].start :]) == "a<|end|>b<|end|>"


def test_a_special_token_spelled_across_prompt_and_answer_stays_text():
    sequence = Renderer(TEXT).render(pair("say </", "s>", " no")).sequences[0]
    assert sequence.ids.count(EOS) == 1
    assert decoded(TEXT, sequence.ids[sequence.start :]) == "s></s>"


def test_a_special_token_spelled_in_tools_and_beside_a_message_stays_text():
    template = (
        "{{ tools | tojson }}{% for m in messages %}{{ m['name'] or '' }}{{ (m['tool_calls'] or [])"
        " | tojson }}{{ m['content'] }}<|end|>\n{% endfor %}"
    )
    knows = tiny.tokenizer(template=template)
    tools = (
        {
            "function": {
                "name": "clock",
                "description": "until <|end|>",
                "parameters": {"<|end|>": {"enum": ["</s>"]}},
            }
        },
    )
    calls = Message(
        "assistant",
        "look",
        {"tool_calls": [{"function": {"name": "clock", "arguments": {"at": "<|end|>"}}}]},
    )
    prompt = (Message("user", "hi", {"name": "<|end|>"}),)
    rendered = Renderer(knows).render(pair(prompt, (calls,), (Message("assistant", "no"),), tools))
    assert rendered.special == 5
    ids = rendered.sequences[0].ids
    # the user's turn and the answer's: the template wrote these
    assert (ids.count(END), ids.count(EOS)) == (
        2,
        0,
    )
    assert (
        decoded(knows, ids[rendered.sequences[0].start :])
        == '[{"function": {"name": "clock", "arguments": {"at": "<|end|>"}}}]look<|end|>'
    )


def test_a_template_without_end_token_scores_the_blanks_an_answer_ends_with():
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}#{% endfor %}{% if"
        " add_generation_prompt %}assistant: {% endif %}"
    )
    plain = tiny.tokenizer(template=template)
    sequence = (
        Renderer(plain)
        .render(
            pair(chat(("user", "hi")), chat(("assistant", "yes \n")), chat(("assistant", "no")))
        )
        .sequences[0]
    )
    assert decoded(plain, sequence.ids[sequence.start :]) == "yes \n</s>"


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
        Renderer(TEXT).render(
            pair(chat(("user", "hi")), chat(("assistant", "a")), chat(("assistant", "b")))
        )
    strict = tiny.tokenizer(template="{{ raise_exception('only user') }}")
    with pytest.raises(DataError, match="only user"):
        Renderer(strict).render(
            pair(chat(("user", "hi")), chat(("assistant", "a")), chat(("assistant", "b")))
        )


def test_noncharacters_that_stand_for_special_tokens_are_refused():
    with pytest.raises(DataError) as caught:
        Renderer(TEXT).render(pair("a\ufdd0", "b", "c"))
    assert "U+FDD0" in str(caught.value.problems[0])


def test_a_template_that_rewrites_an_answer_it_does_not_end_is_refused():
    loud = tiny.tokenizer(template="{% for m in messages %}{{ m['content'] | upper }} {% endfor %}")
    with pytest.raises(DataError, match="changes the answer's text and writes no end token"):
        Renderer(loud).render(
            pair(chat(("user", "HI")), chat(("assistant", "yes")), chat(("assistant", "no")))
        )


def test_a_template_that_rewrites_the_prompt_is_refused():
    odd = tiny.tokenizer(
        template="{{ messages|length }}{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    )
    with pytest.raises(DataError, match="writes the prompt differently"):
        Renderer(odd).render(
            pair(chat(("user", "hi")), chat(("assistant", "a")), chat(("assistant", "b")))
        )


@pytest.mark.parametrize(
    "reach",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "cycler.__init__.__globals__.os.system('true')",
        "messages.append(messages[0])",
    ],
)
def test_a_template_reaches_nothing_but_the_dialogue(reach):
    """It comes with the model, from whoever made that."""
    sly = tiny.tokenizer(template=f"{{{{ {reach} }}}}{tiny.TEMPLATE}")
    with pytest.raises(DataError, match="is unsafe"):
        Renderer(sly).render(
            pair(chat(("user", "hi")), chat(("assistant", "a")), chat(("assistant", "b")))
        )


@settings(max_examples=150)
@given(st.text(max_size=30), st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_the_scored_tokens_are_the_answer(prompt, chosen, rejected):
    if chosen == rejected or any(
        "\ud800" <= c <= "\udfff" or c in "\ufdd0\ufdd1" for c in prompt + chosen + rejected
    ):
        return
    for sequence, answer in zip(
        Renderer(TEXT).render(pair(prompt, chosen, rejected)).sequences, (chosen, rejected)
    ):
        assert TEXT.decode(sequence.ids[sequence.start : -1]) == answer
        assert TEXT.decode(sequence.ids[1 : sequence.start]) == prompt


MERGED = [("b", "c"), ("a", "b"), ("bc", "bc"), ("c", "a"), ("ab", "Ġ")]


def test_tokens_that_are_cut_again_inside_the_prompt_stay_the_prompts():
    """`ab` is one token, `abc` is a + bc: a still belongs to the prompt, bc holds the boundary and
    is scored.
    """
    for bos in (True, False):
        merging = tiny.tokenizer(bos=bos, merges=MERGED)
        sequence = Renderer(merging).render(pair("ab", "c", "x")).sequences[0]
        assert merging.convert_ids_to_tokens(sequence.ids)[bos:] == ["a", "bc", "</s>"]
        assert (sequence.start, sequence.moved) == (1 + bos, True)


def test_a_token_that_ends_at_the_boundary_is_the_prompts():
    """A tokenizer that looks ahead: `ab` is one token, `abc` is a + b + c. Only c is the answer."""
    ahead = tiny.tokenizer(merges=[("a", "b")])
    words = pre_tokenizers.Split(Regex("ab(?!c)|."), "isolated")
    ahead.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    sequence = Renderer(ahead).render(pair("ab", "c", "x")).sequences[0]
    assert ahead.convert_ids_to_tokens(sequence.ids) == ["<s>", "a", "b", "c", "</s>"]
    assert (sequence.start, sequence.moved) == (3, True)


def test_a_moved_boundary_is_found_behind_a_spelled_special_token():
    merging = tiny.tokenizer(
        merges=MERGED, template="{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    for prompt, answer, answered in (
        ("ab", "c", "bc</s>"),
        ("</s>ab", "c", "bc</s>"),
        ("ab</s>ab", "c</s>b", "bc</s>b</s>"),
    ):
        sequence = (
            Renderer(merging)
            .render(
                pair(chat(("user", prompt)), chat(("assistant", answer)), chat(("assistant", "x")))
            )
            .sequences[0]
        )
        assert merging.decode(sequence.ids[sequence.start :]) == answered
        assert (sequence.moved, sequence.ids.count(EOS)) == (True, 1)


@settings(max_examples=200)
@given(st.text("abc é", max_size=8), st.text("abc é", min_size=1, max_size=8))
def test_with_merges_the_scored_tokens_are_the_answer_or_begin_inside_the_prompt(prompt, answer):
    merging = tiny.tokenizer(merges=MERGED)
    sequence = Renderer(merging).render(pair(prompt, answer, answer + "x")).sequences[0]
    assert list(sequence.ids) == [
        BOS,
        *merging(prompt + answer, add_special_tokens=False)["input_ids"],
        EOS,
    ]
    if sequence.moved:
        scored, first = (
            merging.decode(sequence.ids[sequence.start : -1]),
            merging.decode(sequence.ids[sequence.start + 1 : -1]),
        )
        # the first scored token, and no other, spans the boundary
        assert len(first) < len(answer) < len(scored)
        assert scored.endswith(answer)
    else:
        assert merging.decode(sequence.ids[1 : sequence.start]) == prompt
        assert merging.decode(sequence.ids[sequence.start : -1]) == answer


def test_a_merge_across_the_boundary_is_scored_and_counted(shared_data):
    from transformers import GPT2TokenizerFast

    gpt2 = GPT2TokenizerFast(
        vocab=str(shared_data / "gpt2_bpe/vocab.json"),
        merges=str(shared_data / "gpt2_bpe/merges.txt"),
    )
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
        return [
            (rendered.sequences[c.winner], rendered.sequences[c.loser])
            for c in rendered.comparisons
        ]

    expected = [tokens(group) for group in load("pairs_chat")]
    assert len(expected) == 12
    for name in LAYOUTS["pairs"]:
        assert [tokens(group) for group in load(name)] == expected, name
    for name in LAYOUTS["winners"]:
        assert [renderer.render(group).sequences[0] for group in load(name)] == [
            pairs[0][0] for pairs in expected
        ], name
    unpaired = [renderer.render(group) for group in load("kto_unpaired")]
    assert [(one.sequences[0], one.labels[0]) for one in unpaired] == [
        side for pairs in expected for side in zip(pairs[0], (True, False))
    ]
    assert [renderer.render(demonstration(group)).sequences[0] for group in load("scored")] == [
        pairs[0][0] for pairs in expected
    ]
