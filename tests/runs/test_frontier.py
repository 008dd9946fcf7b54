"""The frontier: its limit in closed form, best-of-N against brute force, what is estimated against
what is exact, and a world that can be counted.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import runs
import tiny
from closed import F64, World
from winnow.config.model_spec import ModelSpec
from winnow.engine import rows
from winnow.engine.batch import collate
from winnow.errors import RunError
from winnow.experiments import counted_world, demo
from winnow.experiments.frontier import claims, measure, tables, worlds
from winnow.experiments.frontier import report as frontier_page
from winnow.experiments.frontier import run as recipe
from winnow.experiments.frontier import words as frontier_words
from winnow.experiments.frontier.costs import costs
from winnow.experiments.frontier.measure import RewardTable
from winnow.generation.sampler import Sampling, sample
from winnow.models import loading, reward_models
from winnow.models.hashes import weights_hash
from winnow.models.scoring import Dialogue, scores
from winnow.objectives.scores import per_completion
from winnow.system import console
from winnow.system.files import read_json, read_jsonl, sha256_file, write_json, write_jsonl

WORLD = World()
TABLE = RewardTable(WORLD.reference_XA, 3 * WORLD.reward_XA)
BETAS = (0.05, 0.3, 1.0, 5.0)


def near(found, wanted, within=1e-10):
    assert float(found) == pytest.approx(float(wanted), abs=within)


# ---------------------------------------------------------------- the limit


@pytest.mark.parametrize("beta", BETAS)
def test_the_optimum_is_what_its_formula_says(beta):
    """Term by term, in plain Python; and E*[r] / beta - log Z = KL."""
    logp_XA = measure.optimum(TABLE, beta)
    for x in range(3):
        terms = [
            math.exp(p + r / beta)
            for p, r in zip(TABLE.reference_XA[x].tolist(), TABLE.reward_XA[x].tolist())
        ]
        z = math.fsum(terms)
        torch.testing.assert_close(
            logp_XA[x].exp(),
            torch.tensor([term / z for term in terms], dtype=F64),
            rtol=1e-12,
            atol=0,
        )
        near(measure.kl(TABLE, logp_XA)[x], measure.reward(TABLE, logp_XA)[x] / beta - math.log(z))


@pytest.mark.parametrize("beta", BETAS)
def test_along_the_limit_a_nat_buys_beta(beta):
    """d reward / d KL = beta."""
    one, other = (
        measure.place(TABLE, measure.optimum(TABLE, beta * (1 + step))) for step in (1e-4, -1e-4)
    )
    assert (one.reward - other.reward) / (one.kl - other.kl) == pytest.approx(beta, rel=1e-3)


def test_no_policy_has_more_reward_at_its_kl():
    """Random ones, the limit's own neighbours among them; the limit is reached by the optimum, and
    by nothing else.
    """
    generator = torch.Generator().manual_seed(0)
    start = float(TABLE.start_X.mean())
    for trial in range(60):
        push = (
            torch.randn(TABLE.reference_XA.shape, dtype=F64, generator=generator)
            * (0.1, 1.0, 3.0)[trial % 3]
        )
        base = TABLE.reference_XA if trial % 2 else measure.optimum(TABLE, 0.7)
        here = measure.place(TABLE, (base + push).log_softmax(-1))
        assert here.reward < measure.limit(TABLE, here.kl).reward - 1e-6
        share = measure.share(TABLE, here.kl, here.reward - start)
        assert share is not None
        assert share < 1
    best = measure.place(TABLE, measure.optimum(TABLE, 0.7))
    found = measure.limit(TABLE, best.kl)
    assert (found.beta, found.reward) == (
        pytest.approx(0.7, rel=1e-9),
        pytest.approx(best.reward, abs=1e-9),
    )
    near(measure.share(TABLE, best.kl, best.reward - start), 1.0, 1e-9)


def test_one_beta_for_all_prompts_is_the_best_use_of_the_kl():
    """Prompts with a beta each, of the same mean KL, have less reward."""
    together = measure.place(TABLE, measure.optimum(TABLE, 0.5))
    rows_ = [measure.optimum(TABLE, beta)[x] for x, beta in enumerate((0.2, 0.6, 1.2))]
    apart = measure.place(TABLE, torch.stack(rows_))
    assert apart.reward < measure.limit(TABLE, apart.kl).reward - 1e-3
    assert together.reward == pytest.approx(measure.limit(TABLE, together.kl).reward)


def test_the_ends_of_the_limit():
    nothing, all_ = measure.limit(TABLE, 0.0), measure.limit(TABLE, 1e3)
    near(nothing.reward, TABLE.start_X.mean())
    near(all_.reward, TABLE.reward_XA.max(-1).values.mean(), 1e-4)
    assert measure.share(TABLE, 0.0, 0.0) is None
    points = measure.curve(TABLE, 2.0, 5)
    assert [point.kl for point in points] == [
        pytest.approx(x, abs=1e-6) for x in (0.0, 0.5, 1.0, 1.5, 2.0)
    ]
    assert all(a.reward < b.reward for a, b in itertools.pairwise(points))


def test_a_table_must_hold_all_answers():
    with pytest.raises(ValueError, match="sum to 1"):
        RewardTable(TABLE.reference_XA[:, :-1], TABLE.reward_XA[:, :-1])
    with pytest.raises(ValueError, match="float64"):
        RewardTable(TABLE.reference_XA.float(), TABLE.reward_XA.float())


# ---------------------------------------------------------------- best of N, wins


TIED = RewardTable(
    torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], dtype=F64).log(),
    torch.tensor([[1.0, 0.0, 1.0, -1.0], [2.0, 2.0, 2.0, 2.0]], dtype=F64),
)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_by_brute_force(n):
    """All draws of n answers, one by one, each tie shared by those who tie."""
    logp_XA = measure.best_of(TIED, n)
    for x in range(2):
        chance = [0.0] * 4
        for draw in itertools.product(range(4), repeat=n):
            own = math.prod(math.exp(TIED.reference_XA[x, a]) for a in draw)
            best = [
                a for a in draw if TIED.reward_XA[x, a] == max(TIED.reward_XA[x, a] for a in draw)
            ]
            for a in best:
                chance[a] += own / len(best)
        torch.testing.assert_close(
            logp_XA[x].exp(), torch.tensor(chance, dtype=F64), rtol=0, atol=1e-12
        )


def test_best_of_n_keeps_its_bound_and_one_draw_is_the_reference():
    near((measure.best_of(TABLE, 1) - TABLE.reference_XA).abs().max(), 0)
    for n in (2, 4, 64):
        far = float(measure.kl(TABLE, measure.best_of(TABLE, n)).max())
        assert 0.5 * measure.bound(n) < far <= measure.bound(n)
    # where all answers are worth the same, the best of them is any
    near(measure.kl(TIED, measure.best_of(TIED, 64))[1], 0.0)
    assert measure.bound(1) == 0


def test_best_of_n_from_samples_has_no_bias():
    """Over all subsets of n of the samples, brute force."""
    rewards = [0.3, 2.0, -1.0, 2.0, 0.7, 0.1]
    for n in (1, 2, 4, 6):
        weights = measure.best_drawn(rewards, n)
        subsets = list(itertools.combinations(rewards, n))
        near(sum(weights), 1)
        near(
            sum(w * r for w, r in zip(weights, rewards)),
            math.fsum(map(max, subsets)) / len(subsets),
        )


def test_wins_over_the_reference():
    logp_XA = measure.optimum(TIED, 0.5)
    for x in range(2):
        ours, theirs, worth = (
            logp_XA[x].exp().tolist(),
            TIED.reference_XA[x].exp().tolist(),
            TIED.reward_XA[x].tolist(),
        )
        wanted = sum(
            p * q * ((r > s) + 0.5 * (r == s))
            for p, r in zip(ours, worth)
            for q, s in zip(theirs, worth)
        )
        near(measure.wins(TIED, logp_XA)[x], wanted)
    near(measure.wins(TABLE, TABLE.reference_XA).mean(), 0.5)


# ---------------------------------------------------------------- the limit from samples


def test_the_limit_from_samples():
    """Samples of three prompts, thrown together, estimate the limit of who may also choose prompts,
    which is no lower; each prompt's own estimate its own.
    """
    generator = torch.Generator().manual_seed(1)
    drawn_XA = torch.multinomial(
        TABLE.reference_XA.exp(), 40_000, replacement=True, generator=generator
    )
    reward_XA = TABLE.reward_XA.gather(1, drawn_XA)
    together, apart = measure.drawn(reward_XA.reshape(1, -1)), measure.drawn(reward_XA)
    any_ = RewardTable(
        (TABLE.reference_XA - math.log(3)).reshape(1, -1), TABLE.reward_XA.reshape(1, -1)
    )
    for distance in (0.1, 0.3, 0.6):
        truth, above = (measure.limit(table, distance).reward for table in (TABLE, any_))
        assert truth < above
        assert measure.limit(apart, distance).reward == pytest.approx(truth, abs=0.03)
        assert measure.limit(together, distance).reward == pytest.approx(above, abs=0.03)


def test_how_many_samples_are_left():
    assert measure.effective(
        measure.drawn(torch.zeros(2, 50, dtype=F64)).reference_XA
    ) == pytest.approx(50)
    one = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]], dtype=F64).log()
    assert measure.effective(one) == pytest.approx(1 / (0.81 + 0.01))


# ---------------------------------------------------------------- the world that can be counted


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    counted_world.write_tokenizer(root / "tokenizer")
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    loading.create(
        root / "world",
        loading.load_tokenizer(ModelSpec(str(root / "tokenizer"))),
        seed=3,
        max_position_embeddings=8,
        **shape,
    )
    return loading.load(ModelSpec(str(root / "world"), device="cpu"))


@pytest.mark.slow
def test_all_that_can_be_said_is_counted(model):
    """1 + 7 + 49 + 343 answers with an end, 2,401 without; a model's probabilities of them sum to
    1, and are what the plain engine says.
    """
    answers = counted_world.answers()
    assert (len(answers), len(set(answers))) == (2801, 2801)
    assert sum(map(counted_world.finished, answers)) == 400
    logp_XA = counted_world.logps(model.model)
    assert float((logp_XA.exp().sum(-1) - 1).abs().max()) < 1e-5
    chosen = random.Random(0).sample(range(2801), 5)
    for x, prompt in ((0, counted_world.prompts()[0]), (7, counted_world.prompts()[7])):
        ids = model.tokenizer(prompt)["input_ids"]
        for a in chosen:
            said = model.tokenizer.convert_tokens_to_ids(list(answers[a])) + [
                model.tokenizer.eos_token_id
            ] * counted_world.finished(answers[a])
            group = tiny.RenderedGroup(
                (tiny.TokenSequence((*ids, *said), len(ids)),), (), (None,), "one"
            )
            batch = collate([group])
            with torch.no_grad():
                near(
                    logp_XA[x, a],
                    per_completion(rows.logps(model.model, batch)["logp"].double(), batch)[0],
                    1e-5,
                )


@pytest.mark.slow
def test_what_a_model_says_is_counted_as_often(model):
    """Sampled answers have the frequencies of the table."""
    logp_XA = counted_world.logps(model.model)
    number = {answer: a for a, answer in enumerate(counted_world.answers())}
    ids = tuple(model.tokenizer(counted_world.prompts()[2])["input_ids"])
    (drawn,) = sample(
        model,
        [ids],
        Sampling(model.tokenizer.eos_token_id, max_new_tokens=counted_world.LENGTH, seed=1),
        k=3000,
    )
    said = [number[tuple(model.tokenizer.convert_ids_to_tokens(list(one.ids)))] for one in drawn]
    assert all(
        one.finished == counted_world.finished(counted_world.answers()[a])
        for one, a in zip(drawn, said)
    )
    length = torch.tensor([float(len(answer)) for answer in counted_world.answers()], dtype=F64)
    for value_A in (length, counted_world.rewards()[2], logp_XA[2]):
        mean = float((logp_XA[2].exp() * value_A).sum())
        spread = math.sqrt(float((logp_XA[2].exp() * (value_A - mean) ** 2).sum()) / len(said))
        near(value_A[said].mean(), mean, 4 * spread)


def test_the_rule_is_a_distribution_and_writes_what_it_says():
    prompt = counted_world.prompts()[0]
    assert math.fsum(
        counted_world.rule(prompt, answer) for answer in counted_world.answers()
    ) == pytest.approx(1)
    written = counted_world.demonstrations(24, 0)
    assert written == counted_world.demonstrations(24, 0) != counted_world.demonstrations(24, 1)
    assert {row["prompt"] for row in written} == set(counted_world.prompts())
    assert all(
        counted_world.grammatical(row["prompt"], tuple(row["completion"].split()))
        for row in written
    )
    assert not any(
        counted_world.grammatical(prompt, answer) for answer in ((), counted_world.WORDS[:4])
    )


def test_the_true_reward_by_hand():
    worth = counted_world._worth
    assert counted_world.true_reward("ba de", ("fi", "de", "go")) == worth("fi") + worth(
        "go"
    ) + worth("de", "fi") + worth("fi", "de") + worth("de", "go")
    assert counted_world.true_reward("ba de", ()) == 0
    assert (
        counted_world.true_reward("ba de", ("fi",) * 4)
        == counted_world.WORST
        == counted_world.rewarded("ba de", " fi fi fi fi")
    )
    assert counted_world.rewarded("ba de", " fi de go") == counted_world.true_reward(
        "ba de", ("fi", "de", "go")
    )


# ---------------------------------------------------------------- claims


def made(method, value, seed, kl, reward, **more):
    figures = {
        name: {"mean": mean, "low": mean, "high": mean}
        for name, mean in (("kl", kl), ("reward", reward), ("fluency", 1.0), ("win", 0.5))
    }
    head = {
        "world": "small",
        "method": method,
        "knob": "beta",
        "value": value,
        "lr": 1e-3,
        "seed": seed,
        "own_rate": True,
        "share": None,
        "file": "f",
    }
    return {**head, **figures, "prompts": 12, "answers": None, "path": [], "seconds": 1.0, **more}


FACTS = {
    "start": {
        "reward": {"mean": 0.0},
        "fluency": {"mean": 0.9},
        "win": {"mean": 0.5},
        "prompts": 12,
    },
    "best_of": [],
    "exact": True,
}
FACTS |= {"limit": [{"kl": 0.0, "reward": 0.0}, {"kl": 2.0, "reward": 2.0}]}


def test_the_hull_of_what_was_reached():
    """Points below a chord are passed over, and those that cost more and give less."""
    places = [(2.0, 2.5), (0.0, 0.0), (1.0, 2.0), (0.5, 0.5), (3.0, 2.4), (1.0, 1.0)]
    assert claims.upper(places) == [(0.0, 0.0), (1.0, 2.0), (2.0, 2.5)]
    for kl, wanted in ((0.0, 0.0), (0.25, 0.5), (1.0, 2.0), (1.5, 2.25), (2.0, 2.5), (9.0, 2.5)):
        assert claims.height(places, kl) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ((0.1, 0.12, 0.11), "yes"),
        ((-0.1, -0.12, -0.11), "no"),
        ((0.5, -0.5, 0.1), "undecided"),
        ((0.1,), "undecided"),
        ((0.0, 0.0), "yes"),
    ],
)
def test_one_frontier_above_another(gaps, verdict):
    """Two straight lines through the same KLs, 1 and 2, the one higher by `gap` with each seed."""
    points = [
        made("dpo", kl, seed, kl, kl + gap) for seed, gap in enumerate(gaps) for kl in (1.0, 2.0)
    ]
    points += [made("ppo", kl, seed, kl, kl) for seed in range(len(gaps)) for kl in (1.0, 2.0)]
    found = claims.above(points, "dpo", "ppo", FACTS)
    assert (found["verdict"], found["seeds"], found["reach"]) == (verdict, len(gaps), [1.0, 2.0])
    assert found["difference"]["mean"] == pytest.approx(sum(gaps) / len(gaps))
    assert found["shares"]["ppo"]["mean"] == pytest.approx(1)  # the limit is reward = KL


def test_frontiers_are_compared_where_both_have_been():
    """By hand. DPO from KL 1 to 4: reward 2 KL up to 2, then 4 + (KL - 2) / 2; PPO from KL 0.5 to
    3, reward KL; with seed 1 it begins at 1.5.

    So from 1.5 to 3 DPO's mean is (3.5 * 0.5 + 4.25 * 1) / 1.5 = 4, PPO's 2.25, nearly met on a
    grid. What PPO did at 0.5 and DPO at 4 is nothing to it.
    """
    dpo = [
        made("dpo", kl, seed, kl, reward)
        for seed in (0, 1)
        for kl, reward in ((1.0, 2.0), (2.0, 4.0), (4.0, 5.0))
    ]
    ppo = [made("ppo", kl, 0, kl, kl) for kl in (0.5, 3.0)] + [
        made("ppo", kl, 1, kl, kl) for kl in (1.5, 3.0)
    ]
    facts = {**FACTS, "limit": [{"kl": 0.0, "reward": 0.0}, {"kl": 5.0, "reward": 10.0}]}
    found = claims.above([*dpo, *ppo], "dpo", "ppo", facts)
    assert found["reach"] == [1.5, 3.0]
    assert found["difference"]["mean"] == pytest.approx(4 - 2.25, abs=0.02)
    assert found["shares"]["ppo"]["mean"] == pytest.approx(0.5)
    other = claims.above([*dpo, *ppo], "ppo", "dpo", facts)
    assert (other["reach"], other["verdict"]) == ([1.5, 3.0], "no")
    assert other["difference"]["mean"] == pytest.approx(-found["difference"]["mean"])
    near = {**FACTS, "limit": [{"kl": 0.0, "reward": 0.0}, {"kl": 2.9, "reward": 6.0}]}
    # the limit is not known to 3
    assert claims.above([*dpo, *ppo], "dpo", "ppo", near)["shares"] is None


def test_no_verdict_without_two_frontiers():
    """One setting, however often it was trained; no seed in common; no KL in common."""
    dpo = [made("dpo", kl, seed, kl, kl) for seed in (0, 1, 2) for kl in (1.0, 2.0)]
    single = [made("ppo", 1.0, seed, 1.5, -9.0) for seed in (0, 1, 2)]
    for points, why in (
        (dpo + single, "one setting is no frontier"),
        (
            [*dpo, made("ppo", 1.0, 7, 1.0, 1.0), made("ppo", 2.0, 7, 2.0, 2.0)],
            "they have no seed in common",
        ),
        (
            dpo + [made("ppo", kl, seed, kl, kl) for seed in (0, 1, 2) for kl in (3.0, 4.0)],
            "they have no KL in common",
        ),
    ):
        found = claims.above(points, "dpo", "ppo", FACTS)
        assert (found["verdict"], found["difference"], found["reach"], found["why"]) == (
            "undecided",
            None,
            None,
            why,
        )
    assert claims.above(dpo + single, "ppo", "dpo", FACTS)["why"] == "one setting is no frontier"


def test_no_kl_below_nothing():
    """Student's t over KLs 0.01 and 0.2 would reach to -1.1."""
    (row,) = claims.settings([made("dpo", 1.0, 0, 0.01, -1.0), made("dpo", 1.0, 1, 0.2, 1.0)])
    assert (row["kl"]["low"], row["kl"]["mean"]) == (0.0, pytest.approx(0.105))
    assert row["reward"]["low"] < -1  # a reward may be anything


