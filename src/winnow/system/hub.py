"""The Hugging Face hub: whether it has what is asked for, told within seconds; its own client tries
for minutes.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

PATIENCE = 10.0  # seconds to wait for its first answer
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class NotThere(Exception):
    """The hub does not give what was asked for. The message says why, as the end of a sentence that
    begins with "the hub".
    """


def may_hold(name: str) -> bool:
    """Whether something on the hub could have this name; a path could not."""
    return _NAME.fullmatch(name) is not None


def offline() -> bool:
    """Whether nobody may be asked: HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@cache  # what is there is asked for once; what is not, again
def ask(kind: Literal["model", "dataset"], name: str) -> None:
    """Raises NotThere where the hub cannot be reached, or does not give it. Offline it is not
    asked: its cache may have it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if offline():
        return
    try:
        (
            HfApi().model_info(name, timeout=PATIENCE)
            if kind == "model"
            else HfApi().dataset_info(name, timeout=PATIENCE)
        )
    except GatedRepoError as error:
        raise NotThere(
            f"gives this {kind} only to whom its owner lets: ask on its page, then log in with `hf"
            " auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise NotThere(
            f"has no {kind} of that name, or it is private: then log in with `hf auth login`"
        ) from error
    # whatever its client raises where there is no network, a proxy, or a hub that is ill
    except Exception as error:
        raise NotThere(f"cannot be reached ({type(error).__name__})") from error
