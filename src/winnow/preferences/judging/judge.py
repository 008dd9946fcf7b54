"""`winnow judge`: answers compared by a language model, a reward model or a rule. A file of groups
that grows, and goes on where it stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from winnow.config.collection import JudgeSettings
from winnow.config.judges import EndpointURL, FunctionPath, RewardModelName
from winnow.config.model_spec import model_spec
from winnow.config.resolve import Resolved
from winnow.errors import JudgeError, RunError, SettingsError
from winnow.preferences.items import Item, items
from winnow.preferences.judging import prompts, rules, verdicts
from winnow.preferences.judging.endpoint import (
    Asking,
    Endpoint,
    Failed,
    Spent,
    at_once,
    refuse_address,
)
from winnow.preferences.judging.judge_summary import print_summary, unreached
from winnow.preferences.judging.prompts import NoVerdict
from winnow.preferences.votes import Vote
from winnow.system.append_file import AppendFile, Row
from winnow.system.console import safe, say
from winnow.system.files import cache_folder, locked, make_folder, sha256_json

ON_SCORES = ("labels", "scale")
ON_ENDPOINT = (
    "judge_model",
    "question",
    "verdict",
    "orders",
    "key_env",
    "judge_temperature",
    "reply_tokens",
    "timeout",
    "concurrency",
    "budget",
)
ON_MODEL = ("dtype", "device", "trust_remote_code")
IN_VAIN = 10  # rows one after the other that could not be asked about: the server is down
TOGETHER = 256  # rows whose answers a reward model scores together


@dataclass(frozen=True)
class Judge:
    """How rows are judged: what they say of it, and what makes a row of each item, in any order.
    told: what a judge that reads says of its work; columns: a hash of what it is given of an item's
    row besides.
    """

    how: Mapping[str, Any]
    rows: Callable[[list[Item], set[str]], Iterator[Row]]
    told: Callable[[], str] | None = None
    sent: Callable[[], int] = lambda: 0
    columns: Callable[[Item], str | None] = lambda item: None


def run(resolved: Resolved[JudgeSettings]) -> int:
    """Write a group with comparisons for each item of `answers` into `out`, in their order. How
    many requests that took.

    Raises RunError where another command's rows lie there, JudgeError where the judge fails, or its
    budget is used up before the end; what was judged is kept, and the same command goes on.
    """
    settings = resolved.settings
    asked = items(settings.answers, settings.limit)
    names = [item.id for item in asked]
    with _judge(resolved) as judge:
        make_folder(settings.out.absolute().parent)
        with locked(settings.out):
            file = AppendFile(settings.out, "judged", "rows", "judged")
            rows = file.there(names, judge.how)
            other = [
                item.where
                for item in asked
                if item.id in rows and rows[item.id].get("columns") != judge.columns(item)
            ]
            if other:
                raise RunError(
                    f"{settings.out}: {len(other):,} rows were judged by other columns, first"
                    f" {other[0]}",
                    remedy="choose another --out",
                )
            left = [
                item
                for item in asked
                if item.id not in rows or not verdicts.complete(rows[item.id])
            ]
            if not left:
                say(f"{safe(settings.out)}: all {len(names):,} rows are judged; nothing to do")
                return 0
            file.refuse_format(rows)
            try:
                file.grow(rows, judge.rows(asked, {item.id for item in left}), "judging", len(left))
            finally:
                ordered = file.settle(rows, names)
                if ordered:
                    print_summary(settings, ordered, judge.told)
        return judge.sent()


def _judge(resolved: Resolved[JudgeSettings]) -> AbstractContextManager[Judge]:
    match resolved.settings.judge_name:
        case EndpointURL():
            return _by_model(resolved)
        case RewardModelName(name):
            return _by_reward_model(resolved, name)
        case _:
            return _by_rule(resolved)


def _how(settings: JudgeSettings, **more: Any) -> dict[str, Any]:
    """What every row says of how it was judged."""
    return {
        "judge": settings.judge,
        **more,
        "pairs": settings.pairs,
        "ties": settings.ties,
        "seed": settings.seed,
    }


def _refuse(resolved: Resolved[JudgeSettings], without: Sequence[str], kind: str) -> None:
    """Raises SettingsError for settings that would do nothing."""
    settings, fields = resolved.settings, JudgeSettings.model_fields
    idle = [name for name in without if getattr(settings, name) != fields[name].default]
    if idle:
        raise SettingsError(
            f"{', '.join(idle)}: of no use to {kind}",
            remedy="leave away what is for another kind of judge",
        )
    if (
        "labels" not in without
        and settings.labels == "hard"
        and settings.scale != fields["scale"].default
    ):
        raise SettingsError(
            "scale: hard labels have none", remedy="--labels soft or drawn, or leave it away"
        )


def refuse(resolved: Resolved[JudgeSettings]) -> None:
    """Raises what `run` would raise before it asks anybody, for answers that are still to be
    sampled: they will have no columns beside them.
    """
    settings = resolved.settings
    if isinstance(settings.judge_name, EndpointURL):
        _refuse(resolved, ON_SCORES + ON_MODEL, "a language model")
        prompts.question(settings.question)
        refuse_address(settings.judge, _key(resolved))
    elif isinstance(settings.judge_name, RewardModelName):
        _refuse(resolved, ON_ENDPOINT, "a reward model")
    else:
        _the_rule(resolved, columns=False)


def _the_rule(resolved: Resolved[JudgeSettings], *, columns: bool) -> rules.Rule:
    settings = resolved.settings
    _refuse(resolved, ON_ENDPOINT + ON_MODEL, "a rule")
    if isinstance(settings.judge_name, FunctionPath) and resolved.origins["judge"] not in (
        "command line",
        "argument",
    ):
        raise SettingsError(
            f"judge: {settings.judge} runs code, so a file cannot ask for it",
            remedy="give --judge on the command line",
        )
    return rules.rule(settings.judge, settings.answers if columns else "")


# --- rules and reward models: scores


@contextmanager
def _by_rule(resolved: Resolved[JudgeSettings]) -> Iterator[Judge]:
    settings, rule = resolved.settings, _the_rule(resolved, columns=True)
    how = _how(settings, code=rule.code, labels=settings.labels, scale=settings.scale)

    def columns(item: Item) -> str | None:
        return sha256_json(rule.cells[item.where])[:16] if rule.cells else None

    def row(item: Item) -> Row:
        return {
            **_scored(settings, item, rules.scores(rule, item), how),
            **({"columns": columns(item)} if rule.cells else {}),
        }

    yield Judge(
        how, lambda asked, left: (row(item) for item in asked if item.id in left), columns=columns
    )


@contextmanager
def _by_reward_model(resolved: Resolved[JudgeSettings], name: str) -> Iterator[Judge]:
    from winnow.models import hashes, reward_models, scoring

    settings = resolved.settings
    _refuse(resolved, ON_ENDPOINT, "a reward model")
    loaded = reward_models.load(model_spec(settings, name))
    how = _how(
        settings,
        weights=hashes.weights_hash(loaded.model)[:16],
        dtype=str(loaded.dtype).removeprefix("torch."),
        labels=settings.labels,
        scale=settings.scale,
    )

    def rows(asked: list[Item], left: set[str]) -> Iterator[Row]:
        for at in range(0, len(asked), TOGETHER):
            # Whole, also where some of it is there: what is scored together decides the last
            # digits.
            part = asked[at : at + TOGETHER]
            if left.isdisjoint(item.id for item in part):
                continue
            said = [
                scoring.Dialogue(item.prompt, answer, item.tools, f"{item.where}: answer {k}")
                for item in part
                for k, answer in enumerate(item.answers)
            ]
            scores = iter(scoring.scores(loaded, said))
            for item in part:
                mine = [next(scores) for _ in item.answers]
                if item.id in left:
                    yield _scored(settings, item, mine, how)

    yield Judge(how, rows)


def _scored(
    settings: JudgeSettings, item: Item, scores: Sequence[float], how: Mapping[str, Any]
) -> Row:
    asked = verdicts.pairs(item, settings.pairs, settings.seed)
    votes, margins = verdicts.by_scores(
        item, asked, scores, settings.labels, settings.scale, settings.seed, settings.judge
    )
    return {
        **verdicts.row(
            item, votes, verdicts.comparisons(votes, margins, ties=settings.ties == "keep"), how
        ),
        "judge_scores": list(scores),
    }


# --- language models: verdicts


@contextmanager
def _by_model(resolved: Resolved[JudgeSettings]) -> Iterator[Judge]:
    settings = resolved.settings
    _refuse(resolved, ON_SCORES + ON_MODEL, "a language model")
    key, words = _key(resolved), prompts.question(settings.question)
    refuse_address(settings.judge, key)
    model = str(settings.judge_model)
    endpoint = Endpoint(
        settings.judge.rstrip("/"),
        model,
        settings.judge_temperature,
        settings.reply_tokens,
        settings.timeout,
        key,
    )
    sent = {
        "verdict": settings.verdict,
        "orders": settings.orders,
        "judge_temperature": settings.judge_temperature,
        "reply_tokens": settings.reply_tokens,
    }
    how = _how(
        settings, model=model, question=settings.question, words=sha256_json(words)[:16], **sent
    )
    asking = Asking(endpoint, cache_folder("judge"), settings.budget)

    def rows(asked: list[Item], left: set[str]) -> Iterator[Row]:
        vain, beyond, todo = 0, 0, [item for item in asked if item.id in left]
        for made in at_once(
            lambda item: _ruled(settings, asking, words, item, how), todo, settings.concurrency
        ):
            if made is None:
                beyond += 1
                continue
            yield made
            last = verdicts.votes_of(made)[-1]
            vain = vain + 1 if unreached(last) else 0
            if vain == min(IN_VAIN, len(todo)):
                raise JudgeError(
                    f"{settings.judge}: {vain:,} rows one after the other got no reply:"
                    f" {last.reason}",
                    remedy="the same command goes on",
                )
        if beyond:
            raise JudgeError(
                f"budget: {settings.budget:,} requests are sent, and {beyond:,} rows are left",
                remedy="the same command goes on",
            )

    try:
        yield Judge(
            how,
            rows,
            lambda: f"{asking.sent:,} requests; {asking.kept:,} replies were there from before",
            lambda: asking.sent,
        )
    finally:
        asking.close()


def _key(resolved: Resolved[JudgeSettings]) -> str:
    """The endpoint's key, empty where there is none. Raises SettingsError for a variable that was
    named and is not set.
    """
    name = resolved.settings.key_env
    key = os.environ.get(name, "") if name else ""
    if name and not key and name != JudgeSettings.model_fields["key_env"].default:
        raise SettingsError(
            f"key_env: the environment variable {name} is not set",
            remedy="set it to the key; --key-env none sends none",
        )
    return key


def _ruled(
    settings: JudgeSettings, asking: Asking, words: str, item: Item, how: Mapping[str, Any]
) -> Row | None:
    """An item's row; None where the budget does not reach."""
    try:
        votes = list(_votes(settings, asking, words, item))
    except Spent:
        return None
    return verdicts.row(
        item, votes, verdicts.comparisons(votes, {}, ties=settings.ties == "keep"), how
    )


