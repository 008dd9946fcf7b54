"""The commands as Python functions: the same settings as keyword arguments, the same files.

Each takes the settings of `winnow NAME --help`, for example
dpo(model="RUN", data=["p.jsonl"], out="RUN2", beta=0.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from winnow.commands.table import COMMANDS


def _function(name: str, title: str = "") -> Callable[..., Any]:
    """The command `name` as a function. title: its name in Python, where that is another one."""
    command = COMMANDS[name]

    def call(**settings: Any) -> Any:
        return command.call(title or name, settings)

    call.__name__ = call.__qualname__ = title or name
    call.__doc__ = f"{command.help} Settings as in `winnow {name} --help`."
    return call


sft = _function("sft")
dpo = _function("dpo")
reward = _function("reward")
ppo = _function("ppo")
online = _function("online")
demo = _function("demo")
check = _function("check")
sample = _function("sample")
label = _function("label")
judge = _function("judge")
evaluate = _function("eval", "evaluate")
generate = _function("generate")
winrate = _function("winrate")
frontier = _function("frontier")
export = _function("export")
export_votes = _function("votes export", "export_votes")
