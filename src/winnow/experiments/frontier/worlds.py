"""The two worlds of `winnow frontier`: one whose answers are counted, one whose answers are
sampled. Each with an SFT model, and a way to judge a policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from winnow.commands import sample, train
from winnow.config.collection import JudgeSettings, SampleSettings
from winnow.config.model_spec import ModelSpec
from winnow.config.resolve import resolve
from winnow.config.training import SFTSettings
from winnow.data.packing import BUDGET
from winnow.data.render import Renderer
from winnow.engine.fast import SEGMENTS
from winnow.evaluation import kl as drift
from winnow.evaluation.statistics.winrate import over_prompts, win_rate
from winnow.experiments import counted_world, demo, reviews_world
from winnow.experiments.frontier import measure as frontier
from winnow.experiments.frontier.measure import RewardTable
from winnow.models import loading, scoring
from winnow.models.loading import LoadedModel
from winnow.preferences.judging import judge as judging
from winnow.system.files import read_json, write_json, write_jsonl

K = 4  # answers to a prompt that are compared
BEST_OF = (1, 2, 4, 8, 16, 64)
TRUSTED = 100  # samples that must be left, effectively, for a limit made of samples to be drawn
LEAST = {"kl": 0.0}  # where intervals are cut off
FURTHEST = 6.0  # nats to which a limit is drawn
SMALL_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
Figures = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is done in a world. rows: prompts whose answers are compared; held_out: prompts a
    policy is judged on; drawn: answers to each of them that the limit is made of; training:
    settings of every training on comparisons; reward, ppo: of those two besides.
    """

    sft: Mapping[str, Any]
    rows: int
    held_out: int
    drawn: int
    training: Mapping[str, Any]
    reward: Mapping[str, Any]
    ppo: Mapping[str, Any]


@dataclass(frozen=True)
class World:
    """A world that is ready: its SFT model has learnt its language. judge: its true reward; room:
    tokens of the longest answer; measure: a model's figures on its prompts; picked: those of who
    takes the best of n of the SFT model's answers, by a reward model's scores; facts: its
    reference's figures, its limit, the best of n by the true reward; share: of KL and reward gain,
    the share of the limit.
    """

    name: str
    root: Path
    sft: Path
    judge: str
    room: int
    size: Size
    prompts: Path
    measure: Callable[[LoadedModel], Figures]
    picked: Callable[[LoadedModel, int], Figures]
    facts: Callable[[], Figures]
    share: Callable[[float, float], float | None]

    def labels(self, seed: int) -> Path:
        """Comparisons of the SFT model's answers, each drawn once from Bradley-Terry's probability:
        of the same answers for all seeds.
        """
        answers, out = self.root / "answers.jsonl", self.root / f"labels-{seed}.jsonl"
        if not out.exists():
            asked = {
                "model": str(self.sft),
                "prompts": str(self.prompts),
                "k": K,
                "max_new_tokens": self.room,
                "device": "cpu",
                "out": answers,
            }
            sample.run(resolve(SampleSettings, asked, origin="frontier"))
            told = {
                "answers": str(answers),
                "judge": self.judge,
                "labels": "drawn",
                "seed": seed,
                "out": out.with_suffix(".part"),
            }
            judging.run(resolve(JudgeSettings, told, origin="argument"))
            out.with_suffix(".part").rename(out)
        return out


