"""The games of a win rate: everybody's answers to the same prompts, judged two by two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from winnow.commands.contestants import Answers, Player
from winnow.config.evaluation import WinrateSettings
from winnow.config.resolve import Resolved
from winnow.data.prompts import Prompt, as_turns
from winnow.data.records import as_json
from winnow.errors import RunError
from winnow.preferences.judging import verdicts as rulings
from winnow.preferences.judging.budget import Referee
from winnow.preferences.judging.games import Match
from winnow.preferences.votes import pair_of, score
from winnow.system.files import sha256_file, sha256_json, write_jsonl


@dataclass
class Contest:
    """What all of it has in common: who plays, on which prompts, judged by whom, and where it is
    written.
    """

    resolved: Resolved[WinrateSettings]
    root: Path
    asked: list[Prompt]
    players: list[Player]
    referee: Referee
    sources: dict[str, Any]

    @property
    def settings(self) -> WinrateSettings:
        return self.resolved.settings

    @property
    def prompts(self) -> Path:
        return self.root / "prompts.jsonl"

    def file(self, player: Player, what: str) -> Path:
        return self.root / f"model-{player.number}.{what}.jsonl"

    def wrote(self, path: Path, what: str) -> Path:
        """Note a file that figures come from."""
        name = str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
        self.sources[name] = {
            "what": what,
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
        }
        return path


def judged_games(
    contest: Contest, file: Path, who: Sequence[Player], said: Sequence[Answers]
) -> dict[tuple[int, int], list[Match]]:
    """Every two of them on every prompt. An answer each is a row, in which a judge compares all;
    who has fewer answers gives his again.
    """
    rows, at = [], list[tuple[int, list[int], list[str | None]]]()
    chat = any(not isinstance(text, str) for _, text in contest.asked)
    for p, (_, text) in enumerate(contest.asked):
        for game in range(max(len(many[p]) for many in said)):
            answers = [many[p][game % len(many[p])] if many[p] else None for many in said]
            there = [i for i, answer in enumerate(answers) if answer is not None]
            at.append((p, there, answers))
            if len(there) > 1:
                rows.append(
                    _row(
                        text, [answers[i] or "" for i in there], [who[i].name for i in there], chat
                    )
                )
    if not rows:
        raise RunError(
            f"{contest.root}: nobody has said anything that can be judged beside another's answer",
            remedy="look at the answers that lie there",
        )
    write_jsonl(file, rows)
    contest.wrote(
        file, f"games of {', '.join(one.name for one in who)}: a row has an answer of each"
    )
    judged = contest.referee.judge(file, file.with_suffix(".judged.jsonl"))
    contest.wrote(file.with_suffix(".judged.jsonl"), "their verdicts, as winnow judge writes them")
    known = {_name(row): row for row in judged}
    left = iter(rows)
    verdicts = [
        (p, there, answers, known[_name(next(left))] if len(there) > 1 else None)
        for p, there, answers in at
    ]
    return {
        (i, j): [_match(i, j, *verdict) for verdict in verdicts]
        for i, j in combinations(range(len(who)), 2)
    }


def _row(text: Any, answers: Sequence[str], names: Sequence[str], chat: bool) -> dict[str, Any]:
    said = (
        [[{"role": "assistant", "content": answer}] for answer in answers]
        if chat
        else list(answers)
    )
    return {
        "prompt": as_json(as_turns(text) if chat else text),
        "completions": said,
        "comparisons": [],
        "models": list(names),
    }


def _name(row: Mapping[str, Any]) -> str:
    return sha256_json([row["prompt"], row["completions"]])


def _match(
    i: int,
    j: int,
    prompt: int,
    there: Sequence[int],
    answers: Sequence[str | None],
    row: Mapping[str, Any] | None,
) -> Match:
    """What was said of the answers of i and j in one row."""
    ours, theirs = answers[i], answers[j]
    lengths = (None if ours is None else len(ours), None if theirs is None else len(theirs))
    if row is None or ours is None or theirs is None:
        return Match(prompt, (), lengths)
    first, second = there.index(i), there.index(j)
    votes = tuple(vote for vote in rulings.votes_of(row) if pair_of(vote)[1:] == (first, second))
    scores = row.get("judge_scores")
    gain = None if scores is None else float(scores[first] - scores[second])
    return Match(
        prompt,
        tuple(map(score, votes)),
        lengths,
        ours == theirs,
        gain,
        votes if scores is None else (),
    )
