"""The command line as a user meets it: exit codes, one-paragraph errors, help, and what each command leaves behind."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
import yaml

import tiny
import winnow
from winnow import cli, config
from winnow.files import RunFolder, read_jsonl


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny.folder(root / "model")
    tiny.write(root / "train.jsonl", tiny.pairs(16))
    tiny.write(root / "held.jsonl", tiny.pairs(6, seed=1))
    return root


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line in this process: (exit code, what it printed on both channels, lines joined)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["winnow", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, " ".join((out + " " + err).split())

    return run


def trained(world, call, out, *more):
    code, said = call("dpo", "--model", world / "model", "--data", world / "train.jsonl", "--out", out, "--batch-size", 8, "--steps", 2, "--lr", "1e-3", *more)
    assert code == 0, said
    return RunFolder(out)


def test_check_says_what_training_would_see(world, call):
    code, said = call("check", "--model", world / "model", "--data", world / "train.jsonl", "--eval-data", world / "held.jsonl", "--batch-size", 8)
    assert code == 0, said
    for words in ("layout pairs, 16 rows, 16 used", "2 steps of 8 groups, 8.0 comparisons per step", "length_characters", "memory on cpu", "| yes"):
        assert words in said, words
    code, said = call("check", "--model", world / "model", "--data", world / "train.jsonl", "--eval-data", world / "train.jsonl", "--batch-size", 8)
    assert code == 2
    assert "leak" in said


def test_bad_rows_are_named_and_nothing_is_written(world, call, tmp_path):
    path = tmp_path / "bad rows é.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": \n{"prompt": "a", "chosen": "", "rejected": "c"}\n')
    code, said = call("dpo", "--model", world / "model", "--data", path, "--out", tmp_path / "run", "--batch-size", 1)
    assert code == 2
    assert "jsonl:2:" in said.replace(" ", "")
    assert "jsonl:3: chosen: is empty or blank" in said
    assert not list((tmp_path / "run").glob("*.*"))
    code, said = call("dpo", "--model", world / "model", "--data", path, "--out", tmp_path / "run", "--batch-size", 1, "--on-bad-row", "skip", "--lr", "1e-3")
    assert code == 0, said
    assert "dropped: 2 bad row" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--learning-rate", "1e-6"], "ours is lr"),
        (["--betta", "1"], "did you mean beta?"),
        (["--beta", "0"], "beta: Input should be greater than 0"),
        (["--label-smoothing", "0.5"], "label_smoothing: Input should be less than 0.5"),
        (["--epochs", "1", "--steps", "2"], "epochs and steps are both given"),
        (["--steps", "2", "--warmup", "3"], "warmup 3 is more than the 2 steps"),
        (["--lora", "dropout=0.1"], "dropout would make log-probs random"),
        (["--save-best"], "save_best needs an evaluation set"),
        (["--score", "mean"], "dpo takes always sum"),
        (["--batch-size", "64"], "fewer than batch_size 64"),
        (["--max-length", "9"], "the prompt alone has"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (["--device", "cuda:9"], "cannot be used"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(world, call, tmp_path, words, expected):
    code, said = call("dpo", "--model", world / "model", "--data", world / "train.jsonl", "--out", tmp_path / "run", "--batch-size", 8, *words)
    assert code == 2
    assert expected in said
    assert not (tmp_path / "run" / "model").exists()


def test_a_missing_model_is_one_paragraph(world, call, tmp_path):
    code, said = call("dpo", "--model", tmp_path / "nothing", "--data", world / "train.jsonl", "--out", tmp_path / "run")
    assert code == 2
    assert "cannot be loaded" in said


def test_origins_files_and_presets(world, call, tmp_path):
    (tmp_path / "run.yaml").write_text("beta: 0.3\nlr: 1e-3\nsteps: 2\nbatch_size: 8\n")
    run = trained(world, call, tmp_path / "a", "--config", tmp_path / "run.yaml", "--clip", "none")
    text = run.config.read_text()
    assert f"beta: 0.3  # {tmp_path / 'run.yaml'}" in text
    assert "clip: null  # command line" in text
    assert "save_every: 100  # default" in text
    assert yaml.safe_load(text)["lr"] == 1e-3
    code, said = call("dpo", "--config", run.config, "--out", tmp_path / "b")  # a run's own file starts the same run elsewhere
    assert code == 0, said
    rows = [[{k: v for k, v in row.items() if "per_second" not in k} for row in read_jsonl(RunFolder(tmp_path / n).metrics)] for n in "ab"]
    assert rows[0] == rows[1]
    preset = trained(world, call, tmp_path / "c", "--preset", "paper")
    assert "warmup: 1.0  # preset paper, capped at 10 % of 2 steps" in preset.config.read_text()
    assert "optimizer: rmsprop  # preset paper" in preset.config.read_text()
    (tmp_path / "evil.yaml").write_text("trust_remote_code: true\n")
    code, said = call("dpo", "--config", tmp_path / "evil.yaml")
    assert code == 2
    assert "a file cannot ask for it" in said


def test_generate_export_eval_and_report(world, call, tmp_path):
    run = trained(world, call, tmp_path / "run", "--lora")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1: red?"}\n')
    code, said = call(
        "generate",
        "--model",
        run.root,
        "--before",
        world / "model",
        "--prompts",
        tmp_path / "prompts.jsonl",
        "--prompt",
        "2: blue?",
        "--max-new-tokens",
        5,
        "--out",
        tmp_path / "said.jsonl",
    )
    assert code == 0, said
    assert "\x1b" not in said
    rows = read_jsonl(tmp_path / "said.jsonl")
    assert [set(row) for row in rows] == [{"prompt", "before", "after"}] * 2
    code, said = call("export", run.root, "--out", tmp_path / "plain", "--merge")
    assert code == 0, said
    assert "log-probs differ by at most" in said
    assert not (tmp_path / "plain" / "adapter_config.json").exists()
    code, said = call("export", run.root, "--out", tmp_path / "plain")
    assert (code, "not empty" in said) == (2, True)
    code, said = call("eval", "--model", tmp_path / "plain", "--reference", world / "model", "--data", world / "held.jsonl", "--out", tmp_path / "eval")
    assert code == 0, said
    summary = json.loads((tmp_path / "eval" / "report.json").read_text())["summary"]
    assert {"eval_loss", "eval_rewards/accuracies", "eval_rewards/accuracies_low", "eval_rewards/margins", "eval_raw/accuracies"} <= set(summary)
    code, said = call("report", run.root, "--out", tmp_path / "page.html")
    assert code == 0, said
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("name", ["demo", "check", "sft", "dpo", "eval", "generate", "export", "report"])
def test_help_names_every_setting(call, name):
    code, said = call(name, "--help")
    assert code == 0
    squeezed = said.replace(" ", "").replace("│", "")
    for param in cli.cli.commands[name].params:
        if param.param_type_name == "option":
            assert param.opts[0].replace(" ", "")[:20] in squeezed, param.opts


def test_every_setting_has_a_reader():
    """No option without effect: each field of each settings class is read somewhere as an attribute."""
    source = Path(winnow.__file__).parent
    read = {node.attr for path in source.rglob("*.py") for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    classes = [value for value in vars(config).values() if isinstance(value, type) and issubclass(value, config.Settings)]
    fields = {name for kind in classes for name in kind.model_fields}
    assert fields - read - {"preset"} == set()  # preset is read by config.resolve, as a key


def test_the_public_surface():
    expected = "Comparison Completion DataError Message ModelError PreferenceGroup Renderer RunError SettingsError TrainingError WinnowError"
    expected += " completion_logps dpo dpo_loss evaluate losses preference_loss sft"
    assert winnow.__all__ == expected.split()
    assert all(getattr(winnow, name) is not None for name in winnow.__all__)