def test_one_seed_keeps_its_intervals_over_prompts():
    one = made("dpo", 1.0, 0, 0.5, 1.0) | {"reward": {"mean": 1.0, "low": 0.9, "high": 1.1}}
    (row,) = claims.settings([one])
    assert row["reward"] == {"mean": 1.0, "low": 0.9, "high": 1.1, "seeds": 1}
    (row,) = claims.settings([one, made("dpo", 1.0, 1, 0.5, 1.0)])
    assert (row["reward"]["low"], row["reward"]["seeds"]) == (1.0, 2)  # over seeds, which agree


@pytest.mark.parametrize(
    ("kls", "verdict"),
    [
        ([(3.0, 2.0, 1.0), (3.1, 2.0, 0.9), (3.0, 2.1, 1.0)], "yes"),
        ([(1.0, 2.0, 0.5), (1.1, 2.1, 0.5), (0.9, 1.9, 0.6)], "no"),
        ([(3.0, 2.0, 1.0), (1.0, 2.0, 1.0), (3.0, 2.1, 1.0)], "undecided"),
        ([(3.0, 2.0, 1.0)], "undecided"),
    ],
)
def test_the_order_of_beta(kls, verdict):
    points = [
        made("dpo", beta, seed, kl, 1.0)
        for seed, row in enumerate(kls)
        for beta, kl in zip((0.1, 1.0, 3.0), row)
    ]
    found = claims.order(points)
    assert (found["verdict"], found["seeds"], len(found["changes"])) == (verdict, len(kls), 2)
    assert found["changes"][0]["change"]["mean"] == pytest.approx(
        sum(row[1] - row[0] for row in kls) / len(kls)
    )


