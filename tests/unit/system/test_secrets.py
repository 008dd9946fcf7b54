"""No token and no password in what a run leaves behind or says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import runs
from winnow.config.resolve import resolve
from winnow.errors import SettingsError
from winnow.system.console import safe, say
from winnow.system.files import read_json
from winnow.system.redact import LEAST, blanked

HUB = "hf_" + "aB3dE6gH9k" * 3 + "Lm0p"  # the form of a token
HELD = {
    "HF_TOKEN": HUB,
    "WANDB_API_KEY": "0123456789abcdef" * 2,
    "db_password": "correct horse 'battery'",
    "AWS_SECRET_ACCESS_KEY": "wJalr/XUtnFEMI+bPxRfi==",
}
ADDRESS = "https://reader:pa55w0rd@models.example/llama"
SECRETS = [*HELD.values(), "pa55w0rd", "reader"]


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def held(monkeypatch):
    for name, value in HELD.items():
        monkeypatch.setenv(name, value)


def leaks(text):
    return [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"401 for {HUB}, again {HUB}", "401 for ***, again ***"),
        ("login 0123456789abcdef0123456789abcdef.", "login ***."),
        (ADDRESS, "https://***@models.example/llama"),
        ("https://hf_x@host/a", "https://***@host/a"),
        ("git+https://u:p@ss@host/a https://u:p@host", "git+https://***@host/a https://***@host"),
        ("hf_" + "z" * 34 + "!", "***!"),
    ],
)
def test_a_secret_is_blanked_by_its_variable_or_by_its_form(text, shown):
    assert blanked(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "pairs.jsonl@0.5",
        "https://host:8000/v1",
        "hf://datasets/a/b@main",
        "someone@example.com",
        "hf_internal/a_model_with_a_name_of_many_words",
        "runs/hf_short",
    ],
)
def test_what_is_no_secret_stays(text):
    assert blanked(text) == text


def test_variables_of_other_names_and_short_values_stay(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "a value as long as a token")
    monkeypatch.setenv("MONKEYS", "a value as long as a key")
    monkeypatch.setenv("MY_TOKEN", "x" * (LEAST - 1))
    for text in ("a value as long as a token", "x" * LEAST):
        assert blanked(text) == text


def test_the_longer_of_two_secrets_leaves_no_end_behind(monkeypatch):
    monkeypatch.setenv("ONE_TOKEN", "begins-alike")
    monkeypatch.setenv("TWO_TOKEN", "begins-alike-and-goes-on")
    assert blanked("begins-alike-and-goes-on, begins-alike") == "***, ***"


def test_a_cut_does_not_leave_half_a_secret():
    assert HUB[:10] not in safe("x" * 30 + HUB, limit=50)


def test_what_is_said_holds_no_secret(capsys):
    say(f"[bold]{ADDRESS}[/] {HUB}")
    assert capsys.readouterr().out == "https://***@models.example/llama ***\n"


@pytest.mark.slow
def test_a_run_holds_no_secret_and_says_none(world, tmp_path, monkeypatch, capsys):
    """The words that came to nothing (a later --model wins) are recorded with the command."""
    words = runs.line(
        "dpo", world, tmp_path / "run", trackers="tensorboard", eval_data=str(world / "held.jsonl")
    )
    given = [part for secret in (*HELD.values(), ADDRESS) for part in ("--model", secret)]
    assert runs.winnow(monkeypatch, words[0], *given, *words[1:]) == 0
    assert (
        runs.winnow(
            monkeypatch,
            "eval",
            "--model",
            HUB,
            "--model",
            tmp_path / "run",
            "--data",
            world / "held.jsonl",
            "--out",
            tmp_path / "eval",
        )
        == 0
    )
    assert (
        runs.winnow(monkeypatch, "report", tmp_path / "run", "--out", tmp_path / "page.html") == 0
    )
    assert read_json(tmp_path / "run" / "environment.json")["command"].count("***") == len(HELD) + 1
    assert "***" in read_json(tmp_path / "eval" / "report.json")["command"]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"environment.json", "config.yaml", "report.html", "page.html", "metrics.jsonl"} < {
        file.name for file in files
    }
    assert any("tfevents" in file.name for file in files)
    assert [
        (str(file), secret)
        for file in files
        for secret in SECRETS
        if secret.encode() in file.read_bytes() or secret in file.name
    ] == []
    found = capsys.readouterr()
    assert leaks(found.out + found.err) == []


@pytest.mark.parametrize(
    "words",
    [
        ("--model", ADDRESS),
        ("--reference", HUB),
        ("--data", f"{ADDRESS}/rows.jsonl"),
        ("--eval-data", ADDRESS),
        ("--out", f"runs/{HELD['WANDB_API_KEY']}"),
        ("--config", f"{HUB}.yaml"),
    ],
)
def test_a_setting_with_a_secret_is_refused_before_anything_is_written(
    world, tmp_path, monkeypatch, capsys, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{HUB}.yaml").write_text("seed: 1\n")
    before = runs.tree(tmp_path)
    assert runs.winnow(monkeypatch, *runs.line("dpo", world, tmp_path / "run"), *words) == 2
    said = capsys.readouterr().err
    assert f"error: {words[0][2:].replace('-', '_')}: a secret stands in it: " in said
    assert leaks(said) == []
    assert runs.tree(tmp_path) == before


def test_a_prompt_is_text_for_the_model_and_no_setting_that_is_kept():
    from winnow.config.collection import GenerateSettings

    assert resolve(GenerateSettings, {"model": "m", "prompt": [ADDRESS]}).settings.prompt == (
        ADDRESS,
    )
    with pytest.raises(SettingsError, match="model: a secret"):
        resolve(GenerateSettings, {"model": ADDRESS, "prompt": ["x"]})


@pytest.mark.parametrize(
    "words",
    [
        (HUB,),
        ("dpo", f"--{HUB}", "x"),
        ("dpo", "--on-bad-row", HUB),
        ("report", HUB, "--out", "page.html"),
        ("objectives", HUB),
        ("generate", "--model", "nowhere", "--prompts", HUB),
        ("export", HUB, "--out", "x"),
        ("dpo", "--model", "m", "--data", "d", "--out", "x", "--lr", HUB),
    ],
    ids=lambda words: words[0][:9],
)
def test_errors_name_no_secret(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert runs.winnow(monkeypatch, *words) == 2
    found = capsys.readouterr()
    assert "***" in found.out + found.err
    assert leaks(found.out + found.err) == []


def test_errors_are_shown_but_never_obeyed(tmp_path, monkeypatch, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        '{"prompt": "p", "chosen": "a", "rejected": "b", "tools\\u001b[2J\\u202e": 1, "chosen":'
        ' "c"}\n'
    )
    assert runs.winnow(monkeypatch, "check", "--model", "\x1b]0;title\x07", "--data", bad) == 2
    said = capsys.readouterr().err
    assert "\\x1b]0;title\\x07" in said
    assert not set(said) & {"\x1b", "\x07", "\u202e"}


@pytest.mark.process
def test_a_bugs_traceback_names_no_secret():
    """What nobody foresaw: an exception with the request that failed in it."""
    code = (
        f"from winnow import cli\ndef fail(): raise ValueError('GET {ADDRESS} with"
        f" {HUB}')\ncli._quiet = fail\ncli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(
        "ValueError: GET https://***@models.example/llama with ***"
    )
    assert leaks(done.stderr) == []
