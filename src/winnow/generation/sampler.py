"""Prompts -> completions, with transformers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from winnow.models.adapters import is_adapter
from winnow.models.layers import as_written
from winnow.models.loading import LoadedModel
from winnow.system import signals

# most sequences that are generated together, and most tokens of their caches
ROWS, TOKENS = (
    256,
    2**17,
)
# prompts of a batch are at most so many times as long as its shortest: the rest would be padding
SLACK = 1.25


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. temperature 0 takes the most likely token; `end` is the token that ends a
    completion.
    """

    end: int
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled completion: its tokens without the end token, whether it came to its end by
    itself, and the model's log-prob (nats, at temperature 1, over the whole vocabulary) of each of
    its tokens, the end token's last where there is one.
    """

    ids: tuple[int, ...]
    finished: bool
    logps: tuple[float, ...] = ()


def sample(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    how: Sampling,
    *,
    k: int = 1,
    tick: Callable[[int], None] = lambda n: None,
) -> list[list[Answer]]:
    """`k` completions for every prompt (token ids), in the order of the prompts; see `drawn`."""
    answers: list[list[Answer]] = [[] for _ in prompts]
    for i, made in drawn(loaded, prompts, how, k=k):
        answers[i] = made
        tick(1)
    return answers


def drawn(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    how: Sampling,
    *,
    k: int = 1,
    done: Collection[int] = (),
) -> Iterator[tuple[int, list[Answer]]]:
    """(number of a prompt, its `k` completions), the shortest prompts first, but for those that are
    `done`.

    Each completion has random numbers of its own, which are those of (seed, prompt, number of the
    completion, and how many times the prompt stood before): not the order of the prompts, nor what
    is generated beside it, has a part in them.
    """
    rows = seeds(prompts, how.seed)
    order = sorted(
        (i for i in range(len(prompts)) if i not in done), key=lambda i: (len(prompts[i]), i)
    )
    while order:
        size = _together([len(prompts[i]) for i in order], k, how.max_new_tokens)
        part, order = order[:size], order[size:]
        with torch.no_grad():
            made = _generate(loaded, [prompts[i] for i in part], [rows[i] for i in part], how, k)
        yield from zip(part, made)


def _together(widths: Sequence[int], k: int, room: int) -> int:
    """How many of the prompts of these lengths, in ascending order, make a batch."""
    size = 1
    while size < len(widths):
        fits = k * (size + 1) <= ROWS and k * (size + 1) * (widths[size] + room) <= TOKENS
        if not fits or widths[size] > SLACK * max(widths[0], 16):
            break
        size += 1
    return size


def seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[bytes]:
    """What the random numbers of each prompt come from."""
    found, before = [], Counter[bytes]()
    for prompt in prompts:
        told = hashlib.sha256(f"{seed} {list(prompt)}".encode()).digest()
        found.append(told + before[told].to_bytes(8, "big"))
        before[told] += 1
    return found


def _uniforms(own: Sequence[bytes], k: int, length: int) -> torch.Tensor:
    """A number in [0, 1) for each row and step; a row's are the same whatever the others are."""
    keys = [
        int.from_bytes(hashlib.sha256(seed + j.to_bytes(8, "big")).digest()[:16], "big")
        for seed in own
        for j in range(k)
    ]
    return torch.tensor(
        np.stack([np.random.Generator(np.random.Philox(key=key)).random(length) for key in keys])
    )


class _Draw:
    """Chooses each row's next token: the one in whose span of the cumulative probabilities the
    row's random number falls. It is handed to `generate` as a processor of logits, and leaves it
    one token to take.
    """

    def __init__(self, uniform_RS: torch.Tensor, how: Sampling) -> None:
        self.uniform_RS, self.how, self.logps = uniform_RS, how, list[torch.Tensor]()

    def __call__(self, ids: torch.Tensor, logits_RV: torch.Tensor) -> torch.Tensor:
        warm, own_R = self.how.temperature, self.uniform_RS[:, len(self.logps)]
        chosen_R = (
            choose(logits_RV / warm, own_R, self.how.top_p) if warm > 0 else logits_RV.argmax(-1)
        )
        self.logps.append(logits_RV.log_softmax(-1).gather(1, chosen_R[:, None])[:, 0])
        return torch.full_like(logits_RV, -torch.inf).scatter_(1, chosen_R[:, None], 0.0)


