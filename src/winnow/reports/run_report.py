"""Run folders and files of votes -> one offline HTML page, and the same numbers as `report.json`.
Reads files only.

`build` gathers, `write` leaves both files in a run folder, `page` sets several runs side by side.
Text of a user's or a model's goes through the template's escaping and `visible`; nothing on the
page can run, load or follow anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from winnow.errors import RunError
from winnow.preferences import summary as collection
from winnow.reports import online_report, votes_report
from winnow.reports.headline import Card, cards, differences, subline, table, verdict
from winnow.reports.plots import DASHES, RUN_INKS, draw
from winnow.reports.run_figures import figures, of_summary
from winnow.reports.training_warnings import OF_SUMMARY, SYMPTOMS, Sign, examine
from winnow.system.console import safe, say
from winnow.system.files import read_json, tidy, write_atomic, write_json
from winnow.system.format import held_out, number, visible
from winnow.system.launch import leads
from winnow.system.run_folder import RunFolder

SCHEMA = 1
PREVIEW = 600  # characters of a sample shown before it is folded
WHOLE = 20_000  # characters of a sample held by the page; beyond, the page says where the rest is
SAMPLES = 6  # samples shown before the others are folded
TEXTS = {
    "titled": ("title", "n", "why", "source"),
    "cards": ("label", "value", "detail"),
    "warnings": ("code", "message", "advice", "level"),
}
CARD, SIGN = ({field.name for field in fields(kind)} for kind in (Card, Sign))
DAMAGED = "restore the file from a copy, or run the same command into another --out"

HERE = Path(__file__).parent


def build(given: Sequence[str | Path], *, without_runs: Collection[Path] = ()) -> dict[str, Any]:
    """Every number of the given run folders and files of votes as one plain dict: what
    `report.json` holds and the page is made of.

    without_runs: folders, resolved, whose runs are not shown one by one. `frontier` is for `winnow
    frontier` to fill (`frontier_page`).
    """
    paths = list(dict.fromkeys(Path(one).resolve() for one in given))
    if not paths:
        raise RunError("no run folder was given", remedy="winnow report RUN ... --out report.html")
    roots, files = (
        [path for path in paths if not path.is_file()],
        [path for path in paths if path.is_file()],
    )
    collected = (
        collection.build(files, _names(files)) if files else {"collections": [], "judges": []}
    )
    inside = [[] if root in without_runs else _runs_in(root) for root in roots]
    found = list(dict.fromkeys(run for runs in inside for run in runs))
    names = _names(found) if found else []
    runs = [_run(root, name) for root, name in zip(found, names, strict=True)]
    summary = _summary(roots[0]) if len(roots) == 1 else {}
    title = (
        paths[0].name
        if len(paths) == 1
        else " · ".join([*names, *(one["name"] for one in collected["collections"])])
    )
    signs = _signs(runs, summary, alone=found != roots)
    went = online_report.read(roots[0]) if len(roots) == 1 else []
    return {
        "schema": SCHEMA,
        "title": title,
        "summary": summary,
        **signs,
        "rounds": went,
        "frontier": {},
        "runs": runs,
        **collected,
    }


def write(folder: str | Path) -> dict[str, Any]:
    """Leave `report.html`, then `report.json`, in the run folder: with the latter the report is
    complete.
    """
    report = build([folder])
    save(folder, report, render(report))
    return report


def save(folder: str | Path, report: Mapping[str, Any], html: str) -> None:
    """Write the page of a folder, then its numbers."""
    run = RunFolder(folder)
    write_atomic(run.report_html, html)
    write_json(run.report_json, report)


def write_missing(run: RunFolder) -> None:
    """Draw the report of a finished run that has none: its training has just ended, or ended before
    its report was drawn.
    """
    if leads() and not run.report_json.exists():
        with run.lock():
            tidy(run.root)  # what a report that was cut off left
            write(run.root)
        say(f"report: {safe(run.report_html)}")


def page(given: Sequence[str | Path], out: str | Path) -> Path:
    """One page from one or more run folders and files of votes; none of them is changed."""
    return save_page(given, out, render(build(given)))


def save_page(given: Sequence[str | Path], out: str | Path, html: str) -> Path:
    """Write a page that was made from `given`, none of which it may replace."""
    path = Path(out)
    if path.is_dir() or path.resolve() in [Path(one).resolve() for one in given]:
        raise RunError(
            f"{path}: {'a folder' if path.is_dir() else 'is what the page is made of'}",
            remedy="give the HTML file to write: --out report.html",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, html)
    except OSError as error:
        raise RunError(
            f"{path}: cannot write here: {error.strerror}", remedy="choose another --out"
        ) from error
    return path


def render(report: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> str:
    """The page of a report. Equal reports give equal bytes.

    more: what an experiment adds for the template: `sections`, templates that stand before the
    runs, with their values; its own head.
    """
    groups = [_group(recipe, runs) for recipe, runs in _groups(report["runs"])]
    top = (
        {
            "verdict": verdict(report),
            "subline": subline(report),
            "cards": cards(report),
            "figures": of_summary(report["summary"]),
        }
        if report["runs"]
        else {}
    )
    top |= votes_report.top(report, alone=not report["runs"])
    went = report["rounds"]
    turns = (
        {"rounds": {"table": online_report.table(went), "drawings": online_report.draw(went)}}
        if went
        else {}
    )
    return from_template(
        "report.html.jinja", {"report": report, "groups": groups, **top, **turns, **(more or {})}
    )


def from_template(name: str, values: Mapping[str, Any]) -> str:
    """A page from a template of this folder: whatever it prints is made visible and escaped."""
    loader = jinja2.FileSystemLoader([HERE / "templates", HERE])
    world = jinja2.Environment(
        autoescape=True,
        finalize=_shown,
        loader=loader,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    world.filters |= {"number": number, "plain": plain}
    constants = {
        "dashes": DASHES,
        "inks": RUN_INKS,
        "preview": PREVIEW,
        "whole": WHOLE,
        "shown": SAMPLES,
    }
    return world.get_template(name).render({**values, **constants})


def _shown(value: Any) -> Any:
    """What the template prints, before it is escaped; Markup is our own. Nothing foreign is longer
    than WHOLE.
    """
    if isinstance(value, Markup):
        return value
    text = str(value)
    return visible(text[:WHOLE]) + (
        f"… ({number(len(text) - WHOLE)} more characters)" if len(text) > WHOLE else ""
    )


def _group(recipe: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    drawings = draw(runs)
    smoothed = any(line.smooth for drawing in drawings for line in drawing.lines)
    return {
        "recipe": recipe,
        "runs": runs,
        "drawings": drawings,
        "smoothed": smoothed,
        "table": table(runs),
        "differences": differences(runs),
    }


def plain(value: Any) -> str:
    """A setting's value as it is typed on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _runs_in(root: Path) -> list[Path]:
    """The run folder itself, or the run folders in it, in the order they were started."""
    if RunFolder(root).environment.exists():
        return [root]
    inner = sorted(path.parent for path in root.glob("*/environment.json")) if root.is_dir() else []
    if not inner:
        raise RunError(
            f"{root}: no run here: environment.json is missing",
            remedy="give the folder that --out named when the run was made, or a file of votes",
        )
    return sorted(inner, key=lambda path: (str(_environment(path).get("started", "")), path.name))


