"""Are a reward model's margins probabilities? Held-out comparisons, those of all processes, by the model as it will be saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from winnow import dist
from winnow.console import safe, say
from winnow.engine.api import Engine
from winnow.figures import percent
from winnow.measures import heldout
from winnow.measures.calibration import Calibration, calibration
from winnow.train.feed import Data


def calibrated(net: Any, sets: Mapping[str, Data], engine: Engine, tokens: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """By metric prefix: how many decided comparisons, accuracy with its 95 % Wilson interval, mean margin (nats), and `measures.calibration`'s figures."""
    found: dict[str, dict[str, Any]] = {}
    for prefix, data in sets.items():
        margin_M = np.array(sorted(margin for part in dist.gather(_margins(net, data, engine, tokens, device)) for margin in part))
        measured = calibration(margin_M)
        if not measured.count:
            continue
        right = int((margin_M > 0).sum())
        low, high = heldout.interval(right, len(margin_M))
        found[prefix] = {"accuracy": right / len(margin_M), "low": low, "high": high, "margin": float(margin_M.mean()), **asdict(measured)}
        _say(prefix, found[prefix], measured)
    return found


def _margins(net: Any, data: Data, engine: Engine, tokens: int, device: torch.device) -> list[float]:
    """This process's comparisons but for ties: the labelled winner's number minus the loser's."""
    found: list[float] = []
    for batch in data.everything(tokens):
        with torch.no_grad():
            reward_C = engine.logps(net, batch.to(device))["logp"].double().cpu()
        if batch.idle:
            continue
        decided_M = batch.probability_M != 0.5
        pair_M2 = torch.where((batch.probability_M > 0.5)[:, None], batch.pair_M2, batch.pair_M2.flip(1))[decided_M]
        found += (reward_C[pair_M2[:, 0]] - reward_C[pair_M2[:, 1]]).tolist()
    return found


def _say(prefix: str, row: Mapping[str, Any], measured: Calibration) -> None:
    name = prefix.removeprefix("eval_").rstrip("_")
    span = f"95 % interval {percent(row['low'], 1)} to {percent(row['high'], 1)}"
    share = f"{percent(row['accuracy'], 1)} of {measured.count:,} comparisons in the labelled order ({span})"
    off = f"s(margin) is off by {percent(row['error'], 1)} in the mean, where chance alone would show {percent(row['chance'], 1)}"
    say(f"held out{f', {safe(name)}' if name else ''}: {share}; {off}")
