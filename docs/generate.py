"""Writes the pages of docs/ that come from data: `python docs/generate.py` (from-trl.md,
presets.md, benchmarks.md, objectives.md, cli.md).

A test fails when a page and its source differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from winnow.commands import objectives as catalogue
from winnow.commands.table import COMMANDS, GROUPS, Command
from winnow.config.presets import PRESETS
from winnow.config.trl_fields import FIELDS
from winnow.config.trl_names import MORE, OTHERS
from winnow.config.trl_notes import Row
from winnow.objectives.parsing import SETTINGS, shown
from winnow.objectives.table import TABLE, ObjectiveEntry

HERE = Path(__file__).parent
HEADS = HERE / "_generate"  # what stands before the tables
NOTE = "<!-- Written by docs/generate.py from {source}: change it there. -->\n\n"


def from_trl() -> str:
    """docs/from-trl.md: the introduction, then one table per subject."""
    parts = [
        NOTE.format(source="src/winnow/config/trl_names.py and docs/_generate/from-trl.md"),
        (HEADS / "from-trl.md").read_text(encoding="utf-8"),
    ]
    for title, rows in FIELDS.items():
        parts.append(f"\n### {title}\n\n{_table(rows)}")
    parts.append(f"\n## Trainer arguments, TRL's command line, earlier versions\n\n{_table(MORE)}")
    parts.append(f"\n## Names from other tools\n\nUnderstood in the same way.\n\n{_table(OTHERS)}")
    return "".join(parts)


def presets() -> str:
    """docs/presets.md: the introduction, with the table of values in its place."""
    text = (HEADS / "presets.md").read_text(encoding="utf-8")
    names = sorted(
        {
            name
            for values in PRESETS.values()
            for name in values
            if name != "lora" or isinstance(values[name], str)
        }
    )
    head = f"| setting | {' | '.join(PRESETS)} |\n|---|{'---|' * len(PRESETS)}\n"
    lines = [
        f"| `{name}` | {' | '.join(_value(values, name) for values in PRESETS.values())} |\n"
        for name in names
    ]
    return NOTE.format(source="config.presets and docs/_generate/presets.md") + text.replace(
        "TABLE\n", head + "".join(lines)
    )


def benchmarks() -> str:
    """docs/benchmarks.md: the introduction, with the figures of docs/benchmarks.json in their
    places.
    """
    found = json.loads((HERE / "benchmarks.json").read_text(encoding="utf-8"))
    head = (
        "| workload | comparisons/s | TRL best (batch) | TRL default | times best | times default |"
        " share of GEMM rate | distinct tokens/s | reference pass | memory, MiB | of TRL best's |"
        " loss differs | gradients differ |\n" + "|---" * 13 + "|\n"
    )
    lines = [_figures(f) for f in found["figures"]]
    text = (
        (HEADS / "benchmarks.md").read_text(encoding="utf-8").replace("MACHINE", found["machine"])
    )
    return NOTE.format(
        source="docs/benchmarks.json and docs/_generate/benchmarks.md"
    ) + text.replace("TABLE\n", head + "".join(lines))


# docs/curves.py draws them
PLOTS = dict(zip(catalogue.FAMILIES, ("margin", "sides", "thumbs", "rankings", "free")))


def objectives() -> str:
    """docs/objectives.md: the introduction, a table of all, and family by family a plot and a
    paragraph on each.
    """
    text = (HEADS / "objectives.md").read_text(encoding="utf-8")
    rows = "".join(_row(name, entry) for name, entry in TABLE.items())
    table = (
        "| name | equation | reference | unit | defaults | paper |\n|---|---|---|---|---|---|\n"
        + rows
    )
    source = "src/winnow/objectives/ and docs/_generate/objectives.md"
    return NOTE.format(source=source) + text.replace("TABLE\n", table).replace(
        "PARAGRAPHS\n", "".join(map(_family, catalogue.FAMILIES))
    )


def _row(name: str, entry: ObjectiveEntry) -> str:
    cells = (
        f"[`{name}`](#{name})",
        f"`{_cell(entry.equation)}`",
        "yes" if entry.reference else "no",
        catalogue.unit(entry),
        catalogue.defaults(entry),
    )
    return f"| {' | '.join(cells)} | {entry.paper} |\n"


def _family(title: str) -> str:
    members = [(name, entry) for name, entry in TABLE.items() if catalogue.family(entry) == title]
    picture = f"objectives-{PLOTS[title]}.svg"
    head = f"## {title[0].upper()}{title[1:]}\n\n![Losses and slopes of the family]({picture})\n\n"
    return head + "".join(_paragraph(name, entry) for name, entry in members)


def _paragraph(name: str, entry: ObjectiveEntry) -> str:
    first = next(other for other, one in TABLE.items() if one.loss is entry.loss)
    said = f"Function: `losses.{entry.loss.__name__}`" + (
        f", as [{first}](#{first})."
        if first != name
        else ". " + " ".join(catalogue.about(entry).split())
    )
    own = {**entry.settings, **entry.tuning}
    settings = "; ".join(
        f"`{key}={shown(value)}`: {SETTINGS[key].help}"
        for key, value in own.items()
        if key != "beta"
    )
    return (
        f"### {name}\n\n`{entry.equation}` ({entry.paper}). {entry.when}\n\n{said}"
        + (f" Settings: {settings}." if settings else "")
        + "\n\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _figures(f: dict[str, Any]) -> str:
    """One workload's row."""
    speed, best = f["pairs_per_second"], f["best"]
    cells = [
        f["workload"],
        f"{speed['winnow']:.2f}",
        f"{speed[best]:.2f} ({best.removeprefix('trl ')})",
        f"{speed['trl default']:.2f}",
        f"**{f['times_best']:.1f}**",
        f"**{f['times_default']:.1f}**",
        f"{f['share']:.0%}",
        f"{f['tokens_per_second']:,.0f}",
        f"{f['reference_times']:.1f}x",
        f"{f['peak']['winnow'] / 2**20:,.0f}",
        f"{f['peak_ratio']:.2f}",
        f"{f['loss_difference']:.0e}",
        f"{f['gradient_difference']:.0e}",
    ]
    return f"| {' | '.join(cells)} |\n"