@pytest.mark.parametrize(("share", "told"), [(0.96, True), (0.94, False), (None, False)])
def test_ppo_stands_beside_the_others_only_where_it_proved_itself(share, told):
    points = [
        made("dpo", 1.0, 0, 1.0, 1.0, share=0.8),
        made("dpo", 1.0, 1, 1.0, 1.0, share=0.9),
        made("ppo", 1.0, 0, 1.0, 1.0, share=0.8),
    ]
    # too near to say anything
    points += [
        made("ppo_true", 0.5, 0, 1.0, 1.0, share=share),
        made("ppo_true", 9.0, 0, 0.05, 1.0, share=0.99),
    ]
    found = claims.claims({"small": FACTS}, points)
    assert found["ppo"]["shown"] is told
    assert next(row for row in found["closest"] if row["method"] == "dpo")["share"][
        "mean"
    ] == pytest.approx(0.85)
    ledger = {
        **found,
        "costs": [],
        "points": points,
        "worlds": {"small": FACTS},
        "seeds": {"small": 2},
        "settings": {},
        "fixed": {},
    }
    assert any(card.label.startswith("PPO") for card in frontier_page.cards(ledger)) is told
    drawn = frontier_page.top(ledger)["frontier"]
    assert any("PPO" in row.name for row in drawn["runs"].rows) is told
    page = drawn["worlds"][0]
    assert any(row.name.startswith("PPO") for row in page["table"].rows) is told
    assert any(line.label.startswith("PPO") for line in page["drawings"][0].lines) is told
    assert any(sentence.startswith("PPO may stand here") for sentence in page["sentences"]) is told
    assert any("PPO" in claim["claim"] for claim in frontier_words.claims(ledger)) is told
    # one beta has no order
    assert not any("less KL" in claim["claim"] for claim in frontier_words.claims(ledger))
    more = claims.claims(
        {"small": FACTS}, [*points, made("dpo", 3.0, 0, 0.2, 0.1), made("dpo", 3.0, 1, 0.2, 0.1)]
    )
    (said,) = [
        one for one in frontier_words.claims({**ledger, **more}) if "less KL" in one["claim"]
    ]
    assert said["answer"] == "yes"
    assert "from 1 to 3 by −0.800" in said["why"]