def small(root: Path, size: Size, seed: int) -> World:
    """The world that is counted."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "prompts.jsonl").exists():
        counted_world.write_tokenizer(root / "tokenizer")
        shape = {**SMALL_SHAPE, "max_position_embeddings": 8}
        loading.create(
            root / "world",
            loading.load_tokenizer(ModelSpec(str(root / "tokenizer"))),
            seed=seed,
            **shape,
        )
        write_jsonl(
            root / "demonstrations.jsonl",
            counted_world.demonstrations(size.sft["steps"] * size.sft["batch_size"], seed),
        )
        write_jsonl(
            root / "prompts.jsonl",
            [
                {"prompt": counted_world.prompts()[i % len(counted_world.prompts())]}
                for i in range(size.rows)
            ],
        )
    _sft(root, root / "demonstrations.jsonl", size, seed)
    table = counted_world.table(loading.load(ModelSpec(str(root / "sft"), device="cpu")).model)
    return World(
        "small",
        root,
        root / "sft",
        "winnow.recipes.small_world:rewarded",
        counted_world.LENGTH,
        size,
        root / "prompts.jsonl",
        measure=lambda loaded: counted(table, counted_world.logps(loaded.model)),
        picked=lambda scorer, n: counted(
            table,
            frontier.best_of(RewardTable(table.reference_XA, counted_world.scores(scorer)), n),
        ),
        facts=lambda: _small_facts(table),
        share=lambda kl, gain: frontier.share(table, kl, gain) if kl > 0.01 else None,
    )


def _sft(root: Path, data: Path, size: Size, seed: int) -> None:
    names = {
        "model": str(root / "world"),
        "data": [str(data)],
        "out": root / "sft",
        "seed": seed,
        "device": "cpu",
    }
    train.sft(resolve(SFTSettings, {**size.sft, **names}, origin="frontier"))


def counted(table: RewardTable, logp_XA: torch.Tensor) -> Figures:
    """A policy's exact figures, each with an interval over prompts."""
    fluent_X = (logp_XA.exp() * counted_world.fluent()).sum(-1)
    found = {
        "kl": frontier.kl(table, logp_XA),
        "reward": frontier.reward(table, logp_XA),
        "fluency": fluent_X,
        "win": frontier.wins(table, logp_XA),
    }
    figures = {
        name: over_prompts(value_X.tolist(), LEAST.get(name, -math.inf)).as_mean()
        for name, value_X in found.items()
    }
    return {**figures, "prompts": len(logp_XA), "answers": None}


def _small_facts(table: RewardTable) -> Figures:
    best = [{"n": n, "exact": True, **counted(table, frontier.best_of(table, n))} for n in BEST_OF]
    limit = [{"kl": point.kl, "reward": point.reward} for point in frontier.curve(table, FURTHEST)]
    return {"exact": True, "start": best[0], "limit": limit, "best_of": best[1:]}


# ---------------------------------------------------------------- film reviews: samples


def reviews(root: Path, size: Size, seed: int, trained: Path | None = None) -> World:
    """The world of `winnow demo`. trained: a run that has learnt its language already."""
    root.mkdir(parents=True, exist_ok=True)
    openings = reviews_world.openings(demo.PROMPTS + demo.HELD_OUT, seed)
    if not (root / "prompts.jsonl").exists():
        write_jsonl(
            root / "prompts.jsonl", [{"prompt": opening} for opening in openings[: size.rows]]
        )
    if trained is None:
        demo.write_world(root, seed)
        _sft(root, root / "reviews.jsonl", size, seed)
    folder = trained or root / "sft"
    reference = loading.load(ModelSpec(str(folder), device="cpu"))
    held_out = openings[demo.PROMPTS :][: size.held_out]
    kept = root / "drawn.json"
    if not kept.exists():
        drawn = demo.sampled(reference, held_out, seed + 4, size.drawn)
        fluent = [
            [answer.finished and reviews_world.grammatical(text) for answer, text in zip(*many)]
            for many in zip(drawn.answers, drawn.texts)
        ]
        said = [
            [text.removeprefix(prompt) for text in many]
            for prompt, many in zip(held_out, drawn.texts)
        ]
        write_json(kept, {"rewards": drawn.rewards, "fluent": fluent, "texts": said})
    drawn_ = read_json(kept, "rewards", "fluent", "texts")
    pooled = frontier.drawn(torch.tensor(drawn_["rewards"], dtype=torch.float64).reshape(1, -1))
    far = _trusted(pooled)
    return World(
        "reviews",
        root,
        folder,
        "winnow.recipes.world:rewarded",
        demo.LONGEST,
        size,
        root / "prompts.jsonl",
        measure=lambda loaded: _sampled(loaded, reference, held_out, drawn_["rewards"], seed + 5),
        picked=lambda scorer, n: _best(drawn_, n, _scores(scorer, held_out, drawn_["texts"])),
        facts=lambda: _review_facts(drawn_, pooled, far),
        share=lambda kl, gain: frontier.share(pooled, kl, gain) if 0.01 < kl <= far else None,
    )


