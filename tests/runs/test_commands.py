"""The command line as people meet it: exit codes, what is said, what is written; never a
traceback.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import click
import pytest
import torch
import yaml

import runs
import tiny
from winnow.cli import cli
from winnow.config.model_spec import ModelSpec
from winnow.engine import rows as engine
from winnow.engine.batch import collate
from winnow.models import loading
from winnow.system.files import read_json, read_jsonl
from winnow.system.run_folder import RunFolder


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    return runs.dpo(
        world,
        tmp_path_factory.mktemp("trained") / "run",
        eval_data=[str(world / "held.jsonl")],
        beta=0.3,
        steps=4,
    )


@pytest.fixture
def call(call):
    """(exit code, stdout, stderr) of a command, with line breaks folded."""

    def run(*words):
        code, out, error = call(*words)
        return code, " ".join(out.split()), error

    return run


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", [name for name, made in cli.commands.items() if hasattr(made, "settings")]
)
def test_help_mentions_every_setting(call, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    code, said, _ = call(name, "--help")
    assert code == 0
    kind = cli.commands[name].settings
    for ours, field in kind.model_fields.items():
        alone = {
            ("export", "model"): "RUN",
            ("judge", "answers"): "ANSWERS",
            ("label", "answers"): "ANSWERS",
            ("winrate", "models"): "MODELS...",
        }.get((name, ours))
        flag = alone or "--" + (field.alias or ours).replace("_", "-")
        assert flag in said, flag
        if not alone:
            assert " ".join(field.description.split())[:30] in re.sub(r"[│ ]+", " ", said), (
                field.description
            )


@pytest.mark.parametrize(
    ("name", "offered"), [("judge", True), ("online", False), ("winrate", False)]
)
def test_a_column_as_a_judge_is_offered_where_answers_have_columns(
    call, monkeypatch, name, offered
):
    monkeypatch.setenv("COLUMNS", "200")
    code, said, _ = call(name, "--help")
    assert (code, "FILE.py:function" in said, "column:NAME" in said) == (0, True, offered)


def test_the_group_lists_its_commands(call):
    code, said, _ = call("--help")
    assert code == 0
    assert all(
        name in said
        for name in ("demo", "check", "sft", "dpo", "eval", "generate", "export", "report")
    )
    assert isinstance(cli.commands["report"], click.Command)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--bta", "0.1"], "unknown setting 'bta': did you mean beta?"),
        (["--learning-rate", "1e-6"], "learning_rate is TRL's name; ours is lr"),
        (["--per-device-train-batch-size", "2"], "ours is batch_size"),
        (["--max-steps", "2"], "ours is steps"),
        (["--gradient-checkpointing", "true"], "ours is checkpointing"),
        (["--ref-model-sync-steps", "2"], "ref_model_sync_steps"),
        (["--steps", "2", "--epochs", "1"], "choose one"),
        (["--steps", "2", "--warmup", "3"], "warmup 3 is more than the 2 steps"),
        (["--epochs", "1", "--warmup", "300"], "longer than the run of 3"),
        (["--lr", "fast"], "lr:"),
        (["--device", "cuda:77"], "--device cpu"),
        (["--score", "mean"], "score belongs to ipo"),
        (["--objective", "ppo"], "one of dpo, cdpo"),
        (["--objective", "simpo", "--reference", "m"], "compares with no reference"),
        (["--objective", "plackett_luce", "--pairs", "best"], "takes each ranking as a whole"),
        (
            ["--objective", "ipo", "--pairs", "listwise"],
            "--objective plackett_luce, or --pairs all",
        ),
        (["--objective", "kto", "--tail-weight", "0.5"], "kto has no such setting"),
        (["--moving-reference", "mix=1"], "nothing is learnt"),
        (["--moving-reference", "mix=0.5", "--reference", "m"], "choose one"),
        (["--moving-reference", "tau=5"], "expected mix=0.6 or every=512"),
        (["--objective", "tdpo", "--reference", "m"], "and not of another model"),
    ],
)
def test_a_wrong_word_is_answered(world, tmp_path, call, words, told):
    base = [
        "dpo",
        "--model",
        world / "model",
        "--data",
        world / "train.jsonl",
        "--out",
        tmp_path / "run",
        "--batch-size",
        "8",
    ]
    code, _, error = call(*base, *words)
    assert code == 2
    assert error.startswith("error: ")
    assert told in error
    # a device is tried when the model is loaded
    assert not (tmp_path / "run" / "config.yaml").exists() or "cuda" in str(words)


def test_a_missing_setting_and_no_words_at_all(call):
    code, _, error = call("dpo", "--model", "M", "--data", "d.jsonl")
    assert (code, "out: is needed" in error) == (2, True)
    assert call("dpo")[0] == 2
    assert call("nonsense")[0] == 2


# ---------------------------------------------------------------- settings through the command line


def test_check_takes_for_each_training_only_what_that_training_takes(world, call):
    words = (
        "check",
        "--recipe",
        "sft",
        "--model",
        world / "model",
        "--data",
        world / "train.jsonl",
        "--batch-size",
        8,
    )
    code, said, _ = call(*words)
    assert code == 0
    assert "rate: linear from 2e-05 " in said
    code, _, error = call(*words, "--beta", 0.3, "--pairs", "best")
    assert code == 2
    assert (
        "pairs, beta: of no meaning to winnow sft" in error
        or "beta, pairs: of no meaning to winnow sft" in error
    )


def test_a_small_set_is_one_step_an_epoch_where_no_batch_was_asked_for(world, call):
    code, said, _ = call("check", "--model", world / "model", "--data", world / "other.jsonl")
    assert (code, "1 steps of 6 groups" in said) == (0, True)
    code, _, error = call(
        "check", "--model", world / "model", "--data", world / "other.jsonl", "--batch-size", 7
    )
    assert (code, "fewer than batch_size 7" in error) == (2, True)


def test_file_then_words_with_their_origins(world, tmp_path, call):
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "model": str(world / "model"),
                "data": [str(world / "train.jsonl")],
                "lr": 2e-3,
                "batch_size": 6,
                "clip": 3.0,
            }
        )
    )
    code, _, _ = call(
        "dpo",
        "--config",
        file,
        "--out",
        tmp_path / "run",
        "--batch-size",
        8,
        "--clip",
        "none",
        "--steps",
        2,
    )
    assert code == 0
    text = (tmp_path / "run" / "config.yaml").read_text()
    for expected in (
        f"lr: 0.002  # {file}",
        "batch_size: 8  # command line",
        "clip: null  # command line",
        "keep: 2  # default",
        "beta: 0.1  # default of dpo",
    ):
        assert f"{expected}\n" in text
    assert read_json(tmp_path / "run" / "environment.json")["command"].startswith(
        "winnow dpo --config "
    )
    again = tmp_path / "again"  # what a run wrote can be given back, and gives the same run
    assert call("dpo", "--config", tmp_path / "run" / "config.yaml", "--out", again)[0] == 0
    assert runs.numbers(RunFolder(again)) == runs.numbers(RunFolder(tmp_path / "run"))


@pytest.mark.slow
def test_clip_none_clips_nothing(world, tmp_path):
    """With a clip of 1e-9 AdamW's epsilon shows; without one the trajectory is that of a clip no
    gradient reaches.
    """
    final = {
        clip: runs.weights(
            runs.dpo(
                world, tmp_path / str(clip), steps=2, optimizer="rmsprop", lr=1e-4, clip=clip
            ).model
        )
        for clip in (None, 1e6, 1e-9)
    }
    assert all(torch.equal(final[None][name], final[1e6][name]) for name in final[None])
    assert not all(torch.equal(final[None][name], final[1e-9][name]) for name in final[None])


@pytest.mark.slow
def test_a_presets_warm_up_is_capped_and_says_so(world, tmp_path, call):
    base = [
        "dpo",
        "--model",
        world / "model",
        "--data",
        world / "train.jsonl",
        "--batch-size",
        "4",
        "--preset",
        "paper",
        "--epochs",
        "5",
        "--lr",
        "1e-3",
    ]
    assert call(*base, "--out", tmp_path / "run")[0] == 0
    assert (
        "warmup: 3.0  # preset paper, capped at 10 % of 30 steps\n"
        in (tmp_path / "run" / "config.yaml").read_text()
    )
    rates = [row["learning_rate"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, *[1e-3] * 28])


def test_lora_without_a_value_is_the_default_adapter(world, tmp_path, call):
    code, said, error = call(
        "dpo",
        "--lora",
        "--model",
        world / "model",
        "--data",
        world / "train.jsonl",
        "--out",
        tmp_path / "run",
        "--batch-size",
        8,
    )
    assert (code, error.count("deprecated")) == (0, 0)
    adapter = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (16, 32, 0.0)
    assert (
        "lr: 5.0e-06  # default for an adapter\n" in (tmp_path / "run" / "config.yaml").read_text()
    )
    code, said, _ = call("export", tmp_path / "run", "--out", tmp_path / "plain")
    assert (code, "loaded again" in said) == (0, True)


def test_brackets_in_a_name_are_no_markup(trained, tmp_path, call):
    code, said, _ = call("report", trained.root, "--out", tmp_path / "[red] page.html")
    assert (code, "[red] page.html" in said) == (0, True)
    assert (tmp_path / "[red] page.html").exists()


def test_weights_that_would_do_nothing_are_refused(world, tmp_path, call):
    for words in (
        (
            "dpo",
            "--data",
            world / "train.jsonl",
            "--eval-data",
            f"{world / 'held.jsonl'}@2",
            "--out",
            tmp_path / "run",
        ),
        ("eval", "--data", f"{world / 'held.jsonl'}@2"),
    ):
        code, _, error = call(words[0], "--model", world / "model", *words[1:])
        assert (code, "leave @2 away" in error) == (2, True)
    code, _, error = call(
        "dpo",
        "--model",
        world / "model",
        "--data",
        f"{world / 'train.jsonl'}@0.01",
        "--out",
        tmp_path / "run",
    )
    assert (code, "24 rows at weight 0.01 are less than one an epoch" in error) == (2, True)


# ---------------------------------------------------------------- trackers, devices


@pytest.mark.slow
def test_tensorboard_gets_every_row_once_also_from_a_resumed_run(world, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {
        "trackers": ["tensorboard"],
        "eval_data": [str(world / "held.jsonl")],
        "save_every": 2,
    }
    run = runs.dpo(world, tmp_path / "run", **settings)
    rows = read_jsonl(run.metrics)
    for path in (run.report_json, run.manifest, run.checkpoints / "step_6" / "manifest.json"):
        path.unlink()  # as if it was killed after step 5: it resumes at step 4
    (run.checkpoints / "step_6").rename(run.checkpoints / "step_6.tmp-killed")
    runs.dpo(world, tmp_path / "run", **settings)
    seen = EventAccumulator(str(run.root / "tensorboard"))
    seen.Reload()
    for name in ("loss", "rewards/margins", "eval_loss", "kl"):
        assert [(event.step, pytest.approx(event.value)) for event in seen.Scalars(name)] == [
            (row["step"], row[name]) for row in rows if name in row
        ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trackers", "wandb"), "wandb is not installed"),
        (("--device", "cuda:7"), "device 'cuda:7' cannot be used"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_what_the_machine_lacks_is_said_before_anything_is_written(
    world, tmp_path, call, monkeypatch, words, said
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, error = call(*runs.line("dpo", world, tmp_path / "run"), *words)
    assert (code, said in error) == (2, True)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- bad rows


def test_a_bad_row_stops_with_its_place_and_nothing_is_written(world, tmp_path, call):
    good = json.dumps(tiny.pairs(1)[0])
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        f'{good}\n{good[:-1]}, "x" 1}}\n{{"prompt": "p", "chosen": 7, "rejected": "r"}}\n'
    )
    code, _, error = call(
        "dpo", "--model", world / "model", "--data", bad, "--out", tmp_path / "run"
    )
    assert code == 2
    assert f"{bad}:2:{len(good) + 6}: not JSON" in error
    assert f"{bad}:3" in error
    assert "chosen" in error
    assert not (tmp_path / "run").exists()
    code, _, error = call("check", "--model", world / "model", "--data", bad, "--batch-size", 1)
    assert (code, f"{bad}:2:{len(good) + 6}" in error) == (2, True)
    code, said, _ = call(
        "check",
        "--model",
        world / "model",
        "--data",
        bad,
        "--batch-size",
        1,
        "--on-bad-row",
        "skip",
    )
    assert (code, "2 cannot be used" in said) == (0, True)


def test_rows_are_shown_but_never_obeyed(world, tmp_path, call, monkeypatch, capsys):
    """ANSI codes and markup in a prompt, or a file's name, reach the terminal as text."""
    rows = [
        {"prompt": f"\x1b[31m{i} [red]", "chosen": "\x1b]0;title\x07 yes", "rejected": " no \u202e"}
        for i in range(4)
    ]
    data = tiny.write(tmp_path / "ansi\x1b[2J.jsonl", rows)
    for words in (
        ["check", "--model", world / "model", "--data", data, "--batch-size", 2],
        ["generate", "--model", world / "model", "--prompt", "\x1b[2J[red]x"],
    ):
        assert runs.winnow(monkeypatch, *words) == 0
        shown = capsys.readouterr().out
        assert not set(shown) & {"\x1b", "\x07", "\u202e"}
        assert "\\x1b" in shown
        assert "[red]" in shown


