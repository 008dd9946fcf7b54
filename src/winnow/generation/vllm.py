"""Prompts -> completions with vLLM, where it is installed: the same question as `sample.drawn`,
with random numbers of vLLM's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from winnow.errors import ModelError
from winnow.generation.sampler import Answer, Sampling

TOGETHER = 1024  # prompts that are handed over at once: what is done is on the disk before the next


def engine(source: str, *, dtype: str, trust_remote_code: bool) -> Any:
    """vLLM with a model's folder. Raises ModelError where vLLM is not installed."""
    try:
        from vllm import LLM
    except ImportError as error:
        raise ModelError(
            "sampler: vllm is not installed", remedy="pip install vllm, or leave --sampler away"
        ) from error
    return LLM(
        model=source,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        enable_prefix_caching=True,
        logprobs_mode="raw_logprobs",
    )


def drawn(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[bytes],
    how: Sampling,
    *,
    k: int = 1,
    done: Collection[int] = (),
) -> Iterator[tuple[int, list[Answer]]]:
    """(number of a prompt, its `k` completions), but for those that are `done`. A prompt's seed is
    its own; see `sample.seeds`.
    """
    from vllm import SamplingParams, TokensPrompt

    left = [i for i in range(len(prompts)) if i not in done]
    for start in range(0, len(left), TOGETHER):
        part = left[start : start + TOGETHER]
        each = [
            SamplingParams(
                n=k,
                temperature=how.temperature,
                top_p=how.top_p,
                max_tokens=how.max_new_tokens,
                stop_token_ids=[how.end],
                logprobs=0,
                seed=int.from_bytes(hashlib.sha256(seeds[i]).digest()[:4], "big"),
            )
            for i in part
        ]
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=list(prompts[i])) for i in part], each, use_tqdm=False
        )
        yield from (
            (i, [_answer(one, how.end) for one in output.outputs])
            for i, output in zip(part, outputs)
        )


def _answer(output: Any, end: int) -> Answer:
    ids = list(output.token_ids)
    logps = tuple(step[token].logprob for step, token in zip(output.logprobs, ids))
    finished = bool(ids) and ids[-1] == end
    return Answer(tuple(ids[:-1] if finished else ids), finished, logps)