def _sampled(
    policy: LoadedModel,
    reference: LoadedModel,
    prompts: Sequence[str],
    theirs: Sequence[Sequence[float]],
    seed: int,
) -> Figures:
    """A policy's figures on its own samples, each with an interval over prompts; the KL at each
    token over the whole vocabulary.
    """
    said = demo.sampled(policy, prompts, seed, K)
    renderer = Renderer(policy.tokenizer)
    end = renderer.end_id(chat=False)
    groups = drift.as_groups([renderer.prompt_ids(prompt) for prompt in prompts], said.answers, end)
    far = drift.exact(
        policy.model, reference.model, groups, BUDGET, SEGMENTS, SEGMENTS, policy.device
    )
    fluent = [
        [float(answer.finished and reviews_world.grammatical(text)) for answer, text in zip(*many)]
        for many in zip(said.answers, said.texts)
    ]
    won = win_rate(said.rewards, theirs)
    found = {"kl": far, "reward": said.rewards, "fluency": fluent}
    means: Figures = {
        name: over_prompts([fmean(row) for row in rows], LEAST.get(name, -math.inf)).as_mean()
        for name, rows in found.items()
    }
    return means | {
        "win": {"mean": won.rate, "low": won.low, "high": won.high},
        "prompts": len(prompts),
        "answers": K * len(prompts),
    }


def _trusted(pooled: RewardTable) -> float:
    """The KL up to which a limit made of samples can be trusted: where TRUSTED of them are left."""
    low, high = math.log(0.05), math.log(100.0)
    for _ in range(40):
        middle = (low + high) / 2
        few = frontier.effective(frontier.optimum(pooled, math.exp(middle))) < TRUSTED
        low, high = (middle, high) if few else (low, middle)
    return frontier.place(pooled, frontier.optimum(pooled, math.exp(high))).kl


def _review_facts(drawn: Mapping[str, list[list[Any]]], pooled: RewardTable, far: float) -> Figures:
    """The reference's own figures; the limit of all samples together; the best of n without bias,
    its KL as the bound there is.
    """
    each = len(drawn["rewards"][0])
    best = [_best(drawn, n) for n in BEST_OF if n <= each // 4]
    limit = [{"kl": point.kl, "reward": point.reward} for point in frontier.curve(pooled, far)]
    return {
        "exact": False,
        "samples": pooled.reward_XA.numel(),
        "trusted": far,
        "start": best[0],
        "limit": limit,
        "best_of": best[1:],
    }


def _best(
    drawn: Mapping[str, list[list[Any]]], n: int, by: Sequence[Sequence[float]] | None = None
) -> Figures:
    """The best of n by these scores, or by the true reward."""
    weights = [frontier.best_drawn(row, n) for row in (drawn["rewards"] if by is None else by)]
    found: Figures = {
        "n": n,
        "exact": False,
        "prompts": len(weights),
        "answers": len(weights) * len(weights[0]),
    }
    found |= {"kl": dict.fromkeys(("mean", "low", "high"), frontier.bound(n))}
    for name, rows in (("reward", drawn["rewards"]), ("fluency", drawn["fluent"])):
        found[name] = over_prompts(
            [math.fsum(w * float(v) for w, v in zip(*pair)) for pair in zip(weights, rows)]
        ).as_mean()
    wins = [
        math.fsum(w * _below(row, r) for w, r in zip(own, row))
        for own, row in zip(weights, drawn["rewards"])
    ]
    return found | {"win": over_prompts(wins).as_mean()}


def _scores(
    scorer: LoadedModel, prompts: Sequence[str], texts: Sequence[Sequence[str]]
) -> list[list[float]]:
    """A reward model's scores of answers to each prompt."""
    asked = [
        scoring.Dialogue(prompt, text, (), prompt)
        for prompt, many in zip(prompts, texts, strict=True)
        for text in many
    ]
    found = iter(scoring.scores(scorer, asked))
    return [[next(found) for _ in many] for many in texts]


def _below(values: Sequence[float], one: float) -> float:
    """Share of rewards that are lower, ties half."""
    return sum((other < one) + 0.5 * (other == one) for other in values) / len(values)