def _votes(settings: JudgeSettings, asking: Asking, words: str, item: Item) -> Iterator[Vote]:
    """A vote for each question about an item. Once the server cannot be reached the rest is left
    for the next time.
    """
    by = asking.endpoint.model
    form = prompts.SCHEMA if settings.verdict == "json" else None
    for pair in verdicts.pairs(item, settings.pairs, settings.seed):
        alike = verdicts.same(item, pair, by)
        if alike:
            yield alike
            continue
        for first, second in _orders(settings, item, pair):
            body = asking.endpoint.body(
                prompts.messages(words, item, first, second, settings.verdict, settings.seed), form
            )
            try:
                said = asking.ask(body, lambda reply: prompts.verdict(reply, settings.verdict))
                yield Vote(
                    item.id, first, second, said.outcome, by, reason=said.reason, at=time.time()
                )
            except (Failed, NoVerdict) as error:
                yield Vote(item.id, first, second, "error", by, reason=str(error), at=time.time())
                if isinstance(error, Failed) and error.unreached:
                    return


def _orders(settings: JudgeSettings, item: Item, pair: tuple[int, int]) -> list[tuple[int, int]]:
    """Both orders of a pair, or one by the toss of a coin: which answer is read first must not
    depend on what it is.
    """
    turned = pair[::-1]
    if settings.orders == "both":
        return [pair, turned]
    return [pair if verdicts.chance(settings.seed, "order", item.id, *pair) < 0.5 else turned]