# ---------------------------------------------------------------- commands


def test_check_on_good_data(world, call, tmp_path):
    words = [
        "check",
        "--model",
        world / "model",
        "--data",
        world / "train.jsonl",
        "--eval-data",
        world / "held.jsonl",
        "--batch-size",
        8,
        "--epochs",
        2,
    ]
    code, said, _ = call(*words, "--out", tmp_path / "run")
    assert code == 0
    assert "layout pairs, 24 rows, 24 used" in said
    assert "plan: 6 steps of 8 groups, 8.0 comparisons per step" in said
    assert "memory: about" in said
    assert not (tmp_path / "run").exists()


def test_check_on_data_that_should_not_be_trained_on(world, call, tmp_path):
    """Every pair contradicted by its opposite, held-out rows among the training rows: findings,
    exit code 2.
    """
    rows = tiny.pairs(6)
    data = tiny.write(tmp_path / "d.jsonl", rows)
    code, said, error = call(
        "check", "--model", world / "model", "--data", data, "--eval-data", data, "--batch-size", 2
    )
    assert code == 2
    assert "error" in said + error


def test_eval_finds_the_reference_by_itself(world, trained, tmp_path, call):
    code, said, _ = call(
        "eval", "--model", trained.root, "--data", world / "held.jsonl", "--out", tmp_path / "eval"
    )
    assert code == 0
    assert f"dpo at beta 0.3, reference {world / 'model'}".replace(" ", "") in said.replace(" ", "")
    report = read_json(tmp_path / "eval" / "report.json")
    assert (report["beta"], report["reference"]) == (0.3, str(world / "model"))
    last = [row for row in read_jsonl(trained.metrics) if "eval_loss" in row][-1]
    for name in (
        "eval_loss",
        "eval_rewards/margins",
        "eval_rewards/accuracies",
        "eval_logps/chosen",
    ):
        assert report["summary"][name] == pytest.approx(last[name], rel=1e-4), name
    rows = read_jsonl(tmp_path / "eval" / "rows.jsonl")
    assert [row["where"] for row in rows] == [f"{world / 'held.jsonl'}:{i + 1}" for i in range(8)]
    assert report["summary"]["eval_rewards/margins"] == pytest.approx(
        sum(row["rewards/margins"] for row in rows) / 8
    )
    assert (
        call(
            "eval", "--model", trained.root, "--data", world / "held.jsonl", "--out", trained.root
        )[0]
        == 2
    )
    code, said, _ = call("eval", "--model", world / "model", "--data", world / "held.jsonl")
    assert (code, "no reference" in said) == (0, True)


