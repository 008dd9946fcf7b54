"""What went wrong once when somebody tried to break it: folders taken for runs, references that are
none, words the system trips over.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import runs
import tiny
from winnow import api
from winnow.config.model_spec import ModelSpec
from winnow.errors import ModelError, RunError
from winnow.generation import prompts
from winnow.generation.sampler import Sampling, sample
from winnow.models import loading
from winnow.system.files import read_json, read_jsonl, sha256_file
from winnow.system.run_folder import RunFolder

ANSWER = "rewards/accuracies"


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    root = runs.world(tmp_path_factory.mktemp("world"))
    tiny.folder(root / "chat", hidden_size=16, intermediate_size=32, template=tiny.TEMPLATE)
    return root


@pytest.fixture
def call(monkeypatch, capsys):
    """(exit code, everything said) of a command."""

    def run(*words):
        code = runs.winnow(monkeypatch, *words)
        found = capsys.readouterr()
        return code, found.out + found.err

    return run


# ---------------------------------------------------------------- folders


def test_a_folder_that_is_no_run_is_left_alone(world, tmp_path, call, monkeypatch):
    shutil.copytree(world / "model", tmp_path / "work" / "model")
    before = runs.tree(tmp_path)
    model = tmp_path / "work" / "model"
    monkeypatch.chdir(tmp_path / "work")
    for out in (tmp_path / "work", model, ""):
        code, said = call(*runs.line("dpo", world, out, model=str(model)))
        assert (code, "not a run folder, and not empty" in said) == (2, True)
    code, said = call("export", model, "--out", tmp_path / "work")
    assert (code, "not empty" in said) == (2, True)
    code, said = call("demo", "--out", tmp_path / "work")
    assert (code, "it holds model" in said) == (2, True)
    assert runs.tree(tmp_path) == before


def test_an_evaluation_is_no_finished_run(world, tmp_path, call):
    words = (
        "eval",
        "--model",
        world / "model",
        "--data",
        world / "held.jsonl",
        "--out",
        tmp_path / "eval",
    )
    for _ in range(2):  # again into its own folder: that is no harm
        assert call(*words)[0] == 0
    code, said = call(*runs.line("dpo", world, tmp_path / "eval"))
    assert (code, "it holds report.html, report.json, rows.jsonl" in said) == (2, True)


def test_a_run_refused_by_a_typo_can_be_begun_with_the_typo_mended(world, tmp_path, call):
    for words in (("--reference", "nope"), ("--lora", "targets=nope")):
        code, said = call(*runs.line("dpo", world, tmp_path / "run"), *words)
        assert (code, "nope" in said) == (2, True)
        assert not (tmp_path / "run").exists()
        assert (
            call(
                "check",
                "--model",
                world / "model",
                "--data",
                world / "train.jsonl",
                "--batch-size",
                8,
                *words,
            )[0]
            == 2
        )
    broken = shutil.copytree(world / "model", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"torn")
    # known only when the weights are read
    assert call(*runs.line("dpo", world, tmp_path / "run", model=str(broken)))[0] == 2
    assert call(*runs.line("dpo", world, tmp_path / "run"))[0] == 0


def test_a_runs_own_settings_file_resumes_it(world, tmp_path, call):
    run = runs.dpo(world, tmp_path / "run", preset="paper", steps=6)
    code, said = call("dpo", "--config", run.config)
    assert (code, "already finished" in said) == (0, True)
    assert call("dpo", "--config", run.config, "--seed", 1)[0] == 2


# ---------------------------------------------------------------- references


def other_words(world, folder):
    """A model whose tokenizer has the same number of tokens under other ids."""
    shutil.copytree(world / "model", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    plain = [word for word in words if not word.startswith("<")]
    words |= dict(zip(plain, [words[word] for word in plain[1:] + plain[:1]]))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_reference_with_other_tokens_is_refused(world, tmp_path, call):
    other = other_words(world, tmp_path / "other")
    for words in (
        runs.line("dpo", world, tmp_path / "run", reference=str(other)),
        ("eval", "--model", world / "model", "--data", world / "held.jsonl", "--reference", other),
        (
            "check",
            "--model",
            world / "model",
            "--data",
            world / "train.jsonl",
            "--reference",
            other,
            "--batch-size",
            8,
        ),
    ):
        code, said = call(*words)
        assert (code, "its tokenizer is another one" in said) == (2, True)


def test_a_reference_may_know_more_tokens_than_the_policy(world, tmp_path):
    more = tiny.tokenizer()
    more.add_tokens(["whale", "krill"])
    tiny.model(
        "llama",
        seed=5,
        vocab_size=len(more),
        hidden_size=16,
        intermediate_size=32,
        max_position_embeddings=256,
        pad_token_id=None,
    ).save_pretrained(tmp_path / "more")
    more.save_pretrained(tmp_path / "more")
    run = runs.dpo(world, tmp_path / "run", steps=1, reference=str(tmp_path / "more"))
    assert api.evaluate(model=str(run.root), data=[str(world / "held.jsonl")]).summary["loss"] > 0


def test_another_reference_has_another_identity(world, tmp_path):
    tiny.folder(tmp_path / "other", hidden_size=16, intermediate_size=32, seed=5)
    found = [
        read_json(runs.dpo(world, tmp_path / name, steps=1, reference=reference).environment)[
            "reference"
        ]
        for name, reference in (
            ("a", None),
            ("b", str(world / "model")),
            ("c", str(tmp_path / "other")),
        )
    ]
    assert found[0]["identity"] == found[1]["identity"] != found[2]["identity"]
    assert found[0]["says"] == found[1]["says"] != found[2]["says"]


@pytest.mark.parametrize("lora", [None, "r=2"])
def test_a_reference_that_was_replaced_is_not_taken_for_the_old_one(world, tmp_path, lora):
    model = shutil.copytree(world / "model", tmp_path / "model")
    run = runs.dpo(world, tmp_path / "run", model=str(model), steps=2, lora=lora)
    held = [str(world / "held.jsonl")]
    assert api.evaluate(model=str(run.root), data=held).summary["loss"] > 0
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: w * 1.01 if "norm" not in name else w for name, w in weights.items()},
        model / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match="no longer the model"):
        api.evaluate(model=str(run.root), data=held)
    if lora is None:
        assert (
            api.evaluate(model=str(run.root), data=held, reference=str(world / "model")).summary[
                "loss"
            ]
            > 0
        )


@pytest.mark.slow
def test_a_refused_resume_changes_nothing(world, tmp_path):
    reference = shutil.copytree(world / "model", tmp_path / "reference")
    settings = {"reference": str(reference), "save_every": 2}
    run = runs.dpo(world, tmp_path / "run", **settings)
    run.unfinish()
    tiny.folder(tmp_path / "new", hidden_size=16, intermediate_size=32, seed=9)
    shutil.copy(tmp_path / "new" / "model.safetensors", reference)
    before = runs.tree(run.root)
    with pytest.raises(RunError, match="reference changed since the checkpoint"):
        runs.dpo(world, tmp_path / "run", **settings)
    assert runs.tree(run.root) == before


# ---------------------------------------------------------------- what is sampled, what is measured


@pytest.mark.parametrize("adapter", [False, True])
def test_a_models_own_generation_settings_do_not_touch_the_samples(world, tmp_path, adapter):
    """They would, by transformers' rules: whatever is not asked for is taken from the model."""
    bent = shutil.copytree(world / "model", tmp_path / "bent")
    (bent / "generation_config.json").write_text(
        json.dumps(
            {"repetition_penalty": 1.5, "no_repeat_ngram_size": 1, "suppress_tokens": [40, 41, 42]}
        )
    )
    lora = loading.Lora(r=2, alpha=2) if adapter else None
    plain, own = (
        loading.load(ModelSpec(str(folder), device="cpu"), lora=lora, train=True)
        for folder in (world / "model", bent)
    )
    for how in (Sampling(1, 12, temperature=0.0), Sampling(1, 12, seed=3)):
        assert sample(plain, [(5, 6, 7)] * 4, how) == sample(own, [(5, 6, 7)] * 4, how)
    kept = (own.model.get_base_model() if adapter else own.model).generation_config
    assert kept.repetition_penalty == 1.5  # the model's own again, to be saved with it


