"""The fast engines against the oracle, in values and gradients, on forests of any shape and models
of many families.
"""

from __future__ import annotations

import dataclasses
import random
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from exact import Exact
from winnow.config.model_spec import ModelSpec
from winnow.config.options import Lora
from winnow.data.packing import pack
from winnow.data.records import Comparison
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine import output_head, rows, segments, selection, tree_layout, varlen
from winnow.engine.batch import collate
from winnow.engine.fast import MASKS, SEGMENTS, SINGLE, VARLEN, Tiled
from winnow.engine.tree_layout import arrange, items_of
from winnow.errors import ModelError
from winnow.models import loading
from winnow.models.layers import compile_layers, enable_checkpointing

F64, F32 = torch.float64, torch.float32
ENGINES = [SEGMENTS, MASKS, SINGLE]


@pytest.fixture(autouse=True)
def _both_kinds_of_calls(monkeypatch):
    """These tests' items are short: at this limit some have a call of their own and some share
    one.
    """
    monkeypatch.setattr(tree_layout, "SMALL", 250)


def model(family, dtype=F64, **changes):
    """The experts' grouped products exist in float32 only, their plain loop in float64 too."""
    return tiny.model(
        family, dtype=dtype, experts="eager" if family in tiny.ROUTED else None, **changes
    )


def slope(columns, part):
    """The same for a token however the batch is cut, another one for each."""
    return {"logp": torch.cos(0.7 * columns["logp"])}


def looked(engine, model, groups, slope=slope):
    """Columns and all gradients as one vector."""
    model.zero_grad()
    columns = engine.backward(model, collate(groups), slope, want=("entropy",))
    found = [
        torch.zeros_like(p) if p.grad is None else p.grad
        for p in model.parameters()
        if p.requires_grad
    ]
    return columns, torch.cat([g.flatten() for g in found]).clone()


def assert_equal(one, other, tolerance):
    for name in ("logp", "entropy"):
        assert float((one[0][name] - other[0][name]).abs().max()) <= tolerance, name
    assert float(other[1].norm()) > 0
    assert float((one[1] - other[1]).norm()) <= tolerance * float(other[1].norm())


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.NAME)
@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.MORE])
def test_every_engine_equals_the_oracle_on_tries_of_depth_1_to_4(family, engine):
    groups = [tiny.trie(10 * depth + i, depth) for depth in (1, 2, 3, 4) for i in range(2)]
    with Exact():
        ours = model(family)
        assert_equal(looked(engine, ours, groups), looked(rows, ours, groups), 1e-10)
    if family not in tiny.ROUTED:  # in float32 rounding sends single tokens to other experts
        ours = model(family, F32)
        assert_equal(looked(engine, ours, groups), looked(rows, ours, groups), 1e-5)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_random_tries(seed, depth):
    groups = [tiny.trie(seed + i, depth) for i in range(3)]
    ours = model("gpt2")
    assert_equal(looked(SEGMENTS, ours, groups), looked(rows, ours, groups), 1e-10)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt_oss"])
def test_it_does_not_matter_which_items_share_a_call(monkeypatch, family):
    groups = [tiny.trie(10 * depth + i, depth) for depth in (1, 2, 3, 4) for i in range(3)]
    runs = collate(groups).runs
    ours, kinds, found = model(family), [], []
    for small in (0, 250, 10**6):
        monkeypatch.setattr(tree_layout, "SMALL", small)
        places = arrange(runs, items_of(runs), torch.device("cpu"))
        kinds.append((len(places.alone), sum(len(one.query_BQ) for one in places.shared)))
        assert sum(kinds[-1]) == len(places.items)
        with Exact():
            found.append(looked(SEGMENTS, ours, groups))
    assert kinds[0][1] == 0
    assert min(kinds[1]) > 3
    assert kinds[2][0] < 6  # those without their like
    assert_equal(found[0], found[1], 1e-12)
    assert_equal(found[0], found[2], 1e-12)


def test_the_probe_looks_at_both_kinds_of_calls(monkeypatch):
    monkeypatch.undo()
    runs = collate(selection.trees(97, 500)).runs
    places = arrange(runs, items_of(runs), torch.device("cpu"))
    assert any(places.items[number].before for number in places.alone)
    assert any(not places.items[number].before for number in places.alone)
    assert any(len(one.query_BQ) > 1 for one in places.shared)


