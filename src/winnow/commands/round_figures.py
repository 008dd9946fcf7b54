"""A policy on held-out prompts: what it says, how far that is from the model the rounds began with,
and how it does against what others said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from winnow.config.collection import SamplingSettings
from winnow.data.packing import budget
from winnow.data.prompts import prompts
from winnow.data.render import RenderedGroup
from winnow.engine.dataset_logps import dataset_logps
from winnow.engine.selection import engine_for
from winnow.evaluation import kl as drift
from winnow.evaluation.statistics.winrate import interval, over_prompts
from winnow.generation.prompts import PromptBatch, ask, load
from winnow.generation.sampler import sample, words
from winnow.models import hashes
from winnow.models.loading import LoadedModel
from winnow.system.console import ProgressBar
from winnow.system.figure import Figure
from winnow.system.files import read_jsonl, write_jsonl

Rows = list[dict[str, Any]]


def answers(
    settings: SamplingSettings, policy: str, first: str, asked_for: Path, out: Path
) -> tuple[dict[str, Any], str]:
    """One answer of the policy to each prompt, written to `out`. Returns how long they are, how
    many end by themselves, and `kl`, nats per answer, to `first` (only of what is drawn from the
    whole distribution: an estimate from other samples would be biased); and a hash of first's
    weights.
    """
    loaded = load(policy, settings)
    asked = ask(policy, loaded, prompts(str(asked_for)), settings)
    with ProgressBar("held-out answers", len(asked.ids)) as steps:
        said = [made[0] for made in sample(loaded, asked.ids, asked.how, tick=steps.advance)]
    texts = [words(loaded.tokenizer, ids, one) for ids, one in zip(asked.ids, said)]
    rows = [
        {**row, "completion": text, "tokens": len(one.ids), "finished": one.finished}
        for row, text, one in zip(read_jsonl(asked_for), texts, said)
    ]
    write_jsonl(out, rows)
    found = {
        "length": sum(row["tokens"] for row in rows) / len(rows),
        "finished": sum(row["finished"] for row in rows) / len(rows),
    }
    groups = drift.as_groups(asked.ids, [[one] for one in said], asked.how.end)
    if policy == first:
        return found | {"kl": 0.0}, hashes.weights_hash(loaded.model)[:16]
    ours = _logps(loaded, groups, f"the policy ({policy})") if _whole(asked) else None
    del loaded
    start = load(first, settings)
    if ours is not None and groups:
        found["kl"] = drift.kl(ours, _logps(start, groups, f"the reference ({first})"), len(said))
    return found, hashes.weights_hash(start.model)[:16]


def _whole(asked: PromptBatch) -> bool:
    return asked.how.temperature == 1 and asked.how.top_p == 1


def _logps(loaded: LoadedModel, groups: list[RenderedGroup], whose: str) -> Any:
    longest = max(len(sequence.ids) for group in groups for sequence in group.sequences)
    engine = engine_for(loaded, "auto", longest, train=False)
    return dataset_logps(
        engine, loaded.model, groups, budget(groups, None), loaded.device, whose=whose
    )


def compared(
    ours: Path, theirs: Path, out: Path, names: tuple[str, str], judge: Callable[[Path, Path], Rows]
) -> dict[str, Any]:
    """How often the judge takes our answer and not theirs, to the same prompts, with a 95 %
    interval over prompts ; ties count half.

    out: where the pairs are written, theirs first, and judged. `invalid`: prompts without a
    verdict, or without a word on one side. `score`, `score_theirs`, `score_gain`: means of what a
    judge that scores answers gave, where it does.
    """
    pairs = [
        {
            "prompt": a["prompt"],
            "completions": [_answer(a), _answer(b)],
            "comparisons": [],
            "models": [names[1], names[0]],
        }
        for a, b in zip(read_jsonl(theirs), read_jsonl(ours), strict=True)
        if _spoken(a) and _spoken(b)
    ]
    write_jsonl(out, pairs)
    judged = judge(out, out.with_suffix(".judged.jsonl")) if pairs else []
    shares = [_share(row["comparisons"][0]) for row in judged if row["comparisons"]]
    asked = len(read_jsonl(ours))
    if len(shares) < 2:
        return {"prompts": asked, "invalid": asked - len(shares)}
    won = Figure(fmean(shares), *interval(shares), len(shares), len(shares))
    found: dict[str, Any] = {
        "prompts": asked,
        "invalid": asked - len(shares),
        **won.as_mean(),
        "ties": shares.count(0.5) / len(shares),
    }
    scored = [row["judge_scores"] for row in judged if "judge_scores" in row]
    if len(scored) > 1:
        found |= {
            "score": over_prompts([b for _, b in scored]).as_mean(),
            "score_theirs": over_prompts([a for a, _ in scored]).as_mean(),
        }
        found |= {"score_gain": over_prompts([b - a for a, b in scored]).as_mean()}
    return found


def _answer(row: Mapping[str, Any]) -> Any:
    return (
        row["completion"]
        if isinstance(row["prompt"], str)
        else [{"role": "assistant", "content": row["completion"]}]
    )


def _spoken(row: Mapping[str, Any]) -> bool:
    return bool(row["completion"].strip()) and "\0" not in row["completion"]


def _share(comparison: Mapping[str, Any]) -> float:
    """How much of the comparison goes to answer 1, ours."""
    probability = float(comparison.get("probability", 1.0))
    return probability if comparison["winner"] == 1 else 1 - probability
