"""What the models of an evaluation say of held-out answers: log-probs of a policy and its
reference, or the scores of a reward model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from winnow.config.evaluation import EvalSettings
from winnow.config.model_spec import model_spec
from winnow.data.packing import budget
from winnow.data.render import Renderer
from winnow.engine import rows
from winnow.engine.base import Engine
from winnow.engine.dataset_logps import dataset_logps
from winnow.engine.fingerprint import fingerprint, same_model
from winnow.engine.selection import engine_for
from winnow.errors import ModelError
from winnow.evaluation import distance
from winnow.evaluation.datasets import HeldOut
from winnow.evaluation.distance import Distance
from winnow.evaluation.figures import Spoken
from winnow.models import hashes, loading, reward_models, scoring
from winnow.models.device import DTYPES
from winnow.models.loading import LoadedModel
from winnow.models.scoring import Dialogue
from winnow.system.console import ProgressBar


@dataclass(frozen=True)
class ModelScores:
    """For each set, in their order. policy, reference: log-probs of all its scored tokens; scores:
    a reward model's, by group and completion.

    weights: SHA-256 of each model's weights, by what the model is here.
    """

    policy: list[Tensor] = field(default_factory=list)
    reference: list[Tensor] | None = None
    scores: list[list[list[float]]] | None = None
    distance: list[Distance | None] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)

    def of(self, i: int) -> Spoken:
        """Of the set numbered i."""
        if self.scores is not None:
            return Spoken(scores=self.scores[i])
        return Spoken(self.policy[i], None if self.reference is None else self.reference[i])


def by_reward_model(
    settings: EvalSettings, rendered: Renderer, sets: Sequence[HeldOut]
) -> ModelScores:
    """A score for every completion of every set."""
    loaded = reward_models.load(model_spec(settings, settings.model))
    loaded.tokenizer.chat_template = rendered.tokenizer.chat_template
    found = []
    for one in sets:
        asked = [
            Dialogue(text.prompt, completion.text, text.tools, text.where)
            for text in one.texts
            for completion in text.completions
        ]
        scores = iter(scoring.scores(loaded, asked))
        found.append([[next(scores) for _ in text.completions] for text in one.texts])
    return ModelScores(scores=found, weights={"model": hashes.weights_hash(loaded.model)})


def by_policy(
    settings: EvalSettings,
    rendered: Renderer,
    sets: Sequence[HeldOut],
    trained: dict[str, Any] | None,
) -> ModelScores:
    """Log-probs of policy and reference, each loaded once, and the policy's distance from the
    reference where answers are to be sampled.

    trained: what a run recorded of its reference; a model of that name that says something else by
    now is refused. The policy is let go of before the reference is loaded, but where whole
    distributions are to be compared and both have room.
    """
    if settings.reference is not None:
        loading.same_tokens(
            rendered.tokenizer,
            loading.load_tokenizer(model_spec(settings, settings.reference)),
            settings.reference,
        )
    policy = _load(settings.model, settings)
    ours = _engine(policy, settings, sets)
    said = [_logps(policy, ours, one, settings, "policy", settings.model) for one in sets]
    weights = {"model": hashes.weights_hash(policy.model)}
    if settings.reference is None:
        return ModelScores(said, weights=weights)
    drawn = (
        [
            distance.draw(one, policy, ours, rendered, settings.kl_samples, settings.seed)
            for one in sets
        ]
        if settings.kl_samples
        else []
    )
    why = distance.fits(policy) if drawn else "nothing is to be compared"
    kept = None if why else policy
    del policy
    reference = _load(settings.reference, settings)
    if trained is not None:
        _refuse_another(reference, settings, trained)
    theirs = _engine(reference, settings, sets)
    other = [
        _logps(reference, theirs, one, settings, "reference", settings.reference) for one in sets
    ]
    weights["reference"] = hashes.weights_hash(reference.model)
    far = [distance.measure(one, kept, reference, ours, theirs, why) for one in drawn]
    return ModelScores(said, other, None, far, weights)


def _load(name: str, settings: EvalSettings) -> LoadedModel:
    return loading.load(model_spec(settings, name), quantize=settings.quantize)


def _engine(loaded: LoadedModel, settings: EvalSettings, sets: Sequence[HeldOut]) -> Engine:
    return engine_for(
        loaded,
        settings.engine,
        max(one.data.account.tokens.longest for one in sets),
        train=False,
    )


def _logps(
    loaded: LoadedModel,
    engine: Engine,
    one: HeldOut,
    settings: EvalSettings,
    label: str,
    model: str,
) -> Tensor:
    """Log-probs of a set. label: the model's part, and model: its name, as the evaluation was given
    it.
    """
    groups = one.data.groups
    with ProgressBar(f"{label}, {one.name}" if one.name else label, len(groups)) as steps:
        tokens = budget(groups, settings.max_tokens)
        return dataset_logps(
            engine,
            loaded.model,
            groups,
            tokens,
            loaded.device,
            steps.advance,
            whose=f"the {label} ({model})",
        )


def _refuse_another(loaded: LoadedModel, settings: EvalSettings, trained: dict[str, Any]) -> None:
    """Raises ModelError where the reference is no longer what the run was trained against."""
    now, then = (
        fingerprint(rows, loaded.model, trained["vocabulary"]),
        torch.tensor(trained["says"]),
    )
    if not same_model(now, then, [next(loaded.model.parameters()).dtype, DTYPES[trained["dtype"]]]):
        raise ModelError(
            f"{settings.reference}: no longer the model that {settings.model} was trained against",
            remedy="give the right one by --reference",
        )
