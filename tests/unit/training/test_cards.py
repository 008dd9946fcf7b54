"""What an 8B model takes on which card: the estimate against arithmetic done by hand, and what
`winnow check` says where it is too much.

From a folder that holds a configuration and no weights, for a GPU that is not there.
"""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoConfig

import runs
import tiny
from paths import ROOT
from winnow.config.evaluation import CheckSettings
from winnow.config.options import parse_lora
from winnow.config.resolve import resolve
from winnow.config.training import TrainSettings
from winnow.data.dataset import Wanted
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine.batch import collate
from winnow.models import adapters, loading, meta, quantization
from winnow.training import memory, plan
from winnow.training.memory import HOLES_GPU, estimate

GPU = torch.device("cuda")
GIB = 2**30
# Llama-3-8B: width, feed-forward width, keys' and values' width, layers, vocabulary
H, F, K, L, V = 4096, 14336, 1024, 32, 128256
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": H,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "vocab_size": V,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "attention_bias": False,
    "mlp_bias": False,
}
# of a layer: query, key, value, output, gate, up, down
MATRICES = [
    (H, H),
    (H, K),
    (H, K),
    (H, H),
    (H, F),
    (H, F),
    (F, H),
]
PARAMETERS = 2 * V * H + L * (sum(a * b for a, b in MATRICES) + 2 * H) + H
ADAPTER = 16 * L * sum(a + b for a, b in MATRICES)  # r=16 beside each of them
PROMPT, ANSWER = 512, 768  # tokens of a pair: 2,048 distinct ones
CARDS = (16, 24, 40, 80, 140)

WAYS = {
    "all weights": {},
    "all weights, `--checkpointing`": {"checkpointing": True},
    "`--lora r=16`": {"lora": "r=16"},
    "`--lora r=16 --checkpointing`": {"lora": "r=16", "checkpointing": True},
    "`--lora r=16 --quantize nf4`": {"lora": "r=16", "quantize": "nf4"},
    "`--lora r=16 --quantize nf4 --checkpointing`": {
        "lora": "r=16",
        "quantize": "nf4",
        "checkpointing": True,
    },
}


def pair(number, prompt=PROMPT, answer=ANSWER):
    ids = tuple((number + i) % 251 for i in range(prompt + answer))
    return RenderedGroup(
        tuple(TokenSequence((*ids[:prompt], k, *ids[prompt + 1 :]), prompt) for k in (252, 253)),
        (),
        (None, None),
        f"pair:{number}",
    )


def needs(pairs=1, layers=L, prompt=PROMPT, answer=ANSWER, **changes):
    """What a training step on a GPU takes whose micro-batch is so many pairs."""
    config = AutoConfig.for_model(**{**SHAPE, "num_hidden_layers": layers})
    settings = TrainSettings(model="made", data=["made"], out="made", **changes)
    return estimate(
        config,
        collate([pair(i, prompt, answer) for i in range(pairs)]),
        torch.bfloat16,
        settings,
        device=GPU,
    )


@pytest.fixture
def without_activations(monkeypatch):
    """What does not depend on the batch needs no forward pass."""
    monkeypatch.setattr(memory, "_alive", lambda *args: (0, 0))


def test_the_shape_is_that_of_llama_3_8b():
    with torch.device("meta"):
        model = adapters.with_lora(
            meta.outline(AutoConfig.for_model(**SHAPE), torch.bfloat16), parse_lora("r=16"), 0
        )
    assert loading.parameter_counts(model) == {"total": PARAMETERS + ADAPTER, "trainable": ADAPTER}
    assert (PARAMETERS, ADAPTER) == (8_030_261_248, 41_943_040)


def test_all_weights_take_18_bytes_each(without_activations):
    """A weight in bfloat16; its gradient, its master and two moments in float32."""
    found = needs()
    assert (found.weights, found.gradients, found.optimizer, found.reference) == (
        2 * PARAMETERS,
        4 * PARAMETERS,
        12 * PARAMETERS,
        0,
    )
    assert needs(optimizer="rmsprop").optimizer == 8 * PARAMETERS


