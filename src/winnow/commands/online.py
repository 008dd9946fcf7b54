"""`winnow online`: rounds of sample, judge, train and evaluate, each from the policy of the one
before (iterative DPO).

Every round is what the commands `sample`, `judge` and `dpo` do, with its files beside each other in
OUT: `round-2.prompts.jsonl`, `round-2.answers.jsonl`, `round-2.judged.jsonl`, and the run folder
`round-2`. `online.json` is the lineage: what each round began with, was trained against, and came
to.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.commands import round_figures, sample, train
from winnow.config.collection import OnlineSettings, SampleSettings
from winnow.config.resolve import Resolved, handed_on
from winnow.config.training import FREE, DPOSettings
from winnow.data.prompts import Prompt, prompts
from winnow.data.records import as_json
from winnow.errors import DataError, RunError, SettingsError
from winnow.generation.prompts import distinct, name_of
from winnow.preferences.judging.budget import Referee
from winnow.reports import online_report, run_report
from winnow.reports.online_report import LEDGER
from winnow.reports.page import say_table
from winnow.system.console import console, safe, say
from winnow.system.files import (
    make_writable,
    read_json,
    read_jsonl,
    sha256_json,
    versions,
    write_json,
    write_jsonl,
)
from winnow.system.identity import RUN_FORMAT, differences, refuse_format, refuse_other
from winnow.system.run_folder import RunFolder
from winnow.training import dpo


@dataclass(frozen=True)
class Round:
    """Where a round's files lie, and which model it begins with. Round 0 is the model at the start:
    nothing is trained.
    """

    number: int
    root: Path
    first: str  # the model of round 0

    @property
    def folder(self) -> Path:
        return self.root / f"round-{self.number}"

    def file(self, what: str) -> Path:
        return self.root / f"round-{self.number}.{what}.jsonl"

    @property
    def policy(self) -> str:
        return str(self.folder) if self.number else self.first

    @property
    def before(self) -> Round:
        return Round(self.number - 1, self.root, self.first)


@dataclass
class Loop:
    """What all rounds have in common."""

    resolved: Resolved[OnlineSettings]
    command: str
    asked: list[Prompt]
    referee: Referee
    known: set[str]  # prompts of `data`, which are never held out
    ledger: dict[str, Any]

    @property
    def settings(self) -> OnlineSettings:
        return self.resolved.settings

    def share(self, number: int) -> list[Prompt]:
        """The prompts of a round; of round 0 the held-out ones."""
        return _share(
            self.asked,
            self.known,
            self.settings.held_out,
            self.ledger["per_round"],
            number,
            self.settings.seed,
        )


def run(resolved: Resolved[OnlineSettings], command: str = "") -> Path:
    """Go through the rounds, or on where they stopped. Raises before anything is loaded when
    settings or prompts cannot be used.
    """
    settings = resolved.settings
    root = settings.out
    # what is wrong with its settings is told now
    _training(resolved, Round(1, root, settings.model))
    referee = Referee(resolved)
    referee.refuse()
    asked = distinct(prompts(settings.prompts, settings.limit))
    known = {name_of(text) for spec in settings.data for _, text in prompts(spec)}
    out = RunFolder(root)
    if not (root / LEDGER).exists():
        referee.try_out(asked[0])
        # what a start that ended before the ledger left
        out.create(ours=("round-0.prompts.jsonl", "round-0.held-out.jsonl"))
    make_writable(root, "choose another --out")
    with out.lock():
        loop = Loop(
            resolved, command, asked, referee, known, _ledger(resolved, root, asked, known, command)
        )
        done = loop.ledger["rounds"]
        if len(done) > settings.rounds:
            say(f"{safe(root)}: {len(done) - 1} rounds are done; nothing to do")
        while len(done) <= settings.rounds:
            one = Round(len(done), root, settings.model)
            began = time.perf_counter()
            row = _round(loop, one) if one.number else _start(loop, one)
            done.append({**row, "seconds": time.perf_counter() - began})
            write_json(root / LEDGER, loop.ledger)
            if one.number:
                run_report.write(root)
        if not (root / "report.html").exists():  # a kill came between the last round and its report
            run_report.write(root)
    _say(loop.ledger, root)
    return root


def _ledger(
    resolved: Resolved[OnlineSettings],
    root: Path,
    asked: list[Prompt],
    known: set[str],
    command: str,
) -> dict[str, Any]:
    """What was done here so far. Raises RunError where it was done with other settings or
    prompts.
    """
    settings = resolved.settings
    free = {*FREE, "rounds", "timeout", "concurrency", "budget", "key_env"}
    # what an error may ask to be changed; a training that has begun sees to it itself
    free |= {
        "max_length",
        "cut_budget",
        "on_bad_row",
    }
    kept = {
        name: value
        for name, value in settings.model_dump(mode="json", by_alias=True).items()
        if name not in free
    }
    now = {"settings": kept, "prompts": sha256_json([as_json(text) for _, text in asked])[:16]}
    if (root / LEDGER).exists():
        before: dict[str, Any] = read_json(
            root / LEDGER, "settings", "prompts", "rounds", "per_round"
        )
        if len(before["rounds"]) <= settings.rounds:
            refuse_format(root, before)
        texts = [f"prompts: {before['prompts']} -> {now['prompts']}"] * (
            before["prompts"] != now["prompts"]
        )
        verdict = "its rounds were made with other settings"
        refuse_other(root, verdict, differences(before["settings"], kept), *texts)
        return before
    each = settings.per_round or (len(asked) - settings.held_out) // settings.rounds
    fresh = sum(name_of(text) not in known for _, text in asked)
    if fresh < settings.held_out:
        raise DataError(
            f"data: holds all but {fresh:,} of the prompts, and {settings.held_out:,} are to be"
            " held out",
            remedy="a smaller --held-out, or other prompts",
        )
    if each < 1 or len(asked) - settings.held_out < each:
        raise DataError(
            f"{settings.prompts}: {len(asked):,} different prompts, and {settings.held_out:,} of"
            " them are held out",
            remedy="give more prompts, or a smaller --held-out or --per-round",
        )
    head = {"schema": 1, "format": RUN_FORMAT, "command": command, "versions": versions()}
    return {**head, **now, "per_round": each, "weights": None, "rounds": []}


def _share(
    asked: list[Prompt], known: set[str], held_out: int, each: int, number: int, seed: int
) -> list[Prompt]:
    """The prompts of round `number` (from 1): in a shuffled order, none again before all were
    asked; of round 0 the held-out ones, none of `known`.
    """
    order = list(range(len(asked)))
    random.Random(f"online {seed}").shuffle(order)
    held = [i for i in order if name_of(asked[i][1]) not in known][:held_out]
    rest = [i for i in order if i not in set(held)]
    if number == 0:
        return [asked[i] for i in held]
    first = (number - 1) * each
    return [
        asked[_lap(rest, seed, place // len(rest))[place % len(rest)]]
        for place in range(first, first + each)
    ]


def _lap(rest: list[int], seed: int, lap: int) -> list[int]:
    """The same prompts in another order for each time they are gone through."""
    if lap == 0:
        return rest
    again = list(rest)
    random.Random(f"online {seed} {lap}").shuffle(again)
    return again


def _start(loop: Loop, one: Round) -> dict[str, Any]:
    """Round 0: what the model says before any training."""
    _write_prompts(one, loop.share(0))
    return {"round": 0, "policy": one.policy, "began_with": None, "reference": None} | _evaluated(
        loop, one
    )


def _round(loop: Loop, one: Round) -> dict[str, Any]:
    """Sample, judge, train, evaluate."""
    console.rule(f"round {one.number} of {loop.settings.rounds}", align="left")
    if (
        not RunFolder(one.folder).started
    ):  # what is trained on stays as it is: a judge asked again may answer what it failed to
        _gather(loop, one)
    training = _training(loop.resolved, one)
    train.dpo(training, loop.command)
    judged = read_jsonl(one.file("judged"))
    comparisons = [comparison for row in judged for comparison in row["comparisons"]]
    began = str(one.before.folder.relative_to(one.root)) if one.number > 1 else one.first
    head = {
        "round": one.number,
        "policy": str(one.folder.relative_to(one.root)),
        "began_with": began,
        "reference": (
            (training.settings.reference or began) if dpo.chosen(training)[0].reference else None
        ),
        "prompts": len(judged),
        "answers": sum(len(row["completions"]) for row in judged),
        "comparisons": len(comparisons),
        "ties": sum(comparison.get("probability", 1.0) == 0.5 for comparison in comparisons),
    }
    return head | _evaluated(loop, one)


def _gather(loop: Loop, one: Round) -> None:
    """What a round is trained on: answers of the policy it begins with, judged."""
    _write_prompts(one, loop.share(one.number))
    names = {
        "prompts": str(one.file("prompts")),
        "out": one.file("answers"),
        "model": one.before.policy,
        "seed": loop.settings.seed + one.number,
    }
    sample.run(handed_on(SampleSettings, loop.resolved, names))
    loop.referee.judge(one.file("answers"), one.file("judged"))


def _training(resolved: Resolved[OnlineSettings], one: Round) -> Resolved[DPOSettings]:
    """The round's settings of `winnow dpo`."""
    settings = resolved.settings
    own: dict[str, Any] = {
        "model": one.before.policy,
        "data": [str(one.file("judged")), *settings.data],
        "out": one.folder,
        "limit": None,
    }
    # what a later round begins with is that adapter
    own |= {"lora": settings.lora if one.number == 1 else None}
    if (
        settings.data
        and settings.as_ is None
        and one.file("judged").exists()
        and not isinstance(read_jsonl(one.file("judged"))[0]["prompt"], str)
    ):
        own |= {"as": "chat"}  # as the prompts were taken
    made = handed_on(DPOSettings, resolved, {**own, "reference": None})
    objective, _ = dpo.chosen(made)
    if settings.reference is None and (
        not objective.reference or objective.live or settings.moving_reference
    ):
        return made  # there is none, or it is the policy at step 0 by definition
    if not objective.reference:
        raise SettingsError(
            f"reference: {objective.name} compares with no reference", remedy="leave reference away"
        )
    asked = settings.reference or "first"
    wanted = (
        None
        if asked == "previous" or (asked, one.number) == ("first", 1)
        else one.first
        if asked == "first"
        else asked
    )
    made = handed_on(DPOSettings, resolved, {**own, "reference": wanted})
    dpo.chosen(made)
    return made


