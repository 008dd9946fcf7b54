"""Run folders and files of votes -> one offline HTML page, and the same numbers as `report.json`.
Reads files only.

`build` gathers, `write` leaves both files in a run folder, `page` sets several runs side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from winnow.errors import RunError
from winnow.preferences import summary as collection
from winnow.reports import online_report, run_files, votes_report
from winnow.reports.page import Page
from winnow.reports.page import render as render_page
from winnow.reports.plots import draw
from winnow.reports.run_figures import figures, of_summary
from winnow.reports.run_files import SCHEMA
from winnow.reports.run_summary import cards, differences, subline, table, verdict
from winnow.reports.training_warnings import SYMPTOMS, examine
from winnow.system.console import safe, say
from winnow.system.files import tidy, write_atomic, write_json
from winnow.system.format import held_out, number
from winnow.system.launch import leads
from winnow.system.run_folder import RunFolder


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
    summary = run_files.summary(roots[0]) if len(roots) == 1 else {}
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


def render(report: Mapping[str, Any]) -> str:
    """The page of a report. Equal reports give equal bytes."""
    return render_page(page_of(report))


def page_of(report: Mapping[str, Any]) -> Page:
    """The page: its head is the runs', or the votes' where there are no runs."""
    runs, summary, rounds = report["runs"], report["summary"], report["rounds"]
    several = len(runs) > 1
    groups = [_group(recipe, of) for recipe, of in _groups(runs)]
    bodies, values = votes_report.bodies(report)
    if rounds:
        values |= {
            "rounds_table": online_report.table(rounds),
            "rounds_drawings": online_report.draw(rounds),
        }
    notes = summary.get("notes") or []
    head = Page(
        title=f"{len(runs)} runs" if several and not summary else report["title"],
        kind="training report" if runs else "collection of votes",
        verdict="",
        chips=_chips(runs[0]) if len(runs) == 1 else (),
        notes=[notes] if isinstance(notes, str) else notes,
        bodies=[*["rounds.html.jinja"] * bool(rounds), *["runs.html.jinja"] * bool(runs), *bodies],
        values={"groups": groups, "several": several, **values},
    )
    if not runs:
        collections = report["collections"]
        return replace(
            head,
            verdict=votes_report.verdict(collections),
            subline=votes_report.subline(collections),
        )
    return replace(
        head,
        verdict=verdict(report),
        subline=subline(report),
        cards=cards(report),
        figures=of_summary(summary),
        warnings=report["warnings"],
        looked_for=_looked_for(report),
        footer="The same numbers for programs: report.json.",
    )


def _chips(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run was trained on, and how far it is."""
    objective = str(run["settings"].get("objective") or run["recipe"])
    status = run["status"]
    state = status["state"]
    if status["steps"]:
        state += f", {number(status['step'])} of {number(status['steps'])} steps"
    names = " + ".join(part.split(":")[0] for part in objective.split(","))
    return [(names, ""), (state, "quiet")]


def _looked_for(report: Mapping[str, Any]) -> str:
    if not report["checked"]:
        return "Nothing could be looked for yet: there are no numbers."
    text = f"Looked for {', '.join(report['checked'])}."
    if report["unchecked"]:
        text += f" No numbers to look for {', '.join(report['unchecked'])}."
    return text


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
    return sorted(
        inner, key=lambda path: (str(run_files.environment(path).get("started", "")), path.name)
    )


def _names(roots: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    for depth in range(1, max(len(root.parts) for root in roots) + 1):
        names = ["/".join(root.parts[-depth:]) for root in roots]
        if len(set(names)) == len(names):
            break
    return names


def _run(root: Path, name: str) -> dict[str, Any]:
    """Everything of one run: as recorded, then what follows from it."""
    folder, environment = RunFolder(root), run_files.environment(root)
    metrics = list(run_files.metrics(folder.metrics))
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
        "summary": run_files.summary(root),
        "metrics": metrics,
        "data": run_files.data(root, needed=bool(metrics)),
        "samples": run_files.samples(folder.samples),
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
        "warnings": [finding.to_json() for finding in signs],
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
        {"run": "", **sign}
        for sign in [*(finding.to_json() for finding in signs), *summary.get("warnings", [])]
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


def _groups(runs: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Runs of one recipe share their plots; the recipe that ran last comes first."""
    recipes = list(dict.fromkeys(run["recipe"] for run in runs))
    return [
        (recipe, [run for run in runs if run["recipe"] == recipe]) for recipe in reversed(recipes)
    ]