def test_saving_leaves_the_models_configuration_as_it_was(world, tmp_path):
    run = runs.dpo(world, tmp_path / "run", steps=1)
    ours, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (run.model, world / "model")
    )
    assert ours.get("use_cache", True) == theirs.get("use_cache", True)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("model", {"objective": "ipo", "score": "sum"}),
        ("model", {"label_smoothing": 0.2}),
        ("chat", {"as": "chat"}),
        ("model", {"max_length": 25, "cut_budget": 0.9}),
    ],
)
@pytest.mark.slow
def test_an_evaluation_of_a_run_repeats_its_last_one(world, tmp_path, model, changes):
    """By the run's objective, score, smoothing, template and length: none of them has to be said
    again.
    """
    run = runs.dpo(
        world,
        tmp_path / "run",
        model=str(world / model),
        eval_data=[str(world / "held.jsonl")],
        lr=5e-3,
        **changes,
    )
    last = [row for row in read_jsonl(run.metrics) if "eval_loss" in row][-1]
    found = api.evaluate(model=str(run.root), data=[str(world / "held.jsonl")]).summary
    for name in ("loss", "rewards/margins", "logps/chosen", "logps/rejected", ANSWER):
        assert found[name] == pytest.approx(last[f"eval_{name}"], rel=1e-5), name
    if "label_smoothing" in changes:  # another objective has its own settings
        hinge = api.evaluate(
            model=str(run.root), data=[str(world / "held.jsonl")], objective="hinge", beta=0.1
        ).summary["loss"]
        assert hinge == pytest.approx(
            api.evaluate(
                model=str(run.model),
                reference=str(world / model),
                data=[str(world / "held.jsonl")],
                objective="hinge",
                beta=0.1,
            ).summary["loss"]
        )