def _write_prompts(one: Round, asked: list[Prompt]) -> None:
    write_jsonl(
        one.file("prompts"), [{"prompt": as_json(text), "from": where} for where, text in asked]
    )


def _evaluated(loop: Loop, one: Round) -> dict[str, Any]:
    """Figures on the held-out prompts; none where nothing is held out."""
    if not loop.settings.held_out:
        return {}
    start = Round(0, one.root, one.first)
    found, weights = round_figures.answers(
        loop.settings, one.policy, one.first, start.file("prompts"), one.file("held-out")
    )
    if loop.ledger["weights"] not in (None, weights):
        raise RunError(
            f"{one.first}: no longer the model that the rounds began with",
            remedy="restore it, or choose another --out",
        )
    loop.ledger["weights"] = weights
    for name, other in (("over_first", start), ("over_previous", one.before))[: one.number]:
        said = (f"round {one.number}", f"round {other.number}")
        out = one.file(f"against-{other.number}")
        found[name] = round_figures.compared(
            one.file("held-out"),
            other.file("held-out"),
            out,
            said,
            lambda file, out: loop.referee.judge(file, out, ties="keep"),
        )
    if one.number == 1:
        found["over_previous"] = found["over_first"]
    return found


def _say(ledger: dict[str, Any], root: Path) -> None:
    say_table(online_report.table(ledger["rounds"]))
    say(f"report: {safe(root / 'report.html')}")
