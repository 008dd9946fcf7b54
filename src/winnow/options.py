"""Settings classes as commands: one option per setting, panel by panel, with the sentence and the
default from its field.
"""

from __future__ import annotations

import shlex
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import rich_click as click
from pydantic.fields import FieldInfo

from winnow.commands.table import Command
from winnow.config.evaluation import DemoSettings
from winnow.config.options import Settings
from winnow.config.resolve import resolve, unknown
from winnow.errors import SettingsError
from winnow.system.redact import blanked

PANELS = {
    "needed": "Needed",
    "model": "Model",
    "data": "Data",
    "objective": "Objective",
    "judge": "Judge",
    "endpoint": "Endpoint",
    "amount": "Amount",
    "optimizer": "Optimizer",
    "page": "Page",
    "run": "Run",
    "file": "Settings file",
}


class SettingsCommand(click.RichCommand):
    """A command whose unknown options are answered by name: TRL's are translated, others get the
    nearest of ours.
    """

    settings: type[Settings] = Settings

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name.lstrip("-").replace("-", "_")
            raise SettingsError(f"command line: {unknown(self.settings, name)}") from None


def command(name: str, entry: Command) -> SettingsCommand:
    """A subcommand with one option per setting, panel by panel; only what was typed is passed on,
    so origins stay true.
    """
    kind, positional = entry.settings, entry.positional

    def call(config: Path | None, **typed: Any) -> None:
        given = {key: value for key, value in typed.items() if value is not None and value != ()}
        given = {key: None if value == "none" else value for key, value in given.items()}
        line = shlex.join(["winnow", *map(blanked, sys.argv[1:])])
        if entry.run(resolve(kind, given, file=config), line) is False:
            raise SystemExit(2)

    fields = [
        (field_name, field)
        for field_name, field in kind.model_fields.items()
        if field_name != positional
    ]
    fields.sort(key=lambda named: list(PANELS).index(_group(named[1])))
    params: list[click.Parameter] = [_option(field_name, field) for field_name, field in fields]
    file = "a YAML file of these settings, e.g. a run's config.yaml; options given here win"
    params.append(
        click.RichOption(
            ["--config"], type=click.Path(path_type=Path), help=file, panel=PANELS["file"]
        )
    )
    if positional:
        many = get_origin(kind.model_fields[positional].annotation) is tuple
        metavar = "RUN" if positional == "model" else f"{positional.upper()}{'...' if many else ''}"
        params.append(click.RichArgument([positional], metavar=metavar, nargs=-1 if many else 1))
    made = SettingsCommand(
        name=name,
        callback=call,
        params=params,
        help=entry.help,
        epilog=f"Example: {entry.example}",
        no_args_is_help=kind is not DemoSettings,
    )
    made.settings = kind
    return made


def _group(field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    return "needed" if field.is_required() else str(extra["group"])


def _option(field_name: str, field: FieldInfo) -> click.RichOption:
    name = field.alias or field_name
    flag = "--" + name.replace("_", "-")
    shown: dict[str, Any] = {"help": _help(field), "panel": PANELS[_group(field)], "default": None}
    choices = _choices(field.annotation)
    if name == "trust_remote_code":  # no file can ask for it, so there is nothing to take back
        return click.RichOption([flag, name], is_flag=True, flag_value=True, type=bool, **shown)
    if field.annotation in (bool, bool | None):
        return click.RichOption([f"{flag}/--no-{flag[2:]}", name], **shown)
    if get_origin(field.annotation) is tuple:
        return click.RichOption(
            [flag, name],
            multiple=True,
            type=click.Choice(choices) if choices else str,
            metavar=None if choices else "TEXT",
            **shown,
        )
    if name == "lora":
        shown |= {"is_flag": False, "flag_value": "auto"}
    return click.RichOption(
        [flag, name],
        type=click.Choice(choices) if choices else str,
        metavar=None if choices else _metavar(field.annotation),
        **shown,
    )


def _help(field: FieldInfo) -> str:
    default = field.default
    shown = (
        ""
        if field.is_required() or default in (None, ())
        else f"  [default: {str(default).lower() if isinstance(default, bool) else default}]"
    )
    return f"{field.description}{shown}"


def _choices(annotation: Any) -> list[str]:
    """The values of a Literal, also inside `| None` and tuples; none where other values may stand
    as well (a number, or `auto`).
    """
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType) and any(
        get_origin(part) is Annotated for part in get_args(annotation)
    ):
        return []
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _metavar(annotation: Any) -> str:
    kinds = (
        [a for a in get_args(annotation) if a is not types.NoneType]
        if get_origin(annotation) in (Union, types.UnionType)
        else [annotation]
    )
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kinds[0], "TEXT")
