"""`winnow reward`: the loss and its gradients against the paper and transformers' own classifiers,
one score for everybody, whole runs.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import runs
import tiny
from winnow import api
from winnow.commands import check
from winnow.config.model_spec import ModelSpec
from winnow.config.options import Lora
from winnow.data.records import Comparison, Completion, Message, PreferenceGroup
from winnow.data.render import RenderedGroup, Renderer, TokenSequence
from winnow.engine import scalar_head
from winnow.engine.batch import collate
from winnow.engine.selection import SCALARS
from winnow.errors import ModelError, RunError
from winnow.models import adapters, loading, reward_models, scoring
from winnow.objectives.objective import objective, reward
from winnow.system.files import read_json, read_jsonl

F64 = torch.float64


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp("world"))


def trained(world, out, **changes):
    return api.reward(**runs.settings(world, out, **changes))


def classifier(family="llama", pad=None):
    own = {name: value for name, value in tiny.FAMILIES[family].items() if name != "pad_token_id"}
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **own, num_labels=1, pad_token_id=pad)
    return AutoModelForSequenceClassification.from_config(
        config, dtype=F64, attn_implementation="eager"
    ).eval()


def loss_of(made, reward_C, batch):
    """The loss of a batch, from the head's numbers."""
    return made.losses(
        [float(total) for total in made.totals({"logp": reward_C}, batch, {})], made.counts([batch])
    )["loss"]


# ---------------------------------------------------------------- the objective


def group(comparisons, count=3):
    return RenderedGroup(
        tuple(TokenSequence((5, 6, 7 + k), 2) for k in range(count)),
        tuple(comparisons),
        (None,) * count,
        "made",
    )


def test_the_loss_is_the_papers_equation_2_by_hand():
    """-log s(r_w - r_l), and of a label that is right with probability p both ways; weights weigh;
    a margin m and offset o ask for o m more.
    """
    batch = collate([group([Comparison(0, 1), Comparison(2, 1, 0.75, 2.0, 1.5)])], whole=True)
    reward_C = torch.tensor([0.3, -0.4, 1.1], dtype=F64)

    def nll(margin):
        return math.log(1 + math.exp(-margin))

    plain = (nll(0.7) + 2 * (0.75 * nll(1.5) + 0.25 * nll(-1.5))) / 3
    assert loss_of(reward(), reward_C, batch) == pytest.approx(plain, abs=1e-7)
    offset = (nll(0.7) + 2 * (0.75 * nll(1.5 - 0.2 * 1.5) + 0.25 * nll(-1.5 - 0.2 * 1.5))) / 3
    assert loss_of(reward(offset=0.2), reward_C, batch) == pytest.approx(offset, abs=1e-7)
    one = collate([group([Comparison(0, 1)])], whole=True)
    assert loss_of(reward(label_smoothing=0.1), reward_C, one) == pytest.approx(
        0.9 * nll(0.7) + 0.1 * nll(-0.7), abs=1e-7
    )


def test_a_ranking_is_one_observation():
    """Plackett-Luce: the best of all that are left is chosen again and again."""
    batch = collate([group([Comparison(2, 0), Comparison(2, 1), Comparison(0, 1)])], whole=True)
    reward_C = torch.tensor([0.3, -0.4, 1.1], dtype=F64)
    first = -math.log(math.exp(1.1) / sum(map(math.exp, (0.3, -0.4, 1.1))))
    second = -math.log(math.exp(0.3) / sum(map(math.exp, (0.3, -0.4))))
    assert loss_of(reward(listwise=True), reward_C, batch) == pytest.approx(
        first + second, abs=1e-7
    )


def test_no_policy_is_trained_with_it():
    with pytest.raises(Exception, match="got 'bradley_terry'"):
        objective("bradley_terry")
    assert reward().rewards
    assert not reward().reference
    assert not objective("dpo").rewards


def test_dashboards_show_rewards_and_nothing_of_log_probs():
    batch = collate([group([Comparison(0, 1), Comparison(2, 1)])], whole=True)
    found = reward().sums(torch.tensor([0.3, -0.4, 1.1]), batch)
    assert {*found} == {
        f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")
    }
    assert found["rewards/margins"] == (pytest.approx(0.7 + 1.5), 2.0)


