"""What came of judging, in numbers on the terminal, and why questions got no verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from winnow.config.collection import JudgeSettings
from winnow.preferences.judging import verdicts
from winnow.preferences.judging.endpoint import UNREACHED
from winnow.preferences.votes import Vote
from winnow.system.append_file import Row
from winnow.system.console import safe, say
from winnow.system.format import number, percent


def unreached(vote: Vote) -> bool:
    """Whether a question got no verdict because nobody replied, which another time may pass."""
    return vote.outcome == "error" and failure_kind(vote) in UNREACHED


def failure_kind(vote: Vote) -> str:
    """Why a question got no verdict, in a word or two."""
    return vote.reason.partition(":")[0]


def print_summary(
    settings: JudgeSettings, rows: list[Row], reader: Callable[[], str] | None
) -> None:
    """Print what came of it, in numbers: of all rows, those of earlier starts too. reader: what a
    judge that reads says of its work.
    """
    votes = [vote for row in rows for vote in verdicts.votes_of(row)]
    chances = [entry["probability"] for row in rows for entry in row["comparisons"]]
    alike = sum(vote.reason == verdicts.ALIKE for vote in votes)
    say(
        f"{len(rows):,} rows, {len(chances):,} comparisons:"
        f" {sum(p > 0.5 for p in chances):,} decided,"
        f" {chances.count(0.5):,} tied{'' if settings.ties == 'keep' else ' (ties are left out)'};"
        f" pairs of identical answers: {alike:,}; {_failure_counts(votes)}"
    )
    if reader:
        say(reader())
        _print_position(verdicts.position(votes))
    say(f"written: {safe(settings.out)}")


def _failure_counts(votes: Sequence[Vote]) -> str:
    failed = Counter(failure_kind(vote) for vote in votes if vote.outcome == "error")
    if not failed:
        return "no question without a verdict"
    kinds = ", ".join(f"{safe(kind)} {count:,}" for kind, count in failed.most_common())
    return (
        f"questions without a verdict: {failed.total():,} ({kinds}); their pairs are not compared,"
        " and the same command asks them again"
    )


def _print_position(position: verdicts.Position) -> None:
    """What the order of the answers did, as far as it can be told."""
    if position.both:
        low, high = position.interval
        steady = position.alike / position.both >= verdicts.STEADY
        say(
            f"position consistency: the same verdict in both orders of {position.alike:,} of"
            f" {position.both:,} pairs, {percent(position.alike / position.both, 1)} "
            f"({percent(low, 1)} to {percent(high, 1)})"
            + ("" if steady else ": it mostly looks at the place, so take a stronger judge")
        )
    if position.decided:
        likely = (
            ""
            if position.chance is None
            else (
                "; were order of no account, a lean like this would be seen with p ="
                f" {number(position.chance, 2)}"
            )
        )
        say(
            "first-position preference: what was read first won"
            f" {percent(position.first / position.decided, 1)}"
            f" of {position.decided:,} verdicts{likely}"
        )
