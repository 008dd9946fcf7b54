"""The model whose log-probs are a training's reference, and what it says about each data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from winnow.config.model_spec import model_spec
from winnow.config.training import TrainSettings
from winnow.data.dataset import Dataset
from winnow.engine import rows
from winnow.engine.base import Engine
from winnow.engine.dataset_logps import Reference, dataset_logps, offsets
from winnow.engine.fingerprint import fingerprint
from winnow.errors import TrainingError
from winnow.models import loading
from winnow.models.loading import LoadedModel
from winnow.system import distributed
from winnow.system.console import ProgressBar, safe, say
from winnow.system.files import cache_folder
from winnow.system.launch import leads
from winnow.training import reference
from winnow.training.reference import Frozen

ReferenceModel = Callable[[], AbstractContextManager[LoadedModel]]


def model_of(
    settings: TrainSettings, loaded: LoadedModel, named: str | None, *, later: bool
) -> ReferenceModel:
    """The reference model, in memory while it is asked for: the one `named`, else the policy as it
    is now.

    later: the policy is wanted as it is now after it was trained, too; its trainable weights are
    kept for that.
    """
    frozen = Frozen(loaded.net, torch.device("cpu")) if later and named is None else None

    @contextmanager
    def opened() -> Iterator[LoadedModel]:
        if named is not None:
            yield loading.load(model_spec(settings, named), quantize=settings.quantize)
        elif frozen is None:
            yield loaded
        else:
            with frozen.inside(loaded.net):
                yield loaded

    return opened


@dataclass(frozen=True)
class Scorer:
    """How a reference model is asked: the engine proved on it, tokens per micro-batch; and the hash
    of what its numbers come from.
    """

    engine: Engine
    tokens: int
    source: str

    def identity(self, source: LoadedModel, one: Dataset) -> str:
        """What the reference log-probs of a data set are stored under."""
        return reference.identity(self.source, one.groups, source.dtype, self.engine)

    def score(self, source: LoadedModel, one: Dataset, name: str) -> Reference:
        """The reference log-probs of a data set, whose identity is `name`: read where any run has
        stored them (a few are computed again and compared), else computed.
        """
        store = cache_folder("reference")
        kept = reference.stored(store, name, one.groups)
        if (
            all(distributed.gather(kept is not None)) and kept is not None
        ):  # one that came late may see what another has just written
            noise = reference.spot_check(
                self.engine, source.net, one.groups, kept, self.tokens, source.device
            )
            where = safe(reference.file_of(store, name))
            say(
                f"reference: {len(kept.value):,} log-probs read from {where}; of a few computed"
                f" again, all within {noise:.1e} nats"
            )
            return kept
        with ProgressBar("reference", len(one.groups)) as steps:
            whose = f"the reference ({source.source})"
            value = dataset_logps(
                self.engine,
                source.net,
                one.groups,
                self.tokens,
                source.device,
                steps.advance,
                whose=whose,
                share=True,
            )
        kept = Reference(name, value, offsets(one.groups))
        if leads():
            reference.store(store, kept)
        say(
            f"reference: {len(kept.value):,} log-probs, kept for other runs in"
            f" {safe(reference.file_of(store, name))}"
        )
        return kept


def described(
    name: str, source: LoadedModel, identity: str | None, vocabulary: int
) -> dict[str, Any]:
    """What a run folder tells of its reference, so that an evaluation can know it again. identity:
    of what is stored, None where it is asked at every step; vocabulary: tokens of the policy's
    tokenizer. Raises TrainingError where it says nothing that is a number.
    """
    says = fingerprint(rows, source.model, vocabulary)
    if not torch.isfinite(says).all():
        raise TrainingError(
            f"{name}: as a reference it gives log-probs that are not finite, whatever the text",
            remedy="check the model's weights and dtype",
        )
    return {
        "model": name,
        "identity": identity,
        "dtype": str(source.dtype).removeprefix("torch."),
        "vocabulary": vocabulary,
        "says": says.tolist(),
    }
