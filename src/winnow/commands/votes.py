"""`winnow votes`: votes as rows for training, how far they can be trusted, and what they say of the
models that wrote the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from rich.table import Table

from winnow.config.collection import VotesExportSettings
from winnow.config.resolve import Resolved
from winnow.errors import NothingLeft, SettingsError
from winnow.evaluation.statistics.bradley_terry import Fit, Game, fit, points
from winnow.evaluation.statistics.intervals import Figure
from winnow.preferences import summary
from winnow.preferences.agreement import (
    LABELS,
    Annotator,
    against,
    alpha,
    annotators,
    kappa,
    labels,
    observed,
)
from winnow.preferences.export import Rules, Sheet, rows, votes_of
from winnow.preferences.votes import by_pair, counts
from winnow.system.console import console, safe, say
from winnow.system.files import make_folder, write_jsonl


def export(resolved: Resolved[VotesExportSettings]) -> Path:
    """Write the votes of a file as groups with comparisons, and say what became of each. Raises
    NothingLeft where no comparison is left.
    """
    settings = resolved.settings
    if settings.out.absolute() == settings.votes.absolute():
        raise SettingsError(
            f"out: {settings.out} is the file of the votes", remedy="choose another --out"
        )
    sheet = votes_of(settings.votes)
    _known_names(sheet, [*settings.annotators, *settings.exclude])
    found, counted = rows(
        sheet,
        Rules(
            settings.min_votes,
            settings.ties,
            settings.weight,
            settings.annotators,
            settings.exclude,
        ),
    )
    if not found:
        raise NothingLeft(
            f"{settings.votes}: no comparison is left",
            counted,
            remedy="ask for fewer votes per pair, or keep ties",
        )
    make_folder(settings.out.absolute().parent)
    write_jsonl(settings.out, found)
    say("; ".join(f"{name} {count:,}" for name, count in counted.items() if count))
    say(f"written: {safe(settings.out)}")
    return settings.out


def agreement(files: Sequence[Path]) -> None:
    """Tables of how annotators agree; with several files those of the first are the people, and
    every other one is a judge.
    """
    sheets = [votes_of(file) for file in files]
    for file, sheet in zip(files, sheets):
        said = labels(sheet.votes)
        say(f"[bold]{safe(file)}[/]: {len(sheet.votes):,} votes on {len(said):,} pairs")
        people = annotators(sheet.votes, sheet.items, sheet.seconds)
        console.print(_people(people))
        for who in people:
            if who.left.value is None:
                say(f"{safe(who.name)}: side bias is {_shown(who.left)}")
        if len(people) > 1:
            say(f"two annotators of one pair say the same: {_shown(observed(said))}")
            say(f"Krippendorff's alpha: {_shown(alpha(said), percent=False)}")
        for one, other in (
            combinations([who.name for who in people], 2) if len(people) <= MANY else ()
        ):
            say(
                f"Cohen's kappa of {safe(one)} and {safe(other)}:"
                f" {_shown(kappa(said, one, other), percent=False)}"
            )
    for file, sheet in zip(files[1:], sheets[1:]):
        _against(files[0], sheets[0], file, sheet)


def stats(file: Path) -> None:
    """What was voted on, by whom, and how strong the models are that wrote the answers, where that
    is known.
    """
    sheet = votes_of(file)
    said = by_pair(sheet.votes)
    say(
        f"[bold]{safe(file)}[/]: {len(sheet.items):,} items, {len(said):,} pairs with an opinion,"
        f" {len(sheet.votes):,} votes"
    )
    say(
        "; ".join(
            f"{NAMES[outcome]} {count:,}" for outcome, count in counts(sheet.votes).items() if count
        )
    )
    several = sum(len({vote.by for vote in votes}) > 1 for votes in said.values())
    say(f"pairs with votes of several: {several:,}")
    console.print(_people(annotators(sheet.votes, sheet.items, sheet.seconds)))
    names, games = games_of(sheet)
    if len(names) > 1 and games:
        console.print(_models(names, games, fit(len(names), games)))
    else:
        say(
            "models are not compared: the answers do not say who wrote them, or one model wrote all"
        )


MANY = 6  # annotators, above which kappas of two are too many to be read
NAMES = {
    "first": "left",
    "second": "right",
    "tie": "tie",
    "bad": "both bad",
    "skip": "skipped",
    "error": "without a verdict",
}


def games_of(sheet: Sheet) -> tuple[list[str], list[Game]]:
    """Models by name, and every opinion as a game between two of them; a prompt is a cluster."""
    found = summary.played(sheet)
    names = sorted({name for game in found for name in game[:2]})
    return names, summary.games(names, found)


def _known_names(sheet: Sheet, names: Sequence[str]) -> None:
    there = sorted({vote.by for vote in sheet.votes})
    for name in names:
        if name not in there:
            raise SettingsError(
                f"annotators, exclude: nobody named {name!r} voted",
                remedy=f"one of {', '.join(there)}",
            )


def _people(people: Sequence[Annotator]) -> Table:
    """One row each; a column in which nobody has anything is left out."""
    columns: dict[str, list[str]] = {
        "annotator": [safe(who.name) for who in people],
        "votes": [f"{who.votes:,}" for who in people],
        "ties": [f"{who.ties:,}" for who in people],
        "both bad": [_some(who.bad) for who in people],
        "skipped": [_some(who.skips) for who in people],
        "no verdict": [_some(who.errors) for who in people],
        "seconds": ["" if who.seconds is None else f"{who.seconds:.1f}" for who in people],
        "left side": [_brief(who.left) for who in people],
        "p": ["" if who.p_left is None else f"{who.p_left:.2g}" for who in people],
        "same when asked again": [_brief(who.repeats) for who in people],
        "same in both orders": [_brief(who.swapped) for who in people],
        "gold right": [_brief(who.gold) for who in people],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(title="who voted; p: of a share of left sides as uneven by chance")
    for name in shown:
        table.add_column(name, justify="left" if name == "annotator" else "right")
    for row in zip(*shown.values()):
        table.add_row(*row)
    return table


def _against(people: Path, theirs: Sheet, judge: Path, its: Sheet) -> None:
    found = against(theirs.votes, its.votes)
    say(
        f"[bold]{safe(judge)}[/] against [bold]{safe(people)}[/]: the same on"
        f" {_shown(found.all_pairs)}; where both decide {_shown(found.decided)}"
    )
    if found.all_pairs.count:
        table = Table(title="pairs, by what is said of them")
        for column in ("people \\ judge", *(WORDS[label] for label in LABELS)):
            table.add_column(column, justify="right")
        for label in LABELS:
            table.add_row(WORDS[label], *(f"{found.table[label][other]:,}" for other in LABELS))
        console.print(table)


WORDS = {"low": "earlier answer", "high": "later answer", "tie": "tie"}


def _models(names: Sequence[str], games: Sequence[Game], found: Fit) -> Table:
    """Strengths, and of each model the points it got from each other one, with what Bradley-Terry
    predicts.
    """
    order = sorted(range(len(names)), key=lambda i: -found.strengths[i])
    got = points(len(names), games)
    table = Table(
        title=(
            "models: Bradley-Terry strengths in nats with 95 % intervals; points won of games, and"
            " the predicted share"
        )
    )
    for column in ("model", "strength", *(f"against {safe(names[j], 24)}" for j in order)):
        table.add_column(column, justify="left" if column == "model" else "right")
    for i in order:
        low, high = found.interval(i)
        cells = []
        for j in order:
            beats, played = found.beats(i, j), got[i, j] + got[j, i]
            cells.append(
                ""
                if i == j
                else (
                    "never met" if beats is None else f"{got[i, j]:g} of {played:g}, {beats[0]:.0%}"
                )
            )
        table.add_row(
            safe(names[i], 40), f"{found.strengths[i]:+.2f} ({low:+.2f} to {high:+.2f})", *cells
        )
    return table


def _shown(figure: Figure, percent: bool = True) -> str:
    """A figure in a sentence; where it is not defined, why."""
    if figure.value is None:
        return f"not defined: {figure.why}"
    value = f"{figure.value:.1%}" if percent else f"{figure.value:.3f}"
    interval = (
        ""
        if figure.low is None or figure.high is None
        else f", 95 % interval {figure.low:.1%} to {figure.high:.1%}"
    )
    return (
        f"{value} of {figure.count:,}{interval}"
        if percent
        else f"{value} over {figure.count:,} pairs"
    )


def _some(count: int) -> str:
    return f"{count:,}" if count else ""


def _brief(figure: Figure) -> str:
    """A figure in a table; empty where it is not defined."""
    return "" if figure.value is None else f"{figure.value:.0%} of {figure.count:,}"
