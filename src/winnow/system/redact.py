"""Tokens and passwords in text, blanked out before it is kept or shown. They are known by the
variable that holds them, or by their form.
"""

from __future__ import annotations

import os
import re

BLANK = "***"
LEAST = 12  # characters: a shorter value is a word that stands elsewhere for its own sake
_NAME = re.compile(r"SECRET|PASSW(OR)?D|(TOKEN|KEY)S?$", re.IGNORECASE)
# a token of the Hugging Face hub; what stands before the host in an address
_FORM = re.compile(r"\bhf_[A-Za-z0-9]{30,}|(?<=://)[^/\s]+(?=@)")


def blanked(text: str) -> str:
    """`text` without the values of environment variables that are named like secrets, without hub
    tokens, and without `user:password@` in addresses.
    """
    held = {
        value for name, value in os.environ.items() if len(value) >= LEAST and _NAME.search(name)
    }
    for value in sorted(held, key=len, reverse=True):  # one may begin with another
        text = text.replace(value, BLANK)
    return _FORM.sub(BLANK, text)