def test_groups_with_one_history_share_it():
    """Turns of one dialogue as rows of their own, and two rows with one prompt: what they begin
    with is computed once, and right.
    """
    rng = random.Random(0)

    def some(n):
        return tuple(rng.randrange(97) for _ in range(n))

    groups, history = [], some(40)
    for turn in range(4):
        sequences = tuple(TokenSequence(history + some(3 + k), len(history)) for k in range(2))
        groups.append(RenderedGroup(sequences, (Comparison(0, 1),), (None, None), f"turn {turn}"))
        history = sequences[0].ids + some(5)
    groups.append(
        RenderedGroup(
            tuple(TokenSequence(groups[0].sequences[0].ids[:40] + some(4), 40) for _ in range(3)),
            (),
            (None,) * 3,
            "again",
        )
    )
    batch = collate(groups)
    prefixes = {s.ids[: i + 1] for g in groups for s in g.sequences for i in range(len(s.ids))}
    assert (
        len(batch.token_T)
        == len(prefixes)
        < sum(len(s.ids) for g in groups for s in g.sequences) / 4
    )
    ours = model("llama")
    with Exact():
        assert_equal(looked(SEGMENTS, ours, groups), looked(rows, ours, groups), 1e-10)


def test_sequences_that_end_within_others_and_twice_the_same():
    a = (5, 6, 7, 8, 9, 10)
    group = RenderedGroup(
        tuple(TokenSequence(ids, 2) for ids in (a, a[:4], a, (*a, 11, 12), (5, 6, 3))),
        (),
        (None,) * 5,
        "nested",
    )
    ours = model("gpt2")
    assert len(collate([group]).token_T) == 9
    for engine in ENGINES:
        assert_equal(looked(engine, ours, [group]), looked(rows, ours, [group]), 1e-10)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.NAME)
def test_no_answer_sees_another(engine):
    """Changing one completion changes no other's log-probs by a bit more than rounding, nor
    anything of another group.
    """
    ours, groups = model("llama"), [tiny.trie(1, 2), tiny.trie(2, 3)]
    with torch.no_grad():
        before = engine.logps(ours, collate(groups))["logp"]
        for k in range(len(groups[0].sequences)):
            sequences = list(groups[0].sequences)
            old = sequences[k]
            sequences[k] = TokenSequence(
                (*old.ids[: old.start], *((t + 1) % 97 for t in old.ids[old.start :])), old.start
            )
            changed = [dataclasses.replace(groups[0], sequences=tuple(sequences)), groups[1]]
            after = engine.logps(ours, collate(changed))["logp"]
            theirs = collate(groups).completion_N != k
            assert float((after - before)[theirs].abs().max()) < 1e-12
            assert float((after - before)[~theirs].abs().max()) > 1e-3


def test_order_budget_and_cut_change_nothing():
    ours = model("llama")
    groups = [tiny.trie(i, 1 + i % 4) for i in range(8)]

    def whole(items, tokens):
        ours.zero_grad()
        logps = {}
        for part in pack([groups[i] for i in items], tokens):
            chosen = [items[i] for i in part]
            logp_N = SEGMENTS.backward(ours, collate([groups[i] for i in chosen]), slope)["logp"]
            logps |= dict(
                zip(
                    chosen,
                    logp_N.split(
                        [sum(len(s.ids) - s.start for s in groups[i].sequences) for i in chosen]
                    ),
                )
            )
        return torch.cat([logps[i] for i in range(8)]), torch.cat(
            [p.grad.flatten() for p in ours.parameters()]
        )

    with Exact():
        expected = whole(list(range(8)), 10**6)
        for items, tokens in (
            (list(range(8)), 1),
            (list(range(8)), 150),
            ([5, 2, 7, 0, 1, 6, 3, 4], 220),
        ):
            found = whole(items, tokens)
            assert float((found[0] - expected[0]).abs().max()) < 1e-12
            assert float((found[1] - expected[1]).norm()) < 1e-12 * float(expected[1].norm())


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.NAME)
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_checkpointing_changes_nothing(family, engine):
    groups = [tiny.trie(i, 2) for i in range(3)]
    ours = model(family)
    expected = looked(engine, ours, groups)
    enable_checkpointing(ours)
    found = looked(engine, ours, groups)
    assert torch.equal(found[0]["logp"], expected[0]["logp"])
    assert torch.equal(found[1], expected[1])


