"""Frozen weights in 4 bits: what is refused, what is held, and every part of it computed on a CPU
where bitsandbytes is installed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import runs
import tiny
from winnow import api
from winnow.config.model_spec import ModelSpec
from winnow.config.options import Lora
from winnow.config.training import TrainSettings
from winnow.engine import head, rows, selection
from winnow.engine.batch import collate
from winnow.engine.fast import SEGMENTS
from winnow.engine.fingerprint import fingerprint, same_model
from winnow.errors import ModelError, RunError
from winnow.models import adapters, hashes, loading, meta, model_folder, quantization
from winnow.system.files import read_json
from winnow.system.run_folder import RunFolder
from winnow.training import memory, plan
from winnow.training import run as training
from winnow.training.utilization import limit_of

FOUR = {"lora": "r=4", "quantize": "nf4"}
# 64 weights of a row share a scale: on a CPU bitsandbytes reads shorter rows with the wrong ones
WIDE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 263,
}
SHAPES = {
    "llama": {**WIDE, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 263},
    "gemma2": {**WIDE, "head_dim": 16, "num_key_value_heads": 2, "sliding_window": 8},
    "opt": {**WIDE, "ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi": WIDE,
    "phi3": {**WIDE, "pad_token_id": 0},
}
EXPERTS = {"qwen3_moe": tiny.FAMILIES["qwen3_moe"], "deepseek_v3": tiny.MORE["deepseek_v3"]}


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny.folder(
        root / "model",
        max_position_embeddings=96,
        **{name: value for name, value in SHAPES["llama"].items() if name != "vocab_size"},
    )
    tiny.write(root / "train.jsonl", tiny.pairs(24))
    tiny.write(root / "held.jsonl", tiny.pairs(8, seed=1))
    return root


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def refused(world, tmp_path, monkeypatch, capsys):
    """What a command says, none of which may read a weight."""

    def loads(*args, **kwargs):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loads)

    def call(command, *words, model=world / "model"):
        out = ["--out", tmp_path / "run"] if command in ("dpo", "sft") else []
        data = ["--prompt", "hello"] if command == "generate" else ["--data", world / "train.jsonl"]
        code = runs.winnow(
            monkeypatch, command, "--model", model, *data, *out, "--quantize", "nf4", *words
        )
        assert not (tmp_path / "run" / "config.yaml").exists()
        assert code == 2
        return " ".join(capsys.readouterr().err.split())

    return call


@pytest.mark.parametrize("command", ["dpo", "sft", "check", "eval", "generate"])
def test_another_device_than_a_gpu_is_refused(refused, command):
    said = refused(
        command,
        "--device",
        "cpu",
        *(["--lora", "auto"] if command in ("dpo", "sft", "check") else []),
    )
    assert "on a GPU only, and the device is cpu" in said
    assert "leave --quantize away" in said
    assert "winnow export RUN --out DIR --merge" in said


@pytest.mark.parametrize("command", ["dpo", "sft", "check"])
def test_training_without_an_adapter_is_refused(refused, command):
    assert "there is no adapter to train beside them -> --lora auto" in refused(command)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--lora", "auto", "--dtype", "float32"],
            "computed with in bfloat16, got dtype float32: leave dtype away",
        ),
        (
            ["--lora", "auto", "--dtype", "float64"],
            "computed with in bfloat16, got dtype float64: leave dtype away",
        ),
        (["--lora", "auto", "--compile"], "compile and quantize"),
        (["--quantize", "int8"], "'int8' is not 'nf4'"),
    ],
)
def test_settings_that_contradict_it_are_refused(refused, words, told):
    assert told in refused("dpo", *words)


def test_settings_of_an_evaluation_too(refused):
    assert "computed with in bfloat16" in refused("eval", "--dtype", "float32")


@pytest.fixture
def as_if_on_a_gpu(monkeypatch):
    """Planning for a GPU that is not there."""
    monkeypatch.setattr(plan, "pick_device", lambda name: torch.device("cuda"))


def test_without_bitsandbytes_it_is_refused(refused, as_if_on_a_gpu, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest),
    )
    assert "bitsandbytes is not installed -> pip install bitsandbytes" in refused(
        "dpo", "--lora", "auto"
    )


@pytest.fixture
def anywhere(monkeypatch):
    """As if device and package were right."""
    monkeypatch.setattr(quantization, "refuse", lambda device: None)


def test_a_model_that_is_quantised_already_is_refused(refused, anywhere, world, tmp_path):
    folder = tiny.folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(
            {
                **config,
                "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
            }
        )
    )
    assert "quantised already" in refused("check", "--lora", "auto", model=folder)


def test_a_model_with_layers_of_its_own_kind_is_refused(refused, anywhere, tmp_path):
    """Falcon's linear layers are a class of their own, which transformers passes over with a line
    in its log.
    """
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model("falcon", **{**WIDE, "bos_token_id": 0, "eos_token_id": 1})
    ).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    assert "no layer of it can be held in 4 bits" in refused(
        "dpo", "--lora", "targets=query_key_value", model=tmp_path / "model"
    )


# ---------------------------------------------------------------- what is held


def test_a_weight_takes_4_127_bits():
    """Sixteen values, a scale of 8 bits for 64 of them, one of 32 bits for 256 scales (QLoRA,
    section 3).
    """
    large = 4096 * 14336
    assert quantization.packed_bytes(large) == large // 2 + large // 64 + 4 * (
        large // 64 // 256
    ) + 4 * (16 + 256 + 1)
    assert 8 * quantization.packed_bytes(large) / large == pytest.approx(4.127, abs=5e-4)
    # what does not divide is rounded up
    assert quantization.packed_bytes(65) == 33 + 2 + 4 + 4 * 273


def outlined(family, lora=None):
    with torch.device("meta"):
        model = meta.outline(
            AutoConfig.for_model(family, **{**SHAPES, **EXPERTS}[family]), torch.bfloat16
        )
        return model if lora is None else adapters.with_lora(model, lora, 0)


def packable_in(model):
    return {
        name: p
        for name, p in model.named_parameters()
        if any(p is one for one in quantization.packable(model))
    }


@pytest.mark.parametrize("family", [*SHAPES, *EXPERTS])
def test_frozen_layers_are_packed_and_nothing_else(family):
    """Not the output layer, tied or not, nor embeddings, nor a mixture's experts, which are no
    linear layers, nor what trains.
    """
    model = outlined(family)
    assert packable_in(model) == {}
    found = packable_in(model.requires_grad_(False))
    assert found
    assert all(p.ndim == 2 for p in found.values())
    assert not any(
        word in name
        for name in found
        for word in ("embed", "wte", "wpe", "lm_head", "norm", ".experts.")
    )


@pytest.mark.parametrize("lora", [Lora(r=2), Lora(r=2, targets=("lm_head",))])
def test_layers_under_an_adapter_are_packed_and_the_adapter_is_not(lora):
    plain = set(packable_in(outlined("llama").requires_grad_(False)))
    for adapted in (
        outlined("llama", lora),
        outlined("llama", lora).requires_grad_(False),
    ):  # one that trains, and one that is looked at
        assert {
            name.replace("base_model.model.", "").replace(".base_layer", "")
            for name in packable_in(adapted)
        } == plain


@pytest.mark.slow
def test_the_estimate_holds_matrices_packed_and_the_rest_as_it_was():
    config = AutoConfig.for_model("llama", **SHAPES["llama"])
    batch = collate([tiny.trie(i, 2) for i in range(3)])
    plain, packed = (
        memory.estimate(
            config,
            batch,
            torch.bfloat16,
            TrainSettings(model="made", data=["made"], out="made", **changes),
        )
        for changes in ({"lora": "r=4"}, FOUR)
    )
    layers = 2 * [64 * 64, 32 * 64, 32 * 64, 64 * 64, 128 * 64, 128 * 64, 64 * 128]
    assert plain.weights - packed.weights == sum(
        2 * n - quantization.packed_bytes(n) for n in layers
    )
    # the largest matrix, unpacked
    assert packed.activations - plain.activations == pytest.approx(
        memory.HOLES_ADAPTER * 2 * 128 * 64, abs=1
    )
    assert (packed.gradients, packed.optimizer, packed.head) == (
        plain.gradients,
        plain.optimizer,
        plain.head,
    )


@pytest.mark.parametrize(
    ("changes", "device", "named"),
    [
        ({"lora": "auto"}, "cuda", True),
        ({"lora": "auto", "dtype": "bfloat16"}, "cuda", True),
        ({"lora": "auto"}, "cpu", False),
        ({}, "cuda", False),
        ({"lora": "auto", "dtype": "float32"}, "cuda", False),
        ({"lora": "auto", "compile": True}, "cuda", False),
        (FOUR, "cuda", False),
    ],
)
def test_it_is_a_remedy_where_it_would_be_taken(changes, device, named):
    asked = TrainSettings(model="made", data=["made"], out="made", **changes)
    found = dict(memory.remedies(asked, 256, 256, torch.device(device)))
    assert ({"quantize": "nf4"} in found.values()) == named
    assert not (asked.compile and {"checkpointing": True} in found.values())
    for change in (
        *found.values(),
        *(change for _, change in memory.together(asked, torch.device(device))),
    ):
        TrainSettings(**{**asked.model_dump(by_alias=True), **change})  # none that would be refused


# ---------------------------------------------------------------- computed


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """bitsandbytes on the CPU, as it computes on a GPU: without the layout of its own that some
    processors get.
    """
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="an extra (quantize)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(quantization, "refuse", lambda device: None)
        patch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
        yield bitsandbytes


def saved(family, path, **changes):
    """A model of a family with the tests' tokenizer."""
    torch.manual_seed(0)
    shape = {
        "bos_token_id": 0,
        "eos_token_id": 1,
        **{**SHAPES, **EXPERTS}[family],
        "vocab_size": 263,
        **changes,
    }
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