def _names(roots: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    for depth in range(1, max(len(root.parts) for root in roots) + 1):
        names = ["/".join(root.parts[-depth:]) for root in roots]
        if len(set(names)) == len(names):
            break
    return names


def _run(root: Path, name: str) -> dict[str, Any]:
    """Everything of one run: as recorded, then what follows from it."""
    folder, environment = RunFolder(root), _environment(root)
    metrics = list(_metrics(folder.metrics))
    run: dict[str, Any] = {
        "name": name,
        "command": "",
        "started": "",
        "versions": {},
        "device": "",
        "origins": {},
        "parameters": None,
    }
    run |= {"weights_hash": None, "reference": None, "plan": {}} | environment
    run |= {
        "summary": _summary(root),
        "metrics": metrics,
        "data": _data(root, needed=bool(metrics)),
        "samples": _samples(folder.samples),
    }
    run["final"] = {
        key: value for row in metrics for key, value in row.items() if value is not None
    }
    for name in ("loss", "rewards/accuracies"):
        if (series := held_out(metrics, name)) and f"eval_{name}" not in run["final"]:
            run["final"][f"eval_{name}"] = series[-1][1]
    steps, done = run["plan"].get("steps"), max((row["step"] for row in metrics), default=0)
    run["status"] = {
        "step": done,
        "steps": steps,
        "state": (
            "complete" if steps and done >= steps else "under way" if metrics else "no steps yet"
        ),
    }
    signs, checked, unchecked = examine(run)
    run["figures"] = figures(run)
    return run | {
        "warnings": [asdict(sign) for sign in signs],
        "checked": checked,
        "unchecked": unchecked,
    }


def _signs(
    runs: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], *, alone: bool
) -> dict[str, Any]:
    """The warnings of all runs and of the summary over them, and what was looked for in any of
    them. alone: no run looks at the summary itself.
    """
    signs, checked, _ = examine(
        {"metrics": [], "data": None, "settings": {}, "summary": summary if alone else {}}
    )
    of_summary = [
        {"run": "", **sign} for sign in [*map(asdict, signs), *summary.get("warnings", [])]
    ]
    flat = of_summary + [{"run": run["name"], **sign} for run in runs for sign in run["warnings"]]
    more = summary.get("looked_for", [])
    titles = [*(symptom.title for symptom in SYMPTOMS.values()), *more]
    seen, unseen = (
        {*checked, *more, *(title for run in runs for title in run["checked"])},
        {title for run in runs for title in run["unchecked"]},
    )
    return {
        "warnings": flat,
        "checked": [title for title in titles if title in seen],
        "unchecked": [title for title in titles if title in unseen - seen],
    }


