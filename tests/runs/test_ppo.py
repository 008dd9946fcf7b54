"""`winnow ppo`: its gradients against enumeration and finite differences, its way through a
countable world, its run folder.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import statistics
import sys
import time

import pytest
import safetensors.torch
import torch
from scipy import stats
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

import runs
import tiny
from countable import (
    JUDGE,
    LONGEST,
    PROMPTS,
    distance,
    distribution,
    everything,
    rewards,
    write_world,
)
from winnow.commands import train as commands
from winnow.config.model_spec import ModelSpec
from winnow.config.ppo import PPOSettings
from winnow.config.resolve import resolve
from winnow.config.training import FREE
from winnow.data.order import Cursor
from winnow.engine.batch import collate
from winnow.engine.dataset_logps import PerToken, offsets
from winnow.engine.fast import SEGMENTS
from winnow.engine.micro_batches import Data, alone
from winnow.engine.rows import logps
from winnow.engine.scalar_head import ORACLE
from winnow.errors import SettingsError
from winnow.generation.sampler import Sampling, sample
from winnow.models import loading, reward_models
from winnow.objectives.ppo import Answers, by_gae, by_group, surrogate, value_error
from winnow.system.files import read_json, read_jsonl
from winnow.system.run_folder import RunFolder
from winnow.training.optimizer import Optimizer
from winnow.training.ppo import run as ppo
from winnow.training.ppo import setup
from winnow.training.step import StepObjective, take_step


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _here(world, monkeypatch):
    monkeypatch.chdir(world)


SETTINGS = {
    "prompts": "prompts.txt",
    "reward": "judge_of_words:worth",
    "max_new_tokens": LONGEST,
    "batch_size": 4,
    "k": 8,
    "lr": 1e-3,
    "critic_lr": 1e-2,
}


def given(world, out, **changes):
    return {"model": str(world / "model"), "out": str(out), **SETTINGS, **changes}


def train(world, out, **changes) -> RunFolder:
    return commands.ppo(resolve(PPOSettings, given(world, out, **changes), origin="argument"))


def line(world, out, **changes):
    words = (
        (f"--{name.replace('_', '-')}", value)
        for name, value in given(world, out, **changes).items()
    )
    return [
        "ppo",
        *(
            str(word)
            for name, value in words
            for word in ([name] if value is True else [name, value])
        ),
    ]


def numbers(run):
    return [
        {name: value for name, value in row.items() if not name.startswith("seconds/")}
        for row in runs.numbers(run)
    ]


# ---------------------------------------------------------------- gradients


def gradient(model, groups, objective, engine, monkeypatch):
    """What a step hands to its optimizer, by name."""
    optimizer = Optimizer(model, kind="adamw", weight_decay=0.0, clip=None)
    found = {}
    monkeypatch.setattr(
        optimizer,
        "step",
        lambda lr: found.update(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        ),
    )
    micro = alone([collate([group], [i]) for i, group in enumerate(groups)])
    assert isinstance(objective, StepObjective)
    model.zero_grad()
    row, _ = take_step(
        model,
        micro,
        objective=objective,
        engine=engine,
        optimizer=optimizer,
        lr=0.0,
        before={},
        live=None,
    )
    return found, row


def along(model, direction, value, by=1e-5):
    """d value / d weights along a direction, by central differences: nobody's autograd."""
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(sign * by * direction[name])
            found.append(value())
            for name, p in model.named_parameters():
                p.sub_(sign * by * direction[name])
    return (found[0] - found[1]) / (2 * by)