def load(name, **settings):
    settings = {"quantize": "nf4", **settings}
    spec = ModelSpec(name, settings.pop("dtype", "float32"), device="cpu")
    return loading.load(spec, **settings)


def packed_in(model):
    return {name: p for name, p in model.named_parameters() if quantization.scales(p)}


@pytest.mark.parametrize("family", [*SHAPES, *EXPERTS])
@pytest.mark.slow
def test_the_outline_tells_what_is_packed_to_the_byte(on_cpu, family, tmp_path):
    name = saved(family, tmp_path / "model")
    four, outline = (
        load(name, dtype="bfloat16").model,
        meta.outline(model_folder.load_config(ModelSpec(name)), torch.bfloat16).requires_grad_(
            False
        ),
    )
    found = packed_in(four)
    assert {key: quantization.count(p) for key, p in found.items()} == {
        key: p.numel() for key, p in packable_in(outline).items()
    }
    # that one is text about the others
    parts = [
        t
        for p in found.values()
        for part, t in quantization.scales(p).items()
        if "bitsandbytes__" not in part
    ]
    mean_scales = 4 * len(found)
    assert sum(p.nbytes for p in four.parameters()) + sum(
        t.nbytes for t in parts
    ) + mean_scales == memory.held(outline, "nf4")


def test_weights_in_4_bits_are_counted_as_weights(on_cpu, tmp_path):
    """By what a run prints and by the arithmetic a step is held against, where a byte that holds
    two would be one.
    """
    name = saved("llama", tmp_path / "model")
    four, plain = (
        load(name, quantize=quantize, lora=Lora(r=2)).model for quantize in ("nf4", None)
    )
    assert loading.parameter_counts(four) == loading.parameter_counts(plain)
    ours, theirs = (limit_of(model, torch.device("cpu")) for model in (four, plain))
    assert (ours.per_token, ours.per_scored, ours.per_position) == (
        theirs.per_token,
        theirs.per_scored,
        theirs.per_position,
    )


