"""How the page looks and what it lets through: hostile text, long text, light and dark, phones,
zoom, screen readers.
"""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from hands import press, ready

import served

pytestmark = pytest.mark.browser

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<img src=http://evil.example/i.png>",
    (
        "![](http://evil.example/i.png) ![x](javascript:alert(1))"
        " ![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+)"
    ),
    (
        "[click](javascript:alert(1)) [click](http://evil.example) <http://evil.example> [x]:"
        " http://evil.example"
    ),
    "<svg onload=alert(1)><style>body{display:none}</style>",
    (
        "<iframe srcdoc='<script>alert(1)</script>'></iframe><object"
        " data=http://evil.example></object><embed src=http://evil.example>"
    ),
    (
        "<link rel=stylesheet href=http://evil.example/a.css><base href=http://evil.example/><meta"
        " http-equiv=refresh content='0;http://evil.example'>"
    ),
    "</textarea></div></form></main></script><script>alert(1)</script>",
    (
        "<form action=http://evil.example><input name=outcome><button autofocus"
        " onfocus=alert(1)>x</button></form>"
    ),
    "{{ 7*7 }} {% raw %} ${alert(1)} #{1}",
    '"><script>alert(1)</script>',
    "' onmouseover=alert(1) x='",
    "<a href='java\tscript:alert(1)'>x</a> <a href=//evil.example ping=http://evil.example>y</a>",
    (
        "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1"
        " onerror=alert(1)&gt;'>"
    ),
    "```html\n<script>alert(1)</script>\n```\n\n`<script>alert(1)</script>`",
    "| a | <script>alert(1)</script> |\n|---|---|\n| <img src=x onerror=alert(1)> | ~~x~~ |",
    "\x1b[31mred\x1b[0m \u202egnirts\u202c \x07 \x00a".replace("\x00", "\x01"),
    (
        "<details open ontoggle=alert(1)>x</details><video><source onerror=alert(1)></video><body"
        " onload=alert(1)>"
    ),
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;script&#62;alert(1)&#60;/script&#62;",
    '# "onclick="alert(1)\n\n> <x onclick=alert(1)>\n\n1. <b onclick=alert(1)>b</b>',
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
]


def test_hostile_text_is_shown_and_does_nothing(label, tmp_path):
    rows = [
        {
            "prompt": f"{i}: {text}",
            "completions": [text, f"other {text}"],
            "comparisons": [],
            "models": ["a", "b"],
        }
        for i, text in enumerate(HOSTILE)
    ]
    guide = tmp_path / "guide.md"
    guide.write_text("\n\n".join(HOSTILE))
    watched = label(rows, "--guidelines", guide)
    page = watched.enter()
    seen = ""
    for i in range(len(rows)):
        seen += page.locator("main").inner_text()
        assert (
            page.locator(
                "main :is(script, img, iframe, object, embed, svg, style, link, base, meta, video,"
                " math)"
            ).count()
            == 0
        )
        assert page.locator(".drawn a, .raw a, .drawn form").count() == 0
        page.locator("textarea").fill(HOSTILE[i])
        page.keyboard.press("Escape")
        press(page, "1")
        (
            page.locator("#status a, form .undo").first.click()
            if i == 0
            else page.goto(watched.served.url + "/votes")
        )
        ready(page)
        page.locator(".list a").first.click() if i else None
        ready(page)
        assert page.locator("textarea").input_value() == HOSTILE[i].replace("\r\n", "\n").strip()
        page.goto(watched.served.url)
        ready(page)
        press(page, "m") if i % 5 == 0 else None
    for text in (
        "<script>alert(1)</script>",
        "{{ 7*7 }}",
        "␛[31mred",
        "⟨U+202E⟩",
        "javascript:alert(1)",
        "<img src=x onerror=alert(1)>",
    ):
        assert text in seen
    assert "49" not in seen
    assert watched.said == []  # no complaint of the content policy: nothing even tried