def smooth(kind):
    """A model that computes in float64 throughout, which Llama's norms do not: finite differences
    are good to nine digits.
    """
    torch.manual_seed(0)
    shape = {
        "vocab_size": 4,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 16,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    return kind(GPT2Config(**shape, num_labels=1)).double().eval()


def directions(model, count=3):
    torch.manual_seed(1)
    return [
        {name: torch.randn_like(p) for name, p in model.named_parameters()} for _ in range(count)
    ]


def test_one_pass_without_clipping_is_the_policy_gradient_by_enumeration(monkeypatch):
    """All answers are there, each as often as the policy says it: the step's gradient is that of -
    E[r] of all prompts, over the number of tokens.
    """
    model = smooth(GPT2LMHeadModel)
    groups, reward_XA = everything(), rewards()
    probability_XA = distribution(model).exp()
    assert probability_XA.sum(1) == pytest.approx(torch.ones(len(PROMPTS)))
    length_C = torch.tensor([len(s.ids) - s.start for group in groups for s in group.sequences])
    old_N, start = (
        torch.cat([logps(model, collate([group]))["logp"].detach() for group in groups]),
        offsets(groups),
    )
    for baseline in (0.0, 0.7):  # it takes no part
        advantage_N = (
            (probability_XA * (reward_XA - baseline)).flatten().repeat_interleave(length_C)
        )
        objective = surrogate(PerToken(old_N, start), PerToken(advantage_N, start), math.inf)
        found, row = gradient(model, groups, objective, SEGMENTS, monkeypatch)
        assert row["clip_fraction"] == 0
        assert row["kl/step"] == pytest.approx(0, abs=1e-12)
        for direction in directions(model):
            expected = along(
                model,
                direction,
                lambda: -float((distribution(model).exp() * reward_XA).sum()) / len(old_N),
            )
            assert float(
                sum((found[name] * part).sum() for name, part in direction.items())
            ) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_ratio_one_and_no_advantage_is_no_gradient(world, monkeypatch):
    model = loading.load(ModelSpec(str(world / "model"), dtype="float64")).model
    groups = everything()
    start, old_N = (
        offsets(groups),
        torch.cat([logps(model, collate([group]))["logp"].detach() for group in groups]),
    )
    for clip in (0.2, math.inf):
        found, row = gradient(
            model,
            groups,
            surrogate(PerToken(old_N, start), PerToken(torch.zeros_like(old_N), start), clip),
            SEGMENTS,
            monkeypatch,
        )
        assert row["grad_norm"] == 0
        assert all(not grad.any() for grad in found.values())


def test_the_critics_gradient_by_finite_differences(monkeypatch):
    model = smooth(GPT2ForSequenceClassification)
    groups = everything()
    batch, start = collate(groups), offsets(groups)
    old_N = ORACLE.logps(model, batch)["logp"].detach()
    torch.manual_seed(0)
    return_N = torch.randn_like(old_N)
    found, row = gradient(
        model,
        groups,
        value_error(PerToken(old_N, start), PerToken(return_N, start), math.inf),
        ORACLE,
        monkeypatch,
    )
    assert row["loss/value"] == pytest.approx(float(0.5 * (old_N - return_N).square().mean()))
    assert "entropy" not in row
    for direction in directions(model):
        expected = along(
            model,
            direction,
            lambda: float(0.5 * (ORACLE.logps(model, batch)["logp"] - return_N).square().mean()),
        )
        assert float(
            sum((found[name] * part).sum() for name, part in direction.items() if name in found)
        ) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    # all have moved towards their return by twice the clip
    clipped = value_error(PerToken(old_N - 1, start), PerToken(old_N + 9, start), 0.5)
    found, row = gradient(model, groups, clipped, ORACLE, monkeypatch)
    assert (row["value_clip_fraction"], row["grad_norm"]) == (1, 0)


def test_grpos_kl_pulls_back_to_the_reference(world, monkeypatch):
    """Its slope is 1 - pi_ref / pi, whatever the advantage says; at the reference there is none."""
    model = loading.load(ModelSpec(str(world / "model"), dtype="float64")).model
    groups = everything()
    start, old_N = (
        offsets(groups),
        torch.cat([logps(model, collate([group]))["logp"].detach() for group in groups]),
    )
    none, old = PerToken(torch.zeros_like(old_N), start), PerToken(old_N, start)
    assert (
        gradient(model, groups, surrogate(old, none, 0.2, old, 0.5), SEGMENTS, monkeypatch)[1][
            "grad_norm"
        ]
        < 1e-12
    )
    batch = collate(groups)
    far = PerToken(old_N - 0.3, start)
    _, slopes = surrogate(old, none, 0.2, far, 0.5).slopes({"logp": old_N}, batch, (1.0,), {})
    assert slopes["logp"] == pytest.approx(torch.full_like(old_N, 0.5 * (1 - math.exp(-0.3))))


# ---------------------------------------------------------------- advantages, by hand


def two_answers(**changes):
    """Answers of two tokens and one, to one prompt."""
    known = {
        "completion_N": torch.tensor([0, 0, 1]),
        "group_C": torch.tensor([0, 0]),
        "score_C": torch.tensor([2.0, -1.0]),
        "logp_N": torch.tensor([-1.0, -2.0, -0.5]),
        "reference_N": torch.tensor([-1.5, -1.0, -0.5]),
        "value_N": torch.tensor([0.3, 0.1, -0.2]),
    }
    return Answers(**known | changes)


def test_advantages_of_two_answers_by_hand():
    answers = two_answers()
    reward = [-0.1 * 0.5, -0.1 * -1.0 + 2, -1.0]
    assert answers.reward_N(0.1) == pytest.approx(torch.tensor(reward))
    last = reward[1] - 0.1
    first = reward[0] + 0.9 * 0.1 - 0.3 + 0.9 * 0.8 * last
    advantage_N, return_N = by_gae(answers, 0.1, 0.9, 0.8, whiten_rewards=False)
    assert advantage_N == pytest.approx(torch.tensor([first, last, -1 + 0.2]))
    assert return_N == pytest.approx(torch.tensor([first + 0.3, last + 0.1, -1.0]))
    # nothing is added: a token that earned nothing still earns nothing
    scaled = torch.tensor(reward) / statistics.pstdev(reward)
    assert by_gae(answers, 0.1, 1.0, 1.0, whiten_rewards=True)[1] == pytest.approx(
        torch.stack([scaled[0] + scaled[1], scaled[1], scaled[2]])
    )
    paid = [reward[0] + reward[1], reward[2]]
    assert by_group(answers, "rloo", 0.1) == pytest.approx(
        torch.tensor([paid[0] - paid[1], paid[0] - paid[1], paid[1] - paid[0]])
    )
    unit = 1.5 / (math.sqrt(4.5) + 1e-4)  # the KL is in the loss
    assert by_group(answers, "grpo", 0.1) == pytest.approx(torch.tensor([unit, unit, -unit]))


# ---------------------------------------------------------------- the whole way


LEARN = {
    "steps": 40,
    "batch_size": 4,
    "k": 64,
    "epochs": 2,
    "minibatches": 2,
    "beta": 0.5,
    "lr": 3e-3,
    "save_every": 1000,
}


@pytest.mark.parametrize(
    "kind", [{"lam": 1.0}, {"advantage": "rloo", "critic_lr": None}], ids=["gae", "rloo"]
)
@pytest.mark.slow
def test_it_comes_to_the_best_policy_there_is(world, tmp_path, kind):
    """pi* = pi_ref exp(r / beta) / Z, which maximises E[r] - beta KL."""
    run = train(world, tmp_path / "run", **LEARN, **kind)
    start, now = (
        distribution(loading.load(ModelSpec(str(name))).model)
        for name in (world / "model", run.root)
    )
    start, now = (distance(logp, start, 0.5) for logp in (start, now))
    assert start > 0.5
    assert now < 0.05


def test_a_run_says_what_it_did(world, tmp_path, call):
    out = tmp_path / "run"
    code, said, error = call(
        *line(
            world,
            out,
            steps=4,
            save_every=2,
            eval_fraction=0.5,
            batch_size=2,
            eval_every=2,
            minibatches=2,
        )
    )
    assert code == 0, error
    assert (
        "4 iterations of 2 prompts with 8 answers of at most 3 tokens, 8 optimizer steps each"
        in said
    )
    run = RunFolder(out)
    rows = read_jsonl(run.metrics)
    trained, looked = (
        [row for row in rows if name in row] for name in ("loss/policy", "eval_score")
    )
    assert [row["step"] for row in trained] == [1, 2, 3, 4]
    assert [row["step"] for row in looked] == [0, 2, 4]
    assert trained[0]["kl"] == pytest.approx(0, abs=1e-6)  # policy and reference are one
    assert trained[-1]["num_answers"] == 64
    assert looked[0]["eval_kl"] == pytest.approx(0, abs=1e-5)
    assert looked[-1]["eval_kl"] > 1e-4
    assert all(
        row["eval_score_low"] <= row["eval_score"] <= row["eval_score_high"] for row in looked
    )
    assert {path.name for path in run.checkpoints.iterdir()} == {"step_2", "step_4"}
    head = read_json(run.environment)
    assert head["models"] == dict.fromkeys(("policy", "reference"), head["models"]["policy"]) | {
        "critic": head["models"]["critic"]
    }
    report = read_json(run.report_json)
    assert report["runs"][0]["final"]["score"] == trained[-1]["score"]
    assert "Clip fraction" in run.report_html.read_text()
    assert call("verify", out)[0] == 0
    assert call("generate", "--model", out, "--prompt", "ba de")[0] == 0
    assert call("export", out, "--out", tmp_path / "plain")[0] == 0
    pairs = tiny.write(
        tmp_path / "pairs.jsonl", [{"prompt": "ba de", "chosen": " ba", "rejected": " de"}] * 2
    )
    code, said, error = call("eval", "--model", out, "--data", pairs)
    assert (code, f"reference={world / 'model'}" in said.replace("\n", "")) == (0, True), error
    assert head["reference"]["model"] == str(world / "model")
    tampered = {
        **head,
        "reference": {**head["reference"], "says": [0.0] * len(head["reference"]["says"])},
    }
    run.environment.write_text(json.dumps(tampered))
    assert "no longer the model" in call("eval", "--model", out, "--data", pairs)[2]
    run.environment.write_text(json.dumps(head))
    assert (
        "nothing to do"
        in call(
            *line(
                world,
                out,
                steps=4,
                save_every=2,
                eval_fraction=0.5,
                batch_size=2,
                eval_every=2,
                minibatches=2,
            )
        )[1]
    )


def test_the_first_step_sees_ratios_of_one_and_what_the_function_said(world, tmp_path):
    """One minibatch, one pass: nothing is clipped, and the policy has gone nowhere yet."""
    run = train(world, tmp_path / "run", steps=2, epochs=1)
    rows = read_jsonl(run.metrics)
    assert [row["clip_fraction"] for row in rows] == [0, 0]
    assert [row["kl/step"] for row in rows] == pytest.approx([0, 0], abs=1e-9)
    assert rows[0]["reward"] == pytest.approx(rows[0]["score"], abs=1e-6)
    assert rows[0]["value"] == 0  # a head of zeros


def test_beta_moves_as_by_hand(world, tmp_path):
    run = train(world, tmp_path / "run", steps=5, target_kl=0.5, horizon=100.0, beta=0.2)
    rows = read_jsonl(run.metrics)
    expected = 0.2
    for row in rows:
        assert row["beta"] == pytest.approx(expected, rel=1e-12)
        expected *= 1 + min(max(row["kl"] / 0.5 - 1, -0.2), 0.2) * 32 / 100
    assert rows[-1]["beta"] != 0.2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"advantage": "rloo", "critic_lr": None},
        {"advantage": "grpo", "critic_lr": None},
        {"reward": "scorer"},
        {"lora": "r=2", "schedule": "constant"},
    ],
)
@pytest.mark.slow
def test_every_kind_of_run_learns_something_and_is_the_same_again(world, tmp_path, changes):
    start = distribution(loading.load(ModelSpec(str(world / "model"))).model)
    made = [train(world, tmp_path / name, steps=3, **changes) for name in ("one", "other")]
    assert numbers(made[0]) == numbers(made[1])
    now = distribution(loading.load(ModelSpec(str(made[0].root))).model)
    assert float((now - start).abs().max()) > 1e-3


