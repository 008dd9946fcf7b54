"""What a report is made of, for tests: the files of a run folder, hostile text, and a page as a
browser reads it.
"""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from winnow.reports import panels

NASTY = (
    "<script>alert(1)</script>",
    "</style><script src=//evil.example/x.js></script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<svg/onload=alert(1)>",
    "</details></article></main><iframe src='https://evil.example'></iframe>",
    "<a href='javascript:alert(1)'>x</a> {{ 7 * 7 }} {% raw %} <!-- ]]> -->",
    "\x1b[31mred\x1b[0m\x07\x00 \u202eabc\u202c \ud800 \u2028 &lt;b&gt;",
    "<b>" * 350_000,
)


def environment(recipe: str = "dpo", **settings: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "command": f"winnow {recipe} --beta 0.1",
        "recipe": recipe,
        "started": "2026-01-01T00:00:00+00:00",
        "versions": {"winnow": "0.1.0", "torch": "2.13.0"},
        "device": "cpu, 2 threads",
        "settings": {
            "beta": 0.1,
            "lr": 1e-5,
            "clip": 1.0,
            "data": ["pairs.jsonl"],
            "lora": None,
            **settings,
        },
        "origins": {"beta": "command line", "lr": "preset paper", "clip": "default"},
        "parameters": {"total": 1234, "trainable": 1234},
        "weights_hash": "ab" * 32,
        "reference": {"identity": "weights abab"},
        "plan": {"steps": 40, "epochs": 1.0, "groups": 300, "comparisons_per_step": 8},
    }


def data(**train: Any) -> dict[str, Any]:
    side = {
        "sources": [
            {
                "name": "pairs.jsonl",
                "layout": "chosen/rejected",
                "rows": 900,
                "weight": 1,
                "ignored": ["id"],
            }
        ],
        "read": 900,
        "dropped": {"identical completions": 6},
        "used": 894,
        "comparisons": 894,
        "fingerprint": "cd" * 32,
        "tokens": {"prompt": 4000, "scored": 6000, "cut": 0},
        "findings": [],
    }
    return {
        "train": {**side, **train},
        "eval": {"eval_": {**side, "comparisons": 120, "decided": 100}},
    }


def healthy() -> list[dict[str, Any]]:
    """Forty steps and five evaluations of a run nobody needs to be warned about."""
    rows: list[dict[str, Any]] = []
    for step in range(41):
        done = step / 40
        pair = {
            "logps/chosen": -30 - done,
            "logps/rejected": -31 - 5 * done,
            "rewards/chosen": 0.1 * done,
            "rewards/rejected": -0.5 * done,
        }
        pair |= {
            "rewards/accuracies": 0.5 + 0.3 * done,
            "rewards/margins": 0.6 * done,
            "logratio/chosen": -0.05 * done,
            "logratio/rejected": -0.2 * done,
        }
        if step:
            rows.append(
                {
                    "step": step,
                    "epoch": done,
                    "loss": 0.6931 - 0.3 * done,
                    "grad_norm": 0.5,
                    "learning_rate": 1e-5 * (1 - done),
                }
            )
            rows[-1] |= pair | {
                "entropy": 2 - 0.1 * done,
                "num_tokens": 1000 * step,
                "length/chosen": 20.0,
                "length/rejected": 21.0,
            }
            rows[-1] |= {
                "explained_variance": 0.8 * done,
                "clip_fraction": 0.1,
                "kl/step": 0.01,
                "beta": 0.05,
                "finished": 0.95 - 0.1 * done,
            }
            rows[-1] |= {
                "pairs_per_second": 9.5,
                "tokens_per_second": 480.25,
                "hardware_share": 0.4,
            }
        if step % 10 == 0:
            rows.append(
                {
                    "step": step,
                    "eval_loss": 0.6931 - 0.2 * done,
                    "eval_rewards/accuracies": 0.75 * (step > 0),
                    "kl": 2.5 * done,
                    "length/sampled": 18.0 + done,
                }
            )
            rows[-1] |= {
                "eval_hard_loss": 0.7 - 0.1 * done,
                "eval_logratio/chosen": -0.06 * done,
                "eval_logratio/rejected": -0.19 * done,
            }
    return rows


def drawn() -> list[str]:
    """Titles of the panels for which such a run has numbers."""
    return [
        panel.title
        for panel in panels.PANELS
        if any(name in row for row in healthy() for name in panel.metrics)
    ]


def samples(*texts: str) -> list[dict[str, Any]]:
    return [
        {"step": step, "index": i, "prompt": text, "completion": f"{step}: {text}"}
        for step in (0, 20, 40)
        for i, text in enumerate(texts)
    ]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def make(
    root: Path,
    *,
    rows: list[dict[str, Any]] | None = None,
    texts: tuple[str, ...] = ("the film was",),
    **parts: Any,
) -> Path:
    root.mkdir(parents=True)
    (root / "config.yaml").write_text("beta: 0.1  # command line\n")
    (root / "environment.json").write_text(json.dumps(parts.get("environment", environment())))
    (root / "data.json").write_text(json.dumps(parts.get("data", data())))
    (root / "metrics.jsonl").write_text(lines(healthy() if rows is None else rows))
    (root / "samples.jsonl").write_text(lines(samples(*texts)))
    if "summary" in parts:
        (root / "summary.json").write_text(json.dumps(parts["summary"]))
    return root


class Page(HTMLParser):
    """Tags, attributes and text of a page, and everything a browser would run or fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.danger: list[str] = []
        self.text = ""
        self.ids: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if (
            tag in ("script", "iframe", "object", "embed", "img", "a", "form", "base", "link")
            and ("href", "data:,") not in attrs
        ):
            self.danger.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name.startswith("on") or (
                name in ("src", "href", "xlink:href", "action")
                and not str(value).startswith(("#", "data:,"))
            ):
                self.danger.append(f"{tag} {name}={value}")
            if name != "aria-label" and any(
                word in str(value) for word in ("http:", "https:", "javascript:")
            ):
                self.danger.append(f"{tag} {name}={value}")

    def handle_data(self, text: str) -> None:
        self.text += text
