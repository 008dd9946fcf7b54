"""Prompts -> completions, with transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from winnow import signals
from winnow.layers import as_written
from winnow.models import LoadedModel, is_adapter

ROWS = 256  # sequences generated together: short ones cost little memory


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. temperature 0 takes the most likely token; `end` is the token that ends a completion."""

    end: int
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled completion: its tokens without the end token, and whether it came to its end by itself."""

    ids: tuple[int, ...]
    finished: bool


def sample(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], how: Sampling, *, k: int = 1, tick: Callable[[int], None] = lambda n: None
) -> list[list[Answer]]:
    """`k` completions for every prompt (token ids), in the order of the prompts. The seed fixes all of them together."""
    answers: list[list[Answer]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    per_batch = max(1, ROWS // k)
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(how.seed)
        for start in range(0, len(order), per_batch):
            part = order[start : start + per_batch]
            for i, made in zip(part, _generate(loaded, [prompts[i] for i in part], how, k)):
                answers[i] = made
            tick(len(part))
    return answers


def _generate(loaded: LoadedModel, prompts: Sequence[Sequence[int]], how: Sampling, k: int) -> list[list[Answer]]:
    from transformers import GenerationConfig

    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[how.end] * (width - len(p)) + list(p) for p in prompts], device=loaded.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=loaded.device)
    sampling = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": 0} if how.temperature > 0 else {"do_sample": False}
    config = GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        num_return_sequences=k if how.temperature > 0 else 1,
        eos_token_id=how.end,
        pad_token_id=how.end,
        use_cache=True,
        **sampling,
    )
    with _own_settings_aside(loaded.model), as_written(loaded.model):  # a cache grows token by token: each length would be compiled anew
        rows = loaded.model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **ALONE)[:, width:].tolist()
    repeat = 1 if how.temperature > 0 else k  # the most likely completion is the same k times
    found = [_answer(row, how.end) for row in rows]
    each = len(found) // len(prompts)
    return [found[i * each : (i + 1) * each] * repeat for i in range(len(prompts))]


def _asked(ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
    """Whether a signal waits: nobody will look at these answers."""
    return torch.full((len(ids),), bool(signals.asked()), device=ids.device)


ALONE = {"stopping_criteria": [_asked], "synced_gpus": False}  # other processes do not generate beside this one


@contextmanager
def _own_settings_aside(model: Any) -> Iterator[None]:
    """A model's own generation_config would fill in what is not asked for (a repetition penalty, tokens never to be said, ...): then
    the samples would not be the policy's.
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


def _answer(row: list[int], end: int) -> Answer:
    return Answer(tuple(row[: row.index(end)]), True) if end in row else Answer(tuple(row), False)