@pytest.mark.slow
def test_an_unfinished_answer_is_worth_what_was_said(world, tmp_path):
    rows = [
        read_jsonl(train(world, tmp_path / str(i), steps=1, unfinished=value).metrics)[0]
        for i, value in enumerate((None, -5.0, -6.0))
    ]
    share = 1 - rows[0]["finished"]
    assert 0 < share < 1
    assert rows[1]["score"] - rows[2]["score"] == pytest.approx(share)
    assert rows[0]["score"] > rows[1]["score"]


# ---------------------------------------------------------------- a run, written out once more


REPLAYED = {
    "beta": 0.3,
    "gamma": 0.9,
    "lam": 0.7,
    "clip_range": 0.05,
    "value_clip": 0.01,
    "clip": None,
    "whiten_rewards": True,
    "epochs": 2,
    "unfinished": -1.0,
}


def tokens_of_run(policy, critic, prompts, answers):
    """For each answer log p of its tokens and the critic's values before them, from single
    sequences.
    """
    found = []
    for prompt, many in zip(prompts, answers):
        for answer in many:
            ids = torch.tensor([[*prompt, *answer.ids, *([0] if answer.finished else [])]])
            at = torch.arange(len(prompt), ids.shape[1])
            logp = policy(input_ids=ids).logits[0].log_softmax(-1)[at - 1, ids[0, at]]
            found.append(
                (logp, critic.score(critic.model(input_ids=ids).last_hidden_state)[0, at - 1, 0])
            )
    return found