def cli() -> str:
    """docs/cli.md: every command with settings, by group, and its options."""
    parts = [
        NOTE.format(source="src/winnow/commands/table.py and src/winnow/config/"),
        "# Commands and their options\n\n",
        "`winnow COMMAND --help` prints the same. Every command also is a function of `winnow.api`"
        " with the same names, and reads `--config FILE.yaml`.\n",
    ]
    for group in GROUPS:
        parts.append(f"\n## {group}\n")
        parts += [_command(name, of) for name, of in COMMANDS.items() if of.group == group]
    return "".join(parts)


def _command(name: str, command: Command) -> str:
    rows = [
        f"| `{_option(field.alias or key, key == command.positional)}` |"
        f" {'needed' if field.is_required() else _default(field.default)} |"
        f" {str(field.description).replace('|', chr(92) + '|')} |\n"
        for key, field in command.settings.model_fields.items()
    ]
    head = "| option | default | |\n|---|---|---|\n"
    words = f"{command.help}\n\n```bash\n{command.example}\n```\n\n"
    return f"\n### winnow {name}\n\n{words}{head}{''.join(rows)}"


def _option(name: str, positional: bool) -> str:
    return name.upper() if positional else f"--{name.replace('_', '-')}"


def _default(value: Any) -> str:
    if value in (None, ()):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(rows: dict[str, Row]) -> str:
    lines = [
        f"| `{name}` | {f'`{ours}`' if ours else 'none'} | {note} |\n"
        for name, (ours, note) in rows.items()
    ]
    return "| theirs | ours | what to know |\n|---|---|---|\n" + "".join(lines)


def _value(values: dict[str, Any], name: str) -> str:
    """A preset's value for the table; an adapter's own value behind it."""
    overlay = values.get("lora")
    own = "" if isinstance(overlay, dict) and name == "lora" else _plain(values.get(name))
    return own + (
        f" (with `lora`: {_plain(overlay[name])})"
        if isinstance(overlay, dict) and name in overlay
        else ""
    )


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


PAGES = {
    "from-trl.md": from_trl,
    "presets.md": presets,
    "benchmarks.md": benchmarks,
    "objectives.md": objectives,
    "cli.md": cli,
}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (HERE / page).write_text(text(), encoding="utf-8")
