"""Objectives in training steps: whole batches, references that are asked at every step, and runs
with each kind of them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import runs
import tiny
from exact import Exact
from winnow import api
from winnow.config.options import Follow
from winnow.data.records import Comparison
from winnow.data.render import TokenSequence
from winnow.engine import output_head, rows
from winnow.engine.batch import collate
from winnow.engine.dataset_logps import Reference, dataset_logps, offsets
from winnow.engine.fast import MASKS, SEGMENTS, SINGLE
from winnow.engine.micro_batches import alone
from winnow.objectives.objective import objective
from winnow.objectives.table import TABLE
from winnow.system.files import read_json, read_jsonl
from winnow.training.live import Live
from winnow.training.optimizer import Optimizer
from winnow.training.startup_checks import check_identity
from winnow.training.step import held_out, take_step

CPU, F64 = torch.device("cpu"), torch.float64
COMPOSED = [
    "dpo:wpo=true",
    "dpo:tail_weight=0.3:offset=0.2",
    "dpo:divergence=js",
    "ipo:score=sum:divergence=0.5",
    "dpo:0.8,bco:0.2,sft:1",
    "tdpo,kto:0.5",
]


def model(seed=0):
    return tiny.model("llama", dtype=F64, seed=seed)


def groups(count=5):
    """As the tests of training have them, certain of their labels, with margins, and an answer to
    another prompt each.
    """
    plain = tiny.groups(count)
    found = []
    for i, one in enumerate(plain):
        prompt = one.sequences[0].ids[: one.sequences[0].start]
        answer = plain[i - 1].sequences[0]
        other = TokenSequence((*prompt, *answer.ids[answer.start :]), len(prompt))
        comparisons = tuple(
            Comparison(c.winner, c.loser, margin=0.5 + c.winner) for c in one.comparisons
        )
        found.append(
            replace(
                one,
                sequences=(*one.sequences, other),
                comparisons=comparisons,
                labels=(*one.labels, None),
                mismatched=1,
            )
        )
    return found


def reference_of(theirs, groups):
    return Reference(
        "made",
        dataset_logps(rows, theirs, groups, 4096, CPU, whose="the reference"),
        offsets(groups),
    )


class Keeping(Optimizer):
    """Notes the gradients before each update."""

    def step(self, lr):
        self.kept = [
            *getattr(self, "kept", []),
            torch.cat([p.grad.flatten() for p in self.parameters()]).clone(),
        ]
        Optimizer.step(self, lr)


def trained(text, cut, engine=rows, *, follow=None, steps=3, seed=1):
    """Losses, gradients, and what is known at the end, of a few steps with the batch cut like
    this.
    """
    ours, made, data = model(), objective(text), groups()
    live = (
        Live(model(seed), engine, follow=follow, distributions=made.live)
        if made.live or follow
        else None
    )
    if live:  # another reference than the policy: its weights from another model of the same shape
        live = Live(ours, engine, follow=follow, distributions=made.live)
        live.load({name: p.detach().clone() for name, p in model(seed).named_parameters()})
    stored = reference_of(model(seed), data)
    batches = [stored.into(collate([data[i] for i in part], part)) for part in cut]
    optimizer, known, losses = Keeping(ours, kind="adamw", weight_decay=0.0, clip=None), {}, []
    for step in range(steps):
        row, known = take_step(
            ours,
            alone(batches),
            objective=made,
            engine=engine,
            optimizer=optimizer,
            lr=1e-3,
            before=known,
            live=live,
        )
        losses.append(row["loss"])
        if live:
            live.after(ours, step + 1)
    return losses, optimizer.kept, known, ours, live


CUTS = ([[0, 1, 2, 3, 4]], [[4], [0, 2], [1, 3]], [[i] for i in range(5)])


@pytest.mark.parametrize("text", [*TABLE, *COMPOSED])
@pytest.mark.slow
def test_cutting_the_batch_differently_changes_nothing(text):
    """Also for what must be known of the whole batch: baselines, shifts, betas, orders."""
    losses, gradients, known, *_ = trained(text, CUTS[0])
    for cut in CUTS[1:]:
        also, kept, same, *_ = trained(text, cut)
        assert also == pytest.approx(losses, rel=1e-10)
        assert same == pytest.approx(known, rel=1e-9)
        for one, other in zip(gradients, kept):
            assert float((one - other).abs().max()) <= 1e-7 * float(one.abs().max())


@pytest.mark.parametrize("engine", [SEGMENTS, MASKS, SINGLE], ids=lambda e: e.NAME)
@pytest.mark.parametrize(
    "text",
    ["tdpo", "kto", "dpo:wpo=true", "dpo:0.8,bco:0.2,sft:1", "plackett_luce", "tdpo,kto:0.5"],
)
@pytest.mark.slow
def test_the_fast_engines_train_the_same(engine, text, monkeypatch):
    monkeypatch.setattr(output_head, "TILE", 97 * 8 * 20)  # several parts to a micro-batch
    with Exact():
        losses, gradients, *_ = trained(text, CUTS[1])
        also, kept, *_ = trained(text, CUTS[1], engine)
    assert also == pytest.approx(losses, rel=1e-7)  # three updates: rounding grows with each
    assert also[0] == pytest.approx(losses[0], rel=1e-11)
    assert float((gradients[0] - kept[0]).norm()) <= 1e-10 * float(gradients[0].norm())
    assert float((gradients[2] - kept[2]).norm()) <= 1e-5 * float(gradients[2].norm())


def test_tdpos_gradient_is_that_of_the_loss_written_out():
    """Through autograd over whole distributions of two models, sequence by sequence."""
    ours, theirs, data = model(), model(1), groups(3)
    total, count = torch.zeros((), dtype=F64), 0.0
    with Exact():
        for one in data:
            scores = []
            for sequence in one.sequences:
                ids = torch.tensor([sequence.ids])
                p = ours(input_ids=ids).logits[0].log_softmax(-1)
                q = theirs(input_ids=ids).logits[0].log_softmax(-1).detach()
                at = range(sequence.start, len(sequence.ids))
                ratio = sum((p - q)[t - 1, sequence.ids[t]] for t in at)
                kl = sum((q[t - 1].exp() * (q[t - 1] - p[t - 1])).sum() for t in at)
                scores.append((ratio, kl))
            for c in one.comparisons:
                (w, kl_w), (v, kl_v) = scores[c.winner], scores[c.loser]
                total = total - torch.nn.functional.logsigmoid(
                    0.1 * (w - v) - 0.5 * 0.1 * (kl_v - kl_w.detach())
                )
                count += 1
        (total / count).backward()
    expected = torch.cat([p.grad.flatten() for p in ours.parameters()])
    fresh = model()
    live = Live(fresh, SEGMENTS, follow=None, distributions=True)
    live.load({name: p.detach().clone() for name, p in theirs.named_parameters()})
    optimizer = Keeping(fresh, kind="adamw", weight_decay=0.0, clip=None)
    with Exact():
        row, _ = take_step(
            fresh,
            alone([collate(data)]),
            objective=objective("tdpo"),
            engine=SEGMENTS,
            optimizer=optimizer,
            lr=1e-3,
            before={},
            live=live,
        )
    assert row["loss"] == pytest.approx(float(total.detach()) / count, rel=1e-9)
    assert float((optimizer.kept[0] - expected).norm()) <= 1e-10 * float(expected.norm())


@pytest.mark.parametrize("follow", [Follow(mix=0.6), Follow(every=2), Follow(mix=0.25, every=2)])
def test_a_moving_reference_moves_as_it_should(follow):
    """ref = mix policy + (1 - mix) ref after each so many steps; the loss is that of a stored
    reference of these weights.
    """
    data, made = groups(), objective("dpo")
    ours = model()
    live = Live(ours, rows, follow=follow, distributions=False)
    expected = {name: p.detach().clone() for name, p in ours.named_parameters()}
    optimizer, losses = Optimizer(ours, kind="adamw", weight_decay=0.0, clip=None), []
    for step in range(5):
        before = {name: p.detach().clone() for name, p in ours.named_parameters()}
        theirs = model()
        theirs.load_state_dict(expected)
        stored = reference_of(theirs, data).into(collate(data))
        row = held_out(ours, [collate(data)], objective=made, engine=rows, before={}, live=live)
        assert row["loss"] == pytest.approx(
            held_out(ours, [stored], objective=made, engine=rows, before={}, live=None)["loss"],
            rel=1e-9,
        )
        losses.append(row["loss"])
        # asking leaves no trace
        assert all(torch.equal(p, before[name]) for name, p in ours.named_parameters())
        take_step(
            ours,
            alone([collate(data)]),
            objective=made,
            engine=rows,
            optimizer=optimizer,
            lr=1e-2,
            before={},
            live=live,
        )
        live.after(ours, step + 1)
        if (step + 1) % follow.every == 0:
            expected = {
                name: follow.mix * p.detach() + (1 - follow.mix) * expected[name]
                for name, p in ours.named_parameters()
            }
        for name, value in live.state().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-15)
    assert min(losses) < 0.69


@pytest.mark.parametrize(
    "text", ["dpo", "kto", "tdpo", "rdpo:alpha=0.3", "dpo:wpo=true", "dpo:0.8,bco:0.2,sft:1"]
)
def test_the_start_is_checked_for_every_objective(text):
    """Its loss there is what it gives for log-ratios of 0, whatever lengths and tokens make of
    it.
    """
    ours, data, made = model(), groups(), objective(text)
    live = Live(ours, rows, follow=None, distributions=made.live) if made.live else None
    batch, other = reference_of(ours, data).into(collate(data)), None
    if live:
        batch, other = live.ask(ours, batch)
    seen = check_identity(ours, batch, objective=made, engine=rows, other=other)
    assert seen["loss"] == pytest.approx(seen["expected"], rel=1e-9)
    assert seen["noise"] < 1e-9


def test_held_out_data_is_one_batch_where_a_batch_counts():
    """kto's baseline of an evaluation is that of the whole set, however it is packed."""
    ours, data, made = model(), groups(), objective("kto")
    stored = reference_of(model(1), data)
    found = []
    for cut in CUTS:
        batches = [stored.into(collate([data[i] for i in part], part)) for part in cut]
        found.append(held_out(ours, batches, objective=made, engine=rows, before={}, live=None))
    assert found[1] == pytest.approx(found[0], rel=1e-10)
    assert found[2] == pytest.approx(found[0], rel=1e-10)


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    root = runs.world(tmp_path_factory.mktemp("world"))
    pairs, sides = tiny.pairs(24), ("chosen", "rejected")
    tiny.write(
        root / "thumbs.jsonl",
        [
            {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
            for p in pairs
            for side in sides
        ],
    )
    return root


QUICK = ("dpo", "kto")


@pytest.mark.parametrize(
    "text",
    [
        *QUICK,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in [
                *(name for name in TABLE if name not in ("odpo", *QUICK)),
                "dpo:0.8,bco:0.2,sft:1",
                "dpo:wpo=true:divergence=js",
            ]
        ),
    ],
)
def test_a_run_of_every_objective(world, tmp_path, text):
    """Through files and checkpoints, with an evaluation, to a report: the loss is finite, and falls
    on what it is trained on.
    """
    run = runs.dpo(
        world,
        tmp_path / "run",
        objective=text,
        eval_data=[str(world / "held.jsonl")],
        eval_every=3,
        kl_samples=0,
        lr=3e-3,
        steps=6,
    )
    metrics = [row for row in read_jsonl(run.metrics) if "loss" in row]
    evaluations = [row for row in read_jsonl(run.metrics) if "eval_loss" in row]
    assert len(metrics) == 6
    assert [row["step"] for row in evaluations] == [0, 3, 6]
    assert run.report_html.exists()
    settings = read_json(run.environment)["settings"]
    assert objective(settings["objective"]).terms[0].entry is objective(text).terms[0].entry
    again = api.dpo(**{**settings, "out": str(tmp_path / "again")})
    # the settings as recorded are those that were run
    assert runs.numbers(again) == runs.numbers(run)
    if text in ("kto", "bco", "beta_dpo"):
        assert read_json(run.checkpoints / "step_6" / "progress.json")["known"]


@pytest.mark.parametrize(
    "text", ["kto:desirable=1.5", "bco_unpaired", "aot_unpaired", "sft", "kto,sft:0.5"]
)
def test_thumbs_up_and_down(world, tmp_path, text):
    run = runs.dpo(
        world,
        tmp_path / "run",
        objective=text,
        data=[str(world / "thumbs.jsonl")],
        batch_size=16,
        lr=3e-3,
        steps=9,
    )
    rows = [row for row in read_jsonl(run.metrics) if "loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"]
    if text != "sft":
        assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"]
        assert rows[-1]["rewards/margins"] == pytest.approx(
            rows[-1]["rewards/chosen"] - rows[-1]["rewards/rejected"]
        )
