"""TRL's DPOTrainer over token rows as they are, for the speed benchmarks on either device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LR, BETA = 1e-6, 0.1


def trainer(
    policy: Any, pairs: list[dict[str, Any]], setting: str, folder: Path, callback: Any, **more: Any
) -> Any:
    """A DPOTrainer whose optimizer step is all pairs, once. `seen` holds the losses of its
    micro-batches.

    setting: a batch size, with the reference computed before and no checkpointing, or `default`
    (batch 8, live reference, checkpointing). more: further settings, and `peft_config` and
    `ref_model` (default: the policy's own folder) of the trainer.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    class Pretokenised(DPOTrainer):
        """DPOTrainer that takes token rows as they are, and keeps each loss."""

        seen: list[Any]

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            self.seen.append(loss.detach())
            return loss

    size = min(8, len(pairs)) if setting == "default" else int(setting)
    ours = (
        {}
        if setting == "default"
        else {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
    )
    apart = {name: more.pop(name, None) for name in ("ref_model", "peft_config")}
    settings = DPOConfig(
        output_dir=str(folder / f"trl-{setting}"),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=len(pairs) // size,
        learning_rate=LR,
        lr_scheduler_type="constant",
        beta=BETA,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        **ours,
        **more,
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, "<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    made = Pretokenised(
        policy,
        args=settings,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[callback],
        **apart,
    )
    made.seen = []
    return made