def plain_kernel(q, k, v, items, scale, window, softcap):
    """What the flash kernels compute, item by item in plain torch: causal from the end of both,
    within a window.
    """
    found = []
    places = zip(items.query_begin, items.query_begin[1:], items.key_begin, items.key_begin[1:])
    for a, b, c, d in [[int(n) for n in place] for place in places]:
        assert b - a <= items.most_queries
        assert d - c <= items.most_keys
        mask = arrange((), (), torch.device("cpu")).mask(
            b - a, d - c, None if window[0] < 0 else window[0] + 1, q
        )
        one = segments._written_out(
            *(x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d])), mask, scale, softcap, None
        )
        found.append(one[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2", "qwen3"])
def test_the_numbers_handed_to_flash_kernels_are_right(family):
    """The kernels themselves need a GPU; what they are told is tested with one that runs
    anywhere.
    """
    groups = [tiny.trie(10 * depth + i, depth) for depth in (1, 2, 3, 4) for i in range(2)]
    engine = Tiled(
        "varlen, plain",
        varlen.hidden,
        lambda model, batch: varlen.inside(model, batch, plain_kernel),
    )
    with Exact():
        ours = model(family)
        assert_equal(looked(engine, ours, groups), looked(rows, ours, groups), 1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "qwen3"])
def test_flash_kernels_equal_the_oracle(family):
    """In bfloat16, as the kernels take it, against rows in bfloat16: as near as padded and unpadded
    rows are to each other.
    """
    big = (
        {"hidden_size": 128, "head_dim": 32}
        if family == "qwen3"
        else {"n_embd": 128}
        if family == "gpt2"
        else {"hidden_size": 128}
    )
    ours = tiny.model(family, dtype=torch.bfloat16, **big).cuda()
    assert selection.choose(ours, 97, 60).engine is VARLEN


def test_a_gpu_engine_asked_for_on_a_cpu_says_so():
    with pytest.raises(ModelError, match=r"engine varlen: (.*CUDA|.*cuda|NotImplementedError)"):
        selection.prove(VARLEN, model("llama", F32), 97, 60)


# --- the head


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "phi"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "limits",
    [(2**27, 2**30), (97 * 8 * 5, 2**30), (97 * 8 * 3, 97 * 8 * 4)],
    ids=["fused", "fused, cut", "recomputed"],
)
def test_every_way_through_the_head_gives_the_same(family, tied, limits, monkeypatch):
    """Whole batch at once, group by group, and groups too large to hold: soft-cap, scale, bias,
    tied and untied.
    """
    groups = [tiny.trie(i, 2) for i in range(4)]
    with Exact():
        ours = model(family, tie_word_embeddings=tied)
        expected = looked(rows, ours, groups)
        monkeypatch.setattr(output_head, "TILE", limits[0])
        monkeypatch.setattr(output_head, "LARGEST", limits[1])
        assert_equal(looked(SEGMENTS, ours, groups), expected, 1e-10)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.NAME)
def test_logps_are_differentiable(engine):
    ours, groups = model("gemma2"), [tiny.trie(i, 3) for i in range(2)]
    with Exact():
        for one in (engine, rows):
            ours.zero_grad()
            logp_N = one.logps(ours, collate(groups))["logp"]
            logp_N.backward(slope({"logp": logp_N.detach()}, None)["logp"])
            found = torch.cat([p.grad.flatten() for p in ours.parameters()])
            if one is engine:
                kept = found
        assert float((kept - found).norm()) <= 1e-10 * float(found.norm())


