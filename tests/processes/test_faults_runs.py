"""Faults of numbers, disks, folders, stores, networks and settings through the command line, under
the numbers of the fault table.

Elsewhere: rows 1 to 16, about data, are in test_faults.py; 19 (signals and kills) in test_kill.py
and test_signals.py; 23 (several processes) in test_ranks.py; of 20 a damaged file of a checkpoint,
of 22 two runs in one folder in test_resume.py; of 27 errors in test_secrets.py, pages in
test_report.py.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load, load_file, save_file

import runs
import tiny
from winnow.commands import generate, round_figures
from winnow.config.collection import SampleSettings
from winnow.errors import TrainingError
from winnow.generation.sampler import Answer
from winnow.models import loading
from winnow.system import hub
from winnow.system.files import cache_folder, read_json, read_jsonl
from winnow.system.run_folder import RunFolder
from winnow.training import checkpoint, references


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp("world"))


def line(command, world, out, **changes):
    return runs.line(command, world, out, **{"engine": "rows", **changes})


@pytest.fixture
def no_weights(monkeypatch):
    """No weights may be read."""

    def refuse(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "_load_weights", refuse)


def told(error):
    """An error's lines, without the progress bars of libraries."""
    return [line.strip() for line in error[error.index("error: ") :].splitlines()]


