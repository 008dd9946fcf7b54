"""Training as numbers: one step against plain PyTorch, invariance to cutting, stops before damage,
adapters, references.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import runs
import tiny
from winnow import api
from winnow.commands import export, generate, verify
from winnow.config.collection import GenerateSettings
from winnow.config.evaluation import ExportSettings
from winnow.config.model_spec import ModelSpec
from winnow.config.options import Lora
from winnow.config.resolve import resolve
from winnow.data.records import Comparison
from winnow.engine import rows as engine
from winnow.engine.batch import collate
from winnow.engine.dataset_logps import Reference, dataset_logps, offsets
from winnow.engine.micro_batches import alone
from winnow.errors import ModelError, TrainingError
from winnow.models import loading
from winnow.objectives.objective import DEMONSTRATION
from winnow.objectives.objective import objective as preference
from winnow.system.files import read_json, read_jsonl
from winnow.system.run_folder import RunFolder
from winnow.training.optimizer import Optimizer, rate
from winnow.training.startup_checks import check_identity
from winnow.training.step import take_step

CPU = torch.device("cpu")


def reference_of(model, groups):
    return Reference(
        "made",
        dataset_logps(engine, model, groups, 4096, CPU, whose="the reference"),
        offsets(groups),
    )


def step(model, groups, parts, optimizer, reference, objective, lr=1e-3):
    batches = [reference.into(collate([groups[i] for i in part], part)) for part in parts]
    return take_step(
        model,
        alone(batches),
        objective=objective,
        engine=engine,
        optimizer=optimizer,
        lr=lr,
        before={},
        live=None,
    )[0]


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_steps_equal_plain_pytorch(kind):
    """Five clipped, weighted, soft-labelled DPO steps, written once more the long way, in
    float64.
    """
    groups = tiny.groups(4)
    ours, theirs = (tiny.model("llama", dtype=torch.float64) for _ in range(2))
    reference, objective = reference_of(ours, groups), preference("dpo", beta=0.3)
    optimizer = Optimizer(ours, kind=kind, weight_decay=0.1, clip=0.05)
    matrices, vectors = (
        [p for p in theirs.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False)
    )
    split = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    plain = (
        torch.optim.AdamW(split, betas=(0.9, 0.999))
        if kind == "adamw"
        else torch.optim.RMSprop(theirs.parameters(), alpha=0.99)
    )
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
                z, p = (
                    0.3 * (scores[c.winner] - scores[c.loser]),
                    torch.tensor(c.probability).double(),
                )
                total = total - c.weight * (p * F.logsigmoid(z) + (1 - p) * F.logsigmoid(-z))
                weight += c.weight
        loss = total / weight
        plain.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        for group in plain.param_groups:
            group["lr"] = lr
        if kind == "rmsprop":  # decoupled by hand: torch's own is not
            torch._foreach_mul_([p.data for p in matrices], 1 - lr * 0.1)
        plain.step()
        assert row["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
        assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-8)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


CUTS = ([[0, 1, 2, 3, 4]], [[4], [0, 2], [1, 3]], [[i] for i in range(5)])
EVERY_OBJECTIVE = [
    preference("dpo", label_smoothing=0.1),
    preference("ipo"),
    preference("hinge"),
    preference("dpo_norm"),
    DEMONSTRATION,
]


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE, ids=lambda objective: objective.name)
def test_cutting_the_batch_differently_changes_nothing(objective):
    groups = tiny.groups(5)
    reference = reference_of(tiny.model("llama", dtype=torch.float64, seed=1), groups)
    found = []
    for parts in CUTS:
        model = tiny.model("llama", dtype=torch.float64)
        optimizer = Keeping(model, kind="adamw", weight_decay=0.0, clip=None)
        found.append(
            (
                [
                    step(model, groups, parts, optimizer, reference, objective)["loss"]
                    for _ in range(3)
                ],
                optimizer.kept,
            )
        )
    (losses, first), *others = found
    largest = max(float(g.abs().max()) for g in first[0])
    for also, kept in others:
        assert also == pytest.approx(losses, rel=1e-12)
        for a, b in zip(first[0], kept[0]):
            assert float((a - b).abs().max()) <= 1e-12 * largest
        for one, other in zip(
            first[1:], kept[1:]
        ):  # gradients after one and two updates: the trajectory
            for a, b in zip(one, other):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9 * largest)


class Keeping(Optimizer):
    """Notes the gradients before each update."""

    def step(self, lr):
        self.kept = [*getattr(self, "kept", []), [p.grad.clone() for p in self.parameters()]]
        Optimizer.step(self, lr)


def test_weights_and_soft_labels_in_closed_form():
    """One group, three comparisons: L = sum w (-p log s(bm) - (1 - p) log s(-bm)) / sum w, and its
    gradient is weighed the same.
    """
    group = replace(
        tiny.groups(3)[1],
        comparisons=(
            Comparison(0, 1, 0.7, 3.0),
            Comparison(2, 0, 1.0, 0.25),
            Comparison(1, 2, 0.5, 2.0),
        ),
    )
    model, beta = tiny.model("llama", dtype=torch.float64), 0.4
    reference = reference_of(tiny.model("llama", dtype=torch.float64, seed=1), [group])
    with torch.no_grad():
        ratio_N = engine.logps(model, collate([group]))["logp"] - reference.value
    score = [
        float(part.sum()) for part in ratio_N.split([len(s.ids) - s.start for s in group.sequences])
    ]
    expected = 0.0
    for c in group.comparisons:
        # labels are kept in float32
        z, p = (
            beta * (score[c.winner] - score[c.loser]),
            float(torch.tensor(c.probability)),
        )
        expected += c.weight * (p * math.log1p(math.exp(-z)) + (1 - p) * math.log1p(math.exp(z)))
    optimizer = Optimizer(model, kind="adamw", weight_decay=0.0, clip=None)
    assert step(model, [group], [[0]], optimizer, reference, preference("dpo", beta=beta))[
        "loss"
    ] == pytest.approx(expected / 5.25, rel=1e-12)


def test_a_weight_of_two_is_the_row_twice():
    once, other = tiny.groups(2)
    pair = [replace(once, comparisons=(Comparison(0, 1, 1.0, w),)) for w in (1.0, 2.0)]
    found = []
    for groups in ([pair[1], other], [pair[0], pair[0], other]):
        model = tiny.model("llama", dtype=torch.float64)
        optimizer = Keeping(model, kind="adamw", weight_decay=0.0, clip=None)
        step(
            model,
            groups,
            [list(range(len(groups)))],
            optimizer,
            reference_of(model, groups),
            preference("dpo"),
        )
        found.append(optimizer.kept[0])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_decay_is_of_matrices_only_and_apart_from_the_gradient(kind):
    """Without a gradient w <- w (1 - lr decay) each step, and vectors stay as they are."""
    model = tiny.model("llama", dtype=torch.float64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, kind=kind, weight_decay=0.5, clip=None)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step(0.1)
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            p.detach(), before[name] * (0.95**3 if p.ndim >= 2 else 1.0), rtol=1e-12, atol=0
        )


def test_the_rate_is_a_function_of_the_step():
    shape = {"lr": 2.0, "warmup": 4, "steps": 12}
    assert [rate(s, schedule="linear", **shape) for s in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert [rate(s, schedule="constant", **shape) for s in (4, 11)] == [2.0, 2.0]
    assert [rate(s, schedule="linear", **shape) for s in (4, 8, 11)] == pytest.approx(
        [2.0, 1.0, 0.25]
    )
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


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    """The loss is fine, the gradient of one weight is not; and a bad micro-batch after a good one
    leaves no trace of either.
    """
    groups = tiny.groups(3)
    model = tiny.model("llama")
    reference = reference_of(model, groups)
    optimizer = Optimizer(model, kind="adamw", weight_decay=0.1, clip=1.0)
    step(model, groups, [[0, 1, 2]], optimizer, reference, preference("dpo"))
    before = [p.detach().clone() for p in model.parameters()]
    state = {name: t.clone() for name, t in optimizer.state().items()}
    planted = model.model.norm.weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(
        TrainingError, match="gradient is not finite after a batch with made:0, made:1, made:2"
    ):
        step(model, groups, [[0, 1, 2]], optimizer, reference, preference("dpo"))
    planted.remove()
    reference.value[reference.start[2]] = float("nan")
    with pytest.raises(TrainingError, match="not finite in a batch with made:2"):
        step(model, groups, [[0, 1], [2]], optimizer, reference, preference("dpo"))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert all(torch.equal(t, state[name]) for name, t in optimizer.state().items())
    assert all(p.grad is None for p in model.parameters())


def test_weights_of_comparisons_beyond_float32_stop_too():
    groups = [
        replace(group, comparisons=(Comparison(0, 1, 1.0, 3e38),)) for group in tiny.groups(3)
    ]
    model = tiny.model("llama")
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = Optimizer(model, kind="adamw", weight_decay=0.0, clip=1.0)
    with pytest.raises(TrainingError, match="the loss is not finite"):
        step(model, groups, [[0, 1, 2]], optimizer, reference_of(model, groups), preference("dpo"))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_the_reference_is_the_policy_at_step_0_or_nothing_starts():
    groups = tiny.groups(3)
    model = tiny.model("llama")
    batch = collate(groups)
    seen = check_identity(
        model, reference_of(model, groups).into(batch), objective=preference("dpo"), engine=engine
    )
    assert seen["noise"] < 1e-5
    assert seen["loss"] == pytest.approx(math.log(2), abs=1e-5)
    other = reference_of(tiny.model("llama", seed=1), groups)
    with pytest.raises(TrainingError, match="likely causes"):
        check_identity(model, other.into(batch), objective=preference("dpo"), engine=engine)


def test_half_precision_weights_have_float32_masters():
    """bfloat16 weights: gradients are summed in float32, and a thousand tiny steps are not lost in
    rounding.
    """
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


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp("world"))


dpo = runs.dpo


def test_a_run_writes_what_it_promises_under_the_fields_names(world, tmp_path):
    run = dpo(
        world,
        tmp_path / "run",
        eval_data=[str(world / "held.jsonl"), str(world / "other.jsonl")],
        eval_every=2,
        save_best=True,
        lr=3e-3,
        steps=8,
    )
    for path in (
        run.config,
        run.environment,
        run.metrics,
        run.model / "model.safetensors",
        run.samples,
        run.report_json,
        run.report_html,
    ):
        assert path.exists(), path
    rows = read_jsonl(run.metrics)
    train = [row for row in rows if "loss" in row]
    names = (
        "loss grad_norm learning_rate entropy num_tokens logps/chosen logps/rejected rewards/chosen"
        " rewards/rejected rewards/accuracies"
    )
    names += (
        " rewards/margins epoch step logratio/chosen logratio/rejected length/chosen"
        " pairs_per_second tokens_per_second"
    )
    assert set(names.split()) <= set(train[0])
    assert [row["step"] for row in train] == list(range(1, 9))
    assert train[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    held = [row for row in rows if "eval_held_loss" in row]
    assert [row["step"] for row in held] == [0, 2, 4, 6, 8]
    assert "eval_other_rewards/accuracies" in held[0]
    assert held[0]["eval_held_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert {row["step"] for row in read_jsonl(run.samples)} == {0, 8}


@pytest.mark.slow
def test_the_best_checkpoint_becomes_the_model(world, tmp_path):
    """Held-out pairs want the opposite, so the first evaluation is the best, and the last weights
    are not the model.
    """
    against = {
        "eval_data": [str(world / "against.jsonl"), str(world / "held.jsonl")],
        "eval_every": 2,
        "lr": 3e-3,
        "steps": 8,
        "keep": 1,
    }
    run = dpo(world, tmp_path / "run", save_best=True, **against)
    losses = {
        row["step"]: row["eval_against_loss"]
        for row in read_jsonl(run.metrics)
        if "eval_against_loss" in row
    }
    assert min((2, 4, 6, 8), key=losses.get) == 2
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step_2", "step_8"]
    model, kept, last = (
        runs.weights(run.model),
        *(load_file(run.checkpoints / f"step_{n}" / "weights.safetensors") for n in (2, 8)),
    )
    assert all(torch.equal(model[name], tensor) for name, tensor in kept.items())
    assert not any(
        torch.equal(model[name], tensor)
        for name, tensor in last.items()
        if tensor.ndim == 2 and "embed" not in name
    )
    found = api.evaluate(model=str(run.root), data=[str(world / "against.jsonl")])
    assert found.summary["loss"] == pytest.approx(losses[2], rel=1e-5)
    plain = dpo(world, tmp_path / "plain", **against)
    assert all(
        torch.equal(runs.weights(plain.model)[name], tensor) for name, tensor in last.items()
    )


def test_a_share_of_the_prompts_is_set_aside(world, tmp_path):
    run = dpo(world, tmp_path / "run", eval_fraction=0.25, steps=2)
    rows = read_jsonl(run.metrics)
    assert rows[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    data = read_json(run.root / "data.json")
    assert data["train"]["used"] + data["eval"]["eval_"]["used"] == 24
    assert data["eval"]["eval_"]["used"] == 6


def test_smoothed_labels_reach_the_loss(world, tmp_path):
    """Step 2, same weights: cDPO's loss is (1 - e) L(m) + e L(-m), above DPO's where the margin is
    positive. At the start both are ln 2.
    """
    plain, smooth = (
        runs.numbers(
            dpo(
                world,
                tmp_path / str(e),
                label_smoothing=e,
                optimizer="rmsprop",
                clip=None,
                steps=3,
                lr=1e-4,
            )
        )
        for e in (0.0, 0.4)
    )
    assert smooth[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    # the slope at m = 0 is -beta (1 - 2 e) / 2
    assert smooth[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"] * (1 - 2 * 0.4), rel=1e-4)
    assert smooth[-1]["loss"] > plain[-1]["loss"]


@pytest.mark.parametrize(
    ("objective", "start"), [("ipo", 25.0), ("hinge", 1.0), ("dpo_norm", math.log(2))]
)
def test_every_objective_starts_at_its_own_value(world, tmp_path, objective, start):
    run = dpo(world, tmp_path / "run", objective=objective, steps=2)
    assert read_jsonl(run.metrics)[0]["loss"] == pytest.approx(start, rel=1e-4)
    assert ("5.0  # default of dpo_norm" in run.config.read_text()) == (objective == "dpo_norm")


def test_an_adapter_trains_alone_and_its_reference_is_itself(world, tmp_path):
    """SFT adapter, then DPO on it: the reference is the adapter as loaded, not the bare base
    model.
    """
    sft = api.sft(
        model=str(world / "model"),
        data=[str(world / "train.jsonl")],
        out=str(tmp_path / "sft"),
        batch_size=8,
        steps=4,
        lr=1e-2,
        lora="r=4,alpha=8",
    )
    assert (sft.model / "adapter_model.safetensors").exists()
    counts = read_json(sft.environment)["parameters"]
    assert 0 < counts["trainable"] < counts["total"] / 2
    run = dpo(world, tmp_path / "dpo", model=str(sft.root), steps=3)
    first = read_jsonl(run.metrics)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert read_json(run.environment)["settings"]["lr"] == 1e-3
    base = tmp_path / "base"
    bare = dpo(world, base, steps=3)
    assert first["logps/chosen"] != pytest.approx(
        read_jsonl(bare.metrics)[0]["logps/chosen"], abs=0.1
    )
    with pytest.raises(ModelError, match="already is an adapter"):
        loading.load(ModelSpec(str(sft.root), device="cpu"), lora=Lora())
    out = export.run(
        resolve(ExportSettings, {"model": str(run.root), "out": tmp_path / "merged", "merge": True})
    )
    batch = collate(tiny.groups(3))
    live, merged = (
        engine.logps(loading.load(ModelSpec(str(path), device="cpu")).model, batch)["logp"].detach()
        for path in (run.root, out)
    )
    torch.testing.assert_close(live, merged, rtol=0, atol=1e-4)
    assert not (out / "adapter_config.json").exists()
    plain = export.run(resolve(ExportSettings, {"model": str(run.root), "out": tmp_path / "plain"}))
    assert (plain / "adapter_model.safetensors").read_bytes() == (
        run.model / "adapter_model.safetensors"
    ).read_bytes()
    assert torch.equal(
        engine.logps(loading.load(ModelSpec(str(plain), device="cpu")).model, batch)[
            "logp"
        ].detach(),
        live,
    )
    assert not torch.equal(
        runs.weights(run.model)[next(iter(runs.weights(run.model)))],
        runs.weights(sft.model)[next(iter(runs.weights(sft.model)))],
    )
    trained = load_file(run.checkpoints / "step_3" / "weights.safetensors")
    assert trained
    assert all("lora_" in name for name in trained)


def test_another_reference_is_named_and_its_check_skipped(world, tmp_path, capsys):
    tiny.folder(tmp_path / "other", seed=5)
    run = dpo(world, tmp_path / "run", reference=str(tmp_path / "other"), steps=1)
    assert "that check is skipped" in " ".join(capsys.readouterr().out.split())
    assert read_jsonl(run.metrics)[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_a_rate_lost_in_rounding_is_not_training(world, tmp_path):
    with pytest.raises(TrainingError, match="changed no weight"):
        dpo(world, tmp_path / "run", lr=1e-30, steps=1)


@pytest.mark.slow
def test_nothing_on_the_way_reads_a_pickle(world, tmp_path, monkeypatch):
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    for owner, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    sft = api.sft(
        model=str(world / "model"),
        data=[str(world / "train.jsonl")],
        out=str(tmp_path / "sft"),
        batch_size=8,
        steps=2,
        lr=1e-3,
    )
    run = dpo(world, tmp_path / "run", model=str(sft.root), steps=2)
    run.unfinish()  # it resumes from the last checkpoint
    dpo(world, tmp_path / "run", model=str(sft.root), steps=2)
    for model, more in (
        (sft.root, {"lora": "r=2"}),
        (tmp_path / "reward", {}),
    ):  # an adapter with its head, and on from there
        scores = api.reward(
            **runs.settings(
                world,
                tmp_path / ("reward" if more else "reward-again"),
                model=str(model),
                steps=2,
                **more,
            )
        )
        assert verify.run(str(scores.root)) == []
    dpo(
        world,
        tmp_path / "aside",
        model=str(sft.root),
        steps=2,
        async_save=True,
        save_every=1,
        stream=24,
        moving_reference="mix=0.5",
    )
    assert verify.run(str(run.root)) == []
    found = api.evaluate(
        model=str(run.root), data=[str(world / "held.jsonl")], out=str(tmp_path / "eval")
    )
    assert found.summary["comparisons"] == 8
    export.run(resolve(ExportSettings, {"model": str(run.root), "out": tmp_path / "plain"}))
    generate.run(
        resolve(GenerateSettings, {"model": str(run.root), "prompt": ["x"], "max_new_tokens": 2})
    )


def test_evaluation_finds_the_runs_reference_and_agrees_with_training(world, tmp_path):
    run = dpo(world, tmp_path / "run", eval_data=[str(world / "held.jsonl")])
    last = [row for row in read_jsonl(run.metrics) if "eval_loss" in row][-1]
    found = api.evaluate(
        model=str(run.root), data=[str(world / "held.jsonl")], out=str(tmp_path / "eval")
    )
    assert found.summary["loss"] == pytest.approx(last["eval_loss"], rel=1e-5)
    assert found.summary["rewards/accuracies"] == last["eval_rewards/accuracies"]
    written = json.loads((tmp_path / "eval" / "report.json").read_text())["summary"]
    assert written["eval_rewards/margins"] == pytest.approx(last["eval_rewards/margins"], rel=1e-4)
    assert (
        written["eval_rewards/accuracies_low"]
        < written["eval_rewards/accuracies"]
        <= written["eval_rewards/accuracies_high"]
    )
    rows = read_jsonl(tmp_path / "eval" / "rows.jsonl")
    assert len(rows) == 8
    assert sum(row["correct"] for row in rows) / 8 == written["eval_rewards/accuracies"]
    assert RunFolder(run.root).finished