def both_slopes(columns, part):
    return slope(columns, part) | {"kl": torch.sin(0.3 + columns["kl"])}


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.NAME)
# plain, tied, soft-capped, scaled, with a bias
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere", "phi"])
@pytest.mark.parametrize(
    "limits",
    [(2**27, 2**30), (97 * 8 * 12, 2**30), (97 * 8 * 12, 97 * 8 * 8)],
    ids=["whole", "parts", "recomputed"],
)
def test_what_another_model_says_and_how_peaked_the_own_is(engine, family, limits, monkeypatch):
    """KL(q || p) of whole distributions and log sum p^2 at each token, and the gradients of both
    slopes, equal the oracle's.
    """
    ours, groups = model(family), [tiny.trie(i, 3) for i in range(3)]
    batch, kept = collate(groups), {name: p.detach().clone() for name, p in ours.named_parameters()}
    monkeypatch.setattr(output_head, "TILE", limits[0])
    monkeypatch.setattr(output_head, "LARGEST", limits[1])
    monkeypatch.setattr(output_head, "ROWS", 7)
    found = []
    with Exact():
        for one in (rows, engine):
            said = one.said(ours, batch)
            with torch.no_grad():  # the weights move on; what was said stays
                for p in ours.parameters():
                    p.data = p + 0.05 * torch.cos(torch.arange(p.numel(), dtype=p.dtype)).reshape(
                        p.shape
                    )
            ours.zero_grad()
            columns = one.backward(ours, batch, both_slopes, ("entropy", "collision", "kl"), said)
            found.append(
                (columns, torch.cat([p.grad.flatten() for p in ours.parameters()]).clone())
            )
            alone = one.logps(ours, batch, ("kl", "collision"), said)
            assert all(
                torch.allclose(alone[name], columns[name], rtol=0, atol=1e-12)
                for name in ("logp", "kl", "collision")
            )
            for name, p in ours.named_parameters():
                p.data = kept[name].clone()
    (truth, gradient), (seen, own) = found
    for name in ("logp", "entropy", "collision", "kl"):
        assert float((truth[name] - seen[name]).abs().max()) <= 1e-10, name
    assert bool((truth["kl"] > 0).all())
    assert float((gradient - own).norm()) <= 1e-10 * float(gradient.norm())


def test_each_part_of_a_batch_is_asked_for_once_and_knows_its_rows(monkeypatch):
    monkeypatch.setattr(output_head, "TILE", 97 * 4 * 20)
    groups = [tiny.trie(i, 2) for i in range(6)]
    batch, asked = collate(groups, [5, 3, 8, 1, 0, 2]), []

    def told(columns, part):
        asked.append(part)
        return slope(columns, part)

    columns = SEGMENTS.backward(model("llama", F32), batch, told)
    assert len(asked) > 2
    assert [i for part in asked for i in part.items] == [5, 3, 8, 1, 0, 2]
    assert torch.equal(torch.cat([part.target_N for part in asked]), batch.target_N)
    assert sum(len(part.pair_M2) for part in asked) == len(batch.pair_M2)
    for part in asked:  # numbers count from the part's own beginning
        alone = collate([groups[[5, 3, 8, 1, 0, 2].index(i)] for i in part.items])
        for name in ("completion_N", "pair_M2", "length_C"):
            assert torch.equal(getattr(part, name), getattr(alone, name)), name
    assert len(columns["logp"]) == len(batch.target_N)


def test_an_adapter_on_the_output_layer_is_trained(tmp_path):
    folder = tiny.folder(tmp_path / "model", hidden_size=16, intermediate_size=32)
    loaded = loading.load(
        ModelSpec(str(folder), dtype="float64", device="cpu"),
        lora=Lora(4, 8, ("lm_head", "q_proj")),
        train=True,
    )
    # zeros would hide it
    torch.nn.init.normal_(loaded.model.get_output_embeddings().lora_B["default"].weight)
    groups = [tiny.trie(i, 2) for i in range(3)]
    with Exact():
        found, expected = looked(SEGMENTS, loaded.model, groups), looked(rows, loaded.model, groups)
    assert_equal(found, expected, 1e-10)
    assert float(loaded.model.get_output_embeddings().lora_A["default"].weight.grad.norm()) > 0
    assert loaded.model.get_output_embeddings().base_layer.weight.grad is None