@pytest.mark.parametrize("engine", SCALARS.ladder[1:], ids=lambda engine: engine.NAME)
def test_gradients_equal_those_of_pairs_through_transformers_own_classifier(engine):
    """K answers in one tree are all pairs, each scored by itself: autograd through plain forward
    passes of single rows says the same.
    """
    model, groups = classifier(), [tiny.trie(seed, 2) for seed in range(3)]
    truth = torch.zeros((), dtype=F64)
    pairs = [
        (one.sequences[c.winner].ids, one.sequences[c.loser].ids)
        for one in groups
        for c in one.comparisons
    ]
    for ids in pairs:
        won, lost = (model(input_ids=torch.tensor([row])).logits[0, 0] for row in ids)
        truth = truth - torch.nn.functional.logsigmoid(won - lost)
    (truth / len(pairs)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    made, batch = reward(), collate(groups, whole=True)
    counts, totals = made.counts([batch]), []

    def slope(columns, part):
        total, slopes = made.slopes(columns, part, counts, {})
        totals.append(total)
        return slopes

    engine.backward(model, batch, slope)
    assert float(sum(totals)) / counts[0] == pytest.approx(
        float(truth.detach()) / len(pairs), abs=1e-7
    )
    assert len(expected) > 5
    for name, grad in expected.items():
        assert torch.allclose(
            dict(model.named_parameters())[name].grad, grad, atol=1e-6, rtol=1e-6
        ), name


# ---------------------------------------------------------------- one score for everybody

TURNS = (Message("user", "how is it?"),)
ENDLESS = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ '\n' }}{% endfor %}{% if"
    " add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.mark.parametrize(
    "template", [None, tiny.TEMPLATE, ENDLESS], ids=["text", "chat", "no end token"]
)
@pytest.mark.parametrize("spoken", [False, True], ids=["strings", "turns"])
def test_training_scores_what_the_judge_scores(tmp_path, template, spoken):
    """The tokens a training sees are those of the chat template from end to end, and its scores are
    those of the saved folder, by any road.
    """
    if spoken and template is None:
        return
    tiny.folder(tmp_path / "model", template=template)
    prompt = TURNS if spoken else "how is it?"
    answers = [
        (Message("assistant", text),) if spoken else text
        for text in ("it is good", "it is bad<|end|>")
    ]
    loaded = reward_models.load(ModelSpec(str(tmp_path / "model"), device="cpu"), train=True)
    rendered = Renderer(loaded.tokenizer, whole=True).render(
        PreferenceGroup(prompt, tuple(map(Completion, answers)), (Comparison(0, 1),))
    )
    column = scalar_head.ORACLE.logps(loaded.model, collate([rendered], whole=True))[
        "logp"
    ].detach()
    loading.save(loaded.model, loaded.tokenizer, tmp_path / "saved")
    judged = scoring.scores(
        reward_models.load(ModelSpec(str(tmp_path / "saved"), device="cpu")),
        [scoring.Dialogue(prompt, answer) for answer in answers],
    )
    assert column.tolist() == pytest.approx(judged, abs=1e-5)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    if template is None:
        ids = tokenizer("how is it?it is good")["input_ids"] + [tokenizer.eos_token_id]
    else:
        said = [
            {"role": "user", "content": "how is it?"},
            {"role": "assistant", "content": "it is good"},
        ]
        ids = tokenizer.apply_chat_template(said, tokenize=True, return_dict=True)["input_ids"]
    assert list(rendered.sequences[0].ids) == ids
    assert float(theirs(input_ids=torch.tensor([ids])).logits[0, 0].detach()) == pytest.approx(
        judged[0], abs=1e-5
    )
    assert len(set(judged)) == 2


# ---------------------------------------------------------------- models


