"""A world that can be counted: three words and an end, at most three tokens, so 40 answers to each
of four prompts. For PPO's test and bench.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine.batch import collate
from winnow.engine.fast import SEGMENTS
from winnow.objectives.scores import per_completion

WORDS, END, LONGEST = ("ba", "de", "fi"), "</s>", 3
PROMPTS = ("ba de", "de fi", "fi ba", "de ba")
ANSWERS = [words for length in range(LONGEST + 1) for words in product(WORDS, repeat=length)]
JUDGE = """
WORTH = {"ba": 0.6, "de": -0.5, "fi": 0.2}

def worth(prompt, completion):
    words = completion.split()
    echo = 0.4 * (words[:1] == prompt.split()[-1:])
    return sum(WORTH[word] for word in words) + echo - 0.3 * len(words)

def told(prompt, completion, last):
    words = completion.split()
    return sum(WORTH[word] for word in words) + 0.4 * (words[:1] == [last]) - 0.3 * len(words)

def broken(prompt, completion):
    raise KeyError("no such word")

def odd(prompt, completion):
    return float("nan") if prompt == "fi ba" else 1.0

def none(prompt, completion):
    return None

def words(prompt, completion):
    return "7"

def one_text(completion):
    return 1.0
"""


def rewards() -> torch.Tensor:
    """Of all answers to all prompts, (X, A)."""
    space: dict[str, Any] = {}
    exec(JUDGE, space)
    return torch.tensor(
        [[space["worth"](prompt, " ".join(answer)) for answer in ANSWERS] for prompt in PROMPTS],
        dtype=torch.float64,
    )


def write_world(root: Path, seed: int = 0) -> Path:
    """model/, scorer/ (random ones, drawn by the seed), prompts.txt, and a module of rewards, right
    ones and broken ones.
    """
    inner = Tokenizer(
        tokenizer_models.WordLevel({word: i for i, word in enumerate((END, *WORDS))}, unk_token=END)
    )
    inner.add_special_tokens([END])
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END)
    shape: dict[str, Any] = {
        "vocab_size": 4,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(seed)
    config = LlamaConfig(
        **shape,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(root / "model")
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(root / "scorer")
    for name in ("model", "scorer"):
        tokenizer.save_pretrained(root / name)
    (root / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (root / "judge_of_words.py").write_text(JUDGE)
    return root


def everything() -> list[RenderedGroup]:
    """All answers to each prompt."""
    ids = {word: i for i, word in enumerate((END, *WORDS))}
    groups = []
    for prompt in PROMPTS:
        head = tuple(ids[word] for word in prompt.split())
        said = [
            (*(ids[word] for word in answer), *((0,) if len(answer) < LONGEST else ()))
            for answer in ANSWERS
        ]
        groups.append(
            RenderedGroup(
                tuple(TokenSequence((*head, *one), len(head)) for one in said),
                (),
                (None,) * len(said),
                prompt,
            )
        )
    return groups


def distribution(model: Any) -> torch.Tensor:
    """log p of all answers to all prompts, (X, A)."""
    with torch.no_grad():
        found = []
        for group in everything():
            batch = collate([group])
            found.append(per_completion(SEGMENTS.logps(model, batch)["logp"].double(), batch))
    return torch.stack(found)


def distance(logp_XA: torch.Tensor, start_XA: torch.Tensor, beta: float) -> float:
    """Mean over prompts of KL(pi || pi*), pi* = pi_ref exp(r / beta) / Z."""
    best_XA = (start_XA + rewards() / beta).log_softmax(-1)
    return float((logp_XA.exp() * (logp_XA - best_XA)).sum(-1).mean())
