"""Every loss Winnow and TRL both have, on one random batch: value and gradient of each beside the
other's.

`make bench`, or `python bench/trl_losses.py --help` in an environment with the extra `bench`. TRL's
side is its own trainer, made from its own config, and its own `compute_loss`; ours is the objective
on the log-probs of `winnow.engine.rows`, of the same tokens. Twice:

float32: two random GPT-2s, policy and reference; gradients of all parameters. float64: the same
models in float64. TRL's fused head computes in float32 whatever the model, so `Wide` says in its
place what it would.

Leaves with 1 when a value or a gradient differs by more than 1e-5 (float32) or 1e-9 (float64) of
its size, or when a difference of definition that is listed at the end is no longer there.
`--markdown` writes the tables of docs/trl-losses.md.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

from trl_curve import quiet

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch
from torch import Tensor, nn

from winnow.data.pairs import with_mismatched
from winnow.data.records import Comparison
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.data.tokens import gathered, packed
from winnow.engine import rows as engine
from winnow.engine.batch import Batch, collate
from winnow.errors import SettingsError
from winnow.objectives.objective import objective

Row = dict[str, Any]
Settings = Mapping[str, Any]
LIMIT = {torch.float32: 1e-5, torch.float64: 1e-9}
PAIRS = 6


# ---------------------------------------------------------------- rows, tokenizer, models


def made_up_rows(kind: str) -> list[Row]:
    """Random letters, one token each. pairs: of different lengths; even: winners of one length;
    labels: four good answers, seven bad ones; unlikely: the same, the answers to other prompts
    being likelier under the reference, so that KTO's estimate of the KL stops at 0.
    """
    draw = random.Random(7 if kind == "unlikely" else 1)

    def word(least: int, most: int) -> str:
        return "".join(draw.choice("abcdefghij") for _ in range(draw.randint(least, most)))

    if kind in ("labels", "unlikely"):
        return [
            {"prompt": word(3, 9), "completion": word(2, 11), "label": i % 3 == 0}
            for i in range(11)
        ]
    return [
        {
            "prompt": word(3, 9),
            "chosen": word(6, 6) if kind == "even" else word(2, 11),
            "rejected": word(2, 11),
        }
        for _ in range(PAIRS)
    ]


@cache
def tokenizer() -> Any:
    """One token for each byte, a BOS before each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges=[]))
    raw.add_special_tokens(words[:3])
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@cache
def made_up_model(seed: int) -> Any:
    """A random GPT-2 of two layers whose distributions are not flat. Never changed: whoever needs
    one copies it.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer()),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config).eval()


class Wide(nn.Module):
    """A model in float64 that answers what TRL's fused head would, which computes in float32.
    `sharpness` multiplies its logits.
    """

    def __init__(
        self, model: nn.Module, sharpness: float = 1.0, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.model, self.sharpness = copy.deepcopy(model).to(dtype), sharpness

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SimpleNamespace:
        """Logits, or of labels (as long as the ids, -100 where nothing is scored) their log-probs,
        0 where nothing is scored.
        """
        logits = (
            self.sharpness
            * self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        )
        if labels is None:
            return SimpleNamespace(logits=logits)
        target, logp = labels[:, 1:], logits[:, :-1].log_softmax(-1)
        said = logp.gather(2, target.clamp(min=0)[..., None])[..., 0].masked_fill(
            target == -100, 0.0
        )
        for_dashboards = torch.zeros_like(said)
        return SimpleNamespace(
            log_probs=said,
            log_sum_sq_probs=(2 * logp).logsumexp(-1),
            entropy=for_dashboards,
            mean_logits=for_dashboards,
            is_top1=for_dashboards.bool(),
        )


def policy_and_reference(dtype: torch.dtype, sharpness: float = 1.0) -> tuple[nn.Module, nn.Module]:
    """Copies of the two models. sharpness: of the policy's logits, to drive log-ratios far."""
    pair = made_up_model(1), made_up_model(0)
    if dtype == torch.float32 and sharpness == 1:
        return copy.deepcopy(pair[0]), copy.deepcopy(pair[1])
    return Wide(pair[0], sharpness, dtype), Wide(pair[1], 1.0, dtype)


# ---------------------------------------------------------------- TRL's side


