"""The model of a training on its held-out sets, as it is saved: the figures of `winnow eval`, by
the data and the work of all processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from winnow.data.packing import pack_all
from winnow.engine.base import Engine
from winnow.engine.micro_batches import Data, by_rank
from winnow.evaluation.figures import Spoken, described, rows
from winnow.objectives.objective import Objective
from winnow.objectives.terms import Known
from winnow.system import distributed
from winnow.system.console import safe, say
from winnow.system.format import percent
from winnow.system.launch import count


def measured(
    made: Objective,
    net: Any,
    sets: Mapping[str, Data],
    engine: Engine,
    tokens: int,
    device: torch.device,
    known: Known,
) -> dict[str, dict[str, Any]]:
    """By metric prefix: `setfigures.described`. known: what the training has come to know. All
    processes have to ask.
    """
    found: dict[str, dict[str, Any]] = {}
    for prefix, data in sets.items():
        said = _spoken(net, data, engine, tokens, device)
        found[prefix] = described(
            made, data.groups, data.shares, rows(made, data.groups, said), said, tokens, known
        )
        _say(prefix, found[prefix])
    return found


def _spoken(net: Any, data: Data, engine: Engine, tokens: int, device: torch.device) -> Spoken:
    """What the model says of a set: a number per scored token, of a scalar head per answer, in the
    order of its groups.
    """
    own = []
    for batch in data.everything(tokens):
        with torch.no_grad():
            value_N = engine.logps(net, batch.to(device))["logp"].cpu()
        own.append(value_N[:0] if batch.idle else value_N)
    order = [
        i for part in by_rank(list(pack_all(data.groups, tokens, None, count()))) for i in part
    ]
    lengths = [
        len(g.sequences) if data.whole else sum(one.scored for one in g.sequences)
        for g in (data.groups[i] for i in order)
    ]
    parts: dict[int, Tensor] = dict(
        zip(order, distributed.gather_columns({"logp": torch.cat(own)})["logp"].split(lengths))
    )
    if data.whole:
        return Spoken(scores=[parts[i].double().tolist() for i in range(len(data.groups))])
    return Spoken(
        torch.cat([parts[i] for i in range(len(data.groups))]),
        None if data.reference is None else data.reference.value,
    )


def _say(prefix: str, found: Mapping[str, Any]) -> None:
    """How often the model has the order of the labels, where it has one."""
    right = found["figures"].get("rewards/accuracies")
    if right is None:
        return
    name, span = prefix.removeprefix("eval_").rstrip("_"), ""
    if right["low"] is not None:
        span = f" (95 % interval {percent(right['low'], 1)} to {percent(right['high'], 1)})"
    of = f"{right['count']:,} comparisons of {right['prompts']:,} prompts"
    say(
        f"held out{f', {safe(name)}' if name else ''}: {percent(right['value'], 1)} of {of} in the"
        f" labelled order{span}"
    )