def _environment(root: Path) -> dict[str, Any]:
    path = RunFolder(root).environment
    environment = _object(
        path,
        {"settings": dict, "recipe": str},
        {"origins": dict, "versions": dict, "plan": dict, "held_out": dict},
    )
    if environment.get("schema") != SCHEMA:
        raise RunError(
            f"{path}: schema: got {environment.get('schema')!r}, expected {SCHEMA}",
            remedy="use the Winnow that made this run",
        )
    return environment


def _data(root: Path, *, needed: bool) -> dict[str, Any] | None:
    path = root / "data.json"
    if not path.exists() and not needed:
        return None
    if not path.exists():
        raise RunError(f"{path}: missing, though the run has metrics", remedy=DAMAGED)
    data = {"eval": {}} | _object(path, {"train": dict}, {"eval": dict, "windows": list})
    for row in data.get("windows", []):
        if not isinstance(row, dict) or not all(
            isinstance(row.get(name), int) for name in ("read", "used")
        ):
            raise RunError(
                f"{path}: windows: got {row!r}, expected what became of a window's rows",
                remedy=DAMAGED,
            )
    for side in (data["train"], *data["eval"].values()):
        if not isinstance(side, dict):
            raise RunError(
                f"{path}: eval: got {type(side).__name__}, expected an account of each set",
                remedy=DAMAGED,
            )
        _shape(path, side, {}, {"dropped": dict, "sources": list, "tokens": dict, "findings": list})
    return data


def _summary(root: Path) -> dict[str, Any]:
    """What is known of several runs together. Its maker may hand over titled figures, cards, a
    verdict and warnings beside its numbers.
    """
    path = root / "summary.json"
    parts: dict[str, type] = {
        "figures": dict,
        "verdict": str,
        "looked_for": list,
        **dict.fromkeys(TEXTS, list),
    }
    summary = _object(path, {}, parts) if path.exists() else {}
    summary = {name: value for name, value in summary.items() if value is not None}
    for name in OF_SUMMARY:
        if not isinstance(summary.get(name, 0), int | float):
            raise RunError(
                f"{path}: {name}: got {type(summary[name]).__name__}, expected a number",
                remedy=DAMAGED,
            )
    for name, texts in TEXTS.items():
        for row in summary.get(name, []):
            if not (
                isinstance(row, dict)
                and all(isinstance(row.get(text), str) for text in texts)
                and _has_numbers(name, row)
            ):
                raise RunError(
                    f"{path}: {name}: got {row!r}, expected {', '.join(texts)} and its numbers",
                    remedy=DAMAGED,
                )
    for name, one in summary.get("figures", {}).items():
        if not (isinstance(one, dict) and _is_figure(one)):
            raise RunError(
                f"{path}: figures, {name}: got {one!r}, expected a figure with its interval",
                remedy=DAMAGED,
            )
    return summary


def _has_numbers(name: str, row: Mapping[str, Any]) -> bool:
    """Whether a row that was handed over has the numbers of its kind: a titled figure a value, and
    it and a card an interval or none.
    """
    if name == "titled":
        return isinstance(row.get("value"), int | float) and _is_interval(
            [row.get("low"), row.get("high")]
        )
    if name == "cards":
        return (
            isinstance(row.get("at"), int | float | None)
            and _is_interval(row.get("interval") or [None, None])
            and row.keys() == CARD
        )
    return row.keys() == SIGN


