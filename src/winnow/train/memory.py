"""Will it fit? A first estimate of training memory, and the one change that makes it smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from winnow.config import TrainSettings


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes while training, by what they are for. An estimate: activations depend on the model's code."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def advice(self) -> str:
        """The single change that saves most."""
        parts = {
            "--max-tokens (fewer tokens per micro-batch)": self.logits,
            "--checkpointing, or fewer --max-tokens": self.activations,
            "--lora (an adapter's moments instead of the model's)": self.optimizer + self.gradients,
        }
        return max(parts, key=lambda name: parts[name])


def estimate(config: Any, total: int, trainable: int, tokens: int, bytes_each: int, settings: TrainSettings) -> Memory:
    """Memory of a full training step on micro-batches of `tokens`.

    total, trainable: parameters; bytes_each: of a weight (2 has float32 master weights besides). Activations: per layer and
    token about 16 hidden states, 4 MLP widths; logits: three float32 copies while the loss is formed.
    """
    text = config.get_text_config()
    hidden, layers, vocabulary = text.hidden_size, text.num_hidden_layers, text.vocab_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    moments = 2 if settings.optimizer == "adamw" else 1
    per_layer = hidden if settings.checkpointing else 16 * hidden + 4 * inner
    return Memory(
        weights=total * bytes_each,
        gradients=trainable * 4,
        optimizer=trainable * 4 * (moments + (1 if bytes_each < 4 else 0)),
        activations=tokens * layers * per_layer * bytes_each,
        logits=tokens * vocabulary * 4 * 3,
    )
