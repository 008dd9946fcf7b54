"""What measures the cost of being safe still runs; its figures are for a quiet machine."""

from __future__ import annotations

import sys

from paths import ROOT


def test_the_measurement_of_saves_runs_small(tmp_path, monkeypatch, capsys):
    """The one that reaches into the training loop; the others are commands."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import reliability

    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    for name, value in {"SAVES": 1, "AROUND": 2, "SHAPE": shape}.items():
        monkeypatch.setattr(reliability, name, value)
    monkeypatch.setattr(sys, "argv", ["reliability.py", "saving", "--out", str(tmp_path / "out")])
    reliability.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 2
    assert all(len(line.strip("| ").split(" | ")) == 3 for line in lines)
