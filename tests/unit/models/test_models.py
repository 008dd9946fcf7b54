"""Models in and out: safetensors only, no dropout, no foreign code, the same numbers after
saving.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import runs
import tiny
from winnow.config.model_spec import ModelSpec
from winnow.config.options import Lora
from winnow.engine import rows as engine
from winnow.engine.batch import collate
from winnow.engine.selection import engine_for
from winnow.errors import ModelError
from winnow.models import adapters, hashes, loading, meta, model_folder
from winnow.models.layers import enable_checkpointing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.folder(
        tmp_path_factory.mktemp("world") / "model", hidden_size=16, intermediate_size=32
    )


def load(path, **settings):
    return loading.load(ModelSpec(str(path), device="cpu"), **settings)


# half of everything is dropped, wherever a family keeps its dropout: a module, a number handed to a
# function, the layer itself
HALF = {
    "llama": {"attention_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "phi3": {"attention_dropout": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5},
    "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
}
SHAPES = {
    "opt": {
        "vocab_size": 97,
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    "falcon": {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}


@pytest.mark.parametrize("family", HALF)
def test_dropout_never_reaches_a_log_prob_and_recomputing_changes_nothing(family):
    groups = tiny.groups(3)
    batch = collate(groups)
    found = []
    for dropout, checkpointing in (({}, False), (HALF[family], False), (HALF[family], True)):
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            family, **{**(tiny.FAMILIES.get(family) or SHAPES[family]), **dropout}
        )
        model = AutoModelForCausalLM.from_config(config).double().eval()
        if checkpointing:
            enable_checkpointing(model)
        calls: list[str] = []
        # of the first layer
        part = next(m for name, m in model.named_modules() if name.endswith(("mlp", "fc1")))
        part.register_forward_pre_hook(lambda module, args, calls=calls: calls.append("forward"))
        columns = engine.backward(
            model, batch, lambda columns, part: {"logp": torch.ones_like(columns["logp"])}
        )
        found.append(
            (
                columns["logp"],
                {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
            )
        )
        assert len(calls) == (2 if checkpointing else 1)  # recomputed in the backward pass
    for logp, grads in found[1:]:
        assert torch.equal(logp, found[0][0])
        assert all(torch.equal(grads[name], grad) for name, grad in found[0][1].items())


def test_a_model_without_layers_to_recompute_says_so():
    class Stack(torch.nn.Linear):
        def gradient_checkpointing_enable(self, **kwargs):
            pass

    with pytest.raises(ModelError, match="no layers that can be checkpointed"):
        enable_checkpointing(Stack(2, 2))


def test_pickled_weights_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    torch.save(load(folder).model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="only safetensors are loaded"):
        load(tmp_path / "old")


@pytest.fixture
def adapter(folder, tmp_path):
    adapted = load(folder, lora=Lora(r=4, alpha=8))
    loading.save(adapted.model, adapted.tokenizer, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_pickled_adapter_is_refused(adapter):
    """peft would read it, with torch.load."""
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    for read in (load, lambda path: model_folder.load_config(ModelSpec(str(path)))):
        with pytest.raises(
            ModelError,
            match=r"no adapter_model\.safetensors in it\n  -> only safetensors are loaded",
        ):
            read(adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "XLORA"},
        {"peft_type": None},
        {"megatron_config": {"a": 1}, "megatron_core": "megatron.mine"},
    ],
)
def test_an_adapter_that_can_name_more_files_or_modules_is_refused(adapter, changes):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ModelError, match="only LoRA's adapters are loaded"):
        load(adapter)


def test_an_adapter_on_an_adapter_is_refused(folder, adapter, tmp_path):
    """Even where the first one's folder is a whole model too."""
    second = shutil.copytree(adapter, tmp_path / "second")
    file = second / "adapter_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(adapter)})
    )
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, adapter / name)
    with pytest.raises(ModelError, match="adapter is an adapter"):
        load(second)


