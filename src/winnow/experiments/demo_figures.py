"""What the demo's two models are like on held-out prompts: each figure with its 95 % interval over
prompts
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from winnow.data.packing import BUDGET
from winnow.data.render import Renderer
from winnow.engine.fast import SEGMENTS
from winnow.evaluation import kl as drift
from winnow.evaluation.statistics.intervals import mean, ratio, share
from winnow.evaluation.statistics.winrate import win_rate
from winnow.experiments import reviews_world
from winnow.generation.sampler import Answer
from winnow.models.loading import LoadedModel
from winnow.system.figure import Figure
from winnow.system.files import read_json
from winnow.system.run_folder import RunFolder


@dataclass(frozen=True)
class Sampled:
    """Answers of one model to some prompts: as texts (prompt included), tokens, and their true
    rewards.
    """

    answers: list[list[Answer]]
    texts: list[list[str]]
    rewards: list[list[float]]


def figures(before: Sampled, after: Sampled, kl: Figure, accuracy: Figure) -> dict[str, Figure]:
    """By their names in the summary. The length ratio is of two sums, its interval linearised over
    prompts.
    """
    won = win_rate(after.rewards, before.rewards)
    assert won.rate is not None
    found = {
        f"{name}_{when}": one
        for when, said in (("before", before), ("after", after))
        for name, one in _quality(said).items()
    }
    tied = [
        (a == b, i)
        for i, (ours, theirs) in enumerate(zip(after.rewards, before.rewards, strict=True))
        for a in ours
        for b in theirs
    ]
    found |= {
        "win_rate": Figure(won.rate, won.low, won.high, won.games, won.prompts, won.why),
        "true_ties": share(*zip(*tied, strict=True)),
    }
    found |= {
        "kl": kl,
        "accuracy": accuracy,
        "length_ratio": ratio(_lengths(after), _lengths(before), range(len(after.answers))),
    }
    words = [Counter(reviews_world.sentiment_words(text)) for many in after.texts for text in many]
    found["finished"] = share(
        [answer.finished for many in after.answers for answer in many], _prompts(after)
    )
    return found | {
        "repeated": share([max(count.values(), default=0) >= 3 for count in words], _prompts(after))
    }


def _quality(sampled: Sampled) -> dict[str, Figure]:
    """Mean true reward, and the share of samples that are sentences of the grammar to their end."""
    texts = [text for many in sampled.texts for text in many]
    answers = [answer for many in sampled.answers for answer in many]
    whole = [
        answer.finished and reviews_world.grammatical(text)
        for answer, text in zip(answers, texts, strict=True)
    ]
    rewards = [reward for many in sampled.rewards for reward in many]
    return {
        "true_reward": mean(rewards, _prompts(sampled)),
        "grammatical": share(whole, _prompts(sampled)),
    }


def _lengths(sampled: Sampled) -> list[int]:
    """Tokens of all answers to a prompt."""
    return [sum(len(answer.ids) for answer in many) for many in sampled.answers]


def _prompts(sampled: Sampled) -> list[int]:
    """Of each sample the number of its prompt."""
    return [i for i, many in enumerate(sampled.texts) for _ in many]


def words_in_use(sampled: Sampled) -> int:
    """Different sentiment words over all samples."""
    return len(
        {
            word
            for many in sampled.texts
            for text in many
            for word in reviews_world.sentiment_words(text)
        }
    )


def kl(
    policy: LoadedModel, reference: LoadedModel, prompts: Sequence[str], sampled: Sampled
) -> Figure:
    """KL(policy || reference) in nats per answer: at each token of the policy's own samples over
    the whole vocabulary.
    """
    renderer = Renderer(policy.tokenizer)
    groups = drift.as_groups(
        [renderer.prompt_ids(prompt) for prompt in prompts],
        sampled.answers,
        renderer.end_id(chat=False),
    )
    found = drift.exact(
        policy.model, reference.model, groups, BUDGET, SEGMENTS, SEGMENTS, policy.device
    )
    return mean(
        [value for own in found for value in own], [i for i, own in enumerate(found) for _ in own]
    )


def accuracy(run: Path) -> Figure:
    """Of the saved model's implicit reward on the run's held-out pairs, which stand in the true
    order.
    """
    return Figure(
        **read_json(RunFolder(run).environment, "held_out")["held_out"]["eval_"]["figures"][
            "rewards/accuracies"
        ]
    )
