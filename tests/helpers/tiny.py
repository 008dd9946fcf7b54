"""Tiny real parts for tests: models of many families, tokenizers, preference rows. Everything from
a seed.
"""

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
    "gpt2": {
        "vocab_size": 97,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "gemma3_text": {**SHAPE, "head_dim": 8, "sliding_window": 8},
    "mistral": {**SHAPE, "sliding_window": 8},
    "phi3": SHAPE,
    "qwen3_moe": {
        **SHAPE,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 1,
    },
}
# More that the tree engine must be right about, or refuse: soft-caps, sinks, windows, latent
# attention, logit scales ...
SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MORE: dict[str, dict[str, Any]] = {
    "gemma2": {
        **SHAPE,
        "head_dim": 8,
        "sliding_window": 8,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 2.0,
    },
    "gpt_oss": {
        **SHAPE,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
    },
    "gpt_neox": {**SMALL, "intermediate_size": 48},
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128},
    "olmo2": SHAPE,
    "deepseek_v3": {
        **SHAPE,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    },
    "cohere": {**SHAPE, "logit_scale": 0.5},
    "granite": {**SHAPE, "logits_scaling": 2.0},
    "phi": SHAPE,  # a bias on the output layer
    "stablelm": SHAPE,
    "nemotron": SHAPE,
}
ODD: dict[str, dict[str, Any]] = {
    "falcon": SMALL,
    "phimoe": {**SHAPE, "num_local_experts": 4},
    "gptj": {
        "vocab_size": 97,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 4,
        "n_positions": 128,
    },
    "bloom": {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "mamba": {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "qwen3_next": {
        **SHAPE,
        **EXPERTS,
        "head_dim": 8,
        "shared_expert_intermediate_size": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_hidden_layers": 4,
    },
    "llama4_text": {
        **SHAPE,
        "head_dim": 8,
        "attention_chunk_size": 16,
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "no_rope_layers": [1, 0],
    },
}
ROUTED = ("qwen3_moe", "gpt_oss", "deepseek_v3", "phimoe", "qwen3_next", "llama4_text")
TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}{%"
    " if add_generation_prompt %}<|assistant|>{% endif %}"
)


def model(
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    experts: str | None = None,
    **changes: Any,
) -> Any:
    """A random model of a family, in eval mode. `experts`: how its experts are computed ("eager"
    can do float64).
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**(FAMILIES | MORE | ODD)[family], **changes})
    kind = {"experts_implementation": experts} if experts else {}
    return AutoModelForCausalLM.from_config(config, **kind).to(dtype).eval()


def trie(seed: int, depth: int, *, vocabulary: int = 97, most: int = 8) -> RenderedGroup:
    """A group whose sequences part again and again: up to three ways at each of `depth` places,
    pieces of 1 to 6 tokens.
    """
    rng = random.Random(seed)
    found: list[tuple[int, ...]] = []

    def some(longest: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(rng.randint(1, longest)))

    def walk(prefix: tuple[int, ...], left: int) -> None:
        if not left:
            found.append(prefix)
            return
        for _ in range(2 if left == depth else rng.randint(1, 3)):
            walk(prefix + some(6), left - 1)

    prompt = some(12)
    walk(prompt, depth)
    found = found[:most]
    comparisons = tuple(Comparison(i, i + 1) for i in range(len(found) - 1))
    return RenderedGroup(
        tuple(TokenSequence(ids, len(prompt)) for ids in found),
        comparisons,
        (None,) * len(found),
        f"trie:{seed}",
    )


def tokenizer(
    *, bos: bool = True, template: str | None = None, merges: Sequence[tuple[str, str]] = ()
) -> PreTrainedTokenizerFast:
    """Byte-level: 256 bytes, a few special tokens, and merges across words too. `bos`: written
    before plain text.
    """
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>"]
    words = [
        *special,
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *(left + right for left, right in merges),
    ]
    ids = {name: i for i, name in enumerate(words)}
    inner = Tokenizer(models.BPE(ids, merges=list(merges)))
    inner.add_special_tokens(special)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merges)
    inner.decoder = decoders.ByteLevel()
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[2:],
    )
    if template:
        made.chat_template = template
    return made


def folder(path: Path, *, template: str | None = None, seed: int = 0, **changes: Any) -> Path:
    """A tiny Llama with the byte-level tokenizer, saved."""
    made = tokenizer(template=template)
    model(
        "llama",
        seed=seed,
        vocab_size=len(made),
        **{
            "max_position_embeddings": 256,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": None,
            **changes,
        },
    ).save_pretrained(path)
    made.save_pretrained(path)
    return path


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Preference rows: the chosen answer says yes, the rejected one no, of different lengths."""
    rng = random.Random(seed)
    words = ["red", "blue", "green", "round", "small", "large", "old", "new", "warm", "cold"]

    def some(n: int) -> str:
        return " ".join(rng.choice(words) for _ in range(n))

    return [
        {
            "prompt": f"{i}: {some(2)}?",
            "chosen": f" yes, {some(rng.randint(1, 4))}",
            "rejected": f" no, {some(rng.randint(1, 4))}",
        }
        for i in range(count)
    ]


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
        sequences = tuple(
            TokenSequence(
                (*prompt, *(rng.randrange(vocabulary) for _ in range(rng.randint(1, 15)))),
                len(prompt),
            )
            for _ in range(k)
        )
        comparisons = [
            Comparison(i, i + 1, probability=rng.choice([1.0, 0.8]), weight=rng.choice([1.0, 2.0]))
            for i in range(k - 1)
        ]
        made.append(RenderedGroup(sequences, tuple(comparisons), (None,) * k, f"made:{g}"))
    return made
