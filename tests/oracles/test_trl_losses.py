"""Winnow's losses beside TRL's own trainers: values and gradients, in float32 and in float64, and
every difference of definition that docs/trl-losses.md names. Most of it only where TRL is
installed: `pip install -e '.[dev,bench]'`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from dataclasses import replace

import pytest
import torch

from paths import ROOT
from winnow.objectives.objective import objective

BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))
bench = importlib.import_module("trl_losses")

needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is an extra (bench)"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own


@pytest.fixture(autouse=True)
def _one_thread():
    """The models are tiny: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@needs_trl
@pytest.mark.parametrize("case", bench.CASES, ids=lambda case: case.name)
def test_value_and_gradient_are_trls(case, tmp_path):
    found = bench.compare(case, str(tmp_path))
    assert set(found) == ({torch.float32, torch.float64} if case.wide else {torch.float32})
    for dtype, one in found.items():
        assert one.value <= bench.limit(case, dtype), dtype
        assert one.gradient <= bench.limit(case, dtype), dtype


@needs_trl
@pytest.mark.parametrize(
    ("name", "beta"), [("dpo", 0.1001), ("ipo", 0.1001), ("kto", 0.2001), ("simpo", 2.001)]
)
def test_a_wrong_setting_is_seen(name, beta, tmp_path):
    """A tenth of a percent."""
    found = bench.compare(replace(bench.CASES_BY_NAME[name], given={"beta": beta}), str(tmp_path))
    assert found[torch.float32].gradient > 10 * bench.LIMIT[torch.float32]
    assert (
        min(found[torch.float64].value, found[torch.float64].gradient)
        > 1000 * bench.LIMIT[torch.float64]
    )


@needs_trl
@pytest.mark.parametrize("check", bench.DIFFERENCES, ids=lambda check: check.__name__)
def test_a_difference_of_definition_is_still_there(check, tmp_path):
    found = check(str(tmp_path))
    assert found.holds, f"{found.text} {found.shown}"


@needs_trl
def test_every_loss_of_dpotrainer_is_compared():
    """Their names stand in the message about an unknown one."""
    from trl import DPOTrainer

    message = re.search(
        r"Should be one of (\[.*?\])", inspect.getsource(DPOTrainer._compute_loss), re.DOTALL
    )
    names = set(re.findall(r"'(\w+)'", message[1]))
    assert len(names) == 15
    assert names == {
        name
        for case in bench.CASES
        if case.trainer == "DPO"
        for _, settings in case.theirs
        for name in settings["loss_type"]
    }


@pytest.mark.parametrize("case", bench.CASES, ids=lambda case: case.name)
def test_our_side_of_a_case_exists(case):
    for _, text in case.ours:
        objective(text, **case.given)


def test_the_page_names_what_is_compared():
    page = (BENCH.parent / "docs" / "trl-losses.md").read_text(encoding="utf-8")
    rows = [
        line.split(" | ")[0].removeprefix("| ")
        for line in page.splitlines()
        if line.startswith("| ")
    ]
    assert [row for row in rows if row not in ("loss", "---")] == [
        case.name for case in bench.CASES
    ]
    assert sum(line.startswith("* ") for line in page.splitlines()) == len(bench.DIFFERENCES)
