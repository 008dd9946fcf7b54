"""How good is the policy on prompts it is not trained on? Its answers' scores, and the exact KL to
where it began
"""

from __future__ import annotations

from collections.abc import Sequence

from winnow.config.ppo import PPOSettings
from winnow.data.packing import budget, pack_all
from winnow.data.render import RenderedGroup
from winnow.engine.batch import collate
from winnow.evaluation.kl import of_batch
from winnow.evaluation.statistics.intervals import flat
from winnow.evaluation.statistics.winrate import over_prompts
from winnow.generation.prompts import PromptBatch
from winnow.training.metrics import Row
from winnow.training.ppo.rollouts import Players, as_groups, drawn, scored


def held_out(
    players: Players,
    settings: PPOSettings,
    asked: PromptBatch,
    places: Sequence[str],
    items: Sequence[int],
    seed: int,
) -> Row:
    """One answer to each prompt, with the same random numbers at every evaluation: mean score and
    exact KL (nats per answer), each with its 95 % interval over prompts, length, and the share that
    came to its end.
    """
    policy = players.policy.loaded
    answers = drawn(policy, asked, items, 1, seed)
    scores = [
        own[0]
        for own in scored(
            policy, asked, places, items, answers, players.reward, settings.unfinished
        )
    ]
    groups = as_groups(asked, places, items, answers)
    row: Row = {"eval_answers": len(items)}
    for name, values in (("score", scores), ("kl", _kl(players, groups, settings.max_tokens))):
        row |= flat({f"eval_{name}": over_prompts(values)})
    lengths = [len(group.sequences[0].ids) - group.sequences[0].start for group in groups]
    return row | {
        "eval_length/sampled": sum(lengths) / len(lengths),
        "eval_finished": sum(many[0].finished for many in answers) / len(items),
    }


def _kl(players: Players, groups: Sequence[RenderedGroup], tokens: int | None) -> list[float]:
    """KL(policy || reference) of each group's answer, at each of its tokens over the whole
    vocabulary (`drift.exact`).
    """
    model, engine, device = (
        players.policy.loaded.net,
        players.policy.engine,
        players.policy.loaded.device,
    )
    found = [0.0] * len(groups)
    for items in pack_all(groups, budget(groups, tokens)):
        batch = collate([groups[i] for i in items], items).to(device)
        said = engine.said(model, batch)
        with players.reference.inside(model):
            for i, kl in zip(items, of_batch(said, engine, model, batch).tolist()):
                found[i] = kl
    return found