def test_an_adapters_take_16_bytes_and_the_others_2(without_activations):
    """An adapter's own are float32, so they need no masters."""
    found = needs(lora="r=16")
    assert (found.weights, found.gradients, found.optimizer) == (
        2 * PARAMETERS + 4 * ADAPTER,
        4 * ADAPTER,
        8 * ADAPTER,
    )


def test_in_4_bits_matrices_take_a_quarter_and_the_others_2_bytes(without_activations):
    """Embeddings, norms and output layer stay as they are."""
    found, matrices = needs(lora="r=16", quantize="nf4"), L * sum(a * b for a, b in MATRICES)
    tables = L * len(MATRICES) * 4 * (16 + 256 + 1)
    assert (
        found.weights
        == matrices * (1 / 2 + 1 / 64 + 4 / 64 / 256)
        + tables
        + 2 * (PARAMETERS - matrices)
        + 4 * ADAPTER
    )
    plain = needs(lora="r=16")
    assert (found.gradients, found.optimizer) == (plain.gradients, plain.optimizer)
    # one matrix at a time is unpacked
    assert found.activations - plain.activations == pytest.approx(HOLES_GPU * 2 * H * F, abs=1)


# What autograd keeps of a token in each layer, in bytes. In any case: the inputs of two norms, in
# float32; queries, keys, values and outputs of the attention, of queries and keys those that were
# turned; gate, its silu, up.
BOTH = 2 * 4 * H + 2 * (H + K + K + H) + 2 * 3 * F
KEPT = {
    # The last: what the two norms' weights were multiplied with; the inputs of the matrices, three
    # of width H.
    "all": (BOTH + 2 * 2 * H + 2 * (3 * H + F)),
    # the input of each of the seven matrices, in the adapter's float32
    "adapter": (BOTH + 4 * (6 * H + F)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"), [("all", {}), ("adapter", {"lora": "r=16"})], ids=["all", "adapter"]
)
def test_activations_are_what_autograd_keeps_of_each_token(kind, changes):
    """Two layers of this width; what a pair more adds, and a layer more."""
    one, longer, deeper = (
        needs(pairs, layers, 64, 96, **changes).activations
        for pairs, layers in ((4, 2), (8, 2), (4, 4))
    )
    tokens = 4 * (64 + 2 * 96)
    assert deeper - one == pytest.approx(HOLES_GPU * 2 * tokens * KEPT[kind], rel=0.03)
    # and what stands beside the layers
    assert longer - one == pytest.approx(HOLES_GPU * 2 * tokens * KEPT[kind], rel=0.25)


@pytest.mark.slow
def test_recomputing_keeps_the_inputs_of_layers():
    one, deeper = (
        needs(4, layers, 64, 96, lora="r=16", checkpointing=True).activations for layers in (2, 4)
    )
    assert deeper - one == pytest.approx(HOLES_GPU * 2 * 4 * (64 + 2 * 96) * 2 * H, rel=0.03)


# ---------------------------------------------------------------- what is said of the whole model


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Its configuration, a tokenizer and such pairs; planned for a GPU with bitsandbytes, and each
    question asked once, since an answer takes seconds.
    """
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(SHAPE))
    text = "abcdefghij" * 100
    # BOS, end tokens
    rows = [
        {
            "prompt": f"{i}" + text[: PROMPT - 2],
            "chosen": "y" + text[: ANSWER - 2],
            "rejected": "n" + text[: ANSWER - 2],
        }
        for i in range(4)
    ]
    tiny.write(tmp_path / "pairs.jsonl", rows)
    known = {}

    def memory_of(settings, train_set, tokens, ask=plan.memory_of):
        key = (
            tokens,
            parse_lora(settings.lora),
            settings.checkpointing,
            settings.quantize,
            settings.optimizer,
        )
        if key not in known:
            known[key] = ask(settings, train_set, tokens)
        return known[key]

    monkeypatch.setattr(plan, "memory_of", memory_of)
    monkeypatch.setattr(quantization, "refuse", lambda device: None)
    monkeypatch.setattr(plan, "pick_device", lambda name: GPU)
    return tmp_path


def table():
    """The rows of the table in docs/memory.md, by their first cell."""
    text = (ROOT / "docs" / "memory.md").read_text()
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.slow
def test_what_is_said_on_each_card_and_the_table_in_the_docs(world, monkeypatch, capsys):
    """Of six ways to train: what is needed, and the one change that makes it fit where there is
    one.
    """
    rows, seen = table(), {}
    for way, changes in WAYS.items():
        settings = resolve(
            CheckSettings,
            {"model": str(world / "model"), "data": [str(world / "pairs.jsonl")], **changes},
        ).settings
        train_set = plan.prepared(settings, Wanted("preference"))[1](0)
        found = plan.memory_of(settings, train_set, 2048)
        parts = (
            found.weights,
            found.gradients,
            found.optimizer,
            found.activations + found.head,
            found.total,
        )
        assert rows[way][:5] == [f"{part / GIB:.2f}" for part in parts]
        for card in CARDS if "--lora r=16 --checkpointing" in way else CARDS[1:]:
            monkeypatch.setattr(plan, "available", lambda device, card=card: card * GIB)
            line = plan.memory_line(settings, train_set, 2048)
            assert ("87% of the frozen weights in 4 bits" in line) == ("quantize" in changes)
            assert line.startswith(f"memory: about {rows[way][4]} GiB of {card}.0 free")
            advice = re.search(r"it will not fit: (.*) would need ([\d.]+) GiB", line)
            assert ("it will not fit" in line) == (found.total > card * GIB) == (advice is not None)
            seen[way, card] = (re.sub(r" \([^)]*\)", "", advice[1]), advice[2]) if advice else None
    total = {way: rows[way][4] for way in WAYS}
    few, fewer = (
        total["`--lora r=16 --checkpointing`"],
        total["`--lora r=16 --quantize nf4 --checkpointing`"],
    )
    assert [seen["all weights", card] for card in (140, 80, 40)] == 3 * [
        ("--lora auto", total["`--lora r=16`"])
    ]
    assert seen["all weights", 24] == ("--checkpointing and --lora auto together", few)
    assert seen["`--lora r=16`", 24] == ("--checkpointing", few)
    assert seen["`--lora r=16 --checkpointing`", 16] == ("--quantize nf4", fewer)
    assert seen["`--lora r=16 --quantize nf4`", 24] == ("--checkpointing", fewer)

    monkeypatch.setattr(plan, "available", lambda device: 16 * GIB)
    words = [
        "--model",
        world / "model",
        "--data",
        world / "pairs.jsonl",
        "--max-tokens",
        2048,
        "--lora",
        "r=16",
        "--checkpointing",
    ]
    # and the command itself, from a folder without a weight in it
    assert runs.winnow(monkeypatch, "check", *words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"memory: about {few} GiB of 16.0 free" in said
    assert (
        "it will not fit: --quantize nf4 (frozen weights in 4 bits, by bitsandbytes) would need"
        f" {fewer} GiB" in said
    )


def test_the_rest_of_the_table_follows():
    """Four times the tokens by what each token adds; the card from the total."""
    more = 6144 * HOLES_GPU / GIB
    for way, changes in WAYS.items():
        few, few_on, many, many_on = table()[way][4:]
        added, kept = float(many) - float(few), KEPT["adapter" if "lora" in changes else "all"]
        if "checkpointing" in changes:
            assert more * 2 * H * L < added < more * (2 * H * L + 2 * kept)
        else:
            assert added == pytest.approx(more * kept * L, rel=0.03)
        for total, card in ((few, few_on), (many, many_on)):
            assert card == str(next((size for size in CARDS if float(total) <= size), "none"))