def bent(world, folder, change):
    """The world's model with other weights."""
    shutil.copytree(world / "model", folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: change(name, w) for name, w in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


# ---------------------------------------------------------------- 17: numbers that are none


def test_17_a_loss_that_is_not_finite_names_its_row_and_leaves_the_checkpoint_before(
    world, tmp_path, call
):
    rows = [{**row, "weight": 1e300 if i == 5 else 1.0} for i, row in enumerate(tiny.pairs(8))]
    data = tiny.write(tmp_path / "d.jsonl", rows)
    run = RunFolder(tmp_path / "run")
    code, _, error = call(
        *line("dpo", world, run.root, data=[data], batch_size=1, steps=8, save_every=1, seed=1)
    )
    assert (code, told(error)[0]) == (1, f"error: the loss is not finite in a batch with {data}:6")
    kept, wrong = checkpoint.latest(run.checkpoints)
    assert (wrong, kept.progress.step) == ([], len(read_jsonl(run.metrics)))
    assert kept.progress.step > 0
    assert all(torch.isfinite(w).all() for w in kept.weights.values())
    for left in (run.model, run.report_json):
        assert not left.exists()


def test_17_a_gradient_that_is_not_finite(world, tmp_path, call):
    model = bent(world, tmp_path / "huge", lambda name, w: w if "norm" in name else w * 1e30)
    run = RunFolder(tmp_path / "run")
    code, _, error = call(*line("sft", world, run.root, model=model, batch_size=2))
    assert (code, told(error)[0].partition(f"{world}/train.jsonl:")[0]) == (
        1,
        "error: the gradient is not finite after a batch with ",
    )
    for left in (run.checkpoints, run.model, run.report_json):
        assert not left.exists()


@pytest.mark.parametrize("everywhere", [True, False])
def test_17_a_reference_without_numbers(world, tmp_path, call, monkeypatch, everywhere):
    model = bent(world, tmp_path / "loud", loud)
    if not everywhere:  # as if it were so on some texts alone
        monkeypatch.setattr(references, "fingerprint", lambda *_: torch.zeros(3))
    run = RunFolder(tmp_path / "run")
    code, _, error = call(*line("dpo", world, run.root, reference=model))
    why = f"{model}: as a reference it gives log-probs that are not finite, whatever the text"
    row = (
        f"the reference ({model}) gives log-probs that are not finite for one of"
        f" {world}/train.jsonl:"
    )
    assert (code, told(error)[0].startswith(f"error: {why if everywhere else row}")) == (1, True)
    for left in (run.checkpoints, run.model):
        assert not left.exists()
    assert not list(cache_folder("reference").glob("*"))


@pytest.mark.parametrize(("policy", "reference"), [("loud", "model"), ("model", "loud")])
def test_17_an_evaluation_names_the_model_without_numbers(world, tmp_path, call, policy, reference):
    names = {"model": world / "model", "loud": bent(world, tmp_path / "loud", loud)}
    data = world / "held.jsonl"
    code, _, error = call(
        "eval",
        "--model",
        names[policy],
        "--reference",
        names[reference],
        "--data",
        data,
        "--engine",
        "rows",
    )
    part = "policy" if policy == "loud" else "reference"
    assert (code, told(error)[0].partition(f"{data}:")[0]) == (
        1,
        f"error: the {part} ({names['loud']}) gives log-probs that are not finite for one of ",
    )
    assert told(error)[-1] == "-> check the model's weights and dtype"


@pytest.mark.parametrize(
    ("policy", "first", "part"), [("loud", "model", "policy"), ("model", "loud", "reference")]
)
def test_17_answers_of_a_round_name_the_model_without_numbers(
    world, tmp_path, monkeypatch, policy, first, part
):
    names = {"model": str(world / "model"), "loud": str(bent(world, tmp_path / "loud", loud))}
    # a broken model cannot be sampled
    monkeypatch.setattr(
        round_figures,
        "sample",
        lambda _, prompts, how, tick: [[Answer((5, 6), True)] for _ in prompts],
    )
    settings = SampleSettings(model=names[policy], prompts="", out=tmp_path, max_new_tokens=2)
    with pytest.raises(
        TrainingError,
        match=f"the {part} \\({re.escape(names['loud'])}\\) gives log-probs that are not finite",
    ):
        round_figures.answers(
            settings, names[policy], names[first], world / "held.jsonl", tmp_path / "answers.jsonl"
        )


def loud(name, w):
    """Weights so large that every log-prob overflows, and each of which is a number."""
    return torch.full_like(w, 3e38) if name == "lm_head.weight" else w


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_17_a_weight_that_is_none_is_an_error_of_the_model(world, tmp_path, call, value):
    """Exit code 2: it is the user's file that is damaged, before training."""
    model = bent(
        world,
        tmp_path / "nan",
        lambda name, w: torch.full_like(w, value) if name == "model.norm.weight" else w,
    )
    code, _, error = call(*line("dpo", world, tmp_path / "run", model=model))
    assert (code, told(error)) == (
        2,
        [
            f"error: {model}: weight model.norm.weight holds NaN or infinity",
            "-> the file is damaged, or was saved by a run that diverged",
        ],
    )
    assert not RunFolder(tmp_path / "run").model.exists()


# ---------------------------------------------------------------- 18: the disk is full

LIMITED = """
import resource, sys
size = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
from winnow.cli import main
main()
"""


def limited(size, *words):
    """The command line in a process whose files cannot grow beyond `size` bytes; (exit code,
    stderr).
    """
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(size), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A finished run, 4 steps with a checkpoint each; copy it before changing it."""
    return runs.dpo(
        world,
        tmp_path_factory.mktemp("finished") / "run",
        steps=4,
        save_every=1,
        keep=4,
        engine="rows",
    ).root


@pytest.fixture
def unfinished(finished, tmp_path):
    """The same, killed after its third step."""
    shutil.copytree(finished, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    run.unfinish()
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "step_4")
    return run


def again(world, run):
    return line("dpo", world, run.root, steps=4, save_every=1, keep=4)


@pytest.mark.process
def test_18_a_full_disk_leaves_the_checkpoint_before_and_says_so(world, unfinished, finished, call):
    before = runs.tree(unfinished.checkpoints)
    target = unfinished.checkpoints / "step_4"
    code, error = limited(30_000, *again(world, unfinished))
    assert (code, told(error)) == (
        1,
        [
            f"error: File too large: {target}",
            "-> what was saved before is intact: mend this, and give the same command again",
        ],
    )
    assert runs.tree(unfinished.checkpoints) == before
    assert sorted(path.name for path in unfinished.checkpoints.iterdir()) == [
        "step_1",
        "step_2",
        "step_3",
    ]
    assert call(*again(world, unfinished))[0] == 0
    assert (unfinished.model / "model.safetensors").read_bytes() == (
        finished / "model" / "model.safetensors"
    ).read_bytes()


def test_18_a_full_disk_before_anything_is_saved(world, tmp_path, call):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        code, _, error = call(*line("dpo", world, tmp_path / "run", steps=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, told(error)[0]) == (
        1,
        f"error: File too large: {tmp_path / 'run' / 'config.yaml'}",
    )
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- 20: a run that is damaged


def old_manifest(folder):
    """As the first version wrote it, which had no seal, and without the optimizer."""
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {
        name: noted for name, noted in manifest["files"].items() if name != "optimizer.safetensors"
    }
    (folder / "manifest.json").write_text(
        json.dumps({"schema": 1, "identity": manifest["identity"], "files": files})
    )
    (folder / "optimizer.safetensors").unlink()


PARTIAL = {
    "no optimizer": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "nothing": lambda folder: [file.unlink() for file in folder.iterdir()],
    "another manifest": lambda folder: (folder / "manifest.json").write_text('{"schema": 1}'),
}


@pytest.mark.parametrize("damage", PARTIAL)
def test_20_a_partial_checkpoint_is_passed_over_aloud(world, unfinished, finished, call, damage):
    PARTIAL[damage](unfinished.checkpoints / "step_3")
    code, said, _ = call(*again(world, unfinished))
    assert (code, said.count("passed over:"), "resumed at step 2" in said) == (0, 1, True)
    assert (unfinished.model / "model.safetensors").read_bytes() == (
        finished / "model" / "model.safetensors"
    ).read_bytes()


def test_20_moments_that_are_missing_are_never_made_anew(world, unfinished, call):
    for folder in unfinished.checkpoints.iterdir():
        old_manifest(folder)
    code, _, error = call(*again(world, unfinished))
    assert (
        code,
        "the checkpoint's moments are of another optimizer: it holds none, this one exp_avg"
        in error,
    ) == (2, True)
    assert not unfinished.finished


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("environment.json", b"{}", "environment.json: damaged: 'asked' is missing in it"),
        ("environment.json", b"\xff{", "environment.json: cannot be read as JSON: "),
        ("data.json", b"[]", "data.json: damaged: 'train' is missing in it"),
        (
            "metrics.jsonl",
            b'{"step": 1}\n{"step" 2}\n',
            "metrics.jsonl:2: damaged: Expecting ':' delimiter",
        ),
        ("metrics.jsonl", b'{"stop": 1}\n', "metrics.jsonl:1: damaged: 'step' is missing in it"),
        (
            "samples.jsonl",
            b"\xff\n",
            "samples.jsonl:1: damaged: 'utf-8' codec can't decode byte 0xff",
        ),
    ],
)
def test_20_what_a_run_recorded_is_not_guessed(world, unfinished, call, name, damage, words):
    (unfinished.root / name).write_bytes(damage)
    before = runs.tree(unfinished.checkpoints)
    code, _, error = call(*again(world, unfinished))
    assert (code, told(error)[0].partition(words)[:2]) == (2, (f"error: {unfinished.root}/", words))
    assert not unfinished.finished
    assert name == "samples.jsonl" or runs.tree(unfinished.checkpoints) == before


def test_20_metrics_that_are_gone_are_missed(world, unfinished, call):
    unfinished.metrics.write_text("")
    code, said, _ = call(*again(world, unfinished))
    assert (code, f"metrics: rows up to step 3 are gone from {unfinished.metrics}" in said) == (
        0,
        True,
    )
    assert [row["step"] for row in read_jsonl(unfinished.metrics)] == [4]


# ---------------------------------------------------------------- 21: the reference's store


@pytest.mark.slow
def test_21_a_damaged_store_is_an_error_until_it_is_deleted(world, tmp_path, call):
    words = line("dpo", world, tmp_path / "run", steps=1)
    assert call(*line("dpo", world, tmp_path / "first", steps=1))[0] == 0
    (store,) = cache_folder("reference").glob("*.safetensors")
    whole = store.read_bytes()
    numbers = load(whole)  # not mapped: the file is written over
    save_file({"logp": torch.zeros(3)}, tmp_path / "foreign")
    save_file(
        {"logp": numbers["logp"]},
        tmp_path / "renamed",
        {"identity": "of another model", "sha256": "0"},
    )
    others = [(tmp_path / name).read_bytes() for name in ("foreign", "renamed")]
    for damaged in (
        whole[:-1] + bytes([whole[-1] ^ 1]),
        whole[:9] + bytes([whole[9] ^ 1]) + whole[10:],
        whole[: len(whole) // 2],
        b"",
        *others,
    ):
        store.write_bytes(damaged)
        code, _, error = call(*words)
        assert (code, told(error)[0].partition(" damaged: ")[0], told(error)[1]) == (
            2,
            f"error: {store}:",
            "-> delete the file: it is computed again",
        )
    assert not RunFolder(tmp_path / "run").checkpoints.exists()
    store.unlink()
    assert call(*words)[0] == 0
    assert torch.equal(load_file(store)["logp"], numbers["logp"])


def test_21_a_store_is_read_by_its_key_alone_and_that_is_said(world, tmp_path, call):
    for out, changes, words in (
        ("first", {}, "kept for other runs in"),
        ("same", {"beta": 0.3}, "log-probs read from"),
        (
            "other",
            {"data": [str(world / "other.jsonl")], "batch_size": 2},
            "kept for other runs in",
        ),
    ):
        code, said, _ = call(*line("dpo", world, tmp_path / out, steps=1, **changes))
        assert (code, words in said) == (0, True)


# ---------------------------------------------------------------- 22: folders


@pytest.mark.parametrize("command", ["dpo", "sft"])
def test_22_a_folder_that_cannot_be_written_is_known_before_anything_is_loaded(
    world, tmp_path, call, no_weights, command
):
    (tmp_path / "file").write_text("mine")
    for out, why in (
        ("/proc/run", "No such file or directory"),
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "run", "Not a directory"),
    ):
        code, _, error = call(*line(command, world, out))
        assert (code, told(error)) == (
            2,
            [f"error: {out}: cannot write here: {why}", "-> choose another --out"],
        )
    assert (tmp_path / "file").read_text() == "mine"


def test_22_spaces_and_letters_of_any_script_in_every_path(world, tmp_path, call, monkeypatch):
    place = tmp_path / "sp äce 雪 [red] 100%"
    shutil.copytree(world, place)
    monkeypatch.setenv("WINNOW_CACHE", str(place / "ca che"))
    code, _, _ = call(
        *line("dpo", place, place / "a run", steps=1, eval_data=[place / "held.jsonl"])
    )
    assert code == 0
    assert (
        call(
            "eval",
            "--model",
            place / "a run",
            "--data",
            place / "held.jsonl",
            "--out",
            place / "an eval",
        )[0]
        == 0
    )
    assert call("report", place / "a run", "--out", place / "a page.html")[0] == 0
    assert sorted(
        path.name for path in place.iterdir() if path.name.startswith(("a ", "an ", "ca "))
    ) == ["a page.html", "a run", "an eval", "ca che"]


def test_22_a_name_that_is_not_utf_8_is_refused(world, tmp_path, call, no_weights):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    for words in (line("dpo", world, name), ("report", world, "--out", name)):
        code, _, error = call(*words)
        assert (code, told(error)) == (
            2,
            [
                f"error: command line: {name!r} is not UTF-8",
                "-> give the file or folder another name",
            ],
        )


def test_22_a_name_inside_a_folder_of_data_may_be_any_bytes(world, tmp_path, call):
    folder = tmp_path / "data"
    folder.mkdir()
    tiny.write(folder / os.fsdecode(b"caf\xe9.jsonl"), [*tiny.pairs(8), tiny.pairs(1)[0]])
    code, said, _ = call("check", "--model", world / "model", "--data", folder, "--batch-size", 2)
    assert (code, "data/caf\\xdce9.jsonl:9" in said) == (0, True)  # the row that stands there twice
    code, _, _ = call(*line("dpo", world, tmp_path / "run", data=[folder], steps=1))
    assert code == 0
    (finding,) = [
        one
        for one in read_json(tmp_path / "run" / "data.json")["train"]["findings"]
        if one["code"] == "duplicates"
    ]
    assert [os.fsencode(row) for row in finding["rows"]] == [
        os.fsencode(folder) + b"/caf\xe9.jsonl:9"
    ]


# ---------------------------------------------------------------- 24: the hub


class Answers(BaseHTTPRequestHandler):
    """A hub that gives nothing: what it says stands in the name that is asked for."""

    def do_GET(self):
        code, reason = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def online(monkeypatch):
    """The hub is asked, at an address that each test gives."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.ask.cache_clear()

    def at(port):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")

    return at


ELSEWHERE = (
    "-> download it where there is a network and give the folder; HF_HUB_OFFLINE=1 takes it from"
    " the hub's cache, if it is there"
)
DOWNLOAD = (
    "-> download it where there is a network and give the folder, or a .jsonl or .parquet file"
)


def test_24_what_the_hub_says_is_said_in_a_sentence(world, tmp_path, call, no_weights, online):
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online(server.server_port)
    try:
        for name, says in (
            (
                "nobody/nothing",
                "has no model of that name, or it is private: then log in with `hf auth login`",
            ),
            (
                "nobody/gated",
                (
                    "gives this model only to whom its owner lets: ask on its page, then log in"
                    " with `hf auth login`"
                ),
            ),
        ):
            code, _, error = call(*line("dpo", world, tmp_path / "run", model=name))
            assert (code, told(error)) == (
                2,
                [
                    (
                        f"error: model '{name}' cannot be loaded: there is no such folder here, and"
                        f" the hub {says}"
                    ),
                    ELSEWHERE,
                ],
            )
        code, _, error = call(*line("dpo", world, tmp_path / "run", data=["nobody/nothing"]))
        what = (
            "nobody/nothing:train: no file or folder of that name here, and the hub has no dataset"
            " of that name"
        )
        assert (code, told(error)) == (
            2,
            [f"error: {what}, or it is private: then log in with `hf auth login`", DOWNLOAD],
        )
    finally:
        server.shutdown()
        server.server_close()
    assert not (tmp_path / "run").exists()


def test_24_a_hub_that_does_not_answer_is_not_waited_for(
    world, tmp_path, call, no_weights, online, monkeypatch
):
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    with socket.socket() as silent:  # takes what it is told, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port, error_name in ((silent.getsockname()[1], "ReadTimeout"), (1, "ConnectError")):
            online(port)
            for changes, begin, remedy in (
                (
                    {"model": "nobody/nothing"},
                    "model 'nobody/nothing' cannot be loaded: there is no such folder here",
                    ELSEWHERE,
                ),
                (
                    {"reference": "nobody/nothing"},
                    "model 'nobody/nothing' cannot be loaded: there is no such folder here",
                    ELSEWHERE,
                ),
                (
                    {"data": ["nobody/nothing:test"]},
                    "nobody/nothing:test: no file or folder of that name here",
                    DOWNLOAD,
                ),
            ):
                code, _, error = call(*line("dpo", world, tmp_path / "run", **changes))
                assert (code, told(error)) == (
                    2,
                    [f"error: {begin}, and the hub cannot be reached ({error_name})", remedy],
                )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "nobody/nothing",
            (
                "there is no such folder here, and the hub's cache does not have it (HF_HUB_OFFLINE"
                " is set)"
            ),
        ),
        ("/no/where", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        ("no model", "there is no such folder"),
        ("empty", "there is no config.json in it"),
        ("bare", "there is no tokenizer.json in it"),
    ],
)
def test_24_a_model_that_is_not_there_is_one_sentence(
    world, tmp_path, call, no_weights, monkeypatch, name, why
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    shutil.copy(world / "model" / "config.json", tmp_path / "bare")
    code, _, error = call(*line("dpo", world, tmp_path / "run", model=name))
    what = "tokenizer" if "nobody" in name or name == "bare" else "model"
    remedy = "-> give a folder with config.json and model.safetensors, a hub name, or a run folder"
    assert (code, told(error)) == (2, [f"error: {what} {name!r} cannot be loaded: {why}", remedy])
    assert not (tmp_path / "run").exists()


@pytest.mark.process
def test_24_who_has_all_files_contacts_nobody(world, tmp_path):
    """Online, in a real process, with an adapter: its base model is looked up too."""
    with socket.socket() as counting:
        counting.bind(("127.0.0.1", 0))
        counting.listen()
        counting.setblocking(False)
        env = {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": f"http://127.0.0.1:{counting.getsockname()[1]}",
            "http_proxy": "",
            "OMP_NUM_THREADS": "1",
        }
        words = line("dpo", world, tmp_path / "run", steps=1, lora="r=2")
        done = subprocess.run(
            [sys.executable, "-m", "winnow", *words],
            env=os.environ | env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        with pytest.raises(BlockingIOError):
            counting.accept()


# ---------------------------------------------------------------- 27: what a model says is shown

NASTY = "<script>alert(1)</script>\x1b[2J[red]\u202e<img src=x onerror=alert(1)>" + "y" * 1_000_000


def test_27_a_models_answer_is_text_in_the_terminal_and_in_the_page(
    world, tmp_path, call, monkeypatch, unfinished
):
    assert call(*again(world, unfinished))[0] == 0
    rows = read_jsonl(unfinished.samples)
    unfinished.samples.write_text(
        "".join(
            json.dumps({**row, "completion": NASTY, "prompt": NASTY[:80]}) + "\n" for row in rows
        )
    )
    assert call("report", unfinished.root, "--out", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert len(page) < 1_000_000
    assert not {"<script>alert", "<img", "\x1b", "\u202e"} & {
        part for part in ("<script>alert", "<img", "\x1b", "\u202e") if part in page
    }
    assert "&lt;script&gt;alert(1)" in page
    tokenizer = tiny.tokenizer()
    monkeypatch.setattr(
        type(tokenizer), "decode", lambda self, ids, **_: NASTY if list(ids)[-1:] == [5] else ""
    )
    monkeypatch.setattr(
        generate, "sample", lambda loaded, ids, how, k=1: [[Answer((5,), True)] for _ in ids]
    )
    code, said, _ = call(
        "generate", "--model", world / "model", "--prompt", "x", "--out", tmp_path / "a.jsonl"
    )
    assert code == 0
    assert not set(said) & {"\x1b", "\u202e"}
    assert "[red]" in said.replace("\n", "")
    assert len(said) < 10_000
    # the file has all of it, as it is
    assert read_jsonl(tmp_path / "a.jsonl")[0]["answer"] == [NASTY]


# ---------------------------------------------------------------- 28: settings


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            ("--beta", "0"),
            ["settings cannot be used:", "beta: Input should be greater than 0 (got '0')"],
        ),
        (
            ("--beta", "-0.1"),
            ["settings cannot be used:", "beta: Input should be greater than 0 (got '-0.1')"],
        ),
        (
            ("--beta", "nan"),
            ["settings cannot be used:", "beta: Input should be a finite number (got 'nan')"],
        ),
        (("--objective", "dpo:beta=0"), ["dpo: beta: got 0, expected above 0, at most 1e6"]),
        (
            ("--objective", "robust", "--label-smoothing", "0.5"),
            [
                "settings cannot be used:",
                "label_smoothing: Input should be less than 0.5 (got '0.5')",
            ],
        ),
        (
            ("--objective", "robust:label_smoothing=0.5"),
            ["robust: label_smoothing: got 0.5, expected from 0, below 0.5"],
        ),
        (("--steps", "3", "--warmup", "4"), ["warmup 4 is more than the 3 steps"]),
        (
            ("--epochs", "1", "--warmup", "300"),
            ["warmup of 300 steps is longer than the run of 3", "-> --warmup 0.1"],
        ),
        (
            ("--lr", "0"),
            ["settings cannot be used:", "lr: Input should be greater than 0 (got '0')"],
        ),
        (
            ("--batch-size", "0"),
            [
                "settings cannot be used:",
                "batch_size: Input should be greater than or equal to 1 (got '0')",
            ],
        ),
        (
            ("--max-length", "5000"),
            ["max_length 5000 is beyond the model's limit of 256 tokens", "-> --max-length 256"],
        ),
        (
            ("--lora", "r=0"),
            [
                "settings cannot be used:",
                "lora: r must be a whole number above 0, at most 1,000,000, got '0'",
            ],
        ),
        (
            ("--optimizer", "sgd"),
            [
                (
                    "command line: Invalid value for '--optimizer': 'sgd' is not one of 'adamw',"
                    " 'rmsprop'."
                ),
                "-> winnow dpo --help",
            ],
        ),
        (("--beta",), ["command line: Option '--beta' requires an argument.", "-> winnow --help"]),
        (
            ("stray",),
            ["command line: Got unexpected extra argument (stray)", "-> winnow dpo --help"],
        ),
    ],
    ids=lambda part: " ".join(part)[:40],
)
def test_28_a_setting_out_of_range_is_refused_before_anything_is_loaded(
    world, tmp_path, call, no_weights, words, lines
):
    base = [
        word
        for name in ("model", "train.jsonl")
        for word in ("--data" if name.endswith("l") and "." in name else "--model", world / name)
    ]
    size = () if "--batch-size" in words else ("--batch-size", "8")
    code, _, error = call("dpo", *base, "--out", tmp_path / "run", *size, *words)
    assert (code, told(error)) == (2, [f"error: {lines[0]}", *lines[1:]])
    assert not (tmp_path / "run").exists()