def test_ppo_proves_itself_by_the_mean_of_all_it_tried():
    """Two targets with two seeds: shares 0.9 and 1.0, 0.94 and 0.98: each seed's mean is 0.95 and
    0.96; the best one alone would be 1.0.
    """
    points = [
        made("ppo_true", target, seed, 1.0, 1.0, share=share)
        for target, seed, share in ((1, 0, 0.9), (2, 0, 1.0), (1, 1, 0.94), (2, 1, 0.98))
    ]
    ppo = claims.claims({"small": FACTS}, points)["ppo"]
    assert (ppo["shown"], ppo["targets"], ppo["share"]["seeds"]) == (True, 2, 2)
    half = 12.7062 * 0.005  # Student's t, 1 degree of freedom, times the error of the mean
    assert [ppo["share"][name] for name in ("mean", "low", "high")] == pytest.approx(
        [0.955, 0.955 - half, 0.955 + half], abs=1e-5
    )
    assert (
        "95.5 % (89.1–100.0 %) of the limit, the mean over 2 target KLs with 2 seeds"
        in frontier_page._ppo(ppo)
    )
    weak = claims.claims({"small": FACTS}, [*points, made("ppo_true", 3, 0, 1.0, 1.0, share=0.9)])[
        "ppo"
    ]
    assert weak["shown"] is False
    assert frontier_page._ppo(weak).startswith("PPO is missing: with the exact reward")