def choose(logits_RV: torch.Tensor, uniform_R: torch.Tensor, top_p: float) -> torch.Tensor:
    """The token of each row at which the cumulative probability passes its number in [0, 1): a draw
    from softmax(logits), of which top_p < 1 keeps the most likely tokens that together have at
    least that probability (A. Holtzman et al., arXiv 1904.09751, section 3.1).
    """
    probability = logits_RV.softmax(-1)
    if top_p < 1:
        sorted_, order = probability.sort(dim=-1, descending=True, stable=True)
        beyond = sorted_.cumsum(-1, dtype=torch.float64) - sorted_ >= top_p
        probability = probability.scatter(1, order, sorted_.masked_fill(beyond, 0.0))
    passed = probability.cumsum(-1, dtype=torch.float64)
    mark = uniform_R.to(passed)[:, None] * passed[:, -1:]
    return torch.searchsorted(passed, mark, right=True)[:, 0].clamp(max=logits_RV.shape[1] - 1)


def _generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    own: Sequence[bytes],
    how: Sampling,
    k: int,
) -> list[list[Answer]]:
    from transformers import GenerationConfig, LogitsProcessorList

    each = k if how.temperature > 0 else 1  # the most likely completion is the same k times
    width = max(len(prompt) for prompt in prompts)
    rows = [prompt for prompt in prompts for _ in range(each)]
    ids = torch.tensor([[how.end] * (width - len(p)) + list(p) for p in rows], device=loaded.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in rows], device=loaded.device)
    draw = _Draw(_uniforms(own, each, how.max_new_tokens).to(loaded.device), how)
    config = GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        eos_token_id=how.end,
        pad_token_id=how.end,
        use_cache=True,
        do_sample=False,
    )
    with (
        _own_settings_aside(loaded.model),
        as_written(loaded.model),
    ):  # a cache grows token by token: each length would be compiled anew
        processors = LogitsProcessorList([draw])
        made = loaded.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=processors,
            **ALONE,
        )
    logps = torch.stack(draw.logps, 1).tolist()
    found = [_answer(row, logp, how.end) for row, logp in zip(made[:, width:].tolist(), logps)]
    return [found[i * each : (i + 1) * each] * (k // each) for i in range(len(prompts))]


def _asked(ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
    """Whether a signal waits: nobody will look at these answers."""
    return torch.full((len(ids),), bool(signals.asked()), device=ids.device)


# other processes do not generate beside this one
ALONE = {
    "stopping_criteria": [_asked],
    "synced_gpus": False,
}


@contextmanager
def _own_settings_aside(model: Any) -> Iterator[None]:
    """A model's own generation_config would fill in what is not asked for (a repetition penalty,
    tokens never to be said, ...): then the samples would not be the policy's.
    """
    from transformers import GenerationConfig

    models = [model, model.get_base_model()] if is_adapter(model) else [model]
    kept = [one.generation_config for one in models]
    try:
        for one in models:
            one.generation_config = GenerationConfig()
        yield
    finally:
        for one, own in zip(models, kept):
            one.generation_config = own


def words(tokenizer: Any, prompt: Sequence[int], answer: Answer) -> str:
    """What an answer says behind its prompt, to the letter: many tokenizers write the blank before
    a word only where something stands before it.
    """
    before, both = (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in (prompt, [*prompt, *answer.ids])
    )
    # less, where an answer ends a letter of its prompt
    alike = next(
        (i for i, (one, other) in enumerate(zip(before, both)) if one != other), len(before)
    )
    return str(both[alike:])


def _answer(row: list[int], logps: list[float], end: int) -> Answer:
    length = row.index(end) if end in row else len(row)
    return Answer(tuple(row[:length]), end in row, tuple(logps[: length + (end in row)]))