@pytest.mark.slow
def test_several_held_out_sets_are_all_accounted_for_and_the_first_one_counts(world, tmp_path):
    ties = tiny.write(
        tmp_path / "ties.jsonl",
        [{**row, "probability": 0.5} for row in tiny.pairs(3, seed=8)] + tiny.pairs(2, seed=9),
    )
    run = runs.dpo(world, tmp_path / "run", eval_data=[str(world / "held.jsonl"), str(ties)])
    accounts = read_json(run.root / "data.json")["eval"]
    assert {name: (one["used"], one["decided"]) for name, one in accounts.items()} == {
        "eval_held_": (8, 8),
        "eval_ties_": (5, 2),
    }
    page = run.report_html.read_text()
    assert "nothing was held out" not in page.lower()
    assert "Held out: ties" in page
    report = read_json(run.report_json)
    assert "accuracy at chance" in report["checked"]
    held = [row for row in read_jsonl(run.metrics) if "eval_held_loss" in row][-1]
    assert report["runs"][0]["final"]["eval_loss"] == held["eval_held_loss"]


def test_rows_add_up_on_both_sides(world, tmp_path):
    same = [{"prompt": "x?", "completions": ["a", "a", "b"], "scores": [3, 2, 1]}]
    mixed = tiny.write(
        tmp_path / "mixed.jsonl",
        [
            {
                "prompt": row["prompt"],
                "completions": [row["chosen"], row["rejected"]],
                "scores": [2, 1],
            }
            for row in tiny.pairs(19)
        ]
        + same,
    )
    run = runs.dpo(
        world, tmp_path / "run", data=[str(mixed)], eval_fraction=0.25, batch_size=4, steps=1
    )
    data = read_json(run.root / "data.json")
    for side in (data["train"], data["eval"]["eval_"]):
        assert side["read"] == side["used"] + sum(side["dropped"].values())
    assert data["train"]["identical"] + data["eval"]["eval_"]["identical"] == 1


def test_a_fraction_of_several_sources_holds_prompts_out_of_all_of_them(world, tmp_path):
    few, many = tiny.pairs(12, seed=4), tiny.pairs(40, seed=4)
    few = [{**row, "chosen": row["chosen"] + " indeed"} for row in few]
    for name, rows in (("few", few), ("many", many)):
        tiny.write(tmp_path / f"{name}.jsonl", rows)
    run = runs.dpo(
        world,
        tmp_path / "run",
        data=[str(tmp_path / "few.jsonl"), str(tmp_path / "many.jsonl")],
        eval_fraction=0.3,
        steps=1,
    )
    accounts = read_json(run.root / "data.json")
    assert accounts["eval"]["eval_"]["used"] > 12
    assert "shared_prompts" not in {finding["code"] for finding in accounts["train"]["findings"]}