def of_prompts(name, values):
    """NAME_low and NAME_high of a mean of answers, as many to each prompt: Student's t over the
    prompts' own means, in plain sums.
    """
    k, several = SETTINGS["k"], len(values) // SETTINGS["k"]
    means = [sum(values[p * k : (p + 1) * k]) / k for p in range(several)]
    middle = sum(means) / several
    half = stats.t.ppf(0.975, several - 1) * math.sqrt(
        sum((one - middle) ** 2 for one in means) / (several - 1) / several
    )
    return {f"{name}_low": middle - half, f"{name}_high": middle + half}


def replayed(world, *, steps, lr, critic_lr, seed, whiten):
    """What `winnow ppo` says it does, in plain loops over single answers, with torch's own AdamW:
    the policy's and the critic's weights at the end.
    """
    own, frozen = (
        loading.load(ModelSpec(str(world / "model"))),
        loading.load(ModelSpec(str(world / "model"))).model,
    )
    critic = reward_models.load(ModelSpec(str(world / "model")), train=True, seed=seed).model
    critic.score.weight.data.zero_()
    optimizers = [
        torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
        for model, rate in ((own.model, lr), (critic, critic_lr))
    ]
    space, rows = {}, []
    exec(JUDGE, space)
    prompts = [own.tokenizer(prompt).input_ids for prompt in PROMPTS]
    for step in range(steps):
        with torch.no_grad():
            answers = sample(
                own,
                prompts,
                Sampling(0, max_new_tokens=LONGEST, seed=(seed << 32) + step + 1),
                k=SETTINGS["k"],
            )
            old = tokens_of_run(own.model, critic, prompts, answers)
            theirs = [logp for logp, _ in tokens_of_run(frozen, critic, prompts, answers)]
            texts = [(prompt, answer) for prompt, many in zip(PROMPTS, answers) for answer in many]
            rewards, scores = [], []
            for (prompt, answer), (logp, _), other in zip(texts, old, theirs):
                scores.append(
                    space["worth"](prompt, own.tokenizer.decode(answer.ids))
                    if answer.finished
                    else REPLAYED["unfinished"]
                )
                reward = -REPLAYED["beta"] * (logp - other)
                reward[-1] += scores[-1]
                rewards.append(reward)
            spread = torch.cat(rewards).std(correction=0)
            far = torch.cat([other - logp for (logp, _), other in zip(old, theirs)])
            rows.append(
                {
                    "kl": float((far.expm1() - far).sum()) / len(rewards),
                    "reward": float(torch.stack([reward.sum() for reward in rewards]).mean()),
                }
            )
            kls = [
                float(((other - logp).expm1() - (other - logp)).sum())
                for (logp, _), other in zip(old, theirs)
            ]
            rows[-1] |= (
                of_prompts("score", scores)
                | of_prompts("kl", kls)
                | of_prompts("length/sampled", [len(logp) for logp, _ in old])
            )
            rows[-1] |= {"answers": len(scores), "prompts": len(prompts)}
            advantages, returns = [], []
            for reward, (_, value) in zip(rewards, old):
                reward, after, made = (
                    reward / (spread**2 + 1e-8).sqrt(),
                    0.0,
                    torch.zeros_like(reward),
                )
                for t in reversed(range(len(reward))):
                    coming = value[t + 1] if t + 1 < len(reward) else 0.0
                    made[t] = after = reward[t] + 0.9 * coming - value[t] + 0.9 * 0.7 * after
                advantages.append(made)
                returns.append(made + value)
            whole = torch.cat(advantages)
            rows[-1]["explained_variance"] = 1 - float(whole.var() / torch.cat(returns).var())
            if whiten:
                advantages = [
                    (made - whole.mean()) / (whole.var(correction=0) + 1e-8).sqrt()
                    for made in advantages
                ]
        for optimizer, peak in zip(optimizers, (lr, critic_lr)):
            optimizer.param_groups[0]["lr"] = peak * (1 - step / steps)
        gone = []
        for _ in range(REPLAYED["epochs"]):
            losses, steps_off = [[], []], []
            for (logp, value), (before, guess), made, goal in zip(
                tokens_of_run(own.model, critic, prompts, answers), old, advantages, returns
            ):
                ratio = (logp - before).exp()
                steps_off.append((ratio - 1 - (logp - before)).detach())
                losses[0].append(-torch.minimum(ratio * made, ratio.clamp(0.95, 1.05) * made))
                losses[1].append(
                    0.5
                    * torch.maximum(
                        (value - goal) ** 2, (value.clamp(guess - 0.01, guess + 0.01) - goal) ** 2
                    )
                )
            for optimizer, loss in zip(optimizers, losses):
                optimizer.zero_grad()
                torch.cat(loss).mean().backward()
                optimizer.step()
            gone.append(float(torch.cat(steps_off).mean()))
        rows[-1]["kl/step"] = sum(gone) / len(gone)
    return own.model, critic, rows