def test_an_adapter_on_the_output_layer_works_in_half_precision(tmp_path):
    """Its sum with the layer is float32, as peft keeps adapters, beside states in bfloat16."""
    folder = tiny.folder(tmp_path / "model", hidden_size=16, intermediate_size=32)
    loaded = loading.load(
        ModelSpec(str(folder), dtype="bfloat16", device="cpu"),
        lora=Lora(4, 8, ("lm_head", "q_proj")),
        train=True,
    )
    torch.nn.init.normal_(loaded.model.get_output_embeddings().lora_B["default"].weight)
    assert loaded.model.get_output_embeddings().lora_B["default"].weight.dtype == torch.float32
    assert selection.choose(loaded.model, 97, 60, [SEGMENTS]).engine is SEGMENTS


def test_a_dora_adapter_on_the_output_layer_is_refused():
    from peft import LoraConfig, get_peft_model

    ours = get_peft_model(
        model("llama", F32), LoraConfig(target_modules=["lm_head"], use_dora=True)
    )
    with pytest.raises(ModelError, match="DoRA"):
        SEGMENTS.logps(ours, collate([tiny.trie(0, 1)]))


# --- which engine


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.MORE])
def test_the_fast_engine_is_chosen_where_it_is_right(family):
    choice = selection.choose(model(family, F32), 97, 60)
    assert (choice.engine, choice.passed_over) == (SEGMENTS, ())


@pytest.mark.parametrize("family", tiny.ODD)
def test_odd_families_get_a_slower_engine_or_the_right_numbers(family):
    """Whatever is chosen equals the oracle, on other trees than the probe's; and who was passed
    over is said.
    """
    ours = model(family, F32)
    choice = selection.choose(ours, 97, 60)
    assert {"falcon": MASKS, "gptj": MASKS, "phimoe": SEGMENTS}.get(family, SINGLE) is choice.engine
    assert len(choice.passed_over) == [SEGMENTS, MASKS, SINGLE].index(choice.engine)
    groups = [tiny.trie(i, 2) for i in range(3)]
    with Exact():
        exact = model(family)
        assert_equal(looked(choice.engine, exact, groups), looked(rows, exact, groups), 1e-9)


def planted(change):
    """The segments engine with its items changed."""

    @contextmanager
    def inside(model, batch):
        with segments.inside(model, batch):
            token = segments._layout.set(
                arrange(
                    batch.runs, [change(item) for item in items_of(batch.runs)], torch.device("cpu")
                )
            )
            try:
                yield
            finally:
                segments._layout.reset(token)

    return Tiled("planted", segments.hidden, inside)


def siblings_visible(item):
    """Every item sees all that stands before it."""
    return dataclasses.replace(item, before=tuple(range(item.own[0])))


def ancestors_ignored(item):
    return dataclasses.replace(item, before=())


def shifted(model, batch):
    """Branches stand one position too far to the right."""
    position_T = batch.position_T.clone()
    for run in batch.runs:
        if run.parent >= 0:
            position_T[run.start : run.start + run.length] += 1
    return segments.hidden(model, dataclasses.replace(batch, position_T=position_T))


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize(
    "bug",
    [
        planted(siblings_visible),
        planted(ancestors_ignored),
        Tiled("planted", shifted, segments.inside),
    ],
    ids=["siblings", "ancestors", "positions"],
)
@pytest.mark.parametrize("train", [True, False])
def test_the_probe_rejects_planted_bugs(family, bug, train):
    ours = model(family, F32)
    choice = selection.choose(ours, 97, 60, [bug, SINGLE], train=train)
    assert choice.engine is SINGLE
    assert "planted: differs from rows" in choice.passed_over[0]
    # it is the bug that is seen
    assert (
        selection.choose(ours, 97, 60, [planted(lambda item: item)], train=train).engine.NAME
        == "planted"
    )
    assert all(p.grad is None for p in ours.parameters())


def test_the_probe_misses_a_gradient_that_is_not_there():
    class Forgetful:
        NAME = "forgetful"
        logps, said = SEGMENTS.logps, SEGMENTS.said

        def backward(self, model, batch, slope, want=(), other=None):
            columns = SEGMENTS.backward(model, batch, slope, want)
            model.get_input_embeddings().weight.grad = None
            return columns

    assert (
        "forgetful: differs from rows"
        in selection.choose(model("llama", F32), 97, 60, [Forgetful(), SINGLE]).passed_over[0]
    )