def trainer_for(name: str, settings: Settings, kind: str, place: str) -> tuple[Any, dict[str, Any]]:
    """TRL's trainer over the made-up rows, and the one batch it makes of them."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    made = {
        "DPO": (DPOConfig, DPOTrainer),
        "KTO": (KTOConfig, KTOTrainer),
        "CPO": (CPOConfig, CPOTrainer),
        "ORPO": (ORPOConfig, ORPOTrainer),
    }
    config, trainer = made[name]
    rows = made_up_rows(kind)
    policy, reference = policy_and_reference(torch.float32)
    with undisturbed():
        found = trainer(
            model=policy,
            **({"ref_model": reference} if name in ("DPO", "KTO") else {}),
            args=config(
                output_dir=place,
                per_device_train_batch_size=2 * len(rows),
                train_sampling_strategy="sequential",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                **settings,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=copy.deepcopy(tokenizer()),
        )
        found.model.train()  # the models have no dropout
        return found, next(iter(found.get_train_dataloader()))


def their_loss(
    trainer: Any, inputs: dict[str, Any], dtype: torch.dtype = torch.float32, sharpness: float = 1.0
) -> tuple[Tensor, nn.Module]:
    """The trainer's loss of a batch, and the model it was computed with: its own, or one that says
    what it would in float64.
    """
    model, reference = trainer.model, getattr(trainer, "ref_model", None)
    if dtype == torch.float64 or sharpness != 1:
        model, other = policy_and_reference(dtype, sharpness)
        if reference is not None:
            trainer.ref_model = other
    try:
        with undisturbed():
            return trainer.compute_loss(model, inputs), model
    finally:
        if reference is not None:
            trainer.ref_model = reference


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Without what TRL prints and warns of, which is about settings given here on purpose."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---------------------------------------------------------------- our side


def batch_of(inputs: Mapping[str, Tensor]) -> Batch:
    """The tokens of TRL's batch as ours: pairs, or labelled answers each with an answer to another
    prompt.
    """
    if "label" in inputs:
        answers = [
            _sequences(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])
        ]
        answers.append(
            _sequences(
                inputs["KL_input_ids"], inputs["KL_attention_mask"], inputs["KL_completion_mask"]
            )
        )
        labels = inputs["label"].tolist()
        groups = [
            RenderedGroup(both, (), (label, None), "made", mismatched=1)
            for both, label in zip(zip(*answers), labels)
        ]
    else:
        if "completion_mask" in inputs:
            answers = [
                _sequences(*part)
                for part in zip(
                    *(
                        inputs[name].chunk(2)
                        for name in ("input_ids", "attention_mask", "completion_mask")
                    )
                )
            ]
        else:
            answers = [
                _sequences(
                    inputs[f"{side}_input_ids"],
                    inputs[f"{side}_attention_mask"],
                    inputs[f"{side}_labels"] != -100,
                )
                for side in SIDES
            ]
        groups = [
            RenderedGroup(both, (Comparison(0, 1),), (None, None), "made") for both in zip(*answers)
        ]
    return collate(groups)


SIDES = ("chosen", "rejected")


@cache
def made_up_batch(trainer: str, kind: str) -> Batch:
    """What `trainer` makes of the rows, whatever its settings."""
    with tempfile.TemporaryDirectory() as place:
        return batch_of(trainer_for(trainer, {}, kind, place)[1])


def _sequences(ids: Tensor, there: Tensor, scored: Tensor) -> list[TokenSequence]:
    return [
        TokenSequence(tuple(row[kept == 1].tolist()), int(mask.int().argmax()))
        for row, kept, mask in zip(ids, there, scored)
    ]


def our_loss(
    text: str,
    given: Settings,
    batch: Batch,
    dtype: torch.dtype,
    known: Mapping[str, float] | None = None,
    sharpness: float = 1.0,
) -> tuple[float, nn.Module]:
    """The loss of `text`, and the model with the gradients it has in training."""
    made = objective(text, **given)
    model, reference = policy_and_reference(dtype, sharpness)
    with torch.no_grad():
        batch = replace(batch, reference_N=engine.logps(reference, batch)["logp"])
        columns = engine.logps(model, batch, made.want)
        knows = {**made.known(columns, batch, {}, train=True), **(known or {})}
    counts, totals = made.counts([batch]), []

    def slope(said: dict[str, Tensor], part: Batch) -> dict[str, Tensor]:
        found, slopes = made.slopes(said, part, counts, knows)
        totals.extend(found.tolist())
        return slopes

    engine.backward(model, batch, slope, made.want)
    return made.losses(totals, counts)["loss"], model


# ---------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class Case:
    """One loss. `theirs` and `ours` are sums of (factor, loss), for what only a difference of two
    losses shows.
    """

    name: str
    theirs: tuple[tuple[float, Settings], ...]
    ours: tuple[tuple[float, str], ...]
    trainer: str = "DPO"
    given: Settings = field(default_factory=dict)  # to our objective
    # of the batch, instead of what ours would find
    known: Mapping[str, float] = field(default_factory=dict)
    baseline: bool = False  # TRL's estimate of the KL is given to ours
    rows: str = "pairs"
    # what of TRL's is float32 in any case, so that the float64 models are held to float32's limit
    single: str = ""
    wide: bool = True  # whether TRL takes float64 at all
    said: str = ""  # the difference of definition that was adjusted for

    @property
    def spelled(self) -> str:
        """TRL's settings."""
        return " ".join(
            f"{key}={'+'.join(map(str, value)) if isinstance(value, list) else value}"
            for key, value in self.theirs[0][1].items()
        )


def one(name: str, theirs: Settings, ours: str, **more: Any) -> Case:
    """A loss on each side."""
    return Case(name, ((1.0, theirs),), ((1.0, ours),), **more)