@pytest.mark.parametrize("whiten", [None, False], ids=["whitened", "as they are"])
@pytest.mark.slow
def test_a_run_is_what_plain_loops_make_of_its_settings(world, tmp_path, whiten):
    """Sampling, rewards, discounts, whitening, both clips, both rates and their schedule, seed: the
    weights of policy and critic after three iterations, and what was logged on the way.
    """
    rates = {"steps": 3, "lr": 2e-3, "critic_lr": 7e-3, "seed": 5}
    run = train(world, tmp_path / "run", **REPLAYED, **rates, whiten_advantages=whiten)
    policy, critic, rows = replayed(world, **rates, whiten=whiten is None)
    start = loading.load(ModelSpec(str(world / "model"))).model.state_dict()
    saved = safetensors.torch.load_file(run.checkpoints / "step_3" / "weights.safetensors")
    for who, model in (("policy", policy), ("critic", critic)):
        for name, weight in model.state_dict().items():
            moved = float((weight - start[name]).norm()) if name in start else float(weight.norm())
            assert float((saved[f"{who}:{name}"] - weight).norm()) < 0.01 * moved, (who, name)
    logged = read_jsonl(run.metrics)
    for ours, expected in zip(logged, rows, strict=True):
        for name, value in expected.items():
            assert ours[name] == pytest.approx(value, rel=2e-2, abs=1e-5), (ours["step"], name)
    assert min(logged[-1]["value_clip_fraction"], logged[-1]["clip_fraction"]) > 0
    assert [row["learning_rate"] / row["critic/learning_rate"] for row in logged] == pytest.approx(
        [2 / 7] * 3
    )


def test_an_iteration_says_how_sure_its_means_are(world, tmp_path):
    """Intervals over prompts around the means themselves, also where a prompt comes twice in an
    iteration; of one prompt there is none.
    """
    rows = read_jsonl(train(world, tmp_path / "run", steps=4, batch_size=3).metrics)
    for row in rows:
        for name in ("score", "kl", "length/sampled"):
            assert row[f"{name}_low"] + row[f"{name}_high"] == pytest.approx(
                2 * row[name], rel=1e-9, abs=1e-9
            )
    assert rows[1]["length/sampled_high"] - rows[1]["length/sampled_low"] > 0.01
    cursor, drawn = Cursor(), []
    for _ in range(4):
        items, cursor = ppo._prompts(4, 3, 0, cursor)
        drawn.append(len(set(items)))
    assert [row["prompts"] for row in rows] == drawn
    alone = read_jsonl(train(world, tmp_path / "alone", steps=1, batch_size=1).metrics)[0]
    assert (alone["prompts"], [name for name in alone if name.endswith(("_low", "_high"))]) == (
        1,
        [],
    )