@pytest.mark.parametrize(
    "bug",
    [
        planted(siblings_visible),
        planted(ancestors_ignored),
        Tiled("planted", shifted, segments.inside),
    ],
    ids=["siblings", "ancestors", "positions"],
)
def test_planted_bugs_are_seen_in_half_precision(bug):
    """Where they do more than rounding does: a position more changes a random Llama by a third of
    what bfloat16 does, Qwen 3 by thirty times as much.
    """
    ours = tiny.model("qwen3", dtype=torch.bfloat16)
    assert selection.choose(ours, 97, 60, [bug, SINGLE]).engine is SINGLE
    assert selection.choose(ours, 97, 60, [planted(lambda item: item)]).engine.NAME == "planted"


def test_a_window_is_looked_at_where_the_data_goes_beyond_it():
    """A window of 64 that an engine forgets: small trees do not show it."""

    @contextmanager
    def without_window(model, batch):
        windows = [
            (m, m.sliding_window) for m in model.modules() if getattr(m, "sliding_window", None)
        ]
        for m, _ in windows:
            m.sliding_window = None
        try:
            with segments.inside(model, batch):
                yield
        finally:
            for m, window in windows:
                m.sliding_window = window

    ours = model("gemma3_text", F32, sliding_window=64, max_position_embeddings=256)
    bug = Tiled("forgetful", segments.hidden, without_window)
    assert selection.choose(ours, 97, 60, [bug]).engine is bug  # nothing that the data would show
    assert selection.choose(ours, 97, 100, [bug]).engine is rows
    assert selection.choose(ours, 97, 100).engine is SEGMENTS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, while it traces
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_compiled_layers_give_the_same_numbers_at_any_length(family):
    """With a backend that traces as all do and generates no code; one trace serves all layers and
    all lengths.
    """
    many = [[tiny.trie(10 * i + j, 2) for j in range(3)] for i in range(4)]
    assert len({len(collate(groups).token_T) for groups in many}) > 2
    ours = model(family)
    expected = [looked(SEGMENTS, ours, groups) for groups in many]
    compile_layers(ours, backend="aot_eager")
    counted = torch._dynamo.utils.counters
    counted.clear()
    traced = []
    for groups, before in zip(many, expected):
        assert_equal(looked(SEGMENTS, ours, groups), before, 1e-10)
        traced.append(counted["stats"]["unique_graphs"])
    assert traced[0] > 0
    assert len(set(traced)) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, while it traces
def test_a_wrong_compilation_is_seen_by_the_probe():
    """A backend that doubles what the first layer's last graph gives."""

    def wrong(graph, example):
        return lambda *args: tuple(
            2 * x if torch.is_tensor(x) and x.is_floating_point() else x for x in graph(*args)
        )

    ours = model("llama", F32)
    compile_layers(ours, backend=wrong)
    choice = selection.choose(ours, 97, 60, train=False)
    assert choice.engine is rows
    assert all("differs from rows" in line for line in choice.passed_over)


def test_a_model_without_layers_is_not_compiled():
    with pytest.raises(ModelError, match="no layers that can be compiled"):
        compile_layers(torch.nn.Linear(2, 2))


def test_an_engine_asked_for_by_name_is_proved_too():
    with pytest.raises(
        ModelError, match=r"engine segments: differs from rows by .*\n  -> --engine auto"
    ):
        selection.prove(SEGMENTS, model("falcon", F32), 97, 60)
    selection.prove(MASKS, model("falcon", F32), 97, 60)
    selection.prove(rows, model("falcon", F32), 97, 60)


def test_a_mask_of_the_models_own_is_not_ignored():
    ours = model("llama", F32)
    batch = collate([tiny.trie(0, 2)])
    with segments.inside(ours, batch), pytest.raises(ModelError, match="a mask of its own"):
        ours(
            input_ids=batch.token_T[None],
            attention_mask=torch.zeros(1, 1, len(batch.token_T), len(batch.token_T)),
        )
    assert ours.config._attn_implementation == "sdpa"