def test_what_each_took(tmp_path):
    """Bytes, tokens and seconds from the files of runs, medians over runs; the spread over seeds;
    the rates in order.
    """
    (tmp_path / "small").mkdir()
    write_jsonl(tmp_path / "small" / "answers.jsonl", [{"tokens": [2, 3]}, {"tokens": [4]}])
    write_jsonl(
        tmp_path / "small" / "labels-0.jsonl", [{"comparisons": [{}, {}]}, {"comparisons": [{}]}]
    )
    for seed, cpu in ((0, 5.0), (1, 7.0)):
        write_json(tmp_path / "small" / f"reward-seed={seed}.json", {"seconds": 9.0, "cpu": cpu})
    points = []
    for method, held in (
        ("dpo", {}),
        ("ppo", {"models": {"policy": 400, "reference": 400, "critic": 300, "reward": 300}}),
    ):
        run = tmp_path / "small" / method
        run.mkdir()
        write_json(run / "environment.json", {"parameters": {"total": 100}, **held})
        more = {"run": f"small/{method}", "share": 0.9, "generated": 50 if held else 0}
        points += [
            made(method, 1.0, seed, 1.0 + seed, 2.0 + 2 * seed, cpu=3.0 + seed, **more)
            for seed in (0, 1)
        ]
        points.append(
            made(method, 1.0, 0, 1.0, 1.0, cpu=None, **more) | {"own_rate": False, "lr": 1e-4}
        )
    (found,) = costs(tmp_path, ["small"], points, claims.settings(points))
    dpo, ppo = found["dpo"], found["ppo"]
    assert (dpo["models"], dpo["trained"]) == ({"policy": 400}, 1600)
    assert (len(ppo["models"]), ppo["trained"]) == (4, 4 * 700)
    assert all(
        one["labels"] == 3 and one["sampled"] == 9 and one["cpu"] == 3.5 and one["runs"] == 2
        for one in (dpo, ppo)
    )
    assert (dpo["generated"], ppo["generated"], dpo["cpu_before"], ppo["cpu_before"]) == (
        0,
        50,
        None,
        6.0,
    )
    assert (dpo["spread_reward"], dpo["spread_kl"]) == (
        pytest.approx(math.sqrt(2)),
        pytest.approx(math.sqrt(0.5)),
    )
    assert [row["lr"] for row in found["rates"]["ppo"]] == [1e-4, 1e-3]
    ledger = {"costs": [found]}
    first, second = tables.rlhf(ledger)
    cells = {row.name: row.cells for row in first.rows}
    assert cells["Trainings"] == ["2: SFT, DPO", "3: SFT, reward model, PPO"]
    assert cells["Seconds of the processor, a run"] == [
        "3.50",
        "3.50, and 6.00 for the reward model",
    ]
    assert len(second.rows) == 4
    assert costs(tmp_path, ["small"], [p for p in points if p["method"] == "dpo"], []) == []