@pytest.mark.slow
def test_the_kl_term_of_grpo_holds_a_run_back(world, tmp_path):
    """The recipe's beta reaches the loss: the same run with a heavy one stays near the start."""
    kls = []
    for beta in (0.0, 3.0):
        run = train(
            world,
            tmp_path / str(beta),
            advantage="grpo",
            critic_lr=None,
            steps=6,
            lr=5e-3,
            beta=beta,
            schedule="constant",
        )
        kls.append(read_jsonl(run.metrics)[-1]["kl"])
    assert kls[1] < 0.5 * kls[0]


def test_an_unfinished_answer_is_worth_the_same_on_held_out_prompts(world, tmp_path):
    found = []
    for value in (-5.0, -6.0):
        rows = read_jsonl(
            train(
                world,
                tmp_path / str(value),
                steps=1,
                unfinished=value,
                eval_fraction=0.5,
                batch_size=2,
                lr=1e-9,
                max_new_tokens=1,
            ).metrics
        )
        found.append(next(row for row in rows if "eval_score" in row))
    share = 1 - found[0]["eval_finished"]
    assert found[0]["eval_score"] - found[1]["eval_score"] == pytest.approx(share)
    assert share > 0


def test_a_beta_that_is_changed_on_the_way_is_the_one_that_counts(world, undisturbed, tmp_path):
    """Fixed, or from where a controller began: what was saved of the old one is left."""
    for name, changes, expected in (
        ("fixed", {"target_kl": None, "beta": 4.0}, 4.0),
        ("moved", {"beta": 4.0}, 4.0),
    ):
        out = tmp_path / name
        shutil.copytree(undisturbed.root, out)
        own = {**SIX, **changes, "steps": 7}
        if own["target_kl"] is None:
            own["horizon"] = PPOSettings.model_fields["horizon"].default
        run = train(world, out, **own, allow_change=("beta", "target_kl", "horizon", "steps"))
        assert read_jsonl(run.metrics)[-1]["beta"] == expected


def test_every_iteration_has_as_many_prompts(world, tmp_path):
    """Four prompts, three at a time: what is left of a pass begins the next iteration, and all
    prompts come up equally often.
    """
    rows = read_jsonl(train(world, tmp_path / "run", steps=4, batch_size=3).metrics)
    assert [row["answers"] for row in rows] == [24] * 4
    cursor, seen = Cursor(), []
    for _ in range(8):
        items, cursor = ppo._prompts(4, 3, 0, cursor)
        seen += items
    assert [sorted(seen[i : i + 4]) for i in range(0, 24, 4)] == [[0, 1, 2, 3]] * 6


# ---------------------------------------------------------------- stopped and begun again


SIX = {"steps": 6, "save_every": 2, "k": 4, "target_kl": 0.5, "horizon": 100.0, "minibatches": 2}


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        return train(world, tmp_path_factory.mktemp("undisturbed") / "run", **SIX)


def same(run, other):
    assert numbers(run) == numbers(other)
    assert (run.model / "model.safetensors").read_bytes() == (
        other.model / "model.safetensors"
    ).read_bytes()
    for name in ("weights.safetensors", "optimizer.safetensors", "progress.json"):
        assert (run.checkpoints / "step_6" / name).read_bytes() == (
            other.checkpoints / "step_6" / name
        ).read_bytes(), name


@pytest.mark.parametrize("step", [0, 4])
@pytest.mark.slow
def test_it_goes_on_bit_for_bit_from_any_checkpoint(world, undisturbed, tmp_path, step):
    out = tmp_path / "run"
    shutil.copytree(undisturbed.root, out)
    run = RunFolder(out)
    run.unfinish()
    for folder in run.checkpoints.iterdir():
        if int(folder.name.removeprefix("step_")) > step:
            shutil.rmtree(folder)
    same(train(world, out, **SIX), undisturbed)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_goes_on_bit_for_bit_after_a_real_signal(world, undisturbed, tmp_path, number):
    out = tmp_path / "run"
    process = runs.started(*line(world, out, **SIX))
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and metrics.read_text().count("\n") >= 3
    ):
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    assert not RunFolder(out).finished
    same(train(world, out, **SIX), undisturbed)


# Another value of every setting a number depends on.
OTHER = {
    "model": "elsewhere",
    "dtype": "float64",
    "device": "cpu",
    "trust_remote_code": True,
    "prompts": "elsewhere.txt",
    "reward": "judge_of_words:other",
    "as": "text",
    "chat_template": "template.jinja",
    "limit": 4,
    "eval_fraction": 0.5,
    "seed": 1,
    "steps": 7,
    "batch_size": 3,
    "k": 5,
    "max_new_tokens": 2,
    "epochs": 3,
    "minibatches": 1,
    "max_tokens": 300,
    "advantage": "rloo",
    "beta": 0.1,
    "target_kl": 0.25,
    "horizon": 50.0,
    "clip_range": 0.1,
    "value_clip": 0.2,
    "gamma": 0.9,
    "lam": 0.5,
    "whiten_rewards": True,
    "whiten_advantages": True,
    "unfinished": -1.0,
    "critic": "elsewhere",
    "lr": 2e-3,
    "critic_lr": 2e-2,
    "schedule": "cosine",
    "warmup": 2.0,
    "weight_decay": 0.1,
    "clip": 2.0,
    "lora": "r=2",
    "eval_every": 3,
}