def test_foreign_code_is_not_run_unasked(folder, tmp_path):
    """A folder whose configuration points to code of its own; the code would leave a mark."""
    odd = tmp_path / "odd"
    shutil.copytree(folder, odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(
        json.dumps({**config, "model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}})
    )
    (odd / "odd.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').write('ran')\n")
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load(odd)
    with pytest.raises(ModelError, match="--trust-remote-code"):
        loading.length_limit(ModelSpec(str(odd)))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, tmp_path, value):
    model = load(folder).model
    with torch.no_grad():
        model.lm_head.weight[3, 3] = value
    loading.save(model, tiny.tokenizer(), tmp_path / "broken")
    with pytest.raises(ModelError, match=r"weight lm_head\.weight holds NaN or infinity"):
        load(tmp_path / "broken")


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    tiny.model("llama", vocab_size=50, pad_token_id=None).save_pretrained(tmp_path / "small")
    tiny.tokenizer().save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match="263 tokens, the model's embedding 50 rows"):
        load(tmp_path / "small")


@pytest.mark.parametrize("name", ["nowhere/at-all", "/nowhere", ""])
def test_a_model_that_is_not_there(name):
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(name)


def test_a_device_that_is_not_there(folder):
    with pytest.raises(ModelError, match="--device cpu, or auto"):
        loading.load(ModelSpec(str(folder), device="cuda:77"))
    with pytest.raises(ModelError, match="--device cpu, or auto"):
        loading.load(ModelSpec(str(folder), device="toaster"))


def test_saving_and_loading_changes_no_bit(folder, tmp_path):
    one = load(folder)
    loading.save(one.model, one.tokenizer, tmp_path / "again")
    two = load(tmp_path / "again")
    assert hashes.weights_hash(one.model) == hashes.weights_hash(two.model)
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()
    assert not [
        p.name for p in (tmp_path / "again").iterdir() if p.suffix in (".bin", ".pt", ".md")
    ]


def test_an_adapter_begins_as_its_base_model_trains_alone_and_merges(folder, tmp_path):
    batch = collate(tiny.groups(3, vocabulary=263))
    base = load(folder)
    state = torch.random.get_rng_state()
    adapted, same, other = (
        load(folder, lora=Lora(r=4, alpha=8), seed=seed).model for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.random.get_rng_state())  # a seed of its own
    assert hashes.weights_hash(adapted) == hashes.weights_hash(same) != hashes.weights_hash(other)
    with torch.no_grad():
        start = engine.logps(base.model, batch)["logp"]
        assert torch.equal(engine.logps(adapted, batch)["logp"], start)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        live = engine.logps(adapted, batch)["logp"]
        assert float((live - start).abs().max()) > 0.01
        loading.save(adapted, base.tokenizer, tmp_path / "adapter")
        found = load(tmp_path / "adapter", train=True).model
        assert torch.equal(engine.logps(found, batch)["logp"], live)
        assert [name for name, p in found.named_parameters() if p.requires_grad] == trainable
        assert not any(p.requires_grad for p in load(tmp_path / "adapter").model.parameters())
        merged = adapters.merged(load(tmp_path / "adapter").model)
        torch.testing.assert_close(engine.logps(merged, batch)["logp"], live, rtol=0, atol=1e-5)


def test_an_adapters_own_dropout_is_off(folder, tmp_path):
    adapted = load(folder, lora=Lora(r=4, alpha=8))
    loading.save(adapted.model, adapted.tokenizer, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_dropout": 0.5}))
    found = load(tmp_path / "adapter", train=True).model
    assert [m.p for m in found.modules() if isinstance(m, torch.nn.Dropout)]
    assert not any(m.p for m in found.modules() if isinstance(m, torch.nn.Dropout))


def test_modules_that_do_not_exist_are_named(folder):
    with pytest.raises(ModelError, match="targets=q_proj"):
        load(folder, lora=Lora(targets=("nose",)))
    found = load(folder, lora=Lora(r=2, targets=("q_proj", "v_proj"))).model
    assert {
        name.split(".lora_")[0].rpartition(".")[2]
        for name, p in found.named_parameters()
        if p.requires_grad
    } == {"q_proj", "v_proj"}


@pytest.mark.parametrize("lora", [None, Lora(r=4, alpha=8), Lora(r=2, targets=("q_proj",))])
def test_parameters_are_counted_without_loading(folder, lora):
    counts = loading.parameter_counts(load(folder, lora=lora).model)
    config = model_folder.load_config(ModelSpec(str(folder)))
    assert (
        loading.parameter_counts(meta.trained_outline(str(folder), config, torch.float32, lora))
        == counts
    )


def test_a_folder_that_is_an_adapter_is_counted_as_one(folder, tmp_path):
    first = load(folder, lora=Lora(r=4, alpha=8))
    loading.save(first.model, first.tokenizer, tmp_path / "adapter")
    name = str(tmp_path / "adapter")
    outline = meta.trained_outline(
        name, model_folder.load_config(ModelSpec(name)), torch.float32, None
    )
    assert (
        loading.parameter_counts(outline)
        == loading.parameter_counts(first.model)
        == loading.parameter_counts(load(tmp_path / "adapter", train=True).model)
    )


def test_the_source_of_a_models_numbers_is_told_from_all_that_decides_them(folder, tmp_path):
    """Weights, an adapter's scale, the configuration; but not a new adapter's rank or seed, which
    change nothing yet.
    """
    plain = load(folder).model
    name = hashes.source_hash(plain)
    assert name == hashes.source_hash(load(folder).model)
    for lora, seed in (
        (Lora(r=4), 0),
        (Lora(r=2, targets=("q_proj",)), 1),
        (Lora(targets=("lm_head",)), 2),
    ):
        assert (
            hashes.source_hash(load(folder, lora=lora, seed=seed).model, new_adapter=True) == name
        )
    trained = load(folder, lora=Lora(r=4, alpha=8))
    loading.save(trained.model, trained.tokenizer, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    before = hashes.source_hash(load(tmp_path / "adapter").model)
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": 9}))
    plain.config.rms_norm_eps = 1e-3
    assert (
        len(
            {
                name,
                before,
                hashes.source_hash(load(tmp_path / "adapter").model),
                hashes.source_hash(plain),
            }
        )
        == 4
    )


@pytest.mark.slow
def test_a_run_folder_stands_for_its_model(folder, tmp_path):
    world = runs.world(tmp_path / "world")
    run = runs.sft(world, tmp_path / "run", steps=1)
    assert model_folder.locate(str(run.root)) == str(run.model)
    assert model_folder.locate(str(folder)) == str(folder)
    assert hashes.weights_hash(load(run.root).model) == hashes.weights_hash(load(run.model).model)


def test_saved_files_can_be_read_by_whom_the_umask_lets(folder, tmp_path):
    loaded = load(folder)
    before = os.umask(0o022)
    try:
        loading.save(loaded.model, loaded.tokenizer, tmp_path / "saved")
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "saved").iterdir()} == {
        "0o644"
    }


def test_flash_kernels_are_refused_on_a_cpu(folder):
    with pytest.raises(ModelError, match="need a GPU"):
        engine_for(load(folder), "varlen", 60, train=True)
