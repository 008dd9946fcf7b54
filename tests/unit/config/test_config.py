"""Settings: where each value comes from, that each one is read somewhere, and what is refused. And
the public names.
"""

from __future__ import annotations

import ast
import types
from pathlib import Path

import pytest
import yaml

import winnow
from winnow.config.collection import (
    GenerateSettings,
    JudgeSettings,
    LabelSettings,
    OnlineSettings,
    SampleSettings,
    VotesExportSettings,
)
from winnow.config.evaluation import (
    CheckSettings,
    DemoSettings,
    EvalSettings,
    ExportSettings,
    FrontierSettings,
    WinrateSettings,
)
from winnow.config.options import Lora, Settings, parse_lora
from winnow.config.ppo import PPOSettings
from winnow.config.presets import PRESETS
from winnow.config.resolve import resolve
from winnow.config.training import DPOSettings, RewardSettings, SFTSettings
from winnow.errors import SettingsError

SOURCE = Path(winnow.__file__).parent
NEEDED = {"model": "M", "data": ["d.jsonl"], "out": "RUN"}

# ---------------------------------------------------------------- no option without a reader

TRAINING = [
    "training/run.py",
    "training/run_record.py",
    "training/references.py",
    "training/plan.py",
    "data/dataset.py",
    "data/account.py",
    "training/memory.py",
]
READERS: dict[type[Settings], list[str]] = {
    SFTSettings: TRAINING,
    DPOSettings: ["training/dpo.py", *TRAINING],
    RewardSettings: ["training/reward.py", *TRAINING],
    EvalSettings: [
        "commands/eval.py",
        "evaluation/datasets.py",
        "evaluation/scoring.py",
        "training/plan.py",
        "data/dataset.py",
        "data/account.py",
    ],
    GenerateSettings: ["commands/generate.py", "generation/prompts.py"],
    OnlineSettings: [
        "commands/online.py",
        "training/dpo.py",
        "commands/sample.py",
        "preferences/judging/judge.py",
        "generation/prompts.py",
        *TRAINING,
    ],
    WinrateSettings: [
        "commands/winrate.py",
        "commands/contestants.py",
        "commands/sample.py",
        "generation/prompts.py",
        "preferences/judging/judge.py",
    ],
    PPOSettings: [
        "training/ppo/run.py",
        "training/ppo/setup.py",
        "training/ppo/rollouts.py",
        "training/ppo/rewards.py",
        "training/job.py",
        "training/plan.py",
        "training/run_record.py",
    ],
    SampleSettings: ["commands/sample.py", "generation/prompts.py"],
    JudgeSettings: ["preferences/judging/judge.py"],
    LabelSettings: ["commands/label.py"],
    ExportSettings: ["commands/export.py"],
    VotesExportSettings: ["commands/votes.py"],
    DemoSettings: ["experiments/demo.py", "experiments/frontier/run.py"],
    FrontierSettings: ["experiments/frontier/run.py"],
}