def test_every_setting_is_one_or_the_other():
    names = {field.alias or name for name, field in PPOSettings.model_fields.items()}
    assert {*OTHER, *FREE} >= names >= {*OTHER}
    assert not {*OTHER} & {*FREE}


@pytest.fixture
def unfinished(undisturbed, tmp_path):
    """A copy of the run without its last checkpoint and its end."""
    run = RunFolder(shutil.copytree(undisturbed.root, tmp_path / "run"))
    run.unfinish()
    shutil.rmtree(run.checkpoints / "step_6")
    return run


@pytest.mark.parametrize("name", OTHER)
def test_every_change_is_refused_by_name(world, unfinished, call, name):
    changed = {**SIX, name: OTHER[name]} | ({"eval_fraction": 0.5} if name == "eval_every" else {})
    words = line(world, unfinished.root, **changed)
    if name == "advantage":  # which has no critic
        at = words.index("--critic-lr")
        del words[at : at + 2]
    before = runs.tree(unfinished.root)
    code, _, error = call(*words)
    assert code == 2
    assert f"\n  {name}: " in error
    assert f"--allow-change {name}" in error
    after = runs.tree(unfinished.root)
    assert {key: after[key] for key in before if key != "lock"} == {
        key: before[key] for key in before if key != "lock"
    }


def test_what_is_another_one_is_refused_by_name(world, unfinished, call):
    out = unfinished.root
    for changes, told in (
        ({"lr": 2e-3}, "lr: 0.001 -> 0.002"),
        ({"beta": 0.1}, "beta: 0.05 -> 0.1"),
        ({"prompts": "others.txt"}, "prompts: "),
    ):
        (world / "others.txt").write_text("\n".join((*PROMPTS[:3], "fi de")) + "\n")
        code, _, error = call(*line(world, out, **SIX | changes))
        assert code == 2
        assert told in error
    code, said, _ = call(*line(world, out, **SIX | {"lr": 2e-3}, allow_change="lr"))
    assert code == 0
    assert "resumed at step 4" in said


# ---------------------------------------------------------------- what cannot work


@pytest.mark.parametrize(
    ("changes", "lr", "critic_lr"),
    [
        ({}, 3e-6, 9e-6),
        ({"lr": 1e-4}, 1e-4, 3e-4),
        ({"lora": "r=4"}, 3e-5, 9e-6),
        ({"lr": 1e-4, "critic_lr": 1e-3}, 1e-4, 1e-3),
    ],
)
def test_the_critics_rate_is_three_times_the_one_that_was_given(
    world, tmp_path, changes, lr, critic_lr
):
    settings = {
        name: value
        for name, value in given(world, tmp_path / "run").items()
        if name not in ("lr", "critic_lr")
    }
    filled = setup.filled(resolve(PPOSettings, settings | changes, origin="argument"))
    assert (filled.settings.lr, filled.settings.critic_lr) == pytest.approx(
        (lr, critic_lr), rel=1e-12
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "broken",
            r"prompts.txt:\d: answer 0: judge_of_words:broken raised KeyError: 'no such word'",
        ),
        ("odd", r"prompts.txt:3: answer 0: judge_of_words:odd gave nan, expected a finite number"),
        ("none", r"prompts.txt:\d: answer 0: judge_of_words:none gave None, expected a number"),
        ("words", r"prompts.txt:\d: answer 0: judge_of_words:words gave '7', expected a number"),
    ],
)
def test_a_reward_that_is_none_ends_the_run_with_the_row(world, tmp_path, call, name, told):
    code, _, error = call(
        *line(world, tmp_path / "run", steps=2, reward=f"judge_of_words:{name}", batch_size=4)
    )
    assert code == 2
    assert re.search(told, error)
    assert "the same command begins again: nothing is saved yet" in error


def test_a_critic_that_diverges_is_named(world, tmp_path, call):
    """A rate that throws the critic's weights beyond float32: the next iteration's values are no
    numbers.
    """
    code, _, error = call(
        *line(
            world, tmp_path / "run", steps=2, epochs=1, minibatches=1, critic_lr=1e38, clip="none"
        )
    )
    assert code == 1
    assert error[error.index("error: ") :].startswith(
        "error: the critic gives values that are not finite for one of prompts.txt:"
    )


def test_a_reward_that_fails_after_a_checkpoint_says_that_the_run_goes_on_from_there(
    world, unfinished, call, monkeypatch
):
    monkeypatch.setattr(sys.modules["judge_of_words"], "worth", lambda prompt, completion: None)
    code, _, error = call(*line(world, unfinished.root, **SIX))
    assert code == 2
    assert "the same command goes on from step_4, with --allow-change reward" in error


