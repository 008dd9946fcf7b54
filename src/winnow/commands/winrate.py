"""`winnow winrate`: models' answers to the same prompts, judged against a baseline's: how often
they are preferred, and how sure that is.

Everything lies in OUT and goes on where it stopped: `prompts.jsonl`, each model's answers
(`model-1.answers.jsonl`, as `winnow sample` writes them), the games (`games.jsonl`, with the
verdicts in `games.judged.jsonl`), and at the end `report.html` and `report.json`.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from winnow.commands import contestants
from winnow.commands.contest import Contest, judged_games
from winnow.commands.contestants import Answers, Player
from winnow.config.evaluation import WinrateSettings
from winnow.config.judges import FunctionPath, RewardModelName
from winnow.config.resolve import Resolved
from winnow.data.prompts import Prompt, prompts
from winnow.data.records import as_json, plain
from winnow.generation.prompts import distinct
from winnow.models.device import keep_memory
from winnow.preferences.judging import games as matches
from winnow.preferences.judging import rules
from winnow.preferences.judging import verdicts as rulings
from winnow.preferences.judging.budget import Referee
from winnow.preferences.judging.games import Match
from winnow.reports import winrate_report
from winnow.reports.page import say_table, say_warnings
from winnow.reports.winrate_warnings import warnings
from winnow.system.console import safe, say
from winnow.system.files import (
    read_json,
    read_jsonl,
    sha256_json,
    versions,
    write_json,
    write_jsonl,
)
from winnow.system.identity import RUN_FORMAT, differences, refuse_format, refuse_other
from winnow.system.run_folder import RunFolder

LEDGER = "winrate.json"
FREE = ("out", "timeout", "concurrency", "budget", "key_env")  # no figure depends on these
SHOWN = 8  # prompts whose answers stand on the page


def run(resolved: Resolved[WinrateSettings], command: str = "") -> dict[str, Any]:
    """Sample, judge, count, or go on where that stopped. Raises before anything is sampled when
    settings, models' names or files cannot be used.
    """
    settings, root = resolved.settings, resolved.settings.out
    keep_memory()
    referee = Referee(resolved)
    referee.refuse()
    asked = distinct(prompts(settings.prompts, settings.limit))
    who = contestants.players(settings)
    given = {one.number: contestants.answers(one.source, asked) for one in who if one.file}
    out = RunFolder(root)
    finished = out.report_json.exists()  # every figure, written when all of them are known
    if not finished:
        referee.try_out(asked[0])
    if not (root / LEDGER).exists():
        out.create(ours=())
    with out.lock():
        ledger = _ledger(resolved, root, asked, who, command)
        if finished:
            say(f"{safe(root)}: is finished; nothing to do")
            report: dict[str, Any] = read_json(out.report_json, "comparisons")
        else:
            contest = Contest(resolved, root, asked, who, referee, {})
            report = _report(contest, ledger, given)
            out.report_html.unlink(missing_ok=True)
            write_json(out.report_json, report)
        if not out.report_html.exists():
            winrate_report.write(root, report)
    _say(report, out)
    return report


def _ledger(
    resolved: Resolved[WinrateSettings],
    root: Path,
    asked: Sequence[Prompt],
    who: Sequence[Player],
    command: str,
) -> dict[str, Any]:
    """What this folder is made with. Raises RunError where it was begun with other settings,
    prompts or answers.
    """
    kept = {
        name: value
        for name, value in resolved.settings.model_dump(mode="json", by_alias=True).items()
        if name not in FREE
    }
    given = {"prompts": sha256_json([as_json(text) for _, text in asked])} | {
        one.source: one.content for one in who
    }
    given |= {f"judge {resolved.settings.judge}": _judge_content(resolved.settings)}
    path = root / LEDGER
    if not path.exists():
        started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        head = {"schema": 1, "format": RUN_FORMAT, "command": command, "started": started}
        head |= {"versions": versions("numpy", "scipy"), "origins": dict(resolved.origins)}
        write_json(path, {**head, "settings": kept, "given": given})
    before: dict[str, Any] = read_json(path, "settings", "given", "command", "started", "versions")
    if not RunFolder(root).finished:
        refuse_format(root, before)
    refuse_other(
        root,
        "was begun with other settings",
        differences(before["settings"], kept),
        *(f"{name}: its content has changed" for name in differences(before["given"], given)),
    )
    return before


def _judge_content(settings: WinrateSettings) -> str:
    """What a judge is, where it can change: weights of a reward model, code of a function."""
    match settings.judge_name:
        case RewardModelName(name):
            return contestants.content(name)
        case FunctionPath(path):
            return rules.rule(path, "").code or settings.judge
        case _:
            return settings.judge


def _report(
    contest: Contest, ledger: Mapping[str, Any], given: Mapping[int, Answers]
) -> dict[str, Any]:
    """Everything that is found: what `report.json` holds, and the page and the table are made
    of.
    """
    settings, who = contest.settings, contest.players
    write_jsonl(
        contest.prompts, [{"prompt": as_json(text), "from": where} for where, text in contest.asked]
    )
    contest.wrote(contest.prompts, f"the prompts of {settings.prompts}, each once")
    said, accounts = _answers(contest, given)
    everybody = judged_games(contest, contest.root / "games.jsonl", who, said)
    pairs = [
        matches.comparison(who[i].name, who[j].name, many) for (i, j), many in everybody.items()
    ]
    comparisons = [one for one in pairs if one["against"] == who[-1].name]
    report = {
        "schema": 1,
        "title": contest.root.name,
        **{
            name: ledger[name] for name in ("command", "started", "settings", "origins", "versions")
        },
        "judge": _judge(contest.root / "games.judged.jsonl"),
        "prompts": len(contest.asked),
        "models": accounts,
        "comparisons": comparisons,
        "others": [one for one in pairs if one not in comparisons],
        "ranking": matches.ranking([one.name for one in who], everybody) if len(who) > 2 else None,
        "temperatures": _sweep(contest, said, accounts, everybody),
        "shown": _shown(contest, said, everybody),
        "sources": contest.sources,
        "figures": winrate_report.FIGURES,
    }
    return report | {"warnings": warnings(report), "headline": winrate_report.headline(report)}


def _answers(
    contest: Contest, given: Mapping[int, Answers]
) -> tuple[list[Answers], list[dict[str, Any]]]:
    """What everybody says to each prompt, sampled where it is a model, and an account of it."""
    said, accounts = list[Answers](), list[dict[str, Any]]()
    for one in contest.players:
        made, account = (
            _of_file(contest, one, given[one.number])
            if one.file
            else _of_model(contest, one, said, accounts)
        )
        said.append(made)
        counted = {
            "answers": sum(a is not None for many in made for a in many),
            "silent": sum(a is None for many in made for a in many),
        }
        accounts.append(
            {"name": one.name, "source": one.source, "same_as": None, **account, **counted}
        )
    return said, accounts


def _of_file(contest: Contest, one: Player, made: Answers) -> tuple[Answers, dict[str, Any]]:
    contest.wrote(Path(one.source), f"answers of {one.name}")
    return made, {}


def _of_model(
    contest: Contest, one: Player, said: Sequence[Answers], accounts: Sequence[dict[str, Any]]
) -> tuple[Answers, dict[str, Any]]:
    """The same weights asked in the same way are one model, whatever they are called, and its
    answers are taken for both.
    """
    first = next((i for i, other in enumerate(accounts) if other["source"] == one.source), None)
    if first is not None:
        return said[first], {name: accounts[first][name] for name in ("sampled", "cut")} | {
            "same_as": accounts[first]["name"]
        }
    path = contestants.sampled(
        contest.resolved,
        one,
        contest.prompts,
        contest.file(one, "answers"),
        contest.settings.temperature,
    )
    contest.wrote(path, f"answers of {one.name}, as winnow sample writes them")
    rows = read_jsonl(path, "sampled")
    account = {"sampled": rows[0]["sampled"], "cut": _cut(rows)}
    for i, other in enumerate(accounts):
        if "sampled" in other and contestants.asked_as(other["sampled"]) == contestants.asked_as(
            account["sampled"]
        ):
            return said[i], account | {"same_as": other["name"]}
    return contestants.answers(str(path), contest.asked), account


def _cut(rows: Sequence[Mapping[str, Any]]) -> float:
    """Share of answers that did not come to an end by themselves."""
    ends: list[bool] = [done for row in rows for done in row["finished"]]
    return 1 - sum(ends) / max(1, len(ends))


def _sweep(
    contest: Contest,
    said: Sequence[Answers],
    accounts: Sequence[Mapping[str, Any]],
    everybody: Mapping[tuple[int, int], Sequence[Match]],
) -> list[dict[str, Any]]:
    """Each sampled model, once, at each temperature against the baseline, whose answers stay as
    they are.
    """
    found = []
    last = len(said) - 1
    for i, one in enumerate(contest.players[:last]):
        for heat in (
            () if one.file or accounts[i]["same_as"] else sorted(contest.settings.temperatures)
        ):
            games = (
                everybody[i, last]
                if heat == contest.settings.temperature
                else _at(contest, one, heat, said[last])
            )
            found.append(
                {
                    "temperature": heat,
                    **matches.comparison(one.name, contest.players[last].name, games),
                }
            )
    return found


def _at(contest: Contest, one: Player, heat: float, theirs: Answers) -> list[Match]:
    """A model's answers at another temperature, judged against the baseline's."""
    path = contestants.sampled(
        contest.resolved, one, contest.prompts, contest.file(one, f"at-{heat:g}.answers"), heat
    )
    ours = contestants.answers(
        str(contest.wrote(path, f"answers of {one.name} at temperature {heat:g}")), contest.asked
    )
    return judged_games(
        contest, contest.file(one, f"at-{heat:g}.games"), [one, contest.players[-1]], [ours, theirs]
    )[0, 1]


def _judge(path: Path) -> dict[str, Any]:
    """How the judge says that it judged."""
    how: dict[str, Any] = read_jsonl(path, "judged")[0]["judged"]
    return how


def _shown(
    contest: Contest, said: Sequence[Answers], everybody: Mapping[tuple[int, int], Sequence[Match]]
) -> list[dict[str, Any]]:
    """A few prompts with everybody's first answer, drawn by the seed alone: nobody's choice."""
    drawn = sorted(
        range(len(contest.asked)), key=lambda p: rulings.chance(contest.settings.seed, "shown", p)
    )[:SHOWN]
    last, found = len(said) - 1, []
    for p in drawn:
        games = [
            next(match for match in everybody[i, last] if match.prompt == p).game.score
            for i in range(last)
        ]
        answers = [
            {"model": one.name, "text": many[p][0] if many[p] else None, "score": wins}
            for one, many, wins in zip(contest.players, said, [*games, None])
        ]
        found.append({"prompt": plain(contest.asked[p][1]), "answers": answers})
    return found


def _say(report: Mapping[str, Any], out: RunFolder) -> None:
    for table in winrate_report.tables(report):
        say_table(table)
    say_warnings(report["warnings"])
    say(f"{safe(report['headline'])}")
    say(f"report: {safe(out.report_html)}")
