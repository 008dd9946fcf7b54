"""Judged answers of several models -> figures: win rates with intervals, lengths, orders, what
would have been seen, a ranking.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from winnow.evaluation.statistics.bradley_terry import Game as Met
from winnow.evaluation.statistics.bradley_terry import fit, settled
from winnow.evaluation.statistics.winrate import (
    JudgedGame,
    by_prompt,
    controlled,
    detectable,
    interval,
    over_prompts,
    prompts_needed,
    share,
    sign_test,
)
from winnow.preferences.judging import verdicts
from winnow.preferences.votes import Vote

DIFFERENCE = 0.05  # from one half: the difference for which the prompts needed are told
POWER = 0.8


@dataclass(frozen=True, slots=True)
class Match:
    """An answer of one model beside an answer of another to a prompt. looks: as in `JudgedGame`,
    empty where one of them said nothing.

    lengths: characters of both (None: said nothing); gain: by how much more a judge that scores
    gave the first; votes: of a judge that reads, one per question.
    """

    prompt: int
    looks: tuple[float | None, ...]
    lengths: tuple[int | None, int | None]
    alike: bool = False
    gain: float | None = None
    votes: tuple[Vote, ...] = ()

    @property
    def game(self) -> JudgedGame:
        """What is counted. Where an answer is missing there is no look, so no length of it
        counts.
        """
        ours, theirs = self.lengths
        return JudgedGame(
            self.prompt,
            self.looks,
            float(ours - theirs) if ours is not None and theirs is not None else 0.0,
        )


def comparison(model: str, against: str, matches: Sequence[Match]) -> dict[str, Any]:
    """Every figure of one model against another. Shares are of 1, lengths in characters; intervals
    are of 95 % and over prompts.
    """
    games = [match.game for match in matches]
    both = [match for match in matches if None not in match.lengths]
    valid = [match for match in matches if match.game.score is not None]
    won = share(games)
    spread = _spread(valid)
    return {
        "model": model,
        "against": against,
        "asked": len({match.prompt for match in matches}),
        "win_rate": {
            name: getattr(won, name)
            for name in ("rate", "low", "high", "prompts", "games", "spread", "why")
        },
        "ties": portion(valid, lambda match: match.game.score == 0.5),
        "invalid": portion(matches, lambda match: match.game.score is None),
        "alike": portion(both, lambda match: match.alike),
        "length_controlled": asdict(controlled(games)),
        "lengths": {
            "ours": mean(matches, lambda match: match.lengths[0]),
            "theirs": mean(matches, lambda match: match.lengths[1]),
            "longer": mean(both, lambda match: match.game.longer),
        },
        "score_gain": mean(matches, lambda match: match.gain),
        "sign_test": asdict(sign_test(games)),
        "detectable": {
            "difference": detectable(won.prompts, spread, POWER),
            "prompts": won.prompts,
            "spread": spread,
            "power": POWER,
        },
        "needed": {
            "difference": DIFFERENCE,
            "prompts": prompts_needed(DIFFERENCE, spread, POWER),
            "spread": spread,
            "power": POWER,
        },
        "orders": orders(matches),
    }


def _spread(valid: Sequence[Match]) -> float:
    """How far prompts' shares lie from one half (root mean square): what they would vary by if
    models were even, which is what a difference is told from.

    Where all are even, as much as there can be.
    """
    rates = by_prompt(
        [(match.prompt, score) for match in valid if (score := match.game.score) is not None]
    ).values()
    return math.sqrt(fmean([(rate - 0.5) ** 2 for rate in rates] or [0.0])) or 0.5


def portion(matches: Sequence[Match], holds: Callable[[Match], bool]) -> dict[str, Any]:
    """Mean over prompts of the share of matches for which something holds."""
    rates = list(by_prompt([(match.prompt, float(holds(match))) for match in matches]).values())
    low, high = interval(rates) if len(rates) > 1 else (None, None)
    return {
        "rate": fmean(rates) if rates else None,
        "low": low,
        "high": high,
        "prompts": len(rates),
    }


def mean(matches: Sequence[Match], value: Callable[[Match], float | None]) -> dict[str, Any] | None:
    """Mean over prompts of the means of a value, with Student's interval; None where nobody has
    one.
    """
    found = list(
        by_prompt(
            [(match.prompt, float(one)) for match in matches if (one := value(match)) is not None]
        ).values()
    )
    if not found:
        return None
    return (
        over_prompts(found).as_mean()
        if len(found) > 1
        else {"mean": found[0], "low": None, "high": None}
    ) | {"prompts": len(found)}


def orders(matches: Sequence[Match]) -> dict[str, Any] | None:
    """What the order of the answers did to a judge that reads them; None for one that scores."""
    votes = [
        vote
        for match in {match.votes: match for match in matches if match.votes}.values()
        for vote in match.votes
    ]
    found = verdicts.position(votes)
    if not found.both and not found.decided:
        return None
    low, high = found.interval if found.both else (None, None)
    return {**asdict(found), "low": low, "high": high}


def ranking(
    names: Sequence[str], matches: Mapping[tuple[int, int], Sequence[Match]]
) -> dict[str, Any]:
    """All models by Bradley-Terry, prompts the clusters: strengths in nats, their mean 0, and the
    chance of each to beat each.

    `groups` are models that a chain of verdicts joins: of several there is no ranking over all.
    `settled`: parts within which points went both ways; of several one never lost to another, and
    how far they are apart nobody knows.
    """
    met = [
        Met(i, j, match.game.score, match.prompt)
        for (i, j), many in matches.items()
        for match in many
        if match.game.score is not None
    ]
    fitted = fit(len(names), met)
    groups = []
    for part in sorted(fitted.components, key=lambda part: (-len(part), part)):
        order = sorted(part, key=lambda i: (-float(fitted.strengths[i]), i))
        groups.append([_strength(names, fitted, met, i) for i in order])
    chances = [
        (i, j, told) for i, j in combinations(range(len(names)), 2) if (told := fitted.beats(i, j))
    ]
    return {
        "games": len(met),
        "prompts": len({game.cluster for game in met}),
        "groups": groups,
        "settled": [[names[i] for i in part] for part in settled(len(names), met)],
        "beats": [
            {
                "model": names[i],
                "against": names[j],
                "rate": told[0],
                "low": told[1],
                "high": told[2],
            }
            for i, j, told in chances
        ],
    }


def _strength(names: Sequence[str], fitted: Any, met: Sequence[Met], i: int) -> dict[str, Any]:
    low, high = fitted.interval(i)
    return {
        "model": names[i],
        "strength": float(fitted.strengths[i]),
        "low": low,
        "high": high,
        "games": sum(i in (game.first, game.second) for game in met),
    }