@pytest.mark.slow
def test_a_function_by_its_file_is_the_function_by_its_module(world, tmp_path, call):
    by_file = train(
        world, tmp_path / "file", steps=2, reward=f"{world / 'judge_of_words.py'}:worth"
    )
    assert numbers(by_file) == numbers(train(world, tmp_path / "module", steps=2))
    assert call(*line(world, tmp_path / "near", steps=1, reward="judge_of_words.py:worth"))[0] == 0


@pytest.mark.slow
def test_a_function_that_is_given_a_column_is_the_one_that_knows_it(world, tmp_path, call):
    file = tiny.write(
        tmp_path / "prompts.jsonl",
        [{"prompt": prompt, "last": prompt.split()[-1]} for prompt in PROMPTS],
    )
    words = line(world, tmp_path / "column", **SIX, prompts=file, reward="judge_of_words:told")
    train(
        world,
        tmp_path / "column",
        **SIX | {"steps": 4},
        prompts=str(file),
        reward="judge_of_words:told",
    )
    assert numbers(RunFolder(tmp_path / "column")) == numbers(
        train(world, tmp_path / "known", **SIX | {"steps": 4})
    )
    tiny.write(file, [{"prompt": prompt, "last": "ba"} for prompt in PROMPTS])
    code, _, error = call(*words, "--allow-change", "steps")
    assert code == 2
    # what is right has changed, so the reward has
    assert "to go on with the change: --allow-change reward" in error
    tiny.write(file, [{"prompt": prompt} for prompt in PROMPTS])
    code, _, error = call(
        *line(world, tmp_path / "none", prompts=file, reward="judge_of_words:told")
    )
    assert (code, "prompts.jsonl:1: last: is missing" in error) == (2, True)
    code, _, error = call(*line(world, tmp_path / "none", reward="judge_of_words:told"))
    assert (
        code,
        "wants the column last, and there are no columns: a text file of prompts" in error,
    ) == (2, True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"advantage": "rloo"}, "critic_lr: of no use to rloo"),
        (
            {"advantage": "rloo", "critic_lr": None, "k": 1},
            "k: rloo compares answers to one prompt",
        ),
        (
            {"advantage": "grpo", "critic_lr": None, "target_kl": 1.0},
            "target_kl moves beta by factors",
        ),
        ({"horizon": 10.0}, "horizon says how fast beta moves"),
        ({"target_kl": 1.0, "horizon": 5.0}, "would turn beta below 0"),
        ({"minibatches": 5}, "would be empty"),
        ({"epochs": 1, "clip_range": 0.1}, "clip_range: with one pass"),
        ({"eval_every": 2}, "there are no prompts to evaluate on"),
        ({"warmup": 1000}, "warmup 1000 is more than"),
        ({"allow_change": ("rte",)}, "there is no 'rte' to change"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(world, tmp_path, changes, told):
    with pytest.raises(SettingsError, match=told):
        train(world, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reward": "nowhere:at_all"}, "No module named 'nowhere'"),
        ({"reward": "nowhere.py:at_all"}, "reward: nowhere.py:at_all: FileNotFoundError"),
        (
            {"reward": "judge_of_words:WORTH"},
            "reward: judge_of_words:WORTH is dict, expected a function",
        ),
        (
            {"reward": "judge_of_words:one_text"},
            (
                "reward: judge_of_words:one_text(completion) cannot be called with a prompt and a"
                " completion"
            ),
        ),
        ({"reward": "judge_of_words.py:one_text"}, "score(prompt: str, completion: str) -> number"),
        ({"reward": "nowhere"}, "there is no such folder"),
        ({"batch_size": 5, "minibatches": 1}, "4 prompts to train on, fewer than batch_size 5"),
        ({"batch_size": 5, "minibatches": 1}, "batch_size 5\n  -> --batch-size 4 or less\n"),
        ({"max_tokens": 10}, "a prompt with 8 answers may have 26"),
        ({"critic": "bytes"}, "critic bytes: its tokenizer is another one"),
        ({"eval_fraction": 0.25, "batch_size": 2}, "one held-out prompt has no interval"),
        ({"prompts": "gone.txt"}, "gone.txt"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    world, tmp_path, call, monkeypatch, changes, told
):
    if not (world / "bytes").exists():
        tiny.folder(world / "bytes", hidden_size=16, intermediate_size=32)
    monkeypatch.setattr(loading, "load", None)
    code, _, error = call(*line(world, tmp_path / "run", **changes))
    assert code == 2
    assert told in error
    assert not (tmp_path / "run").exists()


def test_code_is_asked_for_on_the_command_line_alone(world, tmp_path, call):
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps({"reward": "judge_of_words:worth"}))
    words = line(world, tmp_path / "run")
    at = words.index("--reward")
    code, _, error = call(*words[:at], *words[at + 2 :], "--config", file)
    assert code == 2
    assert "runs code, so a file cannot ask for it" in error


def test_passes_over_the_data_take_each_prompt_once(world):
    data = Data(everything(), [], None)
    micro = data.micro_batches([3, 1], 10_000)
    assert sorted(item for batch in micro.own for item in batch.items) == [1, 3]