def _dpo(loss_type: str, **more: Any) -> Settings:
    return {"loss_type": [loss_type], "beta": 0.1, **more}


NO_NLL = "TRL's default cpo_alpha of 1 adds the NLL: 0 here"
CASES = (
    one("dpo", _dpo("sigmoid"), "dpo"),
    one("hinge", _dpo("hinge"), "hinge"),
    one("ipo", _dpo("ipo"), "ipo", said="means on both sides; the paper's sums are `score: sum`"),
    one("exo", _dpo("exo_pair", label_smoothing=0.001), "exo", single="log e and log(1 - e)"),
    one("nca", _dpo("nca_pair"), "nca", given={"beta": 0.1}),
    one(
        "robust",
        _dpo("robust", label_smoothing=0.2),
        "robust",
        given={"label_smoothing": 0.2},
        said="ours has a bound, beyond this batch's margins",
    ),
    one(
        "bco",
        _dpo("bco_pair"),
        "bco",
        given={"beta": 0.1},
        known={"bco/shift": 0.0},
        said="TRL has no shift: ours is given 0",
    ),
    one("sppo", _dpo("sppo_hard"), "sppo", given={"beta": 0.1}),
    one("aot", _dpo("aot"), "aot"),
    one(
        "aot, label_smoothing",
        _dpo("aot", label_smoothing=0.125),
        "aot",
        given={"label_smoothing": 0.125},
    ),
    one("aot_unpaired", _dpo("aot_unpaired"), "aot_unpaired"),
    one(
        "aot_unpaired, label_smoothing",
        _dpo("aot_unpaired", label_smoothing=0.125),
        "aot_unpaired",
        given={"label_smoothing": 0.125},
    ),
    one("apo_zero", _dpo("apo_zero"), "apo_zero"),
    one("apo_down", _dpo("apo_down"), "apo_down"),
    one(
        "discopop",
        _dpo("discopop", discopop_tau=0.25),
        "discopop:temperature=0.25",
        given={"beta": 0.1},
    ),
    one("sft", _dpo("sft"), "sft", said="both mean over the winners' tokens"),
    one("dpo_norm", {"loss_type": ["sigmoid_norm"], "beta": 5.0}, "dpo_norm"),
    one(
        "dpo, forward KL",
        _dpo("sigmoid", f_divergence_type="forward_kl"),
        "dpo",
        given={"divergence": "forward_kl"},
    ),
    one(
        "dpo, Jensen-Shannon",
        _dpo("sigmoid", f_divergence_type="js_divergence"),
        "dpo",
        given={"divergence": "js"},
    ),
    one(
        "dpo, alpha 0.3",
        _dpo("sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.7),
        "dpo",
        given={"divergence": 0.3},
        wide=False,
        said="TRL's coefficient is 1 - alpha; float64 is an error there",
    ),
    one(
        "hinge, Jensen-Shannon",
        _dpo("hinge", f_divergence_type="js_divergence"),
        "hinge",
        given={"divergence": "js"},
    ),
    one(
        "robust, Jensen-Shannon",
        _dpo("robust", label_smoothing=0.2, f_divergence_type="js_divergence"),
        "robust",
        given={"label_smoothing": 0.2, "divergence": "js"},
    ),
    one(
        "discopop, forward KL",
        _dpo("discopop", f_divergence_type="forward_kl"),
        "discopop",
        given={"beta": 0.1, "divergence": "forward_kl"},
    ),
    one("dpo, ld_alpha", _dpo("sigmoid", ld_alpha=0.375), "dpo", given={"tail_weight": 0.375}),
    one(
        "apo_zero, ld_alpha",
        _dpo("apo_zero", ld_alpha=0.375),
        "apo_zero",
        given={"tail_weight": 0.375},
    ),
    one(
        "dpo, WPO",
        _dpo("sigmoid", use_weighting=True),
        "dpo",
        given={"wpo": True},
        said="all weights of this batch are below 1, where ours stop",
    ),
    one("ipo, WPO", _dpo("ipo", use_weighting=True), "ipo", given={"wpo": True}, said="as above"),
    one(
        "mpo",
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.1},
        "dpo:0.8,bco:0.2:beta=0.1,sft:1",
        known={"bco/shift": 0.0},
        said="TRL has no shift: ours is given 0",
    ),
    one(
        "kto",
        {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.6},
        "kto:desirable=1.3:undesirable=0.6",
        trainer="KTO",
        rows="labels",
        given={"beta": 0.2},
        said="TRL's mismatched answers; each side estimates the KL itself",
    ),
    one(
        "kto, an estimate below 0",
        {"beta": 0.2},
        "kto",
        trainer="KTO",
        rows="unlikely",
        given={"beta": 0.2},
        said="as above; both take 0",
    ),
    one(
        "kto, on pairs",
        {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.6},
        "kto:desirable=1.3:undesirable=0.6",
        trainer="KTO",
        given={"beta": 0.2},
        baseline=True,
        said="ours is given TRL's estimate of the KL; both mean over all 2B answers",
    ),
    one(
        "cpo",
        {"loss_type": "sigmoid", "cpo_alpha": 0.7, "beta": 0.1},
        "cpo:alpha=0.7",
        trainer="CPO",
        rows="even",
        said="winners of one length",
    ),
    one(
        "cpo, any lengths",
        {"loss_type": "sigmoid", "cpo_alpha": 0.7, "beta": 0.1},
        "cpo:alpha=0,sft:0.7",
        trainer="CPO",
        said="TRL's NLL is the mean over the batch's tokens: our sft",
    ),
    one(
        "cpo, label_smoothing",
        {"loss_type": "sigmoid", "cpo_alpha": 0.0, "label_smoothing": 0.125, "beta": 0.1},
        "cpo:alpha=0",
        trainer="CPO",
        given={"label_smoothing": 0.125},
        said="without the NLL",
    ),
    one(
        "simpo",
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.2},
        "simpo:gamma=1.2",
        trainer="CPO",
        given={"beta": 2.0},
        said=NO_NLL,
    ),
    one(
        "alphapo",
        {"loss_type": "alphapo", "alpha": 0.25, "beta": 2.5, "simpo_gamma": 0.25},
        "alphapo:alpha=0.25:gamma=0.25",
        trainer="CPO",
        given={"beta": 2.5},
        said="TRL's alpha is 0 unless it is given",
    ),
    Case(
        "orpo, the odds ratio",
        ((1.0, {"beta": 2.1}), (-1.0, {"beta": 0.1})),
        ((1.0, "orpo:weight=2.1"), (-1.0, "orpo:weight=0.1")),
        trainer="ORPO",
        single="the odds ratio",
        said="the loss at lambda 2.1 less that at 0.1: the NLLs are different and cancel",
    ),
)


