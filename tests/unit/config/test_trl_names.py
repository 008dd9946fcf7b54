"""TRL's names, and the pages written from tables."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import pytest

from paths import ROOT
from winnow.config.resolve import resolve
from winnow.config.training import DPOSettings
from winnow.config.trl_fields import FIELDS
from winnow.config.trl_names import MORE, NAMES, OTHERS, advice
from winnow.errors import SettingsError

ROOT = ROOT
OURS = {field.alias or name for name, field in DPOSettings.model_fields.items()}
PINNED = (Path(__file__).parent / "trl_dpoconfig_1_16.txt").read_text().split()
PAGES = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]


def test_every_field_of_dpoconfig_is_there_once() -> None:
    names = [name for rows in FIELDS.values() for name in rows]
    assert sorted(names) == sorted(PINNED)
    assert not set(names) & set(MORE)
    assert not set(NAMES) & set(OTHERS)


def test_our_names_exist_and_absences_have_a_reason() -> None:
    for name, (ours, note) in {**NAMES, **OTHERS}.items():
        assert ours is None or ours in OURS, name
        assert ours is not None or note, name


def test_no_other_tools_name_hides_one_of_ours() -> None:
    for name in OURS:
        assert advice(name) is None, name


def test_advice_names_ours() -> None:
    assert (
        advice("learning_rate")
        == "learning_rate is TRL's name; ours is lr: " + NAMES["learning_rate"][1]
    )
    assert (
        advice("--max-grad-norm")
        == "max_grad_norm is TRL's name; ours is clip: " + NAMES["max_grad_norm"][1]
    )
    assert advice("torch_dtype") == "torch_dtype is TRL's name; ours is dtype"
    assert (advice("push_to_hub") or "").startswith(
        "push_to_hub is TRL's name; Winnow has no such setting: "
    )
    assert advice("cutoff_len") == "cutoff_len is another tool's name; ours is max_length"
    assert advice("nonsense") is None


@pytest.mark.parametrize(
    "name", ["per_device_train_batch_size", "loss_type", "use_liger_kernel", "max_prompt_length"]
)
def test_settings_say_it(name: str) -> None:
    with pytest.raises(SettingsError, match=name) as caught:
        resolve(DPOSettings, {"model": "m", "data": ("d",), "out": "o", name: 1})
    ours, note = NAMES[name]
    assert note in str(caught.value)
    assert (
        f"ours is {ours}" in str(caught.value) if ours else "no such setting" in str(caught.value)
    )


@pytest.mark.parametrize("page", list(PAGES))
def test_pages_are_as_generated(page: str) -> None:
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == PAGES[page](), (
        "run: python docs/generate.py"
    )


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is an extra (bench)")
def test_pinned_names_are_trls() -> None:
    import dataclasses

    import trl

    if trl.__version__.startswith("1.16."):
        assert [field.name for field in dataclasses.fields(trl.DPOConfig)] == PINNED