# ---------------------------------------------------------------- the command


def test_a_part_stands_on_the_line_of_the_whole(monkeypatch, capsys):
    """Inside, nobody speaks but the whole: which part it is, and how far that has come."""
    monkeypatch.setattr(console, "QUIET", -1.0)
    with console.ProgressBar("frontier", 3) as whole:
        whole.name("reviews: a model")
        with console.as_part(whole):
            console.say("only for itself")
            with console.ProgressBar("training", 8) as part:
                part.show({"loss": 0.5})
                part.advance(1)
        whole.advance(1)
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    head = ["reviews:", "a", "model"]
    assert said == [
        [*head, "0/3", "training", "1/8", "loss", "0.5000"],
        [*head, "0/3", "training", "2/8", "loss", "0.5000"],
        [*head, "1/3"],
    ]


def shrunk(plan, **own):
    """A plan that takes seconds."""
    sft = {**plan.size.sft, "steps": 6, "batch_size": 8, "warmup": 1, "save_every": 6}
    training = {**plan.size.training, "steps": 2, "batch_size": 4, "warmup": 1, "save_every": 2}
    size = dataclasses.replace(plan.size, sft=sft, rows=12, held_out=3, drawn=8, training=training)
    return dataclasses.replace(plan, size=size, **own)


@pytest.fixture
def short_answers(brief, monkeypatch):
    """A counted world of 57 answers to a prompt instead of 2,801: of one word, or of two without an
    end.
    """
    counted = (
        counted_world.answers,
        counted_world._batches,
        counted_world.rewards,
        counted_world.fluent,
    )
    monkeypatch.setattr(counted_world, "LENGTH", 2)
    for function in counted:
        function.cache_clear()
    yield
    for function in counted:
        function.cache_clear()


@pytest.fixture
def small(monkeypatch, short_answers):
    monkeypatch.setattr(demo, "SFT_STEPS", 6)
    monkeypatch.setattr(demo, "SFT_BATCH", 8)
    monkeypatch.setattr(demo, "PROMPTS", 12)
    monkeypatch.setattr(demo, "HELD_OUT", 4)
    monkeypatch.setattr(
        demo, "SFT", {**demo.SFT, "steps": 6, "batch_size": 8, "warmup": 1, "eval_every": 6}
    )
    monkeypatch.setattr(
        demo,
        "DPO",
        {**demo.DPO, "steps": 2, "batch_size": 4, "warmup": 1, "eval_every": 2, "kl_samples": 4},
    )
    few = {
        "values": {"dpo": (0.1,), "preferred_ft": (None,)},
        "rates": {"dpo": (1e-3, 1e-2), "preferred_ft": (1e-3,)},
    }
    monkeypatch.setattr(recipe, "QUICK_SMALL", shrunk(recipe.QUICK_SMALL, **few))
    monkeypatch.setattr(
        recipe,
        "QUICK_REVIEWS",
        shrunk(
            recipe.QUICK_REVIEWS, values={"preferred_ft": (None,)}, rates={"preferred_ft": (1e-3,)}
        ),
    )


def figures(root):
    """The ledger without what a clock said."""
    ledger = read_json(root / "frontier.json")
    return {
        **ledger,
        "seconds": 0,
        "points": [{**point, "seconds": 0, "cpu": 0} for point in ledger["points"]],
    }