def test_generate_before_and_after_from_a_file(world, trained, tmp_path, call):
    (tmp_path / "prompts.txt").write_text("1: red?\n\n2: blue?\n")
    words = [
        "generate",
        "--model",
        trained.root,
        "--before",
        world / "model",
        "--max-new-tokens",
        4,
        "--temperature",
        0,
        "--k",
        2,
    ]
    code, _, _ = call(
        *words,
        "--prompts",
        tmp_path / "prompts.txt",
        "--prompt",
        "0: old?",
        "--out",
        tmp_path / "a.jsonl",
    )
    assert code == 0
    rows = read_jsonl(tmp_path / "a.jsonl")
    assert [row["prompt"] for row in rows] == ["0: old?", "1: red?", "2: blue?"]
    assert all(set(row) == {"prompt", "before", "after"} and len(row["after"]) == 2 for row in rows)
    tiny.write(tmp_path / "p.jsonl", [{"prompt": "0: old?"}])
    assert call(*words, "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "b.jsonl")[0] == 0
    # greedy, and a prompt's company changes nothing
    assert read_jsonl(tmp_path / "b.jsonl") == rows[:1]
    tiny.write(tmp_path / "p.jsonl", [{"prompt": "0: old?"}, {"text": "1"}])
    code, _, error = call(*words, "--prompts", tmp_path / "p.jsonl")
    assert (code, "p.jsonl:2" in error) == (2, True)


def test_export_is_the_model_that_was_trained(trained, tmp_path, call):
    code, said, _ = call("export", trained.root, "--out", tmp_path / "out")
    assert (code, "log-probs differ by at most 0.0e+00" in said) == (0, True)
    batch = collate(tiny.groups(3))
    live, saved = (
        engine.logps(loading.load(ModelSpec(str(path), device="cpu")).model, batch)["logp"]
        for path in (trained.root, tmp_path / "out")
    )
    assert torch.equal(live, saved)
    assert call("export", trained.root, "--out", tmp_path / "out")[0] == 2  # not empty
    assert call("export", trained.root, "--out", tmp_path / "two", "--merge")[0] == 2  # no adapter


def test_report_of_two_runs(world, trained, tmp_path, call):
    other = runs.dpo(world, tmp_path / "other", steps=1)
    before = runs.tree(trained.root)
    code, _, _ = call("report", trained.root, other.root, "--out", tmp_path / "r.html")
    assert code == 0
    page = (tmp_path / "r.html").read_text()
    assert "<script src" not in page
    assert "other" in page
    assert runs.tree(trained.root) == before
    assert call("report", tmp_path / "nothing", "--out", tmp_path / "s.html")[0] == 2


def test_numbers_that_are_not_finite_end_with_exit_code_1(world, tmp_path, call):
    """A rate that throws the weights beyond float32: the next step stops, names its rows, and no
    model is left.
    """
    words = runs.line("dpo", world, tmp_path / "run", lr=1e38, clip="none", save_every=1)
    code, _, error = call(*words)
    assert code == 1
    assert "not finite" in error
    assert re.search(r"train\.jsonl:\d+", error)
    assert not (tmp_path / "run" / "model").exists()
    assert not RunFolder(tmp_path / "run").finished


def test_an_unfinished_run_is_no_model(world, trained, tmp_path, call):
    import shutil

    shutil.copytree(trained.root, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    code, _, error = call("generate", "--model", tmp_path / "run", "--prompt", "x")
    assert (code, "the same command resumes it" in error) == (2, True)


@pytest.mark.process
def test_help_and_errors_do_not_wait_for_torch():
    code = "import sys; from winnow.cli import cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.process
def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "winnow", "dpo", "--bta", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: command line: unknown setting 'bta': did you mean beta?\n"