def test_a_new_head_is_seeded_and_of_its_size(world):
    one, same, other = (
        reward_models.load(
            ModelSpec(str(world / "model"), device="cpu"), train=True, seed=seed
        ).model.score.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    layer = torch.nn.Linear(2047, 1, bias=False)
    reward_models.new_head(layer, 0)
    assert float(layer.weight.detach().std()) == pytest.approx(2048**-0.5, rel=0.05)


def test_what_has_no_trained_head_is_no_judge(world, tmp_path):
    with pytest.raises(ModelError, match=r"is no reward model: there is no score\.weight"):
        reward_models.load(ModelSpec(str(world / "model"), device="cpu"))
    sft = runs.sft(world, tmp_path / "sft", steps=1, lora="r=2")
    for train in (False, True):  # an adapter that was trained to write has no head beside it
        with pytest.raises(ModelError, match=r"is no reward model: there is no score\.weight"):
            reward_models.load(ModelSpec(str(sft.root), device="cpu"), train=train)


def test_a_family_without_a_classifier_is_refused_before_anything_is_read(
    world, tmp_path, monkeypatch, capsys
):
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.model("mamba", vocab_size=263).save_pretrained(tmp_path / "model")
    words = runs.line("reward", world, tmp_path / "run", model=tmp_path / "model")
    assert runs.winnow(monkeypatch, "check", "--recipe", "reward", *words[1:]) == 2
    assert "transformers has no sequence classifier" in " ".join(capsys.readouterr().err.split())
    assert runs.winnow(monkeypatch, *words) == 2
    assert (
        "transformers has no sequence classifier with a linear head called score for models of type"
        " mamba" in " ".join(capsys.readouterr().err.split())
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--quantize", "nf4", "--lora", "auto"],
            "a reward model's weights are not held in 4 bits",
        ),
        (["--pairs", "listwise", "--offset", "1"], "offset is about two answers"),
        (["--offset", "1"], "the data has no margins or score gaps"),
        (["--beta", "1"], "beta"),
        (["--preset", "zephyr"], "preset"),
    ],
)
def test_what_has_no_meaning_is_refused(world, tmp_path, monkeypatch, capsys, words, told):
    """By the training and by its check."""
    line = runs.line("reward", world, tmp_path / "run")
    for command in (line, ["check", "--recipe", "reward", *line[1:]]):
        assert runs.winnow(monkeypatch, *command, *words) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "config.yaml").exists()


# ---------------------------------------------------------------- winnow check


