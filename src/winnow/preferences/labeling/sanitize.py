"""Text of people and models as HTML that does nothing: markdown drawn, links and images as words,
control characters as signs
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from winnow.data.records import Text
from winnow.system.format import visible

# characters that are drawn as markdown: more (tables, open brackets) can take a parser seconds
LONGEST = 20_000
# of two answers together that are compared word by word: a matcher's time grows with their product
MOST_WORDS = 4_000
TAGS = {
    "p",
    "br",
    "hr",
    "h3",
    "h4",
    "h5",
    "h6",
    "strong",
    "em",
    "s",
    "code",
    "pre",
    "blockquote",
    "ul",
    "ol",
    "li",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}
WORDS = re.compile(r"\w+|[^\w\s]|\s+")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as it is shown. `drawn` is None where markdown is too long to be drawn."""

    role: str
    drawn: Markup | None
    raw: Markup


def turns(text: Text) -> tuple[Turn, ...]:
    """A prompt or an answer, turn by turn; a string is one turn of nobody. Tool calls and the like
    are shown as JSON.
    """
    if isinstance(text, str):
        return (Turn("", drawn(text), raw(text)),)
    found = []
    for turn in text:
        more = (
            f"\n\n```json\n{json.dumps(turn.extra, ensure_ascii=False, indent=2)}\n```"
            if turn.extra
            else ""
        )
        found.append(Turn(visible(turn.role), drawn(turn.content + more), raw(turn.content + more)))
    return tuple(found)


def raw(text: str) -> Markup:
    """The text as it stands, escaped."""
    return escape(visible(text))


@lru_cache(maxsize=512)
def drawn(text: str) -> Markup | None:
    """Markdown as HTML of a few tags without attributes; None above LONGEST characters.

    markdown-it's `js-default` passes links and images, and nh3's own list does too: links become
    their words and the address, images their description, so nothing can be fetched and no click
    leads away.
    """
    return (
        Markup(nh3.clean(_PARSER.render(visible(text)), tags=TAGS, attributes={}))
        if len(text) <= LONGEST
        else None
    )


def difference(first: str, second: str) -> tuple[Markup, Markup] | None:
    """Both texts, with the words that only one of them has marked: `<del>` in the first, `<ins>` in
    the second. None for long texts.
    """
    one, other = WORDS.findall(visible(first)), WORDS.findall(visible(second))
    if len(one) + len(other) > 2 * MOST_WORDS:  # every second piece is a space
        return None
    blocks = difflib.SequenceMatcher(
        None, one, other, autojunk=len(one) + len(other) > 1000
    ).get_opcodes()
    left = [_marked("del" if kind != "equal" else "", one[a:b]) for kind, a, b, _, _ in blocks]
    right = [_marked("ins" if kind != "equal" else "", other[a:b]) for kind, _, _, a, b in blocks]
    return Markup("").join(left), Markup("").join(right)


def lengths(text: str) -> tuple[int, int]:
    """Words and characters."""
    return len(text.split()), len(text)


def _marked(tag: str, pieces: Sequence[str]) -> Markup:
    words = escape("".join(pieces))
    return Markup(f"<{tag}>{words}</{tag}>") if tag and words else words


# the renderer comes first: rules are bound to it
Rule = Callable[[Any, Sequence[Token], int, Any, Any], str]


def _parser() -> MarkdownIt:
    parser = MarkdownIt("js-default")
    rules: dict[str, Rule] = {
        "link_open": _link,
        "link_close": _closed,
        "image": _image,
        "heading_open": _heading,
        "heading_close": _heading,
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


def _link(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Its words follow; the address waits until they end. Links hold no links."""
    env["address"] = str(tokens[at].attrs.get("href", ""))
    return ""


def _closed(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return str(escape(f" ⟨{env.pop('address', '')}⟩"))


def _image(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return str(escape(f"[image: {tokens[at].content} ⟨{tokens[at].attrs.get('src', '')}⟩]"))


def _heading(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Below the page's own headings, which end at the second level."""
    return f"<{'' if tokens[at].nesting == 1 else '/'}h{min(6, int(tokens[at].tag[1]) + 2)}>"


_PARSER = _parser()
