"""`winnow votes`: votes as rows for training, how far they can be trusted, and what they say of the
models that wrote the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from winnow.config.collection import VotesExportSettings
from winnow.config.resolve import Resolved
from winnow.errors import NothingLeft, SettingsError
from winnow.preferences import summary
from winnow.preferences.agreement import labels
from winnow.preferences.export import Rules, Sheet, rows, votes_of
from winnow.preferences.votes import by_pair
from winnow.reports import votes_report
from winnow.reports.page import say_table
from winnow.system.console import safe, say
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
        pairs = len(labels(sheet.votes))
        say(f"[bold]{safe(file)}[/]: {len(sheet.votes):,} votes on {pairs:,} pairs")
        people = summary.voters(sheet)
        for table in votes_report.voter_tables(people):
            say_table(table)
        if len(people) > 1:
            say_table(votes_report.agreement_table(summary.agreement(sheet)))
    for file, sheet in zip(files[1:], sheets[1:]):
        both = summary.against_people(sheets[0].votes, sheet.votes)
        for table in votes_report.judge_tables({"judge": str(file), **both}):
            say_table(table)


def stats(file: Path) -> None:
    """What was voted on, by whom, and how strong the models are that wrote the answers, where that
    is known.
    """
    sheet = votes_of(file)
    pairs = by_pair(sheet.votes)
    say(
        f"[bold]{safe(file)}[/]: {len(sheet.items):,} items, {len(pairs):,} pairs with an opinion,"
        f" {len(sheet.votes):,} votes"
    )
    several = sum(len({vote.by for vote in votes}) > 1 for votes in pairs.values())
    say(f"pairs with votes of several: {several:,}")
    for table in votes_report.voter_tables(summary.voters(sheet)):
        say_table(table)
    models = summary.models(sheet)
    for sentence in votes_report.model_sentences(models):
        say(safe(sentence))
    for group in models.get("groups", ()):
        say_table(votes_report.strengths(group))
        say_table(votes_report.wins(group))


def _known_names(sheet: Sheet, names: Sequence[str]) -> None:
    there = sorted({vote.by for vote in sheet.votes})
    for name in names:
        if name not in there:
            raise SettingsError(
                f"annotators, exclude: nobody named {name!r} voted",
                remedy=f"one of {', '.join(there)}",
            )
