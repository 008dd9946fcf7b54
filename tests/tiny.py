"""Tiny real parts for tests: models of many families, tokenizers, preference rows. Everything from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from winnow.data.records import Comparison
from winnow.data.render import RenderedGroup, TokenSequence

torch.set_num_threads(1)  # the models are tiny: threads only wait for each other

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "qwen3": {**SHAPE, "head_dim": 8},
    "gpt2": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 0, "eos_token_id": 1},
    "gemma3_text": {**SHAPE, "head_dim": 8, "sliding_window": 8},
    "mistral": {**SHAPE, "sliding_window": 8},
    "phi3": SHAPE,
    "qwen3_moe": {**SHAPE, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1},
}
TEMPLATE = "{{ '<s>' }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def model(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, experts: str | None = None, **changes: Any) -> Any:
    """A random model of a family, in eval mode. `experts`: how its experts are computed ("eager" can do float64)."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
    kind = {"experts_implementation": experts} if experts else {}
    return AutoModelForCausalLM.from_config(config, **kind).to(dtype).eval()


def tokenizer(*, bos: bool = True, template: str | None = None, merges: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """Byte-level: 256 bytes, a few special tokens, and merges across words too. `bos`: written before plain text."""
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    ids = {name: i for i, name in enumerate(words)}
    inner = Tokenizer(models.BPE(ids, merges=list(merges)))
    inner.add_special_tokens(special)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merges)
    inner.decoder = decoders.ByteLevel()
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", additional_special_tokens=special[2:])
    if template:
        made.chat_template = template
    return made


def folder(path: Path, *, template: str | None = None, seed: int = 0, **changes: Any) -> Path:
    """A tiny Llama with the byte-level tokenizer, saved."""
    made = tokenizer(template=template)
    model(
        "llama", seed=seed, vocab_size=len(made), **{"max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, **changes}
    ).save_pretrained(path)
    made.save_pretrained(path)
    return path


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Preference rows: the chosen answer says yes, the rejected one no, of different lengths."""
    rng = random.Random(seed)
    words = ["red", "blue", "green", "round", "small", "large", "old", "new", "warm", "cold"]

    def some(n: int) -> str:
        return " ".join(rng.choice(words) for _ in range(n))

    return [{"prompt": f"{i}: {some(2)}?", "chosen": f" yes, {some(rng.randint(1, 4))}", "rejected": f" no, {some(rng.randint(1, 4))}"} for i in range(count)]


def write(path: Path, rows: list[Any]) -> Path:
    """Rows as a JSON-lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def groups(count: int = 3, *, vocabulary: int = 97, seed: int = 0) -> list[RenderedGroup]:
    """Random token groups of 2, 3, ... completions, with comparisons, some soft and weighted."""
    rng = random.Random(seed)
    made = []
    for g in range(count):
        prompt = [rng.randrange(vocabulary) for _ in range(rng.randint(1, 20))]
        k = 2 + g % 3
        sequences = tuple(TokenSequence((*prompt, *(rng.randrange(vocabulary) for _ in range(rng.randint(1, 15)))), len(prompt)) for _ in range(k))
        comparisons = [Comparison(i, i + 1, probability=rng.choice([1.0, 0.8]), weight=rng.choice([1.0, 2.0])) for i in range(k - 1)]
        made.append(RenderedGroup(sequences, tuple(comparisons), (None,) * k, f"made:{g}"))
    return made
