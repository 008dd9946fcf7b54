"""Training as numbers: one step against plain PyTorch, invariance to cutting, stops before damage, adapters, references."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

import tiny
from winnow import api, models
from winnow.batch import collate
from winnow.config import Lora
from winnow.engine import rows as engine
from winnow.errors import ModelError, RunError, TrainingError
from winnow.files import RunFolder, read_json, read_jsonl
from winnow.objectives.table import Demonstration, preference
from winnow.recipes import export
from winnow.train.optim import Optimizer, rate
from winnow.train.reference import Reference, compute, identity, offsets, store, stored
from winnow.train.start import check_identity
from winnow.train.step import take_step

CPU = torch.device("cpu")


def reference_of(model, groups):
    return Reference("made", compute(engine, model, groups, 4096, CPU, lambda n: None), offsets(groups))


def step(model, groups, parts, optimizer, reference, objective, lr=1e-3):
    batches = [collate([groups[i] for i in part], part) for part in parts]
    return take_step(model, batches, objective=objective, reference=reference, engine=engine, optimizer=optimizer, lr=lr)


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_steps_equal_plain_pytorch(kind):
    """Five clipped, weighted, soft-labelled DPO steps, written once more the long way, in float64."""
    groups = tiny.groups(4)
    ours, theirs = (tiny.model("llama", dtype=torch.float64) for _ in range(2))
    reference, objective = reference_of(ours, groups), preference("dpo", beta=0.3)
    optimizer = Optimizer(ours, kind=kind, weight_decay=0.1, clip=0.05)
    split = [{"params": [p for p in theirs.parameters() if p.ndim >= n], "weight_decay": w} for n, w in ((2, 0.1),)]
    split += [{"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(split, betas=(0.9, 0.999)) if kind == "adamw" else torch.optim.RMSprop(split, alpha=0.99)
    for n in range(5):
        lr = rate(n, lr=1e-2, schedule="cosine", warmup=2, steps=5)
        row = step(ours, groups, [[0, 1, 2, 3]], optimizer, reference, objective, lr)
        total, weight, at = 0.0, 0.0, 0
        for group in groups:
            scores = []
            for s in group.sequences:
                logp = theirs(input_ids=torch.tensor([s.ids])).logits[0].log_softmax(-1)
                mine = sum(logp[t - 1, s.ids[t]] for t in range(s.start, len(s.ids)))
                scores.append(mine - reference.value[at : at + len(s.ids) - s.start].sum())
                at += len(s.ids) - s.start
            for c in group.comparisons:
                z, p = 0.3 * (scores[c.winner] - scores[c.loser]), torch.tensor(c.probability).double()
                total = total - c.weight * (p * F.logsigmoid(z) + (1 - p) * F.logsigmoid(-z))
                weight += c.weight
        loss = total / weight
        plain.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        for group in plain.param_groups:
            group["lr"] = lr
        plain.step()
        assert row["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
        assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-8)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("objective", [preference("dpo"), preference("ipo"), Demonstration()])
def test_cutting_the_batch_differently_changes_nothing(objective):
    groups = tiny.groups(5)
    found = []
    for parts in ([[0, 1, 2, 3, 4]], [[4], [0, 2], [1, 3]]):
        model = tiny.model("llama", dtype=torch.float64)
        reference = reference_of(tiny.model("llama", dtype=torch.float64, seed=1), groups)
        optimizer = Optimizer(model, kind="adamw", weight_decay=0.0, clip=None)
        losses = [step(model, groups, parts, optimizer, reference, objective)["loss"] for _ in range(3)]
        found.append((losses, [p.detach().clone() for p in model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for a, b in zip(found[0][1], found[1][1]):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_rate_is_a_function_of_the_step():
    shape = {"lr": 2.0, "warmup": 4, "steps": 12}
    assert [rate(s, schedule="linear", **shape) for s in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert [rate(s, schedule="constant", **shape) for s in (4, 11)] == [2.0, 2.0]
    assert [rate(s, schedule="linear", **shape) for s in (4, 8, 11)] == pytest.approx([2.0, 1.0, 0.25])
    assert [rate(s, schedule="cosine", **shape) for s in (4, 8)] == pytest.approx([2.0, 1.0])
    assert rate(0, lr=1.0, schedule="linear", warmup=0, steps=4) == 1.0


def test_numbers_that_are_not_finite_stop_before_the_update():
    groups = tiny.groups(3)
    model = tiny.model("llama")
    reference = reference_of(model, groups)
    reference.value[0] = float("inf")
    optimizer = Optimizer(model, kind="adamw", weight_decay=0.0, clip=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TrainingError, match="not finite in a batch with made:0") as caught:
        step(model, groups, [[0, 1, 2]], optimizer, reference, preference("dpo"))
    assert caught.value.exit_code == 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_the_reference_is_the_policy_at_step_0_or_nothing_starts():
    groups = tiny.groups(3)
    model = tiny.model("llama")
    batch = collate(groups)
    seen = check_identity(model, batch, objective=preference("dpo"), reference=reference_of(model, groups), engine=engine)
    assert seen["noise"] < 1e-5
    assert seen["loss"] == pytest.approx(math.log(2), abs=1e-5)
    other = reference_of(tiny.model("llama", seed=1), groups)
    with pytest.raises(TrainingError, match="likely causes"):
        check_identity(model, batch, objective=preference("dpo"), reference=other, engine=engine)


def test_dropout_never_reaches_a_log_prob_also_when_recomputing():
    groups = tiny.groups(3)
    calm, wild = tiny.model("llama"), tiny.model("llama", attention_dropout=0.5)
    wild.load_state_dict(calm.state_dict())
    models.enable_checkpointing(wild)
    batch = collate(groups)
    for model in (calm, wild):
        engine.backward(model, batch, torch.ones_like)
    for a, b in zip(calm.parameters(), wild.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)
    assert any(getattr(m, "gradient_checkpointing", False) and m.training for m in wild.modules())


def test_half_precision_weights_have_float32_masters():
    """bfloat16 weights: gradients are summed in float32, and a thousand tiny steps are not lost in rounding."""
    model = torch.nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    start = model.weight.detach().float().clone()
    master = torch.nn.Parameter(start.clone())
    optimizer = Optimizer(model, kind="adamw", weight_decay=0.0, clip=None)
    plain = torch.optim.AdamW([master], lr=1e-5, weight_decay=0.0, fused=True)
    for i in range(50):
        x = torch.full((1, 4), 1.0 + i % 3, dtype=torch.bfloat16)
        for _ in range(2):  # two micro-batches
            model(x).sum().backward()
        assert model.weight.grad is None
        master.grad = 2 * x.float().expand(4, 4).clone()
        optimizer.clip_gradients()
        optimizer.step(1e-5)
        plain.step()
    torch.testing.assert_close(optimizer.weights()["weight"], master.detach(), rtol=0, atol=1e-7)
    assert torch.equal(model.weight, optimizer.weights()["weight"].to(torch.bfloat16))
    assert not torch.equal(optimizer.weights()["weight"], start)


def test_a_store_belongs_to_its_tokens_and_weights(tmp_path):
    groups = tiny.groups(3)
    kept = reference_of(tiny.model("llama"), groups)
    name = identity("hash", groups, torch.float32, engine)
    assert name != identity("hash", groups[:2], torch.float32, engine)
    assert name != identity("other", groups, torch.float32, engine)
    assert stored(tmp_path, name, groups) is None
    store(tmp_path, Reference(name, kept.value, kept.start))
    assert torch.equal(stored(tmp_path, name, groups).value, kept.value)
    file = next(tmp_path.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match="damaged"):
        stored(tmp_path, name, groups)


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny.folder(root / "model")
    tiny.write(root / "train.jsonl", tiny.pairs(24))
    tiny.write(root / "held.jsonl", tiny.pairs(8, seed=1))
    tiny.write(root / "other.jsonl", tiny.pairs(6, seed=2))
    return root


def dpo(world, out, **settings):
    base = {"model": str(world / "model"), "data": [str(world / "train.jsonl")], "out": str(out), "batch_size": 8, "steps": 6, "lr": 1e-3}
    return api.dpo(**{**base, **settings})


def test_a_run_writes_what_it_promises_under_the_fields_names(world, tmp_path):
    run = dpo(world, tmp_path / "run", eval_data=[str(world / "held.jsonl"), str(world / "other.jsonl")], eval_every=2, save_best=True, lr=3e-3, steps=8)
    for path in (run.config, run.environment, run.metrics, run.model / "model.safetensors", run.samples, run.report_json, run.report_html):
        assert path.exists(), path
    rows = read_jsonl(run.metrics)
    train = [row for row in rows if "loss" in row]
    names = "loss grad_norm learning_rate entropy num_tokens logps/chosen logps/rejected rewards/chosen rewards/rejected rewards/accuracies"
    names += " rewards/margins epoch step logratio/chosen logratio/rejected length/chosen pairs_per_second tokens_per_second"
    assert set(names.split()) <= set(train[0])
    assert [row["step"] for row in train] == list(range(1, 9))
    assert train[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    held = [row for row in rows if "eval_held_loss" in row]
    assert [row["step"] for row in held] == [0, 2, 4, 6, 8]
    assert "eval_other_rewards/accuracies" in held[0]
    assert held[0]["eval_held_loss"] == pytest.approx(math.log(2), abs=1e-5)
    best = min(held[1:], key=lambda row: row["eval_held_loss"])["step"]
    weights = models.load(str(run.root), device="cpu").model.state_dict()
    kept = dict(__import__("safetensors.torch", fromlist=["load_file"]).load_file(run.checkpoints / f"step_{best}" / "weights.safetensors"))
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept.items())
    samples = read_jsonl(run.samples)
    assert {row["step"] for row in samples} == {0, 8}


@pytest.mark.parametrize(("objective", "start"), [("ipo", 25.0), ("hinge", 1.0), ("dpo_norm", math.log(2))])
def test_every_objective_starts_at_its_own_value(world, tmp_path, objective, start):
    run = dpo(world, tmp_path / "run", objective=objective, steps=2)
    assert read_jsonl(run.metrics)[0]["loss"] == pytest.approx(start, rel=1e-4)
    assert ("5.0  # default of dpo_norm" in run.config.read_text()) == (objective == "dpo_norm")


def test_an_adapter_trains_alone_and_its_reference_is_itself(world, tmp_path):
    """SFT adapter, then DPO on it: the reference is the adapter as loaded, not the bare base model."""
    sft = api.sft(model=str(world / "model"), data=[str(world / "train.jsonl")], out=str(tmp_path / "sft"), batch_size=8, steps=4, lr=1e-2, lora="r=4,alpha=8")
    assert (sft.model / "adapter_model.safetensors").exists()
    counts = read_json(sft.environment)["parameters"]
    assert 0 < counts["trainable"] < counts["total"] / 2
    run = dpo(world, tmp_path / "dpo", model=str(sft.root), steps=3)
    first = read_jsonl(run.metrics)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert read_json(run.environment)["settings"]["lr"] == 1e-3
    base = tmp_path / "base"
    bare = dpo(world, base, steps=3)
    assert first["logps/chosen"] != pytest.approx(read_jsonl(bare.metrics)[0]["logps/chosen"], abs=0.1)
    with pytest.raises(ModelError, match="already is an adapter"):
        models.load(str(sft.root), lora=Lora(), device="cpu")
    from winnow.config import ExportSettings, resolve

    out = export.run(resolve(ExportSettings, {"model": str(run.root), "out": tmp_path / "merged", "merge": True}))
    batch = collate(tiny.groups(3))
    live, merged = (engine.logps(models.load(str(path), device="cpu").model, batch)["logp"].detach() for path in (run.root, out))
    torch.testing.assert_close(live, merged, rtol=0, atol=1e-4)
    assert not (out / "adapter_config.json").exists()


def test_another_reference_is_named_and_its_check_skipped(world, tmp_path, capsys):
    tiny.folder(tmp_path / "other", seed=5)
    run = dpo(world, tmp_path / "run", reference=str(tmp_path / "other"), steps=1)
    assert "that check is skipped" in " ".join(capsys.readouterr().out.split())
    assert read_jsonl(run.metrics)[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_a_rate_lost_in_rounding_is_not_training(world, tmp_path):
    with pytest.raises(TrainingError, match="changed no weight"):
        dpo(world, tmp_path / "run", lr=1e-30, steps=1)


def test_a_weight_that_is_not_finite_is_refused(world, tmp_path):
    broken = tiny.model("llama", vocab_size=len(tiny.tokenizer()), pad_token_id=None)
    broken.lm_head.weight.data[3, 3] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    tiny.tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="NaN or infinity"):
        dpo(world, tmp_path / "run", model=str(tmp_path / "broken"))


def test_nothing_on_the_way_reads_a_pickle(world, tmp_path, monkeypatch):
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    sft = api.sft(model=str(world / "model"), data=[str(world / "train.jsonl")], out=str(tmp_path / "sft"), batch_size=8, steps=2, lr=1e-3)
    run = dpo(world, tmp_path / "run", model=str(sft.root), steps=2)
    run.report_json.unlink()  # unfinished: it resumes from the last checkpoint
    dpo(world, tmp_path / "run", model=str(sft.root), steps=2)
    found = api.evaluate(model=str(run.root), data=[str(world / "held.jsonl")], out=str(tmp_path / "eval"))
    assert found.summary["comparisons"] == 8


def test_only_safetensors_are_loaded(world, tmp_path):
    import shutil

    shutil.copytree(world / "model", tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(tiny.model("llama").state_dict(), tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only safetensors"):
        models.load(str(tmp_path / "old"), device="cpu")


def test_evaluation_finds_the_runs_reference_and_agrees_with_training(world, tmp_path):
    run = dpo(world, tmp_path / "run", eval_data=[str(world / "held.jsonl")])
    last = [row for row in read_jsonl(run.metrics) if "eval_loss" in row][-1]
    found = api.evaluate(model=str(run.root), data=[str(world / "held.jsonl")], out=str(tmp_path / "eval"))
    assert found.summary["loss"] == pytest.approx(last["eval_loss"], rel=1e-5)
    assert found.summary["rewards/accuracies"] == last["eval_rewards/accuracies"]
    written = json.loads((tmp_path / "eval" / "report.json").read_text())["summary"]
    assert written["eval_rewards/margins"] == pytest.approx(last["eval_rewards/margins"], rel=1e-4)
    assert written["eval_rewards/accuracies_low"] < written["eval_rewards/accuracies"] <= written["eval_rewards/accuracies_high"]
    rows = read_jsonl(tmp_path / "eval" / "rows.jsonl")
    assert len(rows) == 8
    assert sum(row["correct"] for row in rows) / 8 == written["eval_rewards/accuracies"]
    assert RunFolder(run.root).finished
