"""Every layout and every kind of file gives the same groups; every bad row is a Problem and never
another exception.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from any_rows import COLUMNS, ROWS, WRITERS, json_values, save
from winnow.data.hub import hub_rows
from winnow.data.jsonl import Row
from winnow.data.layout_parts import As
from winnow.data.layouts import LAYOUTS, detect, group_of
from winnow.data.records import Comparison, Message, PreferenceGroup, Text, plain
from winnow.data.sources import Loaded, load
from winnow.errors import DataError, Problem, SettingsError

PAIRED = {
    "alpaca_preference.json": "alpaca",
    "grouped.jsonl": "grouped",
    "hh.jsonl": "hh",
    "pairs_chat.jsonl": "pairs",
    "pairs_chat_implicit_prompt.jsonl": "implicit_prompt",
    "pairs_text.jsonl": "pairs",
    "rewardbench.jsonl": "rewardbench",
    "scored.jsonl": "scored",
    "ultrafeedback_binarized.jsonl": "ultrafeedback",
}


def said(group: PreferenceGroup) -> tuple[Text, set[str], set[tuple[str, str]]]:
    """What a group says, whatever the order of its completions."""
    texts = [repr(completion.text) for completion in group.completions]
    return group.prompt, set(texts), {(texts[c.winner], texts[c.loser]) for c in group.comparisons}


def one(
    row: Mapping[str, Any], as_: As = None, layout: str | None = None
) -> PreferenceGroup | list[Problem]:
    place = Row("f.jsonl:1", row)
    name = layout or detect([place])
    assert name is not None
    return group_of(place, LAYOUTS[name], as_)


def group(row: Mapping[str, Any], as_: As = None) -> PreferenceGroup:
    found = one(row, as_)
    assert isinstance(found, PreferenceGroup), found
    return found


def problem(row: Mapping[str, Any], as_: As = None, layout: str | None = None) -> str:
    found = one(row, as_, layout)
    assert isinstance(found, list), found
    assert all(bad.where == "f.jsonl:1" for bad in found)
    return "\n".join(map(str, found))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# --- the shared examples


@pytest.mark.parametrize("file", PAIRED)
def test_paired_layouts_give_equal_groups(shared_data: Path, file: str) -> None:
    expected = load(f"{shared_data}/layouts/pairs_chat.jsonl", as_="chat")
    loaded = load(f"{shared_data}/layouts/{file}", as_="chat")
    assert loaded.layout == PAIRED[file]
    assert not loaded.problems
    assert [said(g) for g in loaded.groups] == [said(g) for g in expected.groups]
    assert len(loaded.groups) == 12


@pytest.mark.parametrize("file", ["demonstrations.jsonl", "demonstrations_chat.jsonl"])
def test_demonstrations_equal_the_winners(shared_data: Path, file: str) -> None:
    pairs = load(f"{shared_data}/layouts/pairs_chat.jsonl").groups
    loaded = load(f"{shared_data}/layouts/{file}", as_="chat")
    assert not loaded.problems
    assert [(g.prompt, g.completions) for g in loaded.groups] == [
        (g.prompt, g.completions[:1]) for g in pairs
    ]
    assert not any(g.comparisons for g in loaded.groups)


def test_unpaired_equal_the_labelled_completions(shared_data: Path) -> None:
    pairs = load(f"{shared_data}/layouts/pairs_chat.jsonl").groups
    loaded = load(f"{shared_data}/layouts/kto_unpaired.jsonl", as_="chat")
    found = [(g.prompt, c.text, c.label) for g in loaded.groups for c in g.completions]
    assert found == [
        (g.prompt, g.completions[k].text, label)
        for g in pairs
        for k, label in ((0, True), (1, False))
    ]


@pytest.mark.parametrize(
    "file",
    [
        "alpaca_preference.json",
        "grouped.jsonl",
        "rewardbench.jsonl",
        "scored.jsonl",
        "pairs_text.jsonl",
    ],
)
def test_text_stays_text_by_default_and_on_request(shared_data: Path, file: str) -> None:
    expected = load(f"{shared_data}/layouts/pairs_text.jsonl").groups
    for as_ in (None, "text"):
        assert [said(g) for g in load(f"{shared_data}/layouts/{file}", as_=as_).groups] == [
            said(g) for g in expected
        ]
    assert all(isinstance(g.prompt, str) for g in expected)


@pytest.mark.parametrize(
    "file",
    [
        "pairs_chat.jsonl",
        "pairs_chat_implicit_prompt.jsonl",
        "ultrafeedback_binarized.jsonl",
        "demonstrations_chat.jsonl",
    ],
)
def test_dialogues_are_refused_as_text(shared_data: Path, file: str) -> None:
    with pytest.raises(DataError, match="--as text, but the rows are lists of messages"):
        load(f"{shared_data}/layouts/{file}", as_="text")


def test_hh_as_text_keeps_every_character(shared_data: Path) -> None:
    file = shared_data / "layouts" / "hh.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row, g in zip(rows, load(str(file)).groups, strict=True):
        assert str(g.prompt).endswith("\n\nAssistant:")
        assert [f"{g.prompt}{c.text}" for c in g.completions] == [row["chosen"], row["rejected"]]
        assert str(g.completions[0].text).startswith(" ")


def test_margins_and_ignored_columns(shared_data: Path) -> None:
    ultra = load(f"{shared_data}/layouts/ultrafeedback_binarized.jsonl")
    assert {g.comparisons[0].margin for g in ultra.groups} == {4.5}
    assert ultra.ignored == ("messages", "prompt_id")
    scored = load(f"{shared_data}/layouts/scored.jsonl")
    assert {(g.comparisons[0].winner, g.comparisons[0].margin) for g in scored.groups} == {(1, 7.0)}


def test_real_files(shared_data: Path) -> None:
    polite = load(f"{shared_data}/instructions_polite.json")
    assert polite.counts == {"rows": 900, "groups": 900, "bad": 0, "comparisons": 900, "ties": 0}
    assert polite.ignored == ("output",)
    assert sum(g.completions[0] == g.completions[1] for g in polite.groups) == 6
    lines = (shared_data / "instructions_polite.json").read_text().splitlines()
    for g in polite.groups[::90]:
        assert lines[int(g.where.rpartition(":")[2]) - 1].strip() == "{"
    ranked = load(f"{shared_data}/alpacaeval_ranked.jsonl")
    assert ranked.layout == "grouped"
    assert ranked.counts == {"rows": 160, "groups": 160, "bad": 0, "comparisons": 800, "ties": 0}
    assert all(0.5 <= c.probability <= 1 for g in ranked.groups for c in g.comparisons)


# --- layouts


def test_scored_and_ranked_compare_all_strict_pairs(tmp_path: Path) -> None:
    scored = load(
        save(
            tmp_path / "s.jsonl",
            [{"prompt": "p", "completions": ["a", "b", "c", "d"], "scores": [1, 3, 3, 0.5]}],
        )
    )
    assert set(scored.groups[0].comparisons) == {
        Comparison(1, 0, margin=2.0),
        Comparison(2, 0, margin=2.0),
        Comparison(0, 3, margin=0.5),
        Comparison(1, 3, margin=2.5),
        Comparison(2, 3, margin=2.5),
    }
    assert scored.counts["ties"] == 1
    ranked = load(
        save(
            tmp_path / "r.jsonl",
            [{"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]}],
        )
    )
    assert set(ranked.groups[0].comparisons) == {
        Comparison(1, 0, margin=1.0),
        Comparison(1, 2, margin=1.0),
    }
    assert ranked.counts["ties"] == 1


def test_optional_columns_of_a_pair() -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert group({**pair, "probability": 0.7, "weight": 2, "margin": 1.5}).comparisons == (
        Comparison(0, 1, 0.7, 2.0, 1.5),
    )
    # Arrow fills gaps with null
    assert group({**pair, "probability": None}).comparisons == (Comparison(0, 1),)
    assert group({**pair, "score_chosen": 3, "score_rejected": 5}).comparisons[0].margin == -2
    assert "f.jsonl:1: probability: is 1.5, expected 0 to 1" in problem(
        {**pair, "probability": 1.5}
    )
    assert "weight: is 0" in problem({**pair, "weight": 0})
    assert "margin: is no finite number" in problem({**pair, "margin": math.nan})
    assert "weight: is a boolean, expected a number" in problem({**pair, "weight": True})


def test_group_with_comparisons() -> None:
    found = group(
        {
            "prompt": "p",
            "completions": ["a", "b", "c"],
            "comparisons": [
                {"winner": 2, "loser": 0, "probability": 0.6, "weight": 3, "margin": 1}
            ],
        }
    )
    assert found.comparisons == (Comparison(2, 0, 0.6, 3.0, 1.0),)
    chat = group({"prompt": [user("p")], "completions": [[assistant("a")], "b"], "comparisons": []})
    assert [c.text for c in chat.completions] == [
        (Message("assistant", "a"),),
        (Message("assistant", "b"),),
    ]


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        ({"winner": 0, "loser": 7}, "comparisons[0].loser: names completion 7, there are 2"),
        ({"winner": 1, "loser": 1}, "comparisons[0]: completion 1 is compared with itself"),
        ({"winner": "0", "loser": 1}, "comparisons[0].winner: is text ('0'), expected the index"),
        ({"winner": True, "loser": 0}, "comparisons[0].winner: is a boolean"),
        ({"winner": 0}, "comparisons[0].loser: is missing; keys found: 'winner'"),
        ({"winer": 0, "loser": 1}, "did you mean 'winner'?"),
        ({"winner": 0, "loser": 1, "probabilty": 1}, "unknown key 'probabilty'"),
        (None, "comparisons[0]: is null, expected an object"),
    ],
)
def test_bad_comparisons(comparison: Any, message: str) -> None:
    assert message in problem(
        {"prompt": "p", "completions": ["a", "b"], "comparisons": [comparison]}
    )


def test_alpaca_demonstrations() -> None:
    assert group({"instruction": "i", "input": "x", "output": "o"}).prompt == "i\n\nx"
    assert group({"instruction": "i", "input": "", "output": "o"}).prompt == "i"
    assert group({"instruction": "i", "input": None, "output": "o"}).completions[0].text == "o"


def test_hh_dialogue_becomes_stripped_turns() -> None:
    start = "\n\nHuman: Hi  \n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    found = group({"chosen": f"{start} Because. ", "rejected": f"{start} No."}, "chat")
    assert found.prompt == (
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "Why?"),
    )
    assert found.completions[0].text == (Message("assistant", "Because."),)
    assert "differ before the last answer" in problem(
        {"chosen": f"{start} a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"}
    )
    assert "chosen: ends with a turn of Human" in problem(
        {"chosen": f"{start} a\n\nHuman: x", "rejected": f"{start} b"}
    )
    assert "chosen: has no turn" in problem({"chosen": "plain", "rejected": "text"})
    assert "begins with 'Hm.'" in problem(
        {
            "chosen": "Hm.\n\nHuman: x\n\nAssistant: a",
            "rejected": "Hm.\n\nHuman: x\n\nAssistant: b",
        },
        "chat",
    )
    assert "no turn before the answer" in problem(
        {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "chat"
    )
    assert "rejected: is empty or blank" in problem(
        {"chosen": f"{start} a", "rejected": f"{start} "}, "chat"
    )


def test_implicit_prompt() -> None:
    head = [{"role": "system", "content": "s"}, user("1"), assistant("2"), user("3")]
    found = group({"chosen": [*head, assistant("a")], "rejected": [*head, assistant("b")]})
    assert found.prompt == tuple(Message(turn["role"], turn["content"]) for turn in head)
    other = [*head[:-1], user("4")]
    assert "rejected: the dialogues differ before the last answer, from turn 4" in problem(
        {"chosen": [*head, assistant("a")], "rejected": [*other, assistant("b")]}
    )
    assert "chosen: ends with a turn of 'user'" in problem(
        {"chosen": head, "rejected": [*head, assistant("b")]}
    )
    assert "no turn before the answer" in problem(
        {"chosen": [assistant("a")], "rejected": [assistant("b")]}
    )


def test_ultrafeedback_prompt_is_checked_against_the_dialogue() -> None:
    row = {
        "prompt": "p",
        "chosen": [user("p"), assistant("a")],
        "rejected": [user("p"), assistant("b")],
    }
    assert said(group(row))[0] == (Message("user", "p"),)
    assert "prompt: 'q' is not the first user turn 'p'" in problem({**row, "prompt": "q"})
    short = {"prompt": "p", "chosen": [assistant("a")], "rejected": "b"}
    assert said(group(short)) == said(group(row))


def test_a_completion_is_exactly_one_assistant_message() -> None:
    pair = {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert "rejected: has 3 turn(s)" in problem(
        {**pair, "rejected": [assistant("b"), user("c"), assistant("d")]}
    )
    assert "chosen: has 1 turn(s) ('user')" in problem({**pair, "chosen": [user("a")]})
    assert "chosen: is an empty list" in problem({**pair, "chosen": []})


def test_messages_keep_what_a_template_may_want() -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f"}}],
        "name": None,
    }
    tools = [{"type": "function", "function": {"name": "f"}}]
    found = group({"messages": [user("p"), call], "tools": tools})
    assert found.completions[0].text == (
        Message("assistant", "", {"tool_calls": call["tool_calls"]}),
    )
    assert found.tools == tuple(tools)
    assert group({"messages": [user("p"), call], "tools": json.dumps(tools)}).tools == tuple(tools)
    assert "tools: are given, but the row is plain text -> --as chat" in problem(
        {"prompt": "p", "completion": "c", "tools": tools}
    )
    assert group({"prompt": "p", "completion": "c", "tools": tools}, "chat").tools == tuple(tools)
    assert "tools: is a number" in problem({"messages": [user("p"), assistant("a")], "tools": 1})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "p", "chosen": None, "rejected": "b"},
            "chosen: is null, expected text or a list of messages",
        ),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt: is a number"),
        ({"prompt": "p", "chosen": "a", "rejected": {"x": 1}}, "rejected: is an object"),
        (
            {"prompt": "p", "chosen": "a", "rejected": ["b"]},
            "rejected[0]: is text, expected a message",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "rejected: is empty or blank"),
        ({"prompt": "p", "chosen": " \n", "rejected": "b"}, "chosen: is empty or blank"),
        (
            {
                "prompt": "p",
                "chosen": [{"role": "assistant", "content": ["parts"]}],
                "rejected": "b",
            },
            "chosen[0].content: is a list, expected text",
        ),
        (
            {"prompt": "p", "chosen": [{"from": "gpt", "value": "a"}], "rejected": "b"},
            "has from and value, expected role and content",
        ),
        (
            {"prompt": "p", "chosen": [{"Role": "x", "content": "a"}], "rejected": "b"},
            "keys found: 'Role', 'content' -> did you mean 'Role'?",
        ),
        ({"instruction": ["i"], "output": "o"}, "instruction: is a list, expected text"),
        ({"instruction": "i", "input": 5, "output": "o"}, "input: is a number, expected text"),
        (
            {"prompt": "p", "completion": "c", "label": None},
            "label: is null, expected true or false",
        ),
        ({"prompt": "p", "completion": "c", "label": "yes"}, "label: is text ('yes')"),
        ({"prompt": "p", "completion": "c", "label": 2}, "label: is a number ('2')"),
        (
            {"prompt": "p", "completions": ["a", "b"], "scores": [1]},
            "scores: has 1 values for 2 completions",
        ),
        (
            {"prompt": "p", "completions": ["a", "b"], "scores": [1, None]},
            "scores[1]: is null, expected a number",
        ),
        (
            {"prompt": "p", "completions": ["a", "b"], "scores": [1, math.inf]},
            "scores[1]: is no finite number",
        ),
        (
            {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 10**400]},
            "ranks[1]: is no finite number",
        ),
        (
            {"prompt": "p", "completions": "a", "ranks": [1]},
            "completions: is text, expected a list",
        ),
        ({"prompt": "p", "completions": [], "ranks": []}, "completions: there are none"),
    ],
)
def test_bad_cells_name_the_field_and_the_json_type(row: dict[str, Any], message: str) -> None:
    assert message in problem(row)


# as parquet may hold
cells = (
    json_values
    | st.binary(max_size=3)
    | st.dates()
    | st.decimals()
    | st.tuples(st.text(max_size=2), st.none())
)


@settings(deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    row=st.dictionaries(st.sampled_from(COLUMNS), cells),
    as_=st.sampled_from([None, "chat", "text"]),
    data=st.data(),
)
def test_any_row_is_a_group_or_a_problem(
    layout: str, row: dict[str, Any], as_: As, data: st.DataObject
) -> None:
    full = {**{need: data.draw(cells) for need in LAYOUTS[layout].needs}, **row}
    for values in (row, full):
        found = one(values, as_, layout)
        if isinstance(found, list):
            assert found
            assert all(str(bad).startswith("f.jsonl:1: ") for bad in found)
        else:
            assert all(
                plain(c.text).strip() or not isinstance(c.text, str) for c in found.completions
            )
            assert (
                len(
                    {
                        isinstance(text, str)
                        for text in (found.prompt, *(c.text for c in found.completions))
                    }
                )
                == 1
            )


# --- whole data sets


def check(loaded: Loaded, start: int = 0) -> None:
    assert not loaded.problems
    assert [g.prompt for g in loaded.groups] == [row["prompt"] for row in ROWS[start:]]
    assert [g.completions[0].text for g in loaded.groups] == [row["chosen"] for row in ROWS[start:]]
    assert [g.comparisons[0].margin for g in loaded.groups] == [
        row["margin"] for row in ROWS[start:]
    ]
    assert loaded.ignored == ("note",)


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    loaded = load(str(tmp_path / name))
    check(loaded)
    assert loaded.weight == 1
    assert len({g.where for g in loaded.groups}) == 5
    assert load(f"{tmp_path / name}@0.25").weight == 0.25
    assert len(load(str(tmp_path / name), limit=2).groups) == 2


def test_where_of_tables(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        WRITERS[name](tmp_path / name)
    # two lines a row
    assert [g.where.rpartition("/")[2] for g in load(f"{tmp_path}/a.csv").groups] == [
        f"a.csv:{line}" for line in (2, 4, 6, 8, 10)
    ]
    assert load(f"{tmp_path}/a.parquet").groups[4].where == f"{tmp_path}/a.parquet:row 5"


def test_csv_faults(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        "\ufeffprompt,completion,label\r\np,42,True\r\np,c\r\n\r\np,é,0\r\n".encode()
        + b"p,\xe9,1\r\np,x\0y,1\r\np,c,perhaps\r\np,c,\r\n"
    )
    loaded = load(str(path))
    assert [(g.completions[0].text, g.completions[0].label) for g in loaded.groups] == [
        ("42", True),
        ("é", False),
    ]
    messages = [
        str(bad).rpartition("/")[2] if "iconv" not in str(bad) else str(bad)
        for bad in loaded.problems
    ]
    assert messages[0].startswith("a.csv:3: has 2 cells, the header has 3")
    assert (
        "a.csv:6: completion: byte 0xE9 is not UTF-8; as Latin-1 (Windows-1252) it is 'é'"
        in messages[1]
    )
    assert messages[2].startswith("a.csv:7: completion: holds a NUL")
    assert messages[3].startswith("a.csv:8: label: is text ('perhaps')")
    assert messages[4].startswith("a.csv:9: label: is null")
    path.write_text('prompt,completion\na,"b\n')
    with pytest.raises(
        DataError, match=r"a\.csv:2: not CSV: unexpected end of data"
    ):  # no row, so no layout
        load(str(path))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "b.arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1garbagePAR1", b"ARROW1garbage", b"garbage" * 100])
def test_damaged_tables(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="not a readable"):
        load(str(tmp_path / name))


def test_truncated_tables(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        WRITERS[name](tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match="not a readable"):
            load(str(tmp_path / name))


def test_bad_rows_are_collected_and_good_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "p", "chosen": "a"}\n{"prompt": "p", "chosen": "a", "rejected":'
        ' "b"}\nbad\n{"prompt": "p", "chosen": 1, "rejected": ""}\n'
    )
    loaded = load(str(path))
    assert [str(bad).rpartition("a.jsonl:")[2] for bad in loaded.problems] == [
        "1: rejected: is missing; keys found: 'prompt', 'chosen'",
        "3:1: not JSON: Expecting value",
        "4: chosen: is a number, expected text or a list of messages",
    ]
    assert loaded.counts == {"rows": 4, "groups": 1, "bad": 3, "comparisons": 1, "ties": 0}


def test_a_stray_dialogue_as_text_is_one_bad_row(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.jsonl",
        [{"prompt": "p", "completion": "c"}, {"prompt": [user("p")], "completion": "c"}],
    )
    assert "leave out --as text" in str(load(path, as_="text").problems[0])


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        (
            {"prompt": "p", "chosen": "a", "rejcted": "b"},
            "nearest is pairs, without rejected; did you mean 'rejcted'?",
        ),
        ({"text": "x"}, "layouts known: grouped (prompt, completions, comparisons); scored"),
        ({}, "layouts known"),
    ],
)
def test_unknown_layout(tmp_path: Path, row: dict[str, Any], remedy: str) -> None:
    with pytest.raises(DataError, match="fit no known layout") as caught:
        load(save(tmp_path / "a.jsonl", [row]))
    assert remedy in str(caught.value)
    assert ", ".join(sorted(row)) in caught.value.what


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match="there are 0 rows"):
        load(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").write_text("x\ny\n")
    with pytest.raises(DataError, match="none of its 2 rows can be read") as caught:
        load(str(tmp_path / "a.jsonl"))
    assert len(caught.value.problems) == 2
    with pytest.raises(DataError, match=r"did you mean .*a\.jsonl"):
        load(str(tmp_path / "aa.jsonl"))
    with pytest.raises(DataError, match="not there either"):
        load(str(tmp_path / "none" / "aa.jsonl"))
    (tmp_path / "a.jsonl").write_text("x\n" * 500 + json.dumps(ROWS[0]) + "\n")
    # the layout is known by the first rows that can be read, however late
    late = load(str(tmp_path / "a.jsonl"))
    assert (late.layout, late.counts["bad"], late.counts["groups"]) == ("pairs", 500, 1)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"not a known kind of file\n  -> known endings: .jsonl"):
        load(str(tmp_path / "a.txt"))


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_bad_weights(tmp_path: Path, weight: str) -> None:
    path = save(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(SettingsError, match="expected a finite number above 0"):
        load(f"{path}@{weight}")
    with pytest.raises(SettingsError, match="a file has no splits"):
        load(f"{path}:train")


def test_folder_of_files(tmp_path: Path) -> None:
    save(tmp_path / "part-1.jsonl", ROWS[2:])
    save(tmp_path / "part-0.jsonl", ROWS[:2])
    (tmp_path / ".hidden.jsonl").write_text("x")
    (tmp_path / "README.md").write_text("x")
    check(load(str(tmp_path)))
    assert load(f"{tmp_path}@3").weight == 3


def test_folder_with_splits_reads_one(tmp_path: Path) -> None:
    save(tmp_path / "train-00000-of-00001.jsonl", ROWS[1:])
    (tmp_path / "test").mkdir()
    save(tmp_path / "test" / "rows.jsonl", ROWS[4:])
    loaded = load(str(tmp_path))
    check(loaded, 1)
    assert loaded.name == f"{tmp_path}:train"
    check(load(f"{tmp_path}:test@2"), 4)
    with pytest.raises(
        DataError, match=r"no file of the split 'dev'; there are test/rows\.jsonl, train-0"
    ):
        load(f"{tmp_path}:dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data file"):
        load(str(tmp_path / "empty"))


def test_folder_saved_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "one"))
    check(load(str(tmp_path / "one")))
    assert load(str(tmp_path / "one")).groups[0].where == f"{tmp_path}/one:row 1"
    datasets.DatasetDict({"train": saved, "test": saved.select([4])}).save_to_disk(
        str(tmp_path / "two")
    )
    check(load(str(tmp_path / "two")))
    check(load(f"{tmp_path}/two:test"), 4)
    with pytest.raises(DataError, match="no split 'dev'; there are train, test"):
        load(f"{tmp_path}/two:dev")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"x")
    with pytest.raises(DataError, match="saved with save_to_disk"):
        load(str(tmp_path / "one"))


def test_a_damaged_folder_of_datasets_is_an_error_and_not_the_end_of_the_process(
    tmp_path: Path,
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "set"))
    file = next((tmp_path / "set").glob("*.arrow"))
    whole = file.read_bytes()
    refused = 0
    for at in range(0, len(whole), 5):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        try:
            assert load(str(tmp_path / "set")).counts["rows"] == len(ROWS)
        except DataError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([b"\xff"], "prompt: is a bytes"),
        ([datetime.date(2024, 1, 1)], "prompt: is a date"),
        ([decimal.Decimal("1.5")], "prompt: is a Decimal"),
        ([[("k", "v")]], "prompt[0]: is a tuple"),
    ],
)
def test_cells_that_json_does_not_know(tmp_path: Path, values: list[Any], told: str) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    kind = pa.map_(pa.string(), pa.string()) if "tuple" in told else None
    pq.write_table(
        pa.table({"prompt": pa.array(values, kind), "completion": ["c"]}), tmp_path / "a.parquet"
    )
    assert f"a.parquet:row 1: {told}, expected" in str(
        load(str(tmp_path / "a.parquet")).problems[0]
    )


def test_times_that_python_does_not_know(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table(
            {"prompt": ["p"], "completion": ["c"], "when": pa.array([2**62], pa.timestamp("us"))}
        ),
        tmp_path / "a.parquet",
    )
    with pytest.raises(DataError, match="not a readable parquet file: date value out of range"):
        load(str(tmp_path / "a.parquet"))


def test_hub_rows_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    save(tmp_path / "set" / "train.jsonl", ROWS)
    save(tmp_path / "set" / "test.jsonl", ROWS[:1])
    name = str(tmp_path / "set")
    rows = [row for row in hub_rows(name, "train") if isinstance(row, Row)]
    assert [dict(row.values) for row in rows] == ROWS
    assert rows[1].where == f"{name}:train:row 2"
    assert len(list(hub_rows(name, "test"))) == 1
    with pytest.raises(DataError, match="dev"):
        hub_rows(name, "dev")


@pytest.mark.parametrize("name", ["nobody/nothing-of-that-name", "nothing-of-that-name:test"])
def test_unreachable_hub_fails_at_once(name: str) -> None:
    pytest.importorskip("datasets")
    start = time.monotonic()
    with pytest.raises(
        DataError,
        match=(
            r"not to be had from the hub .HF_HUB_OFFLINE is set.*\n  -> download it where there is"
            r" a network and give the folder"
        ),
    ):
        load(name)
    assert time.monotonic() - start < 10