@dataclass(frozen=True)
class Found:
    """Values of both, and the largest relative difference of value and gradient."""

    ours: float
    theirs: float
    value: float
    gradient: float


def compare(case: Case, place: str) -> dict[torch.dtype, Found]:
    """Both sides of a case, in float32 and, where TRL can, in float64."""
    made = [trainer_for(case.trainer, settings, case.rows, place) for _, settings in case.theirs]
    return {
        dtype: _compare(case, made, dtype) for dtype in LIMIT if case.wide or dtype == torch.float32
    }


def _compare(case: Case, made: Sequence[tuple[Any, dict[str, Any]]], dtype: torch.dtype) -> Found:
    theirs = ours = 0.0
    gradients: list[dict[str, Tensor]] = [{}, {}]
    for (factor, _), (trainer, inputs) in zip(case.theirs, made):
        trainer.model.zero_grad()
        loss, model = their_loss(trainer, inputs, dtype)
        loss.backward()
        theirs += factor * loss.item()
        _add(gradients[0], factor, model)
    trainer, inputs = made[0]
    known = {
        **case.known,
        **({"kto/baseline": trainer._metrics["train"]["kl"][-1]} if case.baseline else {}),
    }
    batch = collate(pairs_of(inputs)) if case.baseline else batch_of(inputs)
    for factor, text in case.ours:
        value, model = our_loss(text, case.given, batch, dtype, known)
        ours += factor * value
        _add(gradients[1], factor, model)
    difference = math.sqrt(
        sum(
            float((gradients[1][name] - gradients[0][name]).double().square().sum())
            for name in gradients[0]
        )
    )
    size = math.sqrt(
        sum(float(gradient.double().square().sum()) for gradient in gradients[0].values())
    )
    return Found(ours, theirs, abs(ours - theirs) / abs(theirs), difference / size)


