"""Settings from where they are given: default, preset, YAML file, command line or call; later wins,
and each value's origin is kept.

Unknown names are errors that name the nearest one; TRL's names are told which of ours they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError

from winnow.config.options import Settings
from winnow.config.presets import PRESETS
from winnow.config.training import TrainSettings
from winnow.config.trl_names import advice
from winnow.errors import SettingsError
from winnow.system.redact import blanked

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """Settings and, for each name, where its value came from."""

    settings: S
    origins: Mapping[str, str]

    def fill(self, origin: str, **values: Any) -> Resolved[S]:
        """The same with `values` put in, their origin noted: for defaults known only later (an
        objective's beta).
        """
        names = self.settings.model_dump(by_alias=True)
        settings = validated(type(self.settings), {**names, **values})
        return Resolved(settings, {**self.origins, **dict.fromkeys(values, origin)})

    def yaml(self) -> str:
        """The settings as a YAML file that can be given to --config again, each value's origin
        behind it.
        """
        lines = []
        for name, value in self.settings.model_dump(by_alias=True, mode="json").items():
            text = (
                yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
                .removesuffix("...\n")
                .strip()
            )
            lines.append(f"{name}: {text}  # {self.origins[name]}")
        return "\n".join(lines) + "\n"


def resolve(
    kind: type[S],
    overrides: Mapping[str, Any],
    *,
    file: Path | None = None,
    origin: str = "command line",
) -> Resolved[S]:
    """Merge default < preset < file < overrides into settings. Raises SettingsError."""
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if file is not None:
        layers.append((str(file), _read(file)))
    layers.append((origin, overrides))
    for source, values in layers:
        for name, value in values.items():
            _known(kind, name, value, source)
    merged = {name: value for _, values in layers for name, value in values.items()}
    if merged.get("preset") is not None:
        values = _preset(kind, str(merged["preset"]), merged)
        if "objective" in merged and not _same_objective(
            str(merged["objective"]), str(values.get("objective", "dpo"))
        ):
            # a beta belongs to its objective
            values = {name: value for name, value in values.items() if name != "beta"}
        layers.insert(0, (f"preset {merged['preset']}", values))
    final: dict[str, Any] = {}
    origins = {field.alias or name: "default" for name, field in kind.model_fields.items()}
    for source, values in layers:
        final.update(values)
        origins.update(dict.fromkeys(values, source))
        for one, other in (
            ("epochs", "steps"),
            ("steps", "epochs"),
        ):  # a later layer's amount replaces an earlier one's
            if values.get(one) is not None and other not in values and final.get(other) is not None:
                del final[other]
                origins[other] = "default"
    settings = validated(kind, final)
    _without_secrets({"config": str(file), **settings.model_dump(by_alias=True, mode="json")})
    if (
        isinstance(settings, TrainSettings)
        and settings.steps
        and settings.warmup > settings.steps
        and not origins["warmup"].startswith("preset")
    ):
        raise SettingsError(f"warmup {settings.warmup:g} is more than the {settings.steps} steps")
    return Resolved(settings, origins)


def handed_on(kind: type[S], resolved: Resolved[Any], own: Mapping[str, Any]) -> Resolved[S]:
    """Settings of a command that is a part of another: what was given to that one and `kind` has as
    well, and what is the part's own.
    """
    names = {field.alias or name for name, field in kind.model_fields.items()}
    given = resolved.settings.model_dump(by_alias=True)
    told = {
        name: given[name]
        for name in names
        if resolved.origins.get(name, "default") != "default"
        and name not in own
        and name != "preset"
    }
    return resolve(kind, {**told, **own}, origin="argument")


def validated(kind: type[S], values: Mapping[str, Any]) -> S:
    """`kind(**values)` with pydantic's complaints told in our form."""
    try:
        return kind(**values)
    except ValidationError as error:
        lines: dict[str, str] = {}
        for item in error.errors():
            name = str(item["loc"][0]) + ": " if item["loc"] else ""
            message = (
                "is needed"
                if item["type"] == "missing"
                else item["msg"].removeprefix("Value error, ")
            )
            got = "" if item["type"] in ("missing", "value_error") else f" (got {item['input']!r})"
            lines[name or message] = (
                f"{lines[name].removesuffix(got)}, or: {message}{got}"
                if name in lines
                else f"{name}{message}{got}"
            )
        raise SettingsError("settings cannot be used:\n  " + "\n  ".join(lines.values())) from None


def unknown(kind: type[Settings], name: str) -> str:
    """What to say about a name that is no setting: TRL's names are translated, others get the
    nearest of ours.
    """
    theirs = advice(name)
    if theirs is not None:
        return theirs
    names = [field.alias or ours for ours, field in kind.model_fields.items()]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"unknown setting {name!r}" + (
        f": did you mean {near[0]}?" if near else f"; known: {', '.join(names)}"
    )


def read_text(file: Path, what: str) -> str:
    """The text of a file a setting names. Raises SettingsError."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{file}: {what} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: {what} is not UTF-8: byte {error.start}") from error


def _same_objective(asked: str, preset: str) -> bool:
    """Whether an objective is the preset's own, without a beta behind its name."""
    return "beta=" not in asked and [part.partition(":")[0] for part in asked.split(",")] == [
        part.partition(":")[0] for part in preset.split(",")
    ]


def _known(kind: type[Settings], name: str, value: Any, source: str) -> None:
    names = {field.alias or ours for ours, field in kind.model_fields.items()}
    if name not in names:
        raise SettingsError(f"{source}: {unknown(kind, name)}")
    if (
        name == "trust_remote_code"
        and value is not False
        and source not in ("command line", "argument")
    ):
        raise SettingsError(
            f"{source}: trust_remote_code runs foreign code, so a file cannot ask for it",
            remedy="give --trust-remote-code on the command line",
        )


def _without_secrets(values: Mapping[str, Any]) -> None:
    """Settings are kept word for word, in the run folder and in what trackers record of the
    command, so none may hold a secret; a prompt is data.
    """
    for name, value in values.items():
        for text in map(str, value if isinstance(value, list) else [value]):
            if name != "prompt" and blanked(text) != text:
                raise SettingsError(
                    f"{name}: a secret stands in it: {blanked(text)}",
                    remedy=(
                        "a run keeps its settings: give secrets by the environment, as $HF_TOKEN"
                    ),
                )


def _read(file: Path) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(read_text(file, "the settings file")) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"{file}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{file}: expected `name: value` lines, got {type(values).__name__}")
    for name in values:
        if not isinstance(name, str):
            raise SettingsError(
                f"{file}: the name {name!r} is no text",
                remedy="YAML reads on, yes and bare numbers as values: put the name in quotes",
            )
    return values


def _preset(kind: type[Settings], name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    if name not in PRESETS:
        raise SettingsError(f"preset: got {name!r}, expected one of {', '.join(PRESETS)}")
    values = dict(PRESETS[name])
    if isinstance(values.get("lora"), dict):
        overlay = values.pop("lora")
        if given.get("lora"):
            values.update(overlay)
    return values