def _is_interval(ends: Any) -> bool:
    """Whether both ends are there, or none."""
    return (
        isinstance(ends, list)
        and len(ends) == 2
        and (ends == [None, None] or all(isinstance(end, int | float) for end in ends))
    )


def _is_figure(one: Mapping[str, Any]) -> bool:
    """Whether it has a value, both ends of an interval or none, and what it was taken over."""
    ends = [one.get("low"), one.get("high")]
    told = isinstance(one.get("value"), int | float) and isinstance(one.get("why"), str)
    counted = all(isinstance(one.get(name), int) for name in ("count", "prompts"))
    return told and counted and _is_interval(ends)


def _object(path: Path, needed: Mapping[str, type], optional: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object whose parts are of the kinds the page relies on; optional parts that are null
    are left out.
    """
    try:
        value = _clean(read_json(path))
    except RunError as error:
        raise RunError(error.what, remedy=DAMAGED) from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: got {type(value).__name__}, expected an object", remedy=DAMAGED)
    _shape(path, value, needed, optional)
    return {name: part for name, part in value.items() if part is not None or name not in optional}


def _shape(
    path: Path, value: Mapping[str, Any], needed: Mapping[str, type], optional: Mapping[str, type]
) -> None:
    for name, kind in {**needed, **optional}.items():
        if not isinstance(value.get(name), kind) and (
            name in needed or value.get(name) is not None
        ):
            raise RunError(
                f"{path}: {name}: got {type(value.get(name)).__name__}, expected {kind.__name__}",
                remedy=DAMAGED,
            )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, row) of a JSON-lines file; a torn last line, left by a killed writer, is passed
    over.
    """
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}", remedy=DAMAGED) from error
    for at, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise RunError(
                f"{path}:{at}: cannot be read as JSON: {error}", remedy=DAMAGED
            ) from error
        if row is not None and not isinstance(row, dict):
            raise RunError(
                f"{path}:{at}: got {type(row).__name__}, expected an object", remedy=DAMAGED
            )
        if row is not None:
            yield f"{path}:{at}", _clean(row)


def _metrics(path: Path) -> Iterator[dict[str, Any]]:
    for where, row in _rows(path):
        if not isinstance(row.get("step"), int):
            raise RunError(
                f"{where}: step: got {row.get('step')!r}, expected an integer", remedy=DAMAGED
            )
        for name, value in row.items():
            if value is not None and not isinstance(value, int | float):
                raise RunError(
                    f"{where}: {name}: got {type(value).__name__}, expected a number",
                    remedy=DAMAGED,
                )
        yield row


def _samples(path: Path) -> list[dict[str, Any]]:
    """Prompts with what the model said at step 0 and at the last step sampled."""
    rows = list(_rows(path))
    for where, row in rows:
        for name, kind in (("step", int), ("prompt", str), ("completion", str)):
            if not isinstance(row.get(name), kind):
                raise RunError(
                    f"{where}: {name}: got {type(row.get(name)).__name__}, expected"
                    f" {kind.__name__}",
                    remedy=DAMAGED,
                )
    last = max((row["step"] for _, row in rows), default=0)
    pairs: dict[tuple[int, str], dict[str, Any]] = {}
    for _, row in rows:
        if row["step"] in (0, last):
            of = {name: row[name] for name in ("of", "held_out") if isinstance(row.get(name), int)}
            pair = pairs.setdefault(
                (row.get("index", 0), row["prompt"]),
                {"prompt": row["prompt"], "before": None, "after": None, "step": last, **of},
            )
            pair["before" if row["step"] == 0 else "after"] = row["completion"]
    return list(pairs.values())


def _clean(value: Any) -> Any:
    """What every JSON reader and UTF-8 can hold: NaN and infinities become null, half characters a
    replacement sign.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8") if not value.isascii() else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_clean(key): _clean(part) for key, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list) else value


def _groups(runs: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Runs of one recipe share their plots; the recipe that ran last comes first."""
    recipes = list(dict.fromkeys(run["recipe"] for run in runs))
    return [
        (recipe, [run for run in runs if run["recipe"] == recipe]) for recipe in reversed(recipes)
    ]
