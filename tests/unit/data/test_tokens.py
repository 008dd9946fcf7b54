"""Tokens in columns: the groups that were rendered, the same from any number of processes, made
once, and never read when damaged.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import tiny
from runs import dpo, numbers, tree, world
from winnow.config.training import DPOSettings
from winnow.data import dataset, sources, token_cache, tokens
from winnow.data.packing import cost
from winnow.data.parallel import CHUNK, _ask, rendered
from winnow.data.records import Comparison, Completion, Message, PreferenceGroup
from winnow.data.render import Renderer
from winnow.errors import DataError, ModelError, RunError
from winnow.system.files import sha256_json

TEXT = tiny.tokenizer()
CHAT = tiny.tokenizer(template=tiny.TEMPLATE)


def several() -> list[PreferenceGroup]:
    """One of each kind: text, chat with tools and extras, K ways with soft labels, thumbs, a
    demonstration, a name that is not ASCII.
    """
    talk = (Message("system", "be kind"), Message("user", "hi </s>", {"name": "né"}))
    many = (Comparison(0, 1, 0.75, 2.0, -1.5), Comparison(2, 0), Comparison(2, 1, 0.5))
    return [
        PreferenceGroup(
            "say", (Completion(" yes"), Completion(" no")), (Comparison(0, 1),), (), "made.jsonl:1"
        ),
        PreferenceGroup(
            talk,
            tuple(Completion((Message("assistant", words),)) for words in ("a", "b<|end|>c", "d")),
            many,
            ({"f": 1},),
            "größe:2",
        ),
        PreferenceGroup(
            "thumbs",
            (Completion(" up", True), Completion(" down", False), Completion(" none")),
            (),
            (),
            "",
        ),
        PreferenceGroup("alone", (Completion(" here"),), (), (), "made.jsonl:4"),
    ]


def pairs(count: int, seed: int = 0) -> list[PreferenceGroup]:
    return [
        PreferenceGroup(
            row["prompt"],
            (Completion(row["chosen"]), Completion(row["rejected"])),
            (Comparison(0, 1),),
            (),
            f"made:{i}",
        )
        for i, row in enumerate(tiny.pairs(count, seed))
        if row["chosen"] != row["rejected"]
    ]


def quiet(done: int) -> None:
    pass


def tokenised(texts, renderer):
    return token_cache.tokenised(texts, token_cache.said(texts), renderer)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Every set is large, and stored below a folder of the test."""
    monkeypatch.setattr(token_cache, "LARGE", 1)
    monkeypatch.setenv("WINNOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WINNOW_WORKERS", "1")
    return tmp_path / "cache" / "tokens"