@pytest.mark.smoke
@pytest.mark.slow
def test_a_frontier_is_made_and_goes_on_where_it_stopped(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "f"
    assert runs.winnow(monkeypatch, "frontier", "--out", out, "--quick", "--seeds", 1) == 0
    said = capsys.readouterr().out
    assert "6/6" in said
    assert "less KL" not in said  # one beta has no order
    assert "micro-batches" not in said  # the runs themselves say nothing
    first = figures(out)
    assert [(p["world"], p["method"], p["value"], p["lr"], p["seed"]) for p in first["points"]] == [
        ("small", "dpo", 0.1, 1e-3, 0),
        ("small", "preferred_ft", None, 1e-3, 0),
        ("small", "dpo", 0.1, 1e-2, 0),
        ("reviews", "preferred_ft", None, 1e-3, 0),
    ]
    assert (
        read_json(out / "report.json")["frontier"]["points"]
        == read_json(out / "frontier.json")["points"]
    )
    assert "DPO along its training" in (out / "report.html").read_text()
    page, numbers = ((out / name).read_bytes() for name in ("report.html", "report.json"))
    (out / "report.html").unlink()
    assert runs.winnow(monkeypatch, "report", out) == 0  # the general command draws it again
    assert ((out / "report.html").read_bytes(), (out / "report.json").read_bytes()) == (
        page,
        numbers,
    )
    assert runs.winnow(monkeypatch, "report", out, "--out", tmp_path / "elsewhere.html") == 0
    assert (tmp_path / "elsewhere.html").read_bytes() == page

    # a point is what its run says, computed again from its model
    point = first["points"][0]
    table = counted_world.table(
        loading.load(ModelSpec(str(out / "small" / "sft"), device="cpu")).model
    )
    logp_XA = counted_world.logps(
        loading.load(ModelSpec(str(out / point["run"]), device="cpu")).model
    )
    here = measure.place(table, logp_XA)
    assert (point["kl"]["mean"], point["reward"]["mean"]) == (
        pytest.approx(here.kl, abs=1e-9),
        pytest.approx(here.reward, abs=1e-9),
    )
    assert point["path"] == [
        {
            "step": 2,
            "kl": pytest.approx(here.kl, abs=1e-6),
            "reward": pytest.approx(here.reward, abs=1e-6),
        }
    ]

    kept = runs.tree(out / "small" / "runs")
    (out / "small" / "points" / "dpo-beta=0.1-lr=0.01-seed=0.json").unlink()
    shutil.rmtree(out / "reviews")  # as if it had been killed before
    assert runs.winnow(monkeypatch, "frontier", "--out", out, "--quick", "--seeds", 1) == 0
    assert figures(out) == first
    assert runs.tree(out / "small" / "runs") == kept  # its run was there

    assert runs.winnow(monkeypatch, "frontier", "--out", out) == 2
    assert "quick: True -> False" in capsys.readouterr().err


def test_fewer_seeds_than_there_are_is_an_error(tmp_path, monkeypatch, capsys):
    """What two seeds found is not rewritten with one; without --seeds there are as many as
    before.
    """
    monkeypatch.setattr(recipe, "_begun", lambda root, made: {"seeds": {"small": 2, "reviews": 1}})
    write_json(tmp_path / "frontier.json", {"schema": 1})
    before = (tmp_path / "frontier.json").read_bytes()
    assert runs.winnow(monkeypatch, "frontier", "--out", tmp_path, "--quick", "--seeds", 1) == 2
    said = capsys.readouterr().err
    assert ": small: it has 2 seeds of each setting, got --seeds 1" in said
    assert "give --seeds 2 or more" in said
    assert (tmp_path / "frontier.json").read_bytes() == before
    assert [
        recipe._enough("here", asked, there, 3)
        for asked, there in ((None, 0), (None, 5), (2, 2), (4, 2))
    ] == [3, 5, 2, 4]


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
def test_every_method_is_trained_as_it_says(tmp_path, monkeypatch):
    """Two steps of each, in the counted world: what a run was asked for, who scored, what was
    sampled, and the best of n by its own reward model.
    """
    values = dict.fromkeys(("dpo", "dpo+sft", "ppo", "ppo_true", "unlikelihood"), (0.5,)) | {
        "best_of_learned": (4.0,),
        "preferred_ft": (None,),
    }
    rates = {**recipe.QUICK_SMALL.rates, "unlikelihood": (1e-3,)}
    plan = shrunk(recipe.QUICK_SMALL, values=values, rates=rates, seeds=2)
    size = dataclasses.replace(
        plan.size, ppo={**plan.size.ppo, "steps": 2, "batch_size": 4, "save_every": 2}
    )
    monkeypatch.setattr(
        recipe, "FULL", (("small", dataclasses.replace(plan, size=size), recipe.small),)
    )
    # costs are reckoned where PPO may be shown, and two steps prove nothing
    monkeypatch.setattr(claims, "NEEDED", -9.0)
    monkeypatch.setattr(claims, "FAR", 0.0)
    out = tmp_path / "f"
    recipe.compute(out, "", quick=False, seeds=None, seed=0)
    ledger = read_json(out / "frontier.json")
    points = {(p["method"], p["seed"]): p for p in ledger["points"]}
    assert sorted(points) == sorted((name, seed) for name in values for seed in (0, 1))
    table = counted_world.table(
        loading.load(ModelSpec(str(out / "small" / "sft"), device="cpu")).model
    )
    for (name, seed), point in points.items():
        if name == "best_of_learned":
            continue
        settings = read_json(out / point["run"] / "environment.json")["settings"]
        assert (settings["seed"], settings["model"], settings["lr"]) == (
            seed,
            str(out / "small" / "sft"),
            point["lr"],
        )
        objective = {
            "dpo": "dpo",
            "dpo+sft": "dpo:beta=0.5,sft",
            "unlikelihood": "unlikelihood:alpha=0.5",
        }.get(name)
        assert settings.get("objective") == objective
        assert name != "dpo" or settings["beta"] == 0.5
        if name.startswith("ppo"):
            judge = (
                str(out / "small" / "runs" / f"reward-seed={seed}")
                if name == "ppo"
                else "winnow.recipes.small_world:rewarded"
            )
            assert (settings["reward"], settings["target_kl"], settings["critic_lr"]) == (
                judge,
                0.5,
                pytest.approx(8 * point["lr"]),
            )
            metrics = [
                row for row in read_jsonl(out / point["run"] / "metrics.jsonl") if "answers" in row
            ]
            assert (
                point["generated"]
                == round(sum(row["answers"] * row["length/sampled"] for row in metrics))
                > 0
            )
        else:
            assert settings["data"] == [str(out / "small" / f"labels-{seed}.jsonl")]
        here = measure.place(
            table,
            counted_world.logps(
                loading.load(ModelSpec(str(out / point["run"]), device="cpu")).model
            ),
        )
        assert (point["kl"]["mean"], point["reward"]["mean"]) == (
            pytest.approx(here.kl, abs=1e-9),
            pytest.approx(here.reward, abs=1e-9),
        )
    for seed in (0, 1):
        scorer = reward_models.load(
            ModelSpec(str(out / "small" / "runs" / f"reward-seed={seed}"), device="cpu")
        )
        said = [
            Dialogue(counted_world.prompts()[3], " " + " ".join(answer), (), "here")
            for answer in counted_world.answers()[1:]
        ]
        assert counted_world.scores(scorer)[3, 1:].tolist() == pytest.approx(
            scores(scorer, said), abs=1e-6
        )
        best = measure.best_of(RewardTable(table.reference_XA, counted_world.scores(scorer)), 4)
        picked = points["best_of_learned", seed]
        assert picked["reward"]["mean"] == pytest.approx(
            float((best.exp() * counted_world.rewards()).sum(-1).mean()), abs=1e-9
        )
        assert (picked["lr"], picked["seconds"], picked["run"]) == (
            None,
            None,
            f"small/runs/reward-seed={seed}",
        )
    (cost,) = ledger["costs"]
    assert (len(cost["ppo"]["models"]), cost["ppo"]["runs"], cost["ppo"]["seeds"]) == (4, 2, 2)
    inputs = ledger["inputs"]["small"]
    assert inputs["sft"] == weights_hash(
        loading.load(ModelSpec(str(out / "small" / "sft"), device="cpu")).model
    )
    assert inputs["labels-1.jsonl"] == sha256_file(out / "small" / "labels-1.jsonl")
    assert all((out / file).exists() for row in ledger["rows"] for file in row.get("files", []))
    frontier_page.write(out)
    page = (out / "report.html").read_text()
    for words in (
        "Best of n, learned reward",
        "8 times lr",
        "A world that is counted: reward model",
    ):
        assert words in page


def test_best_of_n_by_a_learned_reward_from_samples():
    """By its scores, in true rewards: of four answers each pair drawn without replacement, the one
    with the higher score.
    """
    drawn = {
        "rewards": [[1.0, 5.0, 2.0, 0.0]],
        "fluent": [[True, True, False, True]],
        "texts": [["a", "b", "c", "d"]],
    }
    twice = {name: [own[0], own[0]] for name, own in drawn.items()}
    score = [0.3, 0.1, 0.4, 0.2]
    found = worlds._best(twice, 2, [score, score])
    pairs = list(itertools.combinations(range(4), 2))
    best = [max(pair, key=lambda i: score[i]) for pair in pairs]
    assert found["reward"]["mean"] == pytest.approx(
        sum(drawn["rewards"][0][i] for i in best) / len(pairs)
    )
    assert found["fluency"]["mean"] == pytest.approx(
        sum(drawn["fluent"][0][i] for i in best) / len(pairs)
    )
    assert worlds._best(twice, 2)["reward"]["mean"] > found["reward"]["mean"]


@pytest.mark.slow
def test_a_folder_of_other_trainings_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "QUICK_SMALL", dataclasses.replace(recipe.QUICK_SMALL, values={}))
    assert (
        runs.winnow(monkeypatch, "frontier", "--out", tmp_path / "f", "--quick", "--seeds", 1) == 0
    )
    plan = recipe.QUICK_REVIEWS
    size = dataclasses.replace(plan.size, training={**plan.size.training, "steps": 3})
    monkeypatch.setattr(recipe, "QUICK_REVIEWS", dataclasses.replace(plan, size=size))
    with pytest.raises(RunError, match="made with other settings:\n  trainings: "):
        recipe.compute(tmp_path / "f", "", quick=True, seeds=None, seed=0)