def _add(sums: dict[str, Tensor], factor: float, model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            sums[name] = sums.get(name, torch.zeros_like(parameter)) + factor * parameter.grad


def pairs_of(inputs: Mapping[str, Tensor]) -> list[RenderedGroup]:
    """Pairs that TRL took apart, all winners before all losers, put together again."""
    sides = zip(
        *(
            _sequences(*(inputs[name][part] for name in MASKS))
            for part in (slice(None, PAIRS), slice(PAIRS, None))
        )
    )
    return [RenderedGroup(both, (Comparison(0, 1),), (None, None), "made") for both in sides]


MASKS = ("input_ids", "attention_mask", "completion_mask")


def limit(case: Case, dtype: torch.dtype) -> float:
    """The largest relative difference that is rounding."""
    return LIMIT[torch.float32 if case.single else dtype]


# ---------------------------------------------------------------- differences of definition


@dataclass(frozen=True)
class Difference:
    """What TRL 1.16 does otherwise: the numbers that show it, and whether they still do."""

    text: str
    shown: str
    holds: bool


Check = Callable[[str], Difference]
F64 = torch.float64


def _theirs(
    place: str,
    settings: Settings,
    *,
    trainer: str = "DPO",
    rows: str = "pairs",
    dtype: torch.dtype = F64,
    sharpness: float = 1.0,
) -> float:
    return their_loss(*trainer_for(trainer, settings, rows, place), dtype, sharpness)[0].item()


def _ours(
    text: str,
    *,
    trainer: str = "DPO",
    rows: str = "pairs",
    dtype: torch.dtype = F64,
    sharpness: float = 1.0,
    known: Settings | None = None,
    **given: Any,
) -> float:
    return our_loss(text, given, made_up_batch(trainer, rows), dtype, known, sharpness)[0]


def _same(a: float, b: float, within: float = 1e-7) -> bool:
    return abs(a - b) <= within * abs(b)


def smoothing_of_sigmoid(place: str) -> Difference:
    plain, smooth = (_theirs(place, _dpo("sigmoid", label_smoothing=e)) for e in (0.0, 0.25))
    ours, mine = _ours("dpo"), _ours("cdpo", label_smoothing=0.25)
    return Difference(
        "`sigmoid` ignores `label_smoothing`; our `dpo` takes it, which is `cdpo`. In TRL only"
        " `robust`, `exo_pair`, `aot` and `aot_unpaired` know it.",
        f"at 0 and 0.25: TRL {plain:.6f} and {smooth:.6f}, ours {ours:.6f} and {mine:.6f}",
        plain == smooth and _same(plain, ours) and not _same(mine, ours),
    )


def shift_of_bco(place: str) -> Difference:
    theirs = _theirs(place, _dpo("bco_pair"))
    without, ours = (_ours("bco", beta=0.1, known=known) for known in ({"bco/shift": 0.0}, None))
    return Difference(
        "`bco_pair` has no reward shift, and there is no BCOTrainer any more; ours has the paper's"
        " running mean reward.",
        f"TRL {theirs:.6f}, ours {without:.6f} with shift 0 and {ours:.6f} with its own",
        _same(theirs, without) and not _same(theirs, ours, 1e-4),
    )


def means_of_ipo(place: str) -> Difference:
    theirs = _theirs(place, _dpo("ipo"))
    means, sums = (_ours("ipo", score=score) for score in ("mean", "sum"))
    return Difference(
        "`ipo` compares per-token means, as ours does by default; the paper's equation has sums,"
        " which TRL does not offer and ours does (`score: sum`).",
        f"TRL {theirs:.4f}, ours {means:.4f} of means and {sums:.4f} of sums",
        _same(theirs, means) and not _same(theirs, sums, 1e-4),
    )


def coefficient_of_alpha(place: str) -> Difference:
    turned, literal = (
        _theirs(
            place,
            CASES_BY_NAME["dpo, alpha 0.3"].theirs[0][1] | {"f_alpha_divergence_coef": c},
            dtype=torch.float32,
        )
        for c in (0.7, 0.3)
    )
    ours = _ours("dpo", divergence=0.3)
    try:
        _theirs(place, CASES_BY_NAME["dpo, alpha 0.3"].theirs[0][1])
        wide = "float64 works"
    except KeyError:
        wide = "float64 scores raise KeyError"
    return Difference(
        "`f_alpha_divergence_coef` is 1 minus the paper's alpha, which is ours; at its default of"
        " 0.5 nobody sees it.",
        f"ours at 0.3: {ours:.5f}; TRL at 0.7: {turned:.5f}, at 0.3: {literal:.5f}; {wide} in TRL",
        _same(turned, ours, 1e-5)
        and not _same(literal, ours, 1e-3)
        and wide.startswith("float64 scores"),
    )


def clamp_of_wpo(place: str) -> Difference:
    trainer, inputs = trainer_for("DPO", _dpo("sigmoid", use_weighting=True), "pairs", place)
    ratios, mine = [], []
    for i in range(PAIRS):
        single = _flat_pair(inputs, i)
        weighted = their_loss(trainer, single, F64, FLAT)[0].item()
        trainer.use_weighting = False
        plain = their_loss(trainer, single, F64, FLAT)[0].item()
        trainer.use_weighting = True
        ratios.append(weighted / plain)
        ours = [
            our_loss("dpo", {"wpo": wpo}, batch_of(single), F64, None, FLAT)[0]
            for wpo in (True, False)
        ]
        mine.append(ours[0] / ours[1])
    above = [(a, b) for a, b in zip(ratios, mine) if a > 1]
    return Difference(
        "`use_weighting` does not bound a pair's weight; ours is at most 1, as in the authors'"
        " code.",
        f"of {PAIRS} pairs from a nearly flat policy {len(above)} weigh more than 1 in TRL, up to"
        f" {max(ratios):.4f}; ours {max(mine):.4f}",
        bool(above) and all(_same(b, min(a, 1.0)) for a, b in zip(ratios, mine)),
    )


FLAT = 0.05  # a policy so flat that its tokens are about as likely as its samples


def _flat_pair(inputs: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name: value[[i, i + len(value) // 2]] for name, value in inputs.items()}


def nll_of_cpo(place: str) -> Difference:
    theirs = _theirs(place, CASES_BY_NAME["cpo, any lengths"].theirs[0][1], trainer="CPO")
    own, same = (_ours(text, trainer="CPO") for text in ("cpo:alpha=0.7", "cpo:alpha=0,sft:0.7"))
    return Difference(
        "CPO's NLL is the mean over all winners' tokens of the micro-batch: long winners weigh"
        " more. In our `cpo` it is each winner's own mean; `cpo:alpha=0,sft:1` is TRL's.",
        f"TRL {theirs:.6f}, ours {own:.6f}, as that mixture {same:.6f}",
        _same(theirs, same) and not _same(theirs, own, 1e-4),
    )


def nll_of_orpo(place: str) -> Difference:
    trainer, inputs = trainer_for("ORPO", {"beta": 0.1}, "pairs", place)
    theirs, batch = their_loss(trainer, inputs, F64)[0].item(), batch_of(inputs)
    texts = [
        ids[there == 1].tolist()
        for ids, there in zip(inputs["chosen_input_ids"], inputs["chosen_attention_mask"])
    ]
    whole = collate(
        [RenderedGroup((TokenSequence(tuple(ids), 1),), (), (None,), "made") for ids in texts]
    )
    full = our_loss("sft", {}, whole, F64)[0]
    high, low = (our_loss(f"orpo:weight={weight}", {}, batch, F64)[0] for weight in (1.1, 0.1))
    own = our_loss("orpo:weight=0.1", {}, batch, F64)[0]
    return Difference(
        "ORPO's NLL counts the prompt's tokens too, and is the mean over all tokens of the"
        " micro-batch. In our `orpo` it is each winner's own mean over its answer.",
        f"TRL {theirs:.6f}, ours {own:.6f}; our odds ratio with the NLL of prompts and winners"
        f" {0.1 * (high - low) + full:.6f}",
        _same(theirs, 0.1 * (high - low) + full, 1e-5) and not _same(theirs, own, 1e-4),
    )


def mean_of_kto(place: str) -> Difference:
    """On pairs: the mean of all 2B answers, and whose answers are mismatched."""
    trainer, inputs = trainer_for("KTO", {"beta": 0.2}, "pairs", place)
    theirs, groups = their_loss(trainer, inputs, F64)[0].item(), pairs_of(inputs)
    known = {"kto/baseline": trainer._metrics["train"]["kl"][-1]}
    ours = our_loss("kto", {"beta": 0.2}, collate(groups), F64, known)[0]
    answers, other = (
        [
            sequence.ids[sequence.start :]
            for sequence in _sequences(*(inputs[head + name] for name in MASKS))
        ]
        for head in ("", "KL_")
    )
    turned = [answers.index(answer) % PAIRS for answer in other]
    drawn = [group.sequences[-1] for group in with_mismatched(gathered([packed(groups)]), 0, None)]
    found = [answers.index(sequence.ids[sequence.start :]) % PAIRS for sequence in drawn]
    return Difference(
        "KTO means over all answers of the micro-batch, so over 2B of B pairs, as ours. Its"
        " mismatched answers are those of the row before, within the micro-batch, one to each row;"
        " ours come from any other prompt of the data, drawn by the seed, one to each prompt.",
        f"TRL {theirs:.6f}, ours {ours:.6f} with TRL's estimate; prompts 0 to {PAIRS - 1} have"
        f" answers of prompts {turned} in TRL, {found} in ours",
        _same(theirs, ours)
        and turned == [(i - 1) % PAIRS for i in range(2 * PAIRS)]
        and all(j != i for i, j in enumerate(found)),
    )


def unpaired_apo(place: str) -> Difference:
    trainer, inputs = trainer_for(
        "KTO", {"beta": 0.2, "loss_type": "apo_zero_unpaired"}, "pairs", place
    )
    theirs, ours = (
        their_loss(trainer, inputs, F64)[0].item(),
        our_loss("apo_zero", {"beta": 0.2}, collate(pairs_of(inputs)), F64)[0],
    )
    return Difference(
        "KTOTrainer's `apo_zero_unpaired` has no counterpart for labels; on pairs it is half our"
        " `apo_zero`, which is per pair.",
        f"TRL {theirs:.6f}, ours {ours:.6f}",
        _same(2 * theirs, ours),
    )


def nll_of_simpo(place: str) -> Difference:
    theirs = _theirs(place, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.2}, trainer="CPO")
    plain, both = (
        _ours(text, trainer="CPO", beta=2.0)
        for text in ("simpo:gamma=1.2", "simpo:gamma=1.2,sft:1")
    )
    return Difference(
        '`loss_type="simpo"` adds the winners\' NLL unless `cpo_alpha` is 0; its default is 1.',
        f"TRL {theirs:.6f}, our simpo {plain:.6f}, with sft {both:.6f}",
        _same(theirs, both) and not _same(theirs, plain, 1e-3),
    )


def alpha_of_alphapo(place: str) -> Difference:
    theirs = _theirs(
        place, {"loss_type": "alphapo", "beta": 2.5, "simpo_gamma": 0.25}, trainer="CPO"
    )
    simpo, own = (
        _ours(text, trainer="CPO", beta=2.5) for text in ("simpo:gamma=0.25", "alphapo:gamma=0.25")
    )
    return Difference(
        '`loss_type="alphapo"` is SimPO unless `alpha` is given too, whose default is 0; ours is'
        " 0.25.",
        f"TRL {theirs:.6f}, our simpo {simpo:.6f}, our alphapo {own:.6f}",
        _same(theirs, simpo) and not _same(theirs, own, 1e-4),
    )


def halves_of_sppo(place: str) -> Difference:
    theirs, ours = _theirs(place, _dpo("sppo_hard")), _ours("sppo", beta=0.1)
    return Difference(
        "`sppo_hard` and our `sppo` add the two squares, as the paper does; the authors' code"
        " halves the sum.",
        f"TRL {theirs:.4f}, ours {ours:.4f}",
        _same(theirs, ours),
    )


def overflow_of_discopop(place: str) -> Difference:
    theirs = _theirs(place, _dpo("discopop"), sharpness=SHARP, dtype=torch.float32)
    ours = _ours("discopop", beta=0.1, sharpness=SHARP, dtype=torch.float32)
    return Difference(
        "`discopop` is NaN in float32 where beta times a margin is below about -88, an infinite"
        " exponential times 0; ours goes on linearly.",
        f"with a policy far from its reference: TRL {theirs}, ours {ours:.3f}",
        math.isnan(theirs) and math.isfinite(ours),
    )


SHARP = 150.0  # a policy so sure that log-ratios are thousands of nats


def overflow_of_forward_kl(place: str) -> Difference:
    settings = _dpo("sigmoid", f_divergence_type="forward_kl")
    theirs = _theirs(place, settings, sharpness=SHARP, dtype=torch.float32)
    ours = _ours("dpo", sharpness=SHARP, dtype=torch.float32, divergence="forward_kl")
    return Difference(
        "With `forward_kl` an answer some 88 nats below its reference makes the loss infinite or"
        " NaN in float32; ours goes on as a tangent from 80 nats on.",
        f"with a policy far from its reference: TRL {theirs}, ours {ours:.3g}",
        not math.isfinite(theirs) and math.isfinite(ours),
    )


def half_of_robust(place: str) -> Difference:
    theirs = _theirs(place, _dpo("robust", label_smoothing=0.5))
    try:
        objective("robust", label_smoothing=0.5)
        refused = ""
    except SettingsError as error:
        refused = str(error)
    return Difference(
        "`robust` with `label_smoothing` 0.5 divides by 0: TRL warns and goes on; ours refuses it.",
        f"TRL {theirs}; ours: {refused.splitlines()[0] if refused else 'accepted'}",
        not math.isfinite(theirs) and bool(refused),
    )


def bound_of_robust(place: str) -> Difference:
    far = {"sharpness": SHARP, "dtype": F64}
    theirs = _theirs(place, _dpo("robust", label_smoothing=0.2), **far)
    bounded, free = (
        _ours(f"robust:bound={bound}", label_smoothing=0.2, **far) for bound in (10.0, 1e6)
    )
    return Difference(
        "`robust` has no lower bound in TRL; ours has no slope beyond beta times margin = 10"
        " (`bound`).",
        f"with a policy far from its reference: TRL {theirs:.4f}, ours {bounded:.4f}, with bound"
        f" 1e6 {free:.4f}",
        _same(theirs, free) and bounded > theirs + 1,
    )


def smoothing_of_simpo(place: str) -> Difference:
    e, gamma, beta = 0.125, 1.2, 2.0
    settings = {
        "loss_type": "simpo",
        "cpo_alpha": 0.0,
        "beta": beta,
        "simpo_gamma": gamma,
        "label_smoothing": e,
    }
    theirs, ours = (
        _theirs(place, settings, trainer="CPO"),
        _ours(f"simpo:gamma={gamma}", trainer="CPO", beta=beta, label_smoothing=e),
    )
    inputs = trainer_for("CPO", settings, "pairs", place)[1]
    margins = _mean_margins(batch_of(inputs))
    both = [
        sum(
            (1 - e) * _softplus(gamma - beta * m) + e * _softplus(way * gamma + beta * m)
            for m in margins
        )
        / len(margins)
        for way in (-1, 1)
    ]
    return Difference(
        "`label_smoothing` with `simpo`: TRL turns the sign of the whole logit, -log s(gamma - b m)"
        " for the flipped label; ours swaps the answers, -log s(-b m - gamma), so either answer"
        " would have to win by gamma.",
        f"TRL {theirs:.6f} (by hand {both[0]:.6f}), ours {ours:.6f} (by hand {both[1]:.6f})",
        _same(theirs, both[0]) and _same(ours, both[1]) and not _same(theirs, ours, 1e-3),
    )


def smoothing_of_cpo(place: str) -> Difference:
    settings = {"loss_type": "sigmoid", "cpo_alpha": 0.7, "beta": 0.1, "label_smoothing": 0.125}
    theirs = _theirs(place, settings, trainer="CPO", rows="even")
    own = _ours("cpo:alpha=0.7", trainer="CPO", rows="even", label_smoothing=0.125)
    same = _ours("cpo:alpha=0", trainer="CPO", rows="even", label_smoothing=0.125) + 0.7 * _ours(
        "sft", trainer="CPO", rows="even"
    )
    return Difference(
        "`label_smoothing` with `cpo`: TRL's NLL stays the winner's; in ours it is mixed like the"
        " rest, a share of it the loser's.",
        f"TRL {theirs:.6f}, ours {own:.6f}; ours without its NLL, and the winners' NLL, {same:.6f}",
        _same(theirs, same) and not _same(theirs, own, 1e-6),
    )


def _mean_margins(batch: Batch) -> list[float]:
    policy, _ = policy_and_reference(F64)
    with torch.no_grad():
        logp_N = engine.logps(policy, batch)["logp"]
    mean_C = (
        torch.zeros(len(batch.length_C), dtype=F64).index_add(0, batch.completion_N, logp_N)
        / batch.length_C
    )
    return (mean_C[batch.pair_M2[:, 0]] - mean_C[batch.pair_M2[:, 1]]).tolist()


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


CASES_BY_NAME = {case.name: case for case in CASES}
DIFFERENCES: tuple[Check, ...] = (
    smoothing_of_sigmoid,
    shift_of_bco,
    means_of_ipo,
    coefficient_of_alpha,
    clamp_of_wpo,
    nll_of_cpo,
    nll_of_orpo,
    mean_of_kto,
    unpaired_apo,
    nll_of_simpo,
    alpha_of_alphapo,
    halves_of_sppo,
    overflow_of_discopop,
    overflow_of_forward_kl,
    half_of_robust,
    bound_of_robust,
    smoothing_of_simpo,
    smoothing_of_cpo,
)


# ---------------------------------------------------------------- tables


HEAD = (
    "loss",
    "ours",
    "TRL 1.16",
    "value",
    "float32: value",
    "gradient",
    "float64: value",
    "gradient",
    "adjusted for",
)


def _cells(case: Case, found: Mapping[torch.dtype, Found]) -> list[str]:
    """A row under `HEAD`."""
    text = " - ".join(text for _, text in case.ours)
    given = ", ".join(f"{key}={value}" for key, value in case.given.items())
    remark = "; ".join(
        part
        for part in (case.said, f"TRL has {case.single} in float32" if case.single else "")
        if part
    )
    differences = [
        f"{x:.0e}" if x else "0" for one in found.values() for x in (one.value, one.gradient)
    ]
    value = f"{found[torch.float32].ours:.6f}"
    return [
        case.name,
        f"`{text}`" + (f" {given}" if given else ""),
        f"`{case.trainer}` {case.spelled}",
        value,
        *differences,
        *["-"] * (4 - len(differences)),
        remark,
    ]


def show(lines: Sequence[Sequence[str]], checked: Sequence[Difference], *, markdown: bool) -> None:
    """Prints the two tables."""
    if markdown:
        print(
            *("| " + " | ".join(line) + " |" for line in (HEAD, ["---"] * len(HEAD), *lines)),
            sep="\n",
        )
        print("", *(f"* {one.text}\n  *Run:* {one.shown}." for one in checked), sep="\n")
        return
    print(f"{'':<32}{'':>11}  {'float32, relative':^17}  {'float64, relative':^17}")
    print(
        f"{'loss':<32}{'value':>11}  {'value':>8} {'gradient':>8}  {'value':>8} {'gradient':>8} "
        " adjusted for"
    )
    for name, _, _, value, *differences, remark in lines:
        print(
            f"{name:<32}{value:>11}  {differences[0]:>8} {differences[1]:>8}  {differences[2]:>8}"
            f" {differences[3]:>8}  {remark}"
        )
    print()
    for one in checked:
        print(f"{'ok  ' if one.holds else 'NOT '}{one.text}\n    {one.shown}")


def main(argv: Sequence[str] | None = None) -> int:
    """Compares everything; 0 when all agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        default="",
        help="only the losses whose name contains this, and no differences of definition",
    )
    parser.add_argument("--markdown", action="store_true", help="the tables as markdown")
    asked = parser.parse_args(argv)
    far: list[str] = []
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_DATASETS_CACHE"] = place
        for case in CASES:
            if asked.only not in case.name:
                continue
            found = compare(case, place)
            far += [
                f"{case.name}, {dtype}"
                for dtype, one in found.items()
                if not max(one.value, one.gradient) <= limit(case, dtype)
            ]
            lines.append(_cells(case, found))
        checked = [] if asked.only else [check(place) for check in DIFFERENCES]
    far += [one.text for one in checked if not one.holds]
    show(lines, checked, markdown=asked.markdown)
    for name in far:
        print(f"FAR: {name}", file=sys.stderr)
    return int(bool(far) or not lines)


if __name__ == "__main__":
    sys.exit(main())