def test_a_megabyte_of_text(label):
    rows = [
        {
            "prompt": "Long?",
            "completions": ["word " * 200_000, "[" * 1_000_000],
            "comparisons": [],
            "models": ["a", "b"],
        }
    ]
    watched = label(rows)
    page = watched.enter()
    assert page.locator(".answer .raw").count() == 2
    press(page, "1")
    page.goto(watched.served.url + "/votes")
    ready(page).locator(".list a").click()
    ready(page)
    assert "too long for a comparison" in page.locator(".difference").inner_text()
    assert "1,000,000 characters" in page.locator(".answers").first.inner_text()
    assert "200,000 words" in page.locator(".answers").first.inner_text()


LONG = """Plants make their own food by **photosynthesis**. Here is how it goes:

1. Light falls on *chlorophyll* in the leaf.
2. Water is split, and oxygen is set free.
3. Carbon dioxide becomes sugar in the Calvin cycle.

| what goes in | what comes out |
|---|---|
| water, carbon dioxide, light | sugar, oxygen |

```python
def sugar(light: float, water: float) -> float:
    return min(light, water) * 0.5
```
"""
SHORT = (
    "Plants turn light, water and carbon dioxide into sugar and oxygen. This happens in the leaves,"
    " in small bodies named `chloroplasts`."
)
OTHER = """They do not eat as animals do. Roots take up **water** and salts, \
leaves take *carbon dioxide* out of the air, and sunlight makes sugar of both.

- By day a leaf gives off oxygen.
- At night it breathes, as we do.

Most of what a tree weighs comes from the air, and not from the ground."""
REAL = [
    {
        "prompt": [{"role": "user", "content": f"How does a plant eat? ({i})"}],
        "completions": [[{"role": "assistant", "content": text}] for text in (LONG, SHORT, OTHER)],
        "comparisons": [],
        "models": ["a", "b", "c"],
    }
    for i in range(6)
]
GUIDE = (
    "Choose the answer a curious *twelve-year-old* would rather have.\n\n- Right before well"
    " written.\n- Length alone is no merit."
)
SIZES = {
    "desktop": {"width": 1280, "height": 800},
    "phone": {"width": 390, "height": 844},
    "zoomed": {"width": 640, "height": 400},
    "narrow": {"width": 320, "height": 640},
}


def places(page, watched):
    """Every page there is, one after the other."""
    yield "task", page
    page.keyboard.press("Shift+Digit2")
    press(page, "1")
    press(page, "3")
    yield "later", page
    press(page, "h")
    yield "votes", page
    page.locator(".list a").last.click()
    yield "vote", ready(page)
    page.goto(watched.served.url)
    press(ready(page), "r")
    page.keyboard.press("2")
    yield "rank", page
    page.goto(watched.served.url + "/none")
    yield "none", page


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_in_every_size_and_colour(label, tmp_path, pictures, size, scheme):
    """axe finds nothing serious, nothing is wider than the window, and there is a picture to look
    at.
    """
    guide = tmp_path / "guide.md"
    guide.write_text(GUIDE)
    watched = label(
        REAL,
        "--guidelines",
        guide,
        viewport=SIZES[size],
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    page = watched.enter()
    for name, shown in places(page, watched):
        shown.wait_for_timeout(150)
        shown.screenshot(path=pictures / f"{name}-{size}-{scheme}.png")
        wide = shown.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, (name, wide)
        found = Axe().run(shown).response["violations"]
        assert [
            (one["id"], [node["html"] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ] == [], name
    assert watched.said == [] or all("404" in said for said in watched.said)


def test_colours_can_be_chosen(label):
    watched = label(served.rows(2), color_scheme="light")
    page = watched.enter()

    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.get_by_role("button", name="Colours").click()
    ready(page)
    assert paper() != light
    page.get_by_role("button", name="Colours").click()
    ready(page)
    assert paper() == light


def test_the_focus_goes_the_way_one_reads(label):
    watched = label(served.rows(3, 3))
    page = watched.enter()
    press(page, "1")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "(document.activeElement.innerText || document.activeElement.name ||"
                " '').trim().split('\\n')[0]"
            )
        )
    wanted = [
        "Skip to the content",
        "Winnow",
        "Label",
        "My votes",
        "strength",
        "reason",
        "Answer 1 is better 1",
        "Answer 2 is better 2",
        "Tie 3",
        "Undo u",
    ]
    found = [seen.index(name) for name in wanted if name in seen]
    assert len(found) == len(wanted), seen
    assert found == sorted(found)