@pytest.mark.slow
def test_behind_the_demo(small, tmp_path, monkeypatch):
    out = tmp_path / "demo"
    monkeypatch.setattr(
        recipe,
        "QUICK_SMALL",
        dataclasses.replace(recipe.QUICK_SMALL, values={"preferred_ft": (None,)}, seeds=1),
    )
    assert runs.winnow(monkeypatch, "demo", "--out", out) == 0
    assert "Reward against KL" not in (out / "report.html").read_text()
    model = runs.tree(out / "sft")
    assert runs.winnow(monkeypatch, "demo", "--out", out, "--frontier") == 0
    page = (out / "report.html").read_text()
    assert page.index("Reward against KL") < page.index("Preference training")
    assert read_json(out / "report.json")["summary"]["win_rate"] is not None
    assert runs.tree(out / "sft") == model
    ledger = figures(out / "frontier")
    (out / "rounds").mkdir()  # what else was done there
    for more in ((), ("--frontier",)):  # the same commands again
        assert runs.winnow(monkeypatch, "demo", "--out", out, *more) == 0
    assert figures(out / "frontier") == ledger
    assert not (out / "frontier" / "reviews" / "sft").exists()  # the demo's own model was taken
    kept = read_json(out / "frontier" / "frontier.json")["settings"]["sft"]
    assert kept == weights_hash(loading.load(ModelSpec(str(out / "sft"), device="cpu")).model)
    (weights,) = (out / "sft" / "model").glob("*.safetensors")
    tensors = load_file(weights)
    name = next(iter(tensors))
    # trained anew, at the same place
    save_file({**tensors, name: tensors[name] + 1}, weights, metadata={"format": "pt"})
    with pytest.raises(RunError, match=f"sft: '{kept}' ->"):
        recipe.compute(out / "frontier", "", quick=True, seeds=None, seed=0, trained=out / "sft")