def test_check_shows_what_a_reward_model_reads_and_where_its_number_is_read(
    world, tmp_path, monkeypatch, capsys
):
    words = ["check", "--recipe", "reward", *runs.line("reward", world, tmp_path / "run")[1:]]
    assert runs.winnow(monkeypatch, *words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "grey: prompt; reverse: where the head's number is read" in said
    assert "of answers, of which the last of each is scored" in said
    assert "plan: 6 steps of 8 groups, 8.0 comparisons per step" in said
    assert "memory: about" in said
    assert not (tmp_path / "run").exists()
    del words[words.index("--lr") : words.index("--lr") + 2]
    for more, rate in ((), "1e-05"), (("--lora", "r=2"), "0.0001"):
        assert runs.winnow(monkeypatch, *words, *more) == 0
        assert f"rate: linear from {rate} " in capsys.readouterr().out


@pytest.mark.parametrize("cut", [0, 3])
@pytest.mark.parametrize("last", [True, False])
def test_one_token_is_marked(last, cut):
    renderer = Renderer(tiny.tokenizer(), whole=True)
    ids = renderer.whole_ids("how?", "so it is")
    sequence = TokenSequence(ids[: len(ids) - cut], 3, cut)
    shown = check._lint(renderer, sequence, last=last)
    marked = [
        shown.plain[span.start : span.end]
        for span in shown.spans
        if span.style == "reverse bold green"
    ]
    assert marked == ([renderer.tokenizer.decode([sequence.ids[-1]])] if last or not cut else [])
    assert ("green" in {span.style for span in shown.spans}) != last


# ---------------------------------------------------------------- whole runs


def test_a_run_learns_and_judges(world, tmp_path, monkeypatch):
    """Yes beats no: learnt on one set of prompts, told on another, by the command that judges."""
    run = trained(world, tmp_path / "run", steps=12, lr=3e-3, eval_data=[str(world / "held.jsonl")])
    rows = read_jsonl(run.metrics)
    held = [row for row in rows if "eval_loss" in row]
    assert held[-1]["eval_loss"] < 0.3 < held[0]["eval_loss"]
    assert held[-1]["eval_rewards/accuracies"] == 1.0
    assert not [
        name
        for row in rows
        for name in row
        if "logps" in name or "logratio" in name or name in ("entropy", "kl", "length/chosen")
    ]
    assert not run.samples.exists()
    page = run.report_html.read_text()
    assert "Reward model" in page
    assert "Log-probability" not in page
    assert "Before and after" not in page
    assert "entropy collapse" not in page
    told = read_json(run.report_json)["runs"][0]["held_out"]["eval_"]
    right = told["figures"]["rewards/accuracies"]
    assert (right["count"], right["value"], right["high"]) == (8, 1.0, 1.0)
    assert told["figures"]["rewards/margins"]["value"] == pytest.approx(
        held[-1]["eval_rewards/margins"], rel=1e-4
    )
    assert told["calibration"]["log_loss"] == pytest.approx(held[-1]["eval_loss"], rel=1e-4)
    assert "Are margins probabilities?" in page
    answers = [
        {
            "prompt": row["prompt"],
            "completions": [row["rejected"], row["chosen"]],
            "comparisons": [],
        }
        for row in tiny.pairs(8, seed=1)
    ]
    tiny.write(tmp_path / "answers.jsonl", answers)
    words = [
        "judge",
        tmp_path / "answers.jsonl",
        "--judge",
        f"reward:{run.root}",
        "--out",
        tmp_path / "judged.jsonl",
        "--device",
        "cpu",
    ]
    assert runs.winnow(monkeypatch, *words) == 0
    judged = read_jsonl(tmp_path / "judged.jsonl")
    assert [
        (one["comparisons"][0]["winner"], one["comparisons"][0]["loser"]) for one in judged
    ] == [(1, 0)] * 8
    margins = [one["judge_scores"][1] - one["judge_scores"][0] for one in judged]
    assert sum(margins) / 8 == pytest.approx(held[-1]["eval_rewards/margins"], rel=1e-4)
    config = json.loads((run.model / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert len(config["id2label"]) == 1


@pytest.mark.slow
def test_rankings_once_are_their_pairs(world, tmp_path):
    """Groups of four answers give the loss and accuracy of the same comparisons as rows of two."""
    many = [
        {
            "prompt": f"say {i}: ",
            "completions": [f"{w} {i}" for w in ("yes", "maybe", "hardly", "no")],
            "scores": [3, 2, 1, 0],
        }
        for i in range(4)
    ]
    single = [
        {
            "prompt": row["prompt"],
            "chosen": row["completions"][i],
            "rejected": row["completions"][j],
        }
        for row in many
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    tiny.write(tmp_path / "many.jsonl", many)
    tiny.write(tmp_path / "single.jsonl", single)
    first = []
    for name, size in (("many", 4), ("single", 24)):
        run = trained(
            world,
            tmp_path / name,
            data=[str(tmp_path / f"{name}.jsonl")],
            batch_size=size,
            steps=2,
            dtype="float64",
            on_bad_row="skip",
        )
        first.append(
            [
                {
                    key: row[key]
                    for key in ("loss", "grad_norm", "rewards/margins", "rewards/accuracies")
                }
                for row in read_jsonl(run.metrics)
            ]
        )
    assert first[0] == [pytest.approx(row, abs=1e-6) for row in first[1]]


@pytest.mark.slow
def test_an_adapter_trains_beside_its_head_and_is_read_again(world, tmp_path):
    run = trained(world, tmp_path / "run", lora="r=4,alpha=8", lr=1e-2)
    counts = read_json(run.environment)["parameters"]
    assert 0 < counts["trainable"] < counts["total"] / 2
    loaded = reward_models.load(ModelSpec(str(run.root), device="cpu"))
    before = reward_models.load(
        ModelSpec(str(world / "model"), device="cpu"), train=True, lora=Lora(r=4, alpha=8)
    ).model
    said = [scoring.Dialogue(row["prompt"], row["chosen"]) for row in tiny.pairs(3)]
    ids = [Renderer(loaded.tokenizer, whole=True).whole_ids(one.prompt, one.answer) for one in said]
    alone = [
        float(loaded.model(input_ids=torch.tensor([row])).logits[0, 0].detach()) for row in ids
    ]
    assert scoring.scores(loaded, said) == pytest.approx(alone, abs=1e-5)
    fresh = [float(before(input_ids=torch.tensor([row])).logits[0, 0].detach()) for row in ids]
    assert alone != pytest.approx(fresh, abs=1e-2)
    # what goes on begins where that ended
    again = trained(world, tmp_path / "again", model=str(run.root), steps=1, lr=1e-9)
    assert read_jsonl(again.metrics)[0]["rewards/chosen"] != pytest.approx(
        read_jsonl(run.metrics)[0]["rewards/chosen"], abs=1e-3
    )
    assert scoring.scores(
        reward_models.load(ModelSpec(str(again.root), device="cpu")), said
    ) == pytest.approx(alone, abs=1e-4)


def test_a_reward_model_goes_on_with_its_own_head(world, tmp_path):
    run = trained(world, tmp_path / "run", steps=2)
    again = trained(world, tmp_path / "again", model=str(run.root), steps=1, lr=1e-9)
    said = [scoring.Dialogue(row["prompt"], row["chosen"]) for row in tiny.pairs(3)]
    one, other = (
        scoring.scores(reward_models.load(ModelSpec(str(folder.root), device="cpu")), said)
        for folder in (run, again)
    )
    assert one == pytest.approx(other, abs=1e-5)
    with pytest.raises(RunError, match=r"lr: 1e-09 -> 0\.001"):
        trained(world, tmp_path / "again", model=str(run.root), steps=1)


def test_a_reward_model_writes_nothing(world, tmp_path, monkeypatch, capsys):
    """transformers would draw the output layer that is not in its file at random."""
    for more in ({}, {"lora": "r=2"}):
        run = trained(world, tmp_path / f"run{len(more)}", steps=1, **more)
        assert (
            runs.winnow(monkeypatch, *runs.line("dpo", world, tmp_path / "dpo", model=run.root))
            == 2
        )
        told = " ".join(capsys.readouterr().err.split())
        assert "is a reward model: it scores answers and writes none" in told
        assert "give a language model, such as the one it was made from" in told


SAID = [scoring.Dialogue(row["prompt"], row["chosen"]) for row in tiny.pairs(3)]


def scored_by_transformers(folder, said):
    """Its own classifier with its own tokenizer, which shares no code with Winnow."""
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    rows = [
        tokenizer(one.prompt + one.answer)["input_ids"] + [tokenizer.eos_token_id] for one in said
    ]
    return [float(model(input_ids=torch.tensor([row])).logits[0, 0].detach()) for row in rows]


@pytest.mark.parametrize("lora", [None, "r=4,alpha=8"], ids=["all weights", "adapter"])
def test_export_is_the_reward_model_that_was_trained(world, tmp_path, monkeypatch, capsys, lora):
    run = trained(world, tmp_path / "run", lora=lora, lr=1e-2)
    live = scoring.scores(reward_models.load(ModelSpec(str(run.root), device="cpu")), SAID)
    before = scoring.scores(
        reward_models.load(ModelSpec(str(world / "model"), device="cpu"), train=True), SAID
    )
    assert live != pytest.approx(before, abs=1e-2)
    plain, out = (
        ["export", run.root, "--out", tmp_path / name, "--device", "cpu"]
        for name in ("plain", "out")
    )
    assert runs.winnow(monkeypatch, *plain) == 0
    assert "loaded again, scores differ by at most 0.0e+00 nats" in capsys.readouterr().out
    assert (
        scoring.scores(reward_models.load(ModelSpec(str(tmp_path / "plain"), device="cpu")), SAID)
        == live
    )
    assert runs.winnow(monkeypatch, *out, "--merge") == (2 if lora is None else 0)
    if lora is None:
        assert "there is no adapter to merge" in capsys.readouterr().err
        return
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]
    assert scoring.scores(
        reward_models.load(ModelSpec(str(tmp_path / "out"), device="cpu")), SAID
    ) == pytest.approx(live, abs=1e-5)
    assert scored_by_transformers(tmp_path / "out", SAID) == pytest.approx(live, abs=1e-5)


def test_an_export_that_scores_otherwise_is_told(world, tmp_path, monkeypatch, capsys):
    run, merged = trained(world, tmp_path / "run", steps=1, lora="r=2"), adapters.merged

    def without_its_head(model):
        made = merged(model)
        reward_models.new_head(made.score, 7)
        return made

    monkeypatch.setattr(adapters, "merged", without_its_head)
    assert (
        runs.winnow(
            monkeypatch, "export", run.root, "--out", tmp_path / "out", "--merge", "--device", "cpu"
        )
        == 2
    )
    assert (
        "the saved model differs from the live one: a token's score by" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_padding_is_never_the_token_an_answer_ends_with(world, tmp_path, monkeypatch):
    """transformers takes the score at the last token that is not padding: an end token that pads as
    well would be passed over.
    """
    tiny.folder(tmp_path / "model")
    for pad in ("</s>", "<|end|>", None):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        tokenizer.pad_token = pad
        tokenizer.save_pretrained(tmp_path / "model")
        run = trained(
            world, tmp_path / str(pad).strip("</>|"), model=str(tmp_path / "model"), steps=1
        )
        config = json.loads((run.model / "config.json").read_text())
        expected = tokenizer.pad_token_id if pad == "<|end|>" else None
        assert config["pad_token_id"] == expected
        adapter = trained(
            world,
            run.root.with_suffix(".adapter"),
            model=str(tmp_path / "model"),
            steps=1,
            lora="r=2",
        )
        out = run.root.with_suffix(".merged")
        assert (
            runs.winnow(
                monkeypatch, "export", adapter.root, "--out", out, "--merge", "--device", "cpu"
            )
            == 0
        )
        assert json.loads((out / "config.json").read_text())["pad_token_id"] == expected