def stored(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def test_groups_come_back_as_they_were_rendered(tmp_path):
    texts = several()
    groups = [Renderer(CHAT, limit=60, may_cut=True).render(text) for text in texts]
    tokens.write(
        tmp_path, "key", [(tokens.packed(groups[:1]), []), (tokens.packed(groups[1:]), [])]
    )
    mapped, problems = tokens.opened(tmp_path, "key")
    for kept in (mapped, tokens.tokens_of(groups)):
        assert list(kept) == groups
        assert repr(list(kept)) == repr(groups)  # Python's numbers, not numpy's
        assert [kept[i] for i in range(len(kept))] == groups
        assert (kept[-1], kept[1:3], kept[::-2]) == (groups[-1], groups[1:3], groups[::-2])
        with pytest.raises(IndexError):
            kept[len(groups)]
        assert kept.columns["length"].tolist() == [
            len(s.ids) for group in groups for s in group.sequences
        ]
        assert kept.per_group("cut").tolist() == [
            sum(s.cut for s in group.sequences) for group in groups
        ]
        assert (kept.at_most >= [cost(group) for group in groups]).all()
        assert kept.where(range(4)) == [group.where for group in groups]
    assert problems == []
    assert isinstance(mapped.columns["ids"], np.memmap)
    assert mapped.identity() == tokens.tokens_of(groups).identity()
    assert tokens.tokens_of(mapped) is mapped


def test_layouts_come_back_as_they_were_rendered(shared_data, tmp_path):
    for file in sorted(shared_data.glob("layouts/*.json*")):
        groups = [Renderer(CHAT).render(text) for text in sources.load(str(file)).groups]
        (tmp_path / file.name).mkdir()
        tokens.write(tmp_path / file.name, "key", [(tokens.packed(groups), [])])
        assert list(tokens.opened(tmp_path / file.name, "key")[0]) == groups, file.name


def test_many_at_once_are_what_one_by_one_are(shared_data):
    """Ids, boundaries and messages, with a limit that refuses some of the rows."""
    texts = [
        *several(),
        *sources.load(str(shared_data / "alpacaeval_ranked.jsonl")).groups[:30],
        *pairs(20),
    ]
    for renderer in (Renderer(CHAT, limit=400), Renderer(CHAT, limit=300, may_cut=True)):
        for text, made in zip(texts, renderer.render_all(texts)):
            if isinstance(made, DataError):
                with pytest.raises(DataError) as one:
                    renderer.render(text)
                assert (str(one.value), one.value.problems) == (str(made), made.problems)
            else:
                assert made == renderer.render(text)


def test_two_processes_write_the_bytes_of_one(tmp_path):
    texts = pairs(3 * CHUNK)
    texts[CHUNK + 7] = PreferenceGroup(
        "long " * 40, texts[0].completions, texts[0].comparisons, (), "long:1"
    )
    texts += several()
    texts.append(
        PreferenceGroup("x\ufdd0", texts[0].completions, texts[0].comparisons, (), "mark:1")
    )
    renderer = Renderer(CHAT, limit=100)
    done = {1: 0, 2: 0}
    for count in done:

        def tick(n: int, count: int = count) -> None:
            done[count] += n

        (tmp_path / str(count)).mkdir()
        tokens.write(tmp_path / str(count), "key", rendered(texts, renderer, count, tick))
    assert done == {1: len(texts), 2: len(texts)}
    one, two = (
        {name: content for name, (_, content) in tree(tmp_path / str(count)).items()}
        for count in (1, 2)
    )
    assert one == two
    made, problems = tokens.opened(tmp_path / "2", "key")
    assert [problem.where for problem in problems] == ["long:1", "long:1", "mark:1"]
    assert made.columns["text"].tolist() == [i for i in range(len(texts) - 1) if i != CHUNK + 7]
    assert made[CHUNK + 7] == renderer.render(texts[CHUNK + 8])


def test_errors_and_deaths_of_a_helper_are_told(monkeypatch):
    talk = PreferenceGroup(
        (Message("user", "hi"),),
        (Completion((Message("assistant", "a"),)), Completion((Message("assistant", "b"),))),
        (),
        (),
        "x:1",
    )
    with pytest.raises(ModelError, match="no chat template") as caught:
        list(rendered([talk], Renderer(TEXT), 2, quiet))
    assert "--chat-template" in caught.value.remedy
    monkeypatch.setattr(sys, "path", [])  # the helper finds nothing to import
    with pytest.raises(RunError, match="tokenizing process ended"):
        list(rendered(pairs(3), Renderer(TEXT), 2, quiet))


@pytest.mark.process
def test_an_answer_that_is_cut_off_is_a_death_too():
    """A helper killed while it writes."""
    idle: SimpleQueue = SimpleQueue()
    code = (
        "import sys; sys.stdin.buffer.read(1);"
        " sys.stdout.buffer.write(b'\\x80\\x05\\x95\\xff\\x00\\x00'); sys.exit(3)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as helper:
        idle.put(helper)
        with pytest.raises(RunError, match="tokenizing process ended with code 3"):
            _ask(idle, 0, [])


@pytest.mark.process
def test_a_script_without_a_main_guard_can_tokenise_in_parallel(tmp_path):
    script = (
        "import tiny\nfrom test_tokens import TEXT, pairs, quiet\nfrom winnow.data.parallel import"
        " rendered\nfrom winnow.data.render import Renderer\n"
    )
    script += (
        "print('begun')\nprint(sum(len(c['sequences']) for c, _ in rendered(pairs(30),"
        " Renderer(TEXT), 2, quiet)))\n"
    )
    (tmp_path / "script.py").write_text(script)
    code = (
        f"import sys, runpy; sys.path[:] = {sys.path!r};"
        f" runpy.run_path({str(tmp_path / 'script.py')!r}, run_name='__main__')"
    )
    words = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert words == ["begun", str(len(pairs(30)))]


def test_a_second_start_tokenises_nothing(cache, monkeypatch, capsys):
    first, problems = tokenised(pairs(30), Renderer(TEXT))
    assert "30 groups written to" in capsys.readouterr().out
    renderer = Renderer(TEXT)

    def refuse(*args, **kwargs):
        raise AssertionError("the tokenizer was called")

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", refuse)
    again, _ = tokenised(pairs(30), renderer)
    assert list(again) == list(first)
    assert problems == []
    assert "nothing tokenised" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="the tokenizer was called"):
        tokenised(pairs(31), renderer)


@pytest.mark.process
def test_another_process_finds_the_same_key(cache, tmp_path):
    """No order of chance (sets, hashes of strings) is in the key."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from test_tokens import *; token_cache.LARGE = 1;"
        " tokenised(several(), Renderer(CHAT))"
    )
    for i in range(2):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert ("nothing tokenised" in run.stdout) == bool(i), run.stdout
    assert len(stored(cache)) == 1


def test_whatever_decides_the_ids_is_in_the_key(cache):
    other = tiny.tokenizer(template=tiny.TEMPLATE + " ")
    merging = tiny.tokenizer(template=tiny.TEMPLATE, merges=[("a", "b")])
    ways = [
        Renderer(CHAT),
        Renderer(CHAT, limit=90),
        Renderer(CHAT, limit=90, may_cut=True),
        Renderer(other),
        Renderer(merging),
        Renderer(TEXT),
    ]
    texts = several()[:1]
    for count, renderer in enumerate(ways, 1):
        tokenised(texts, renderer)
        assert len(stored(cache)) == count
    tokenised([*texts, texts[0]], ways[0])
    tokenised(
        [PreferenceGroup("say", texts[0].completions, (Comparison(1, 0),), (), "made.jsonl:1")],
        ways[0],
    )
    tokenised(texts, Renderer(TEXT, chat_template=tiny.TEMPLATE))  # the same as the tokenizer's own
    assert len(stored(cache)) == len(ways) + 2


def test_a_template_that_writes_the_date_or_refuses_a_dialogue_has_a_key(monkeypatch):
    dated, strict = (
        Renderer(TEXT, chat_template=words)
        for words in (
            "{{ strftime_now('%Y') }}" + tiny.TEMPLATE,
            "{{ raise_exception('only tools') }}",
        )
    )
    assert strict.identity() == strict.identity() != Renderer(TEXT).identity()
    before = dated.identity()
    assert dated.identity() == before
    monkeypatch.setattr(Renderer, "_apply", lambda *args: "1999")
    assert dated.identity() != before


def test_a_tokenizer_written_in_python_has_no_key_and_leaves_no_file(cache, capsys):
    renderer = Renderer(ByT5Tokenizer())
    assert renderer.identity() is None
    texts = [
        *pairs(30),
        PreferenceGroup(
            "say </s>",
            (Completion("</s> yes"), Completion("no")),
            (Comparison(0, 1),),
            (),
            "made:30",
        ),
    ]
    made, problems = tokenised(texts, renderer)
    assert list(made) == [renderer.render(text) for text in texts]
    assert problems == []
    assert "written in Python" in capsys.readouterr().out
    assert not cache.exists()


def test_a_small_set_leaves_no_file(cache, monkeypatch):
    monkeypatch.setattr(token_cache, "LARGE", 20_000)
    assert len(tokenised(pairs(30), Renderer(TEXT))[0]) == 30
    assert not cache.exists()


@pytest.mark.parametrize("name", ["ids", "start", "where", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damaged_files_are_refused_by_name(cache, name, damage):
    tokenised(pairs(30), Renderer(TEXT))
    (folder,) = stored(cache)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 64
    if damage == "flip":
        (folder / name).write_bytes(content)
    elif damage == "cut":
        (folder / name).write_bytes(content[:-4])
    else:
        (folder / name).unlink()
    with pytest.raises(RunError, match=f"{folder.name}/{name}: damaged tokens") as caught:
        tokenised(pairs(30), Renderer(TEXT))
    assert f"delete the folder {folder}" in caught.value.remedy
    shutil.rmtree(folder)
    assert len(tokenised(pairs(30), Renderer(TEXT))[0]) == 30


@pytest.mark.parametrize("other", ["layout", "renderer"])
def test_tokens_of_another_version_are_made_again_and_that_is_said(
    cache, monkeypatch, capsys, other
):
    said = "is in the format of another version of winnow: made again"
    with monkeypatch.context() as patch:
        if other == "layout":
            patch.setattr(tokens, "SCHEMA", tokens.SCHEMA + 1)
        else:
            patch.setattr(tokens.render, "__file__", __file__)
        tokenised(pairs(30), Renderer(TEXT))
        (folder,) = stored(cache)
        (folder / "ids").write_bytes(b"what this version could not read")
    assert said not in capsys.readouterr().out
    made, _ = tokenised(pairs(30), Renderer(TEXT))
    assert list(made) == [Renderer(TEXT).render(text) for text in pairs(30)]
    out = capsys.readouterr().out
    assert (f"{folder} {said}" in out, "30 groups written to" in out) == (True, True)
    assert stored(cache) == [folder]
    tokenised(pairs(30), Renderer(TEXT))
    assert "nothing tokenised" in capsys.readouterr().out


def test_a_folder_under_anothers_key_is_refused(cache):
    tokenised(pairs(30), Renderer(TEXT))
    (folder,) = stored(cache)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest = {**manifest, "key": folder.name + "0" * 48}
    (folder / "manifest.json").write_text(
        json.dumps(
            {
                **manifest,
                "sha256": sha256_json({k: v for k, v in manifest.items() if k != "sha256"}),
            }
        )
    )
    with pytest.raises(RunError, match="of other contents"):
        tokenised(pairs(30), Renderer(TEXT))


def test_what_was_begun_and_never_finished_is_not_taken_for_tokens(cache, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(token_cache.ProgressBar, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            tokenised(pairs(30), Renderer(TEXT))
    assert stored(cache) == []
    # what a process that was killed leaves
    left = next(cache.glob("*.lock")).with_suffix(".tmp-12345678")
    left.mkdir()
    assert len(tokenised(pairs(30), Renderer(TEXT))[0]) == 30
    assert not left.exists()


def test_two_that_begin_together_make_them_once(cache, capfd):
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(
            lambda renderer: tokenised(pairs(300), renderer)[0],
            [Renderer(tiny.tokenizer()), Renderer(tiny.tokenizer())],
        )
    assert list(one) == list(two)
    words = capfd.readouterr().out
    assert (words.count("written to"), words.count("nothing tokenised")) == (1, 1)
    assert len(stored(cache)) == 1


def test_a_cache_that_cannot_be_written_is_told(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WINNOW_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="cannot be stored") as caught:
        tokenised(pairs(30), Renderer(TEXT))
    assert "WINNOW_CACHE" in caught.value.remedy
    monkeypatch.setenv("WINNOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WINNOW_WORKERS", "many")
    with pytest.raises(RunError, match="WINNOW_WORKERS is 'many'"):
        tokenised(pairs(30), Renderer(TEXT))


@pytest.mark.parametrize("large", [1, 20_000])
def test_what_becomes_of_every_row_is_the_same_either_way(cache, tmp_path, monkeypatch, large):
    """Account and findings, rows that cannot be scored, and the account of a second start."""
    monkeypatch.setattr(token_cache, "LARGE", large)
    rows = tiny.pairs(40)
    rows[3]["prompt"] = "long " * 40
    rows[5] = {**rows[5], "chosen": "</s>", "rejected": "x"}
    path = tiny.write(tmp_path / "rows.jsonl", rows)
    other = tiny.write(
        tmp_path / "other.jsonl", [*tiny.pairs(10, seed=5), {**rows[3], "chosen": "a"}]
    )
    data = [str(path), str(other)]
    strict, lenient = (
        DPOSettings(model="m", data=data, out=tmp_path / "o", max_length=100, on_bad_row=what)
        for what in ("error", "skip")
    )
    renderer = Renderer(TEXT, limit=100, may_cut=True)
    with pytest.raises(DataError, match="rows that cannot be scored") as caught:
        dataset.prepare(data, renderer, strict, dataset.Wanted("preference"))
    assert {problem.where.rpartition("/")[2] for problem in caught.value.problems} == {
        "rows.jsonl:4",
        "other.jsonl:11",
    }
    made, held = dataset.prepare(
        data, renderer, lenient, dataset.Wanted("preference"), fraction=0.2
    )
    again, _ = dataset.prepare(data, renderer, lenient, dataset.Wanted("preference"), fraction=0.2)
    assert made.account == again.account
    assert list(made.groups) == list(again.groups)
    assert (
        made.account.dropped["cannot be scored"]
        + held["eval_"].account.dropped.get("cannot be scored", 0)
        == 2
    )
    readable = {text.where: text for name in data for text in sources.load(name).groups}
    assert list(made.groups) == [renderer.render(readable[group.where]) for group in made.groups]
    sequences = [sequence for group in made.groups for sequence in group.sequences]
    assert made.account.tokens.scored == sum(len(s.ids) - s.start for s in sequences)
    assert made.account.tokens.prompt == sum(
        min(s.start for s in group.sequences) for group in made.groups
    )
    assert made.account.tokens.longest == max(len(s.ids) for s in sequences)
    assert made.account.completions == len(sequences)
    # numbers of Python: it is written as JSON
    account = made.account.to_json()
    assert json.loads(json.dumps(account)) == account
    assert [share.size for share in made.shares] == [source.used for source in made.account.sources]


@pytest.mark.slow
def test_a_run_on_mapped_tokens_is_the_run_on_tokens_in_memory(cache, tmp_path, monkeypatch):
    """Reference, training, evaluation and samples; and a run begun on the one goes on with the
    other.
    """
    here, runs = world(tmp_path), {}
    for large in (1, 20_000):
        monkeypatch.setattr(token_cache, "LARGE", large)
        runs[large] = dpo(
            here, tmp_path / f"run{large}", eval_data=[str(here / "held.jsonl")], save_every=2
        )
    assert numbers(runs[1]) == numbers(runs[20_000])
    assert (runs[1].root / "data.json").read_bytes() == (
        runs[20_000].root / "data.json"
    ).read_bytes()
    assert runs[1].samples.read_bytes() == runs[20_000].samples.read_bytes()
    assert len(stored(cache)) == 2  # training and held-out
    expected = numbers(runs[1])
    shutil.rmtree(runs[1].root / "checkpoints" / "step_6")
    runs[1].unfinish()
    assert (
        numbers(dpo(here, tmp_path / "run1", eval_data=[str(here / "held.jsonl")], save_every=2))
        == expected
    )


@pytest.mark.slow
def test_walking_through_mapped_tokens_holds_a_part_of_them(tmp_path):
    """Memory while every group is built once, in bytes per token: what a list holds, and what
    mapped columns do.
    """
    renderer = Renderer(TEXT)
    tokens.write(tmp_path, "key", rendered(pairs(5000), renderer, 1, quiet))
    tracemalloc.start()
    mapped, _ = tokens.opened(tmp_path, "key")
    assert sum(len(group.sequences) for group in mapped) == 2 * len(mapped)
    assert max(mapped.at_most) < 10**6
    lean = tracemalloc.get_traced_memory()[1] / len(mapped.columns["ids"])
    tracemalloc.reset_peak()
    held = [mapped[i] for i in range(len(mapped))]
    full = tracemalloc.get_traced_memory()[1] / len(mapped.columns["ids"])
    tracemalloc.stop()
    assert len(held) == len(mapped)
    assert lean < 5 < 15 < full
