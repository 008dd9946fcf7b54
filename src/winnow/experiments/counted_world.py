"""A world so small that all its answers can be counted: prompts of two words, answers of one to
three, a true reward known in closed form.

A rule drawn from a seed says which word may follow which, and how often; a reward drawn from the
same seed says what each word, and each pair of neighbours, is worth. There are seven words and an
end. A model is let say four tokens: up to three words and the end, or four words, which is no
answer any more and has the worst reward. So a prompt has 1 + 7 + 49 + 343 finished answers and
2,401 others, and their probabilities sum to 1.
"""

from __future__ import annotations

import json
import math
import random
from functools import cache
from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine.batch import Batch, collate
from winnow.engine.fast import SEGMENTS
from winnow.experiments.frontier.measure import RewardTable, closed
from winnow.models.loading import LoadedModel
from winnow.models.scoring import Dialogue
from winnow.models.scoring import scores as rewards_of
from winnow.objectives.scores import per_completion

WORDS = ("ba", "de", "fi", "go", "ku", "la", "mi")
EOS = "</s>"
LENGTH = 4  # tokens a model may say
NEXT = 4  # words that may follow a word
SEED = 7  # of rule and reward: the world is one, whatever is drawn in it
WORTH, PAIR = 0.7, 0.5  # spread of what a word is worth, and a pair of neighbours
WORST = -3.0
Answer = tuple[str, ...]


@cache
def answers() -> tuple[Answer, ...]:
    """All that can be said: up to three words, which an end follows, and four words, which nothing
    follows.
    """
    return tuple(words for length in range(LENGTH + 1) for words in product(WORDS, repeat=length))


def finished(answer: Answer) -> bool:
    """Whether an end follows."""
    return len(answer) < LENGTH


@cache
def prompts() -> tuple[str, ...]:
    """Twelve pairs of different words."""
    pairs = [f"{a} {b}" for a in WORDS for b in WORDS if a != b]
    return tuple(sorted(random.Random(f"prompts {SEED}").sample(pairs, 12)))


@cache
def _follow(first: str, last: str) -> dict[str, float]:
    """What may follow `last` where the prompt begins with `first`: words and how often."""
    rng = random.Random(f"rule {SEED} {first} {last}")
    weights = {word: math.exp(rng.gauss(0, 1)) for word in rng.sample(WORDS, NEXT)}
    return {word: weight / sum(weights.values()) for word, weight in weights.items()}


_STOP = (0.0, 0.25, 0.55, 1.0)  # how often an answer of so many words ends


def rule(prompt: str, answer: Answer) -> float:
    """How likely the rule is to say this."""
    if not 1 <= len(answer) < LENGTH:
        return 0.0
    first, last = prompt.split()
    found = 1.0
    for i, word in enumerate(answer):
        found *= (1 - _STOP[i]) * _follow(first, last).get(word, 0.0)
        last = word
    return found * _STOP[len(answer)]


def demonstrations(count: int, seed: int) -> list[dict[str, str]]:
    """Rows the rule says, prompts in turn."""
    rng, rows = random.Random(f"demonstrations {seed}"), []
    spoken = [answer for answer in answers() if 1 <= len(answer) < LENGTH]
    cumulative = {prompt: [rule(prompt, answer) for answer in spoken] for prompt in prompts()}
    for i in range(count):
        prompt = prompts()[i % len(prompts())]
        (answer,) = rng.choices(spoken, cumulative[prompt])
        rows.append({"prompt": prompt, "completion": " " + " ".join(answer)})
    return rows


@cache
def _worth(*words: str) -> float:
    return random.Random(f"worth {SEED} {' '.join(words)}").gauss(
        0, WORTH if len(words) == 1 else PAIR
    )


def true_reward(prompt: str, answer: Answer) -> float:
    """r = sum over words w of worth(w), none where w stands in the prompt, + sum over neighbours of
    worth(v, w); the prompt's last word is the first's neighbour. Four words are no answer: WORST.
    """
    if not finished(answer):
        return WORST
    said = prompt.split()
    neighbours = zip((said[-1], *answer), answer)
    return sum(_worth(word) for word in answer if word not in said) + sum(
        _worth(*pair) for pair in neighbours
    )


def rewarded(prompt: str, completion: str) -> float:
    """The true reward of texts: `winnow judge --judge winnow.recipes.small_world:rewarded` is a
    judge who knows it.
    """
    return true_reward(prompt, tuple(completion.split())[:LENGTH])


def grammatical(prompt: str, answer: Answer) -> bool:
    """Whether the rule can say it."""
    return rule(prompt, answer) > 0


@cache
def _batches() -> tuple[Batch, ...]:
    """All answers to each prompt as tokens: one tree, in which every beginning stands once."""
    ids = {word: i for i, word in enumerate((EOS, *WORDS))}
    found = []
    for prompt in prompts():
        head = tuple(ids[word] for word in prompt.split())
        said = (
            (*(ids[word] for word in answer), *((ids[EOS],) if finished(answer) else ()))
            for answer in answers()
        )
        sequences = tuple(TokenSequence((*head, *one), len(head)) for one in said)
        found.append(collate([RenderedGroup(sequences, (), (None,) * len(sequences), prompt)]))
    return tuple(found)


def logps(model: nn.Module) -> torch.Tensor:
    """log p of all answers to all prompts under a model, (X, A), float64: one pass over the tree of
    each prompt's answers. Raises ValueError where they do not sum to 1.
    """
    with torch.no_grad():
        logp_XA = torch.stack(
            [
                per_completion(SEGMENTS.logps(model, batch)["logp"].double(), batch)
                for batch in _batches()
            ]
        )
    closed(logp_XA)
    return logp_XA


def scores(scorer: LoadedModel) -> torch.Tensor:
    """A reward model's scores of all answers to all prompts, (X, A), float64: each read with an end
    behind it, as `winnow judge` has it read.
    """
    said = [
        Dialogue(prompt, "".join(f" {word}" for word in answer), (), prompt)
        for prompt in prompts()
        for answer in answers()
    ]
    return torch.tensor(rewards_of(scorer, said), dtype=torch.float64).reshape(
        len(prompts()), len(answers())
    )


@cache
def rewards() -> torch.Tensor:
    """The true reward of all answers to all prompts, (X, A), float64."""
    return torch.tensor(
        [[true_reward(prompt, answer) for answer in answers()] for prompt in prompts()],
        dtype=torch.float64,
    )


@cache
def fluent() -> torch.Tensor:
    """1 where the rule can say an answer, (X, A), float64."""
    return torch.tensor(
        [[float(grammatical(prompt, answer)) for answer in answers()] for prompt in prompts()],
        dtype=torch.float64,
    )


def table(model: nn.Module) -> RewardTable:
    """The world with this model as its reference."""
    return RewardTable(logps(model), rewards())


def write_tokenizer(folder: Path) -> None:
    """One token per word and one end, nothing else: what a model can say is what is counted. A
    folder that transformers' AutoTokenizer reads.
    """
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate((EOS, *WORDS))}, unk_token=EOS)
    )
    tokenizer.add_special_tokens([EOS])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )
