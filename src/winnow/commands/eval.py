"""`winnow eval`: a policy or a reward model against held-out preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from winnow.config.evaluation import EvalSettings
from winnow.config.model_spec import model_spec
from winnow.config.resolve import Resolved, validated
from winnow.data.packing import budget
from winnow.errors import RunError, SettingsError
from winnow.evaluation import datasets, figures, flips, scoring, slices
from winnow.evaluation.datasets import HeldOut
from winnow.evaluation.scoring import ModelScores
from winnow.evaluation.statistics import rewardbench
from winnow.evaluation.statistics.intervals import told
from winnow.models import loading
from winnow.models.device import keep_memory
from winnow.objectives.objective import FLAGS, Objective, objective
from winnow.reports import eval_report, eval_warnings
from winnow.system.console import safe, say
from winnow.system.files import read_json, versions, write_atomic, write_json, write_jsonl
from winnow.system.run_folder import RunFolder
from winnow.training.plan import renderer, wanted

SCHEMA = 2
WRITTEN = ("report.html", "report.json", "rows.jsonl")
# what a run's data looked like to it, and its frozen weights
INHERITED = (
    "as",
    "max_length",
    "cut_budget",
    "quantize",
)


@dataclass(frozen=True)
class Evaluation:
    """Figures by metric name (of several sets NAME_metric), one row per comparison or labelled
    answer, and all that report.json holds.
    """

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    report: dict[str, Any]


def run(resolved: Resolved[EvalSettings], command: str = "") -> Evaluation:
    """Every figure with its interval; `report.html`, `report.json` and `rows.jsonl` where a folder
    was asked for.
    """
    settings, scorer = (
        resolved.settings,
        loading.is_scorer(model_spec(resolved.settings, resolved.settings.model)),
    )
    keep_memory()
    made, trained, began = objective("dpo"), None, dict[str, Any]()
    if scorer:
        _refuse_unread(settings)
    else:
        settings, made, trained, began = _with_run_defaults(settings)
    _prepare(settings, made, scorer)
    rendered, seed = renderer(settings, scorer=scorer), began.get("settings", {}).get("seed", 0)
    what = (
        replace(wanted(made, settings.pairs), kind="any", mismatched=False)
        if scorer
        else replace(wanted(made, settings.pairs), kind="any")
    )
    sets, bench = (
        datasets.read(settings, rendered, what, seed),
        datasets.bench(settings, rendered, seed),
    )
    everything = [*sets, *([bench] if bench else [])]
    said = (
        scoring.by_reward_model(settings, rendered, everything)
        if scorer
        else scoring.by_policy(settings, rendered, everything, trained)
    )
    report: dict[str, Any] = _head(settings, made, scorer, said, command) | {
        "sets": {},
        "rewardbench": None,
    }
    rows: list[dict[str, Any]] = []
    for i, one in enumerate(everything):
        found = _rows(one, made, said, i)
        if one is bench:
            report["rewardbench"] = _bench(one, found)
        else:
            report["sets"][one.name or one.title] = _figures(
                settings, made, one, found, said, i, began.get("known", {})
            ) | {"name": one.name}
        rows += [({"set": one.name} if one.name else {}) | row for row in found]
    report["summary"] = {
        f"eval_{name}": value for name, value in eval_report.numbers(report).items()
    }
    report["warnings"] = [finding.to_json() for finding in eval_warnings.examine(report)]
    eval_report.say_all(report)
    for one in sets if settings.label_noise else ():
        own = [row for row in rows if row.get("set", "") == one.name and "rejected" in row]
        report["sets"][one.name or one.title] |= flips.say_all(own, _trained_on(settings, one))
    if settings.out is not None:
        _write(settings.out, report, rows)
    return Evaluation(eval_report.numbers(report), rows, report)


# --- what is asked for


def _with_run_defaults(
    settings: EvalSettings,
) -> tuple[EvalSettings, Objective, dict[str, Any] | None, dict[str, Any]]:
    """A run folder knows its objective, how it read its data, and what it was trained against (None
    where that is not the reference); last of all what else it recorded, empty for a model that is
    none or another objective.
    """
    run = RunFolder(settings.model)
    environment: dict[str, Any] = read_json(run.environment) if run.started else {"settings": {}}
    kept: dict[str, Any] = environment["settings"]
    name = settings.objective or kept.get("objective") or "dpo"
    own = kept if kept.get("objective") == name else {}
    given = {flag: own[flag] for flag in FLAGS if own.get(flag) is not None} | (
        {} if settings.beta is None else {"beta": settings.beta}
    )
    made = objective(name, **{flag: value for flag, value in given.items() if value is not False})
    asked = settings.model_dump(by_alias=True)
    taken = {
        key: kept[key] for key in INHERITED if asked[key] is None and kept.get(key) is not None
    }
    if settings.pairs is None:
        listwise = any(term.entry.unit == "group" for term in made.terms)
        taken["pairs"] = own.get("pairs") or ("listwise" if listwise else "all")
    trained = (
        environment.get("reference") if settings.reference is None and made.reference else None
    )
    if trained is not None:
        taken["reference"] = trained["model"]
    from_run = {key: value for key, value in taken.items() if (key, value) != ("pairs", "all")}
    if from_run:
        say(f"from the run: {safe(', '.join(f'{key}={value}' for key, value in from_run.items()))}")
    if own.get("moving_reference") and trained is not None:
        say("[yellow]the run's reference moved:[/] this compares with the policy at step 0")
    return validated(EvalSettings, {**asked, **taken}), made, trained, environment if own else {}


UNREAD = {
    "reference": None,
    "objective": None,
    "beta": None,
    "quantize": None,
    "max_length": None,
    "cut_budget": None,
    "max_tokens": None,
    "engine": "auto",
    "kl_samples": 0,
}


def _refuse_unread(settings: EvalSettings) -> None:
    """What a reward model has no use for: it has no log-probs, no reference, and its answers are
    scored whole.
    """
    given = [name for name, default in UNREAD.items() if getattr(settings, name) != default]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise SettingsError(
            f"{given[0]}: {settings.model} is a reward model, which scores whole answers and has"
            " nothing to do with it",
            remedy=f"without {flag}",
        )


def _prepare(settings: EvalSettings, made: Objective, scorer: bool) -> None:
    """Raises SettingsError, RunError for what cannot be done, before anything is loaded."""
    if settings.out is not None:
        if RunFolder(settings.out).started:
            raise RunError(
                f"{settings.out} is a run folder", remedy="give the evaluation a folder of its own"
            )
        RunFolder(settings.out).refuse_foreign(WRITTEN)
        RunFolder(settings.out).promise()
    if scorer:
        return
    for name, asked in (
        ("label_noise: looks at implicit rewards", settings.label_noise),
        ("kl_samples: compares with the reference", settings.kl_samples),
    ):
        if asked and settings.reference is None:
            raise SettingsError(
                f"{name}, and there is no reference",
                remedy="--reference MODEL, the one training began with",
            )
    if settings.label_noise and not figures.summed(made):
        raise SettingsError(
            f"label_noise: margins of {made.name} are no sums of log-ratios",
            remedy="--objective dpo --beta 0.1, to audit with summed ones",
        )


# --- figures


def _rows(one: HeldOut, made: Objective, said: ModelScores, i: int) -> list[dict[str, Any]]:
    """A row per comparison, then per labelled answer, of the set numbered i; with its values of the
    columns it is split by.
    """
    found = figures.rows(made, one.data.groups, said.of(i))
    return (
        [
            row | {"by": {name: values[row["where"]] for name, values in one.columns.items()}}
            for row in found
        ]
        if one.columns
        else found
    )


def _figures(
    settings: EvalSettings,
    made: Objective,
    one: HeldOut,
    found: list[dict[str, Any]],
    said: ModelScores,
    i: int,
    before: dict[str, Any],
) -> dict[str, Any]:
    """Everything about one set."""
    far, tokens = (
        said.distance[i] if said.distance else None,
        budget(one.data.groups, settings.max_tokens),
    )
    return {
        "title": one.title,
        "data": one.data.account.to_json(),
        "files": one.files,
        "trained_on": _trained_on(settings, one),
        **figures.described(
            made, one.data.groups, one.data.shares, found, said.of(i), tokens, before
        ),
        "kl": None if far is None else asdict(far),
        "by": {
            name: {value: told(part) for value, part in slices.sliced(found, values).items()}
            for name, values in one.columns.items()
        },
    }


def _bench(one: HeldOut, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """RewardBench's scores, by rewards (of a policy without a reference there are none) and by
    log-probs. A row that was left out, because its answers are the same or cannot be scored, is a
    tie: it counts as wrong, and is counted.
    """
    subsets = one.columns[datasets.SUBSET]
    made: dict[str, Any] = {
        "title": one.title,
        "files": one.files,
        "data": one.data.account.to_json(),
        "unscored": len(subsets) - len({row["where"] for row in found}),
    }
    for name, key in (("rewards", "correct"), ("raw", "raw_correct")):
        if any(key in row for row in found):
            won = {row["where"]: bool(row[key]) for row in found}
            scores = rewardbench.scores(
                list(subsets.values()), [won.get(where, False) for where in subsets]
            )
            made[name] = asdict(scores) | {
                "section_of": {subset: rewardbench.section_of(subset) for subset in scores.subsets}
            }
    return made


def _trained_on(settings: EvalSettings, one: HeldOut) -> bool:
    """Whether these are the rows the run was trained on."""
    data = RunFolder(settings.model).root / "data.json"
    return (
        RunFolder(settings.model).started
        and data.exists()
        and bool(read_json(data)["train"]["fingerprint"] == one.data.account.fingerprint)
    )


# --- what is written


def _head(
    settings: EvalSettings, made: Objective, scorer: bool, said: ModelScores, command: str
) -> dict[str, Any]:
    """What every figure depends on."""
    return {
        "schema": SCHEMA,
        "command": command,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "settings": settings.model_dump(mode="json", by_alias=True),
        "model": settings.model,
        "kind": "reward model" if scorer else "policy",
        "reference": settings.reference,
        "weights": said.weights,
        "objective": None if scorer else made.name,
        "beta": None if scorer else made.beta,
        "needs_reference": not scorer and made.reference and settings.reference is None,
        "loss_needs": (
            "" if scorer or made.want == ("entropy",) else "more than log-probs of tokens"
        ),
    }


def _write(out: Path, report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "rows.jsonl", rows)
    write_atomic(out / "report.html", eval_report.render(report))
    write_json(out / "report.json", report)
    say(f"written: {', '.join(safe(out / name) for name in WRITTEN)}")