# ---------------------------------------------------------------- ties


def test_a_batch_of_ties_does_not_look_like_frozen_weights(world, tmp_path):
    rows = [{**row, "probability": 0.5} for row in tiny.pairs(20)]
    run = runs.dpo(
        world,
        tmp_path / "run",
        data=[str(tiny.write(tmp_path / "ties.jsonl", [*rows, *tiny.pairs(2, seed=5)]))],
        batch_size=1,
        steps=22,
    )
    norms = [row["grad_norm"] for row in read_jsonl(run.metrics) if "loss" in row]
    assert norms[0] == 0
    assert max(norms) > 0


def test_nothing_preferred_is_nothing_to_imitate(world, tmp_path, call):
    ties = tiny.write(
        tmp_path / "ties.jsonl", [{**row, "probability": 0.5} for row in tiny.pairs(8)]
    )
    code, said = call("sft", "--model", world / "model", "--data", ties, "--out", tmp_path / "run")
    assert (code, "no row is left to use" in said) == (2, True)
    mixed = tiny.write(
        tmp_path / "mixed.jsonl",
        [*json.loads(f"[{','.join(ties.read_text().splitlines())}]"), *tiny.pairs(8, seed=3)],
    )
    run = runs.sft(world, tmp_path / "some", data=[str(mixed)], steps=1)
    assert read_json(run.root / "data.json")["train"]["dropped"] == {"nothing preferred": 8}


def test_equal_scores_are_told(world, tmp_path, call):
    row = tiny.pairs(1)[0]
    rows = [{**row, "score_chosen": 3, "score_rejected": score} for score in (3, 1)]
    code, said = call(
        "check",
        "--model",
        world / "model",
        "--data",
        tiny.write(tmp_path / "scores.jsonl", rows),
        "--batch-size",
        1,
    )
    assert (code, "1 pairs of equal score: chosen still counts as preferred" in said) == (0, True)
    rows = [{"prompt": "x", "completions": ["a", "b", "c"], "scores": [1, 1, 2]}]
    code, said = call(
        "check",
        "--model",
        world / "model",
        "--data",
        tiny.write(tmp_path / "many.jsonl", rows),
        "--batch-size",
        1,
    )
    assert (code, "1 pairs of equal score: not compared" in said) == (0, True)