def read_by(file: str) -> set[str]:
    """Names NAME of `settings.NAME` and `resolved.settings.NAME` in a file."""
    found = set()
    for node in ast.walk(ast.parse((SOURCE / file).read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            base = node.value
            if (isinstance(base, ast.Name) and base.id == "settings") or (
                isinstance(base, ast.Attribute) and base.attr == "settings"
            ):
                found.add(node.attr)
    return found


@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.__name__)
def test_every_setting_is_read(kind):
    # who loads a model hands its settings to `model_spec`
    read = set().union(*(read_by(file) for file in (*READERS[kind], "config/model_spec.py")))
    # a preset is read where settings are resolved: tested below
    unread = set(kind.model_fields) - read - {"preset"}
    assert unread == set()


def test_a_check_takes_what_a_training_takes_and_one_thing_more():
    assert set(CheckSettings.model_fields) - set(DPOSettings.model_fields) == {"recipe"}
    assert "recipe" in read_by("commands/check.py")
    assert "not used" in CheckSettings.model_fields["out"].description


@pytest.mark.parametrize("kind", [*READERS, CheckSettings], ids=lambda kind: kind.__name__)
def test_every_setting_has_a_sentence_and_a_panel(kind):
    from winnow.options import PANELS

    for name, field in kind.model_fields.items():
        assert field.description, name
        assert field.json_schema_extra["group"] in PANELS, name


# ---------------------------------------------------------------- where values come from


def written(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


def test_later_layers_win_and_each_value_knows_its_origin(tmp_path):
    file = written(tmp_path / "run.yaml", **NEEDED, preset="paper", lr=3e-6, clip=2.0)
    found = resolve(DPOSettings, {"clip": 5.0}, file=file)
    values, origins = found.settings, found.origins
    assert (values.keep, origins["keep"]) == (2, "default")
    assert (values.optimizer, origins["optimizer"]) == ("rmsprop", "preset paper")
    assert (values.warmup, origins["warmup"]) == (150, "preset paper")
    assert (values.lr, origins["lr"]) == (3e-6, str(file))
    assert (values.clip, origins["clip"]) == (5.0, "command line")
    assert (values.model, origins["model"]) == ("M", str(file))


def test_a_preset_may_be_named_on_the_command_line_and_loses_to_the_file(tmp_path):
    file = written(tmp_path / "run.yaml", **NEEDED, beta=0.7)
    found = resolve(DPOSettings, {"preset": "zephyr"}, file=file)
    assert (found.settings.beta, found.settings.lr, found.settings.batch_size) == (0.7, 5e-7, 128)
    assert found.origins["beta"] == str(file)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_used_and_reaches_the_settings(name):
    found = resolve(DPOSettings, {**NEEDED, "preset": name})
    for key, value in PRESETS[name].items():
        if isinstance(value, dict):  # what an adapter replaces
            assert found.settings.lora is None
            continue
        assert getattr(found.settings, key) == value
        assert found.origins[key] == f"preset {name}"


def test_a_presets_part_for_adapters():
    assert (
        resolve(DPOSettings, {**NEEDED, "preset": "zephyr", "lora": "auto"}).settings.lr
        == PRESETS["zephyr"]["lora"]["lr"]
    )
    assert (
        resolve(DPOSettings, {**NEEDED, "preset": "zephyr"}).settings.lr == PRESETS["zephyr"]["lr"]
    )


def test_a_later_amount_replaces_an_earlier_one(tmp_path):
    file = written(tmp_path / "run.yaml", **NEEDED, epochs=2.0)
    found = resolve(DPOSettings, {"steps": 7}, file=file)
    assert (found.settings.steps, found.settings.epochs, found.origins["epochs"]) == (
        7,
        None,
        "default",
    )
    assert resolve(DPOSettings, {**NEEDED, "preset": "paper", "steps": 200}).settings.epochs is None
    with pytest.raises(SettingsError, match="choose one"):
        resolve(DPOSettings, {**NEEDED, "steps": 7, "epochs": 1.0})


def test_the_written_settings_can_be_given_again(tmp_path):
    first = resolve(
        DPOSettings,
        {**NEEDED, "preset": "tulu3", "lora": "r=4,alpha=8", "seed": 3, "clip": None, "as": "chat"},
    )
    (tmp_path / "config.yaml").write_text(first.yaml())
    assert "seed: 3  # command line\n" in first.yaml()
    assert "warmup: 0.1  # preset tulu3\n" in first.yaml()
    second = resolve(DPOSettings, {}, file=tmp_path / "config.yaml")
    assert second.settings == first.settings
    assert set(second.origins.values()) == {str(tmp_path / "config.yaml")}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"bta": 0.1}, "did you mean beta"),
        ({"learning_rate": 0.1}, "ours is lr"),
        ({"beta": 0}, "beta: Input should be greater than 0 (got 0)"),
        ({"lr": "fast"}, "lr: .*(got 'fast')"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"divergence": 1.5}, "divergence"),
        ({"save_best": True}, "needs an evaluation set"),
        ({"eval_data": ["e"], "eval_fraction": 0.1}, "choose one"),
        ({"steps": 5, "warmup": 6}, "warmup 6 is more than the 5 steps"),
        ({"lora": "r=0"}, "whole number above 0"),
        ({"lora": "dropout=0.1"}, "always 0"),
        ({"lora": "rank=4"}, "expected r=16"),
        ({"data": []}, "data"),
        ({"preset": "best"}, "expected one of paper"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, told):
    with pytest.raises(SettingsError) as caught:
        resolve(DPOSettings, {**NEEDED, **given})
    import re

    assert re.search(told.replace("(", r"\(").replace(")", r"\)"), str(caught.value))
    assert caught.value.exit_code == 2


def test_a_file_cannot_ask_for_foreign_code(tmp_path):
    file = written(tmp_path / "run.yaml", **NEEDED, trust_remote_code=True)
    with pytest.raises(SettingsError, match="a file cannot ask for it"):
        resolve(DPOSettings, {}, file=file)
    with pytest.raises(SettingsError, match="a file cannot ask for it"):
        resolve(
            DPOSettings, {}, file=written(tmp_path / "run.yaml", **NEEDED, trust_remote_code="yes")
        )
    assert resolve(DPOSettings, {**NEEDED, "trust_remote_code": True}).settings.trust_remote_code
    assert not resolve(
        DPOSettings, {}, file=written(tmp_path / "run.yaml", **NEEDED, trust_remote_code=False)
    ).settings.trust_remote_code


def test_a_file_of_settings_runs_nothing(tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"model: !!python/object/apply:os.mkdir ['{tmp_path / 'mark'}']\n"
    )
    with pytest.raises(SettingsError, match="not YAML"):
        resolve(DPOSettings, {}, file=tmp_path / "run.yaml")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n- b\n", "expected `name: value` lines, got list"),
        ("a: [", "not YAML"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_none(tmp_path, text, told):
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SettingsError, match=told):
        resolve(DPOSettings, {}, file=tmp_path / "run.yaml")


def test_settings_are_frozen():
    settings = resolve(DPOSettings, NEEDED).settings
    with pytest.raises(ValueError, match="frozen"):
        settings.beta = 1.0


def test_an_adapters_shape():
    assert parse_lora(None) is None
    assert parse_lora("auto") == Lora(16, 32, ("auto",))
    assert parse_lora("r=8, alpha=4, targets=q_proj+v_proj") == Lora(8, 4, ("q_proj", "v_proj"))


# ---------------------------------------------------------------- the public surface


def test_the_public_surface():
    assert winnow.__all__ == [
        "Comparison",
        "Completion",
        "DataError",
        "Message",
        "ModelError",
        "PreferenceGroup",
        "Renderer",
        "RunError",
        "SettingsError",
        "TrainingError",
        "WinnowError",
        "completion_logps",
        "dpo",
        "dpo_loss",
        "evaluate",
        "losses",
        "ppo",
        "preference_loss",
        "reward",
        "sft",
    ]
    for name in winnow.__all__:
        found = getattr(winnow, name)
        assert isinstance(found, types.ModuleType) if name == "losses" else callable(found), name
        assert found.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'orpo'"):
        winnow.orpo  # noqa: B018
