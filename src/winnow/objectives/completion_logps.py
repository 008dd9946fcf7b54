"""Summed log-probs of completions, for any model and any rows: the engine as one differentiable
function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.data.jsonl import Row
from winnow.data.layouts import LAYOUTS, advice, detect, group_of
from winnow.data.packing import budget, pack
from winnow.data.records import PreferenceGroup
from winnow.data.render import Renderer
from winnow.engine import rows as engine
from winnow.engine.batch import collate
from winnow.errors import DataError
from winnow.objectives.scores import per_completion


def completion_logps(
    model: nn.Module, tokenizer: Any, groups: Sequence[PreferenceGroup | Mapping[str, Any]]
) -> Float[Tensor, " C"]:
    """log p(completion | prompt) in nats, end token included, of all completions of all groups in
    their order.

    groups: PreferenceGroups, or rows (dicts) of any layout Winnow reads; a pair gives its chosen
    completion first. Differentiable: `completion_logps(...)` inside a loss trains the model. The
    caller decides on `model.eval()`. Raises DataError for rows that cannot be scored.
    """
    renderer = Renderer(tokenizer)
    rendered = [renderer.render(_group(item, i)) for i, item in enumerate(groups)]
    device = next(model.parameters()).device
    parts: dict[int, Tensor] = {}
    for items in pack(rendered, budget(rendered, None)):
        batch = collate([rendered[i] for i in items], items).to(device)
        logp_C = per_completion(engine.logps(model, batch)["logp"], batch)
        for item, part in zip(items, logp_C.split([len(rendered[i].sequences) for i in items])):
            parts[item] = part
    return torch.cat([parts[i] for i in range(len(rendered))])


def _group(item: PreferenceGroup | Mapping[str, Any], number: int) -> PreferenceGroup:
    if isinstance(item, PreferenceGroup):
        return item
    row = Row(f"row {number}", item)
    layout = detect([row])
    if layout is None:
        raise DataError(
            f"row {number}: the columns {', '.join(item)} fit no known layout",
            remedy=advice(item.keys()),
        )
    found = group_of(row, LAYOUTS[layout], None)
    if isinstance(found, list):
        raise DataError(f"row {number} cannot be used", found)
    return found