# ---------------------------------------------------------------- words the system trips over


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ("dpo", "--data", "train.jsonl", "--out", "run", "--chat-template", "nope"),
        ("eval", "--data", "held.jsonl", "--chat-template", "nope"),
        ("generate", "--prompt", "x", "--chat-template", "nope"),
        *(
            ("dpo", "--data", "train.jsonl", "--out", "run", f"--{name}", "inf")
            for name in ("beta", "clip", "lr", "weight-decay")
        ),
        ("eval", "--data", "held.jsonl", "--beta", "inf"),
        ("eval", "--data", "held.jsonl", "--beta", "1e300"),
        ("dpo", "--data", "train.jsonl", "--out", "run", "--seed", "99999999999999999999999"),
        ("dpo", "--data", LONG, "--out", "run"),
        ("dpo", "--data", "train.jsonl", "--out", LONG),
        ("dpo", "--data", "train.jsonl", "--out", "run", "--config", "number.yaml"),
        ("dpo", "--data", "train.jsonl", "--out", "run", "--config", "latin.yaml"),
        ("eval", "--data", "held.jsonl", "--out", "train.jsonl"),
        ("eval", "--data", "held.jsonl", "--max-length", "5000"),
        ("generate", "--prompts", "empty.txt"),
        ("generate", "--prompts", "other.jsonl", "--model", "bent"),
        ("generate", "--prompts", "list.json"),
        ("generate", "--prompt", "x" * 260),
    ],
    ids=lambda words: " ".join(words[:1] + words[3:])[:60],
)
def test_bad_words_get_a_paragraph_and_exit_2(world, tmp_path, call, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "train.jsonl", "held.jsonl", "other.jsonl"):
        (tmp_path / name).symlink_to(world / name)
    (tmp_path / "number.yaml").write_text("1: 2\n")
    (tmp_path / "latin.yaml").write_bytes("objective: dpo # caf\xe9".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "list.json").write_text('[{"prompt": 7}]')
    (tmp_path / "bent").mkdir()
    (tmp_path / "bent" / "adapter_config.json").write_text("{}")
    model = () if "--model" in words else ("--model", "model")
    code, said = call(words[0], *model, *words[1:])
    assert code in (1, 2) if LONG in words else code == 2
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_exports_and_reports_that_cannot_be_written(world, tmp_path, call, monkeypatch):
    run = runs.dpo(world, tmp_path / "run", steps=1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for words in (
        ("export", run.root, "--out", "file"),
        ("export", run.root, "--out", "/proc/xx"),
        ("report", run.root, "--out", "."),
    ):
        code, said = call(*words)
        assert (code, "Traceback" not in said, "error: " in said) == (2, True, True)
    assert (tmp_path / "file").read_text() == "mine"
    for words in (
        ("export", "nope", "--out", "made"),
        ("eval", "--model", "nope", "--data", world / "held.jsonl", "--out", "made"),
    ):
        assert call(*words)[0] == 2
        assert not (tmp_path / "made").exists()
    code, _ = call(
        "generate",
        "--model",
        run.root,
        "--prompt",
        "x",
        "--max-new-tokens",
        2,
        "--out",
        "new/folder/answers.jsonl",
    )
    assert (code, (tmp_path / "new/folder/answers.jsonl").exists()) == (0, True)


def test_prompts_come_from_rows_and_lines(world, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text('[{"prompt": "one\\u2028two"}, {"prompt": "three"}]')
    (tmp_path / "rows.jsonl").write_text('{"prompt": "one\u2028two"}\n{"prompt": "three"}\n')
    (tmp_path / "lines.txt").write_text("one\u2028two\n\nthree\n")
    for name in ("rows.json", "rows.jsonl", "lines.txt"):
        assert (
            call(
                "generate",
                "--model",
                world / "model",
                "--prompts",
                name,
                "--max-new-tokens",
                2,
                "--out",
                f"{name}.out",
            )[0]
            == 0
        )
        assert [row["prompt"] for row in read_jsonl(tmp_path / f"{name}.out")] == [
            "one\u2028two",
            "three",
        ]


def test_answers_stop_at_the_models_limit_and_say_so(world, call):
    code, said = call(
        "generate", "--model", world / "model", "--prompt", "x" * 250, "--max-new-tokens", 100
    )
    assert (code, "answers of at most 5 tokens: its limit is 256" in said) == (0, True)


@pytest.mark.slow
def test_without_room_for_an_answer_there_are_no_samples(world, tmp_path, call, monkeypatch):
    monkeypatch.setattr(prompts, "LONGEST", 128)
    rows = [{**row, "prompt": row["prompt"] + " x" * 80} for row in tiny.pairs(8)]
    long = tiny.write(tmp_path / "long.jsonl", rows)
    code, said = call(
        *runs.line(
            "dpo",
            world,
            tmp_path / "run",
            data=[str(long)],
            eval_data=[str(world / "held.jsonl")],
            steps=1,
        )
    )
    assert (code, "there are no samples" in said) == (0, False)  # the held-out prompts are short
    code, said = call(*runs.line("dpo", world, tmp_path / "none", data=[str(long)], steps=1))
    room = f"no prompt leaves room for an answer of {prompts.LONGEST} tokens"
    assert code == 0
    assert f"{room}: there are no samples, and no kl" in said


def test_one_name_may_stand_where_several_may(world, tmp_path, call):
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {
                "model": str(world / "model"),
                "data": str(world / "train.jsonl"),
                "batch_size": 8,
                "steps": 1,
            }
        )
    )
    assert call("dpo", "--config", tmp_path / "run.yaml", "--out", tmp_path / "run")[0] == 0
    assert RunFolder(tmp_path / "run").finished
    assert torch.isfinite(
        torch.tensor([row["loss"] for row in read_jsonl(RunFolder(tmp_path / "run").metrics)])
    ).all()
    assert sha256_file(RunFolder(tmp_path / "run").model / "model.safetensors") != sha256_file(
        world / "model" / "model.safetensors"
    )
