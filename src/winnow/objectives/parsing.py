"""What an objective may be told: every setting with its limits, what composes with what, and
`name:setting=value` read and written.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from winnow.errors import SettingsError
from winnow.objectives.table import ENTRIES, TABLE, ObjectiveEntry, Value


@dataclass(frozen=True, slots=True)
class Setting:
    """What a setting does, and which values it may have."""

    help: str
    fits: Callable[[Any], bool]
    allowed: str


ABOVE = Setting("", lambda x: 0 < x <= 1e6, "above 0, at most 1e6")
DIVERGENCES = ("reverse_kl", "forward_kl", "js")
SETTINGS: dict[str, Setting] = {
    "beta": Setting(
        "higher keeps the policy closer to the reference (1/nats)", ABOVE.fits, ABOVE.allowed
    ),
    "label_smoothing": Setting(
        "the share of labels believed to be flipped", lambda x: 0 <= x < 0.5, "from 0, below 0.5"
    ),
    "score": Setting(
        "margins of summed or of per-token mean scores",
        lambda x: x in ("sum", "mean"),
        "sum or mean",
    ),
    "gamma": Setting(
        "the margin a winner must have, in units of beta times it",
        lambda x: 0 <= x <= 1e6,
        "from 0 on",
    ),
    "alpha": Setting(
        "the objective's own coefficient, in its equation", lambda x: -1e6 <= x <= 1e6, "a number"
    ),
    "temperature": Setting(
        "of the switch between its two losses", lambda x: 0 < x < 1, "above 0, below 1"
    ),
    "penalty": Setting("of a winner below its reference", lambda x: 0 <= x <= 1e6, "from 0 on"),
    "weight": Setting("of the odds ratio's term, the paper's lambda", ABOVE.fits, ABOVE.allowed),
    "bound": Setting(
        "beta times the margin from which a comparison has no gradient", ABOVE.fits, ABOVE.allowed
    ),
    "momentum": Setting("of the running mean margin", lambda x: 0 <= x < 1, "from 0, below 1"),
    "desirable": Setting("weight of good answers", ABOVE.fits, ABOVE.allowed),
    "undesirable": Setting("weight of bad answers", ABOVE.fits, ABOVE.allowed),
    "offset": Setting(
        "beta times the margin a winner must have, per unit of the data's margin column",
        lambda x: 0 <= x <= 1e6,
        "from 0 on",
    ),
    "tail_weight": Setting(
        "LD-DPO: weight of the tokens beyond the shorter side's length",
        lambda x: 0 <= x <= 1,
        "from 0 to 1",
    ),
    "wpo": Setting(
        "weigh comparisons by how likely the policy itself would write them",
        lambda x: isinstance(x, bool),
        "true or false",
    ),
    "divergence": Setting(
        "f-DPO: of the policy from the reference; a number is the alpha-divergence",
        lambda x: 0 < x < 1 if isinstance(x, float) else x in DIVERGENCES,
        f"{', '.join(DIVERGENCES)}, or an alpha between 0 and 1",
    ),
}
# What composes with the objectives that can take it, and the value that changes nothing.
MODIFIERS: dict[str, Value] = {
    "label_smoothing": 0.0,
    "offset": 0.0,
    "tail_weight": 1.0,
    "wpo": False,
    "divergence": "reverse_kl",
}


def modifiers(entry: ObjectiveEntry) -> dict[str, Value]:
    """The modifiers an objective can take, with its defaults, and `score` where it has a choice."""
    on_margin = entry.unit == "comparison" and entry.takes[0] == "margin" and not entry.batch
    pairs = entry.unit == "comparison" and not entry.certain_labels
    plain_sums = entry.scores[0] == "sum" or len(entry.scores) > 1
    fits = {
        "label_smoothing": (
            entry.unit != "group"
            and entry.unit != "token"
            and "label_smoothing" not in entry.settings
        ),
        "offset": on_margin and "gap" not in entry.takes,
        "tail_weight": pairs and plain_sums,
        "wpo": pairs,
        "divergence": on_margin and entry.reference and plain_sums and "kl_win" not in entry.takes,
    }
    found = {
        name: entry.defaults.get(name, neutral) for name, neutral in MODIFIERS.items() if fits[name]
    }
    return found | ({"score": entry.scores[0]} if len(entry.scores) > 1 else {})


def settings_of(entry: ObjectiveEntry) -> dict[str, Value]:
    """Every setting of an objective with its default."""
    return {**entry.settings, **entry.tuning, **modifiers(entry)}


@dataclass(frozen=True, slots=True)
class Choice:
    """A member of an objective: its name, its weight in the mixture, and all its settings."""

    name: str
    weight: float
    settings: Mapping[str, Value]

    def spelled(self, *, without: Collection[str]) -> str:
        """As it could be given again: the name, and its settings but for those in `without` and the
        neutral modifiers.
        """
        usual = modifiers(ENTRIES[self.name])  # what composes and does nothing need not be said
        kept = {
            key: value
            for key, value in self.settings.items()
            if key not in without and (key not in MODIFIERS or usual.get(key) != value)
        }
        kept |= {
            key: value
            for key, value in self.settings.items()
            if key in ENTRIES[self.name].defaults and key not in without
        }
        return ":".join(
            [
                self.name,
                *([shown(self.weight)] if self.weight != 1 else []),
                *(f"{key}={shown(value)}" for key, value in kept.items()),
            ]
        )


def choices(text: str, given: Mapping[str, Value]) -> list[Choice]:
    """`dpo`, `simpo:gamma=1.4`, or a mixture with weights: `dpo:0.8,bco:0.2:beta=0.1,sft:1`. Raises
    SettingsError.

    given: settings for every member that takes them, but for those that name their own.
    """
    found = [_choice(part.strip(), given) for part in text.split(",")]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(
                f"objective: {name} stands twice in {text!r}", remedy="add their weights"
            )
    for key, value in given.items():
        if not any(key in one.settings for one in found):
            takers = [name for name, entry in TABLE.items() if key in settings_of(entry)]
            raise SettingsError(
                f"{key}: got {shown(value)}, {' and '.join(names)}"
                f" {'has' if len(names) == 1 else 'have'} no such setting",
                remedy=f"leave {key} away; {key} belongs to {', '.join(takers)}",
            )
    return found


def _choice(part: str, given: Mapping[str, Value]) -> Choice:
    name, *rest = part.split(":")
    if name not in TABLE:
        near = difflib.get_close_matches(name, TABLE, n=1, cutoff=0.5)
        raise SettingsError(
            f"objective: got {name!r}" + (f": did you mean {near[0]}?" if near else ""),
            remedy=f"one of {', '.join(TABLE)}",
        )
    entry, weight = TABLE[name], 1.0
    own: dict[str, Value] = {}
    keys = [item.partition("=")[0] if "=" in item else "a weight" for item in rest]
    for twice in {key for key in keys if keys.count(key) > 1}:
        raise SettingsError(f"objective: {part!r} gives {twice} twice", remedy="give it once")
    for item in rest:
        key, equals, value = item.partition("=")
        if not equals:
            weight = _weight(item, part)
        elif key not in settings_of(entry):
            raise SettingsError(
                f"objective: {name} has no setting {key!r}",
                remedy=f"it has {', '.join(settings_of(entry)) or 'none'}",
            )
        else:
            own[key] = _value(value)
    settings: dict[str, Value] = {
        **settings_of(entry),
        **{key: value for key, value in given.items() if key in settings_of(entry)},
        **own,
    }
    for key, chosen in settings.items():
        try:
            fits = SETTINGS[key].fits(chosen)
        except TypeError:  # text where a number belongs
            fits = False
        if not fits or isinstance(chosen, bool) != (key == "wpo"):
            raise SettingsError(
                f"{name}: {key}: got {shown(chosen)}, expected {SETTINGS[key].allowed}"
            )
        if name == "exo" and key == "label_smoothing" and chosen == 0:
            raise SettingsError(
                "exo: label_smoothing: got 0, and the logarithm of 0 is in its equation",
                remedy="label_smoothing=0.001",
            )
        if key in own and key in given and own[key] != given[key]:
            raise SettingsError(
                f"{name}: {key} is given twice: {shown(own[key])} behind its name, and"
                f" {shown(given[key])}",
                remedy="give it once",
            )
    changed = [
        key
        for key in ("tail_weight", "divergence")
        if settings.get(key, MODIFIERS[key]) != MODIFIERS[key]
    ]
    if settings.get("score") == "mean" and changed:
        raise SettingsError(
            f"{name}: {changed[0]} is about sums over an answer's tokens, and score is mean",
            remedy="--score sum",
        )
    return Choice(name, weight, settings)


def _weight(text: str, part: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise SettingsError(
            f"objective: got {text!r} in {part!r}, expected a weight above 0, or setting=value"
        )
    return weight


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def shown(value: Value) -> str:
    """A setting's value as it is given."""
    return (
        str(value).lower()
        if isinstance(value, bool)
        else repr(value).removesuffix(".0")
        if isinstance(value, float)
        else str(value)
    )
