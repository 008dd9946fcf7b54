"""A model by its name, with how it is read: what every loader takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A transformers folder, hub name or run folder; in which precision, on which device, and
    whether code that comes with it may run.
    """

    name: str
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False


class ModelReading(Protocol):
    """Settings that say how models are read."""

    @property
    def dtype(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def trust_remote_code(self) -> bool: ...


def model_spec(settings: ModelReading, name: str) -> ModelSpec:
    """A model that is read as the settings say."""
    return ModelSpec(name, settings.dtype, settings.device, settings.trust_remote_code)