NF4 = [  # QLoRA, appendix E
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


def rounded_to_4_bits(weight, scale):
    """Each weight over the largest of its 64, to the nearest of sixteen values, and back by the
    scale that is kept of that.
    """
    block, values = weight.reshape(-1, 64), torch.tensor(NF4)
    peak = block.abs().amax(1)
    torch.testing.assert_close(scale, peak, rtol=0.02, atol=0)  # in 8 bits
    return (
        values[((block / peak[:, None])[..., None] - values).abs().argmin(-1)] * scale[:, None]
    ).reshape(weight.shape)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_log_probs_are_those_of_the_rounded_weights(on_cpu, family, tmp_path):
    """A model whose matrices were rounded to 4 bits and back; the output layer is as it was."""
    name = saved(family, tmp_path / "model")
    four, rounded = load(name).model, load(name, quantize=None).model
    batch = collate(tiny.groups(3, vocabulary=263))
    with torch.no_grad():
        before = rows.logps(rounded, batch)["logp"]
        for key, p in packed_in(four).items():
            scale = (
                on_cpu.functional.dequantize_blockwise(p.quant_state.absmax, p.quant_state.state2)
                + p.quant_state.offset
            )
            own = rounded.get_parameter(key)
            turned = own.T if family == "gpt2" else own  # kept the other way round there
            turned.copy_(rounded_to_4_bits(turned, scale))
        found = rows.logps(four, batch)["logp"]
        torch.testing.assert_close(found, rows.logps(rounded, batch)["logp"], rtol=0, atol=1e-5)
    assert float((found - before).abs().max()) > 2e-2
    assert torch.equal(
        head.head_of(four).weight,
        head.head_of(load(name, quantize=None).model).weight,
    )


def test_a_models_hash_knows_its_scales(on_cpu, tmp_path):
    """All matrices times four are the same 4 bits with other scales."""
    name = saved("llama", tmp_path / "model")
    first = load(name)
    assert hashes.weights_hash(first.model) == hashes.weights_hash(load(name).model)
    assert hashes.source_hash(first.model) != hashes.source_hash(load(name, quantize=None).model)
    plain = load(name, quantize=None)
    with torch.no_grad():
        for key in packed_in(first.model):
            plain.model.get_parameter(key).mul_(4)
    loading.save(plain.model, plain.tokenizer, tmp_path / "times_four")
    other = load(str(tmp_path / "times_four"))
    assert all(
        torch.equal(one.data, two.data)
        for one, two in zip(packed_in(first.model).values(), packed_in(other.model).values())
    )
    assert hashes.weights_hash(other.model) != hashes.weights_hash(first.model)
    assert hashes.source_hash(other.model) != hashes.source_hash(first.model)


def test_a_new_adapter_says_what_its_base_in_4_bits_says(on_cpu, tmp_path):
    name = saved("llama", tmp_path / "model")
    base, batch = load(name).model, collate(tiny.groups(3, vocabulary=263))
    for lora, seed in (
        (Lora(r=4), 0),
        (Lora(r=2, targets=("q_proj",)), 1),
        (Lora(r=2, targets=("lm_head",)), 2),
    ):
        adapted = load(name, lora=lora, seed=seed).model
        assert hashes.source_hash(adapted, new_adapter=True) == hashes.source_hash(base)
        assert all("lora_" in key for key, p in adapted.named_parameters() if p.requires_grad)
        with torch.no_grad():
            assert torch.equal(rows.logps(adapted, batch)["logp"], rows.logps(base, batch)["logp"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_fast_engine_is_proved_on_it(on_cpu, family, checkpointing, tmp_path):
    """In values and gradients, against padded rows of the same model."""
    loaded = load(saved(family, tmp_path / "model"), lora=Lora(r=4))
    if checkpointing:
        training.enable_checkpointing(loaded.model)
    with torch.no_grad():
        for key, p in loaded.model.named_parameters():
            if "lora_B" in key:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(key)))
    choice = selection.choose(loaded.model, 263, 60)
    assert (choice.engine, choice.passed_over) == (SEGMENTS, ())
    batch = collate(selection.trees(263, 60))
    truth, seen = (
        selection._look(engine, loaded.model, batch, True) for engine in (rows, SEGMENTS)
    )
    assert len(truth.gradients) == sum(p.requires_grad for p in loaded.model.parameters()) > 0
    assert all(g.any() for g in truth.gradients.values())
    assert selection.distance(truth, seen) < 1e-4


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.slow
def test_a_step_holds_what_was_estimated(on_cpu, checkpointing, tmp_path):
    """Beside the weights. The matrix that a layer unpacks need not be there at the worst moment."""
    name = saved(
        "llama", tmp_path / "model", hidden_size=256, intermediate_size=1024, num_hidden_layers=4
    )
    asked = TrainSettings(
        model=name, data=["made"], out="made", checkpointing=checkpointing, **FOUR
    )
    loaded = load(name, dtype="bfloat16", lora=Lora(r=4))
    batch = collate([tiny.trie(i, 2) for i in range(6)])
    outline = memory._outline(model_folder.load_config(ModelSpec(name)), torch.bfloat16, asked)
    expected = memory._alive(outline, batch, asked, SEGMENTS)[0] + 2 * 256 * 1024
    if checkpointing:
        training.enable_checkpointing(loaded.model)
    for p in loaded.model.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    held = [
        *loaded.model.parameters(),
        *loaded.model.buffers(),
        *(p.grad for p in loaded.model.parameters() if p.grad is not None),
    ]
    scales = [t for p in loaded.model.parameters() for t in quantization.scales(p).values()]
    with head.own_scratch(), memory._Alive([*held, *scales]) as alive:
        SEGMENTS.backward(
            loaded.model,
            batch,
            lambda columns, part: {"logp": torch.zeros_like(columns["logp"])},
            ("entropy",),
        )
    assert 0.85 * expected < alive.most <= expected


def test_an_adapter_on_matrices_kept_the_other_way_round_fits_the_plain_model(on_cpu, tmp_path):
    """GPT-2's, which are turned when they are packed: peft would warn, and mend it."""
    name = saved("gpt2", tmp_path / "model")
    four = load(name, lora=Lora(r=2))
    loading.save(four.model, four.tokenizer, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"]
    again = load(str(tmp_path / "adapter"), quantize=None)
    assert (
        loading.parameter_counts(again.model)["total"]
        == loading.parameter_counts(four.model)["total"]
    )


def test_merging_into_4_bits_is_refused(on_cpu, tmp_path):
    with pytest.raises(ModelError, match="rounding of 4 bits"):
        adapters.merged(load(saved("llama", tmp_path / "model"), lora=Lora(r=2)).model)


def test_scales_that_are_not_finite_are_refused(on_cpu, tmp_path):
    name = saved("llama", tmp_path / "model")
    plain = load(name, quantize=None)
    with torch.no_grad():
        plain.model.model.layers[0].self_attn.q_proj.weight[0, 0] = math.inf
    loading.save(plain.model, plain.tokenizer, tmp_path / "broken")
    with pytest.raises(ModelError, match=r"q_proj\.weight\.nested_absmax holds NaN or infinity"):
        load(str(tmp_path / "broken"))


# ---------------------------------------------------------------- a run, from its first step to a
# plain model


def dpo(world, out, **changes):
    return runs.dpo(
        world,
        out,
        **{
            "eval_data": [str(world / "held.jsonl")],
            "kl_samples": 2,
            "steps": 4,
            "save_every": 2,
            **FOUR,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def trained(on_cpu, world, tmp_path_factory):
    return dpo(world, tmp_path_factory.mktemp("trained") / "run")


@pytest.mark.slow
def test_a_run_learns_and_keeps_its_base(trained, world):
    losses = [row["loss"] for row in runs.numbers(trained) if "loss" in row]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 1e-3
    environment = read_json(trained.environment)
    assert environment["settings"]["quantize"] == "nf4"
    assert environment["parameters"] == loading.parameter_counts(
        loading.load(ModelSpec(str(world / "model"), device="cpu"), lora=Lora(r=4)).model
    )
    assert all(".lora_" in name for name in runs.weights(trained.model))


@pytest.mark.slow
def test_its_reference_is_that_of_4_bits(trained, world, tmp_path):
    """The same rows under the same model in 16 bits are stored under another name."""
    plain, other = (
        dpo(world, tmp_path / "plain", steps=1, quantize=None),
        dpo(world, tmp_path / "other", steps=1, lora="r=2", seed=1),
    )
    name, unpacked, again = (
        read_json(run.environment)["reference"]["identity"] for run in (trained, plain, other)
    )
    assert again == name != unpacked


def test_a_reference_that_is_named_is_in_4_bits_too(on_cpu, world, tmp_path):
    """Named is what the policy begins as, so the first loss is ln 2 and not another."""
    run = dpo(world, tmp_path / "run", steps=1, reference=str(world / "model"))
    assert next(row["loss"] for row in runs.numbers(run) if "loss" in row) == pytest.approx(
        math.log(2), abs=1e-6
    )


def test_it_resumes_to_the_bit(trained, world, tmp_path, capsys):
    shutil.copytree(trained.root, tmp_path / "run")
    for gone in ("model", "checkpoints/step_4"):
        shutil.rmtree(tmp_path / "run" / gone)
    RunFolder(tmp_path / "run").unfinish()
    with pytest.raises(RunError, match="quantize: 'nf4' -> None"):
        dpo(world, tmp_path / "run", quantize=None)
    again = dpo(world, tmp_path / "run")
    assert "resumed at step 2" in capsys.readouterr().out
    assert (again.model / "adapter_model.safetensors").read_bytes() == (
        trained.model / "adapter_model.safetensors"
    ).read_bytes()
    assert runs.numbers(again) == runs.numbers(trained)


def test_it_is_evaluated_as_it_was_trained(trained, world, capsys):
    found = api.evaluate(model=str(trained.root), data=[str(world / "held.jsonl")])
    assert "quantize=nf4" in capsys.readouterr().out
    last = [row for row in runs.numbers(trained) if "eval_loss" in row][-1]
    assert found.summary["loss"] == pytest.approx(last["eval_loss"], abs=1e-6)
    adapter = api.evaluate(
        model=str(trained.model), data=[str(world / "held.jsonl")], reference=str(world / "model")
    )
    # a folder does not know how it was trained
    assert abs(adapter.summary["loss"] - last["eval_loss"]) > 1e-5
    told = api.evaluate(
        model=str(trained.model),
        data=[str(world / "held.jsonl")],
        reference=str(world / "model"),
        quantize="nf4",
    )
    assert told.summary["loss"] == pytest.approx(last["eval_loss"], abs=1e-6)


def test_it_answers_as_it_was_trained(trained, monkeypatch, capsys):
    seen = []
    load_it = loading.load
    monkeypatch.setattr(
        loading,
        "load",
        lambda name, **settings: seen.append(settings["quantize"]) or load_it(name, **settings),
    )
    assert (
        runs.winnow(
            monkeypatch,
            "generate",
            "--model",
            trained.root,
            "--before",
            trained.model,
            "--prompt",
            "1: red?",
            "--max-new-tokens",
            2,
        )
        == 0
    )
    assert seen == [None, "nf4"]
    assert f"from the run {trained.root}: quantize=nf4" in capsys.readouterr().out.replace("\n", "")


def test_it_merges_into_its_base_as_that_was(trained, world, tmp_path, monkeypatch, capsys):
    assert (
        runs.winnow(monkeypatch, "export", trained.root, "--out", tmp_path / "plain", "--merge")
        == 0
    )
    assert "trained beside weights in 4 bits" in " ".join(capsys.readouterr().out.split())
    adapted = load(str(trained.model), quantize=None)
    base = runs.weights(world / "model")
    for key, weight in runs.weights(tmp_path / "plain").items():
        layer = adapted.model.base_model.model.get_submodule(key.removesuffix(".weight"))
        delta = layer.get_delta_weight("default") if hasattr(layer, "get_delta_weight") else 0
        torch.testing.assert_close(weight, base[key] + delta, rtol=0, atol=1e-7)
    says = [
        fingerprint(rows, loading.load(ModelSpec(str(name), device="cpu")).model, 263)
        for name in (tmp_path / "plain", trained.model)
    ]
    assert same_model(*says, [torch.float32])
