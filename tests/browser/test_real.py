"""The whole way with real answers: twenty votes cast in a browser, exported, trained on."""

from __future__ import annotations

import json

import pytest
from hands import press
from transformers import GPT2TokenizerFast

import runs
import tiny

pytestmark = pytest.mark.browser


def test_twenty_votes_on_real_answers_exported_and_trained_on(
    label, shared_data, tmp_path, monkeypatch
):
    rows = [
        json.loads(line)
        for line in (
            (shared_data / "alpacaeval_ranked.jsonl").read_text(encoding="utf-8").splitlines()
        )
    ]
    watched = label(rows, "--limit", "60", "--seed", "5")
    page = watched.enter()
    for i in range(20):
        for answer in page.locator(".answer").all_inner_texts():
            assert len(answer) > len("Answer 1")
        if i % 3 == 0:
            page.keyboard.press(f"Shift+Digit{1 + i % 2}")
        press(page, "1223"[i % 4])
    assert "20 done" in page.locator(".progress").inner_text()
    watched.served.end()
    out = tmp_path / "pairs.jsonl"
    assert runs.winnow(monkeypatch, "votes", "export", watched.served.out, "--out", out) == 0
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert sum(len(row["votes"]) for row in found) == 20
    assert {tuple(row["completions"]) for row in found} <= {
        tuple(row["completions"]) for row in rows
    }
    bpe = shared_data / "gpt2_bpe"
    GPT2TokenizerFast(
        vocab=str(bpe / "vocab.json"), merges=str(bpe / "merges.txt")
    ).save_pretrained(tmp_path / "model")
    tiny.model(
        "gpt2", vocab_size=50257, n_positions=8192, bos_token_id=50256, eos_token_id=50256
    ).save_pretrained(tmp_path / "model")
    words = [
        "dpo",
        "--model",
        tmp_path / "model",
        "--data",
        out,
        "--out",
        tmp_path / "run",
        "--steps",
        "2",
        "--batch-size",
        "4",
    ]
    assert runs.winnow(monkeypatch, *words) == 0
    assert (tmp_path / "run" / "report.html").exists()
