"""The loss curve of `winnow dpo` beside that of TRL's DPOTrainer: same model, rows, order and
settings, float32, CPU.

`make bench`, or `python bench/trl_curve.py --help` in an environment with the extra `bench`. Prints
one table per case and leaves with 1 when any loss of any step differs by more than the tolerance.
bench/README.md says what is adjusted for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}

Row = dict[str, str]
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """What both sides are told. beta is given in every case: the defaults differ."""

    name: str
    objective: str = "dpo"
    loss_type: str = "sigmoid"
    beta: float = 0.1
    warmup: int = 0
    schedule: str = "linear"
    lr: float = 3e-4
    batch_size: int = 4
    steps: int = 20
    clip: float = 1.0
    micro_batches: int = (
        1  # TRL's, of equal size: over unequal ones its mean of means is another number
    )


CASES = (
    Case("dpo, linear, TRL's own schedule"),
    Case("dpo, linear after 5 steps of warm-up, counted as Winnow does", warmup=5),
    Case("dpo, cosine, TRL's own schedule", schedule="cosine"),
    Case("dpo, TRL in two micro-batches", micro_batches=2),
    Case("ipo", objective="ipo", loss_type="ipo"),
    Case("hinge", objective="hinge", loss_type="hinge", beta=0.02),
    Case("dpo_norm", objective="dpo_norm", loss_type="sigmoid_norm", beta=5.0),
)


def winnow_losses(case: Case, model: Path, data: Path, out: Path) -> list[float]:
    """The loss of each step of `winnow dpo`."""
    import winnow

    with quiet():
        run = winnow.dpo(
            model=str(model),
            data=[str(data)],
            out=out,
            objective=case.objective,
            beta=case.beta,
            lr=case.lr,
            schedule=case.schedule,
            warmup=float(case.warmup),
            batch_size=case.batch_size,
            steps=case.steps,
            clip=case.clip,
            weight_decay=0.0,
            dtype="float32",
            device="cpu",
            seed=0,
            **{"as": "text"},
        )
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def trl_losses(case: Case, model: Path, rows: Sequence[Row], out: Path) -> list[float]:
    """The loss of each step of DPOTrainer, over `rows` as they stand."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from winnow.training.optimizer import rate

    class Recorder(DPOTrainer):
        """DPOTrainer that keeps each loss unrounded and, where there is a warm-up, counts it from 1
        as Winnow does.
        """

        losses: list[float]

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            self.losses.append(float(loss))
            return loss

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if not case.warmup:
                return super().create_scheduler(num_training_steps, optimizer)
            plan = {
                "lr": 1.0,
                "schedule": case.schedule,
                "warmup": case.warmup,
                "steps": case.steps,
            }
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: rate(step, **plan)
            )
            return self.lr_scheduler

    with quiet():
        config = DPOConfig(
            output_dir=str(out),
            loss_type=[case.loss_type],
            beta=case.beta,
            learning_rate=case.lr,
            lr_scheduler_type=case.schedule,
            per_device_train_batch_size=case.batch_size // case.micro_batches,
            gradient_accumulation_steps=case.micro_batches,
            max_steps=case.steps,
            max_grad_norm=case.clip,
            weight_decay=0.0,
            precompute_ref_log_probs=True,
            max_length=None,
            train_sampling_strategy="sequential",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_steps=case.steps,
            disable_tqdm=True,
            seed=0,
        )
        trainer = Recorder(
            model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
            args=config,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        trainer.losses = []
        trainer.train()
    parts = case.micro_batches
    return [
        sum(trainer.losses[i : i + parts]) / parts for i in range(0, len(trainer.losses), parts)
    ]


def in_order(case: Case, rows: Sequence[Row]) -> list[Row]:
    """The rows in the order in which Winnow takes them: TRL shuffles otherwise, so it is given them
    one after the other.
    """
    from winnow.data.order import Cursor, MixShare, batches

    stream = batches([MixShare(len(rows))], case.batch_size, 0, Cursor())
    return [rows[i] for _ in range(case.steps) for i in next(stream)[0]]


def made_up_rows(count: int) -> list[Row]:
    """Pairs of different lengths from a fixed seed: the chosen answers are polite, so that there is
    something to learn.
    """
    import random

    draw = random.Random(0)
    things, verbs = (
        ("lamp", "letter", "river", "engine", "garden"),
        (
            "open",
            "mend",
            "paint",
            "find",
            "describe",
        ),
    )
    places = ("attic", "harbour", "kitchen")
    kind = ("gladly and with care", "with great pleasure, my friend", "of course, kindly")
    rude = ("no", "whatever, do it yourself", "that is a dull wish, frankly")
    rows = []
    for i in range(count):
        wish = (
            f"Please {draw.choice(verbs)} the {draw.choice(things)} number {i} in the"
            f" {draw.choice(places)}."
        )
        rows.append(
            {
                "prompt": wish,
                "chosen": f" I will do it {draw.choice(kind)}.",
                "rejected": f" Answer: {draw.choice(rude)}.",
            }
        )
    return rows


def made_up_model(folder: Path, rows: Sequence[Row]) -> None:
    """A random Llama of two layers and a byte-level tokenizer that writes a BOS, saved to
    `folder`.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((text for row in rows for text in row.values()), trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        attention_dropout=0.0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what the trainers print away from the tables; it is shown when something fails."""
    with tempfile.TemporaryFile("w+") as kept:
        try:
            with contextlib.redirect_stdout(kept), contextlib.redirect_stderr(kept):
                yield
        except BaseException:
            kept.seek(0)
            print(kept.read()[-4000:], file=sys.stderr)
            raise


def compare(case: Case, ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Prints the two curves side by side; returns the largest difference (infinite when the lengths
    differ).
    """
    print(f"\n{case.name}\n{'step':>5} {'winnow':>12} {'TRL':>12} {'difference':>12}")
    for step, (a, b) in enumerate(zip(ours, theirs), 1):
        print(f"{step:>5} {a:>12.7f} {b:>12.7f} {a - b:>12.1e}")
    if len(ours) != len(theirs):
        print(f"winnow made {len(ours)} steps, TRL {len(theirs)}")
        return float("inf")
    return max(abs(a - b) for a, b in zip(ours, theirs))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases; 0 when all agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="a model folder with its tokenizer (default: a small random Llama)",
    )
    parser.add_argument(
        "--data", type=Path, help="JSON lines with prompt, chosen, rejected (default: made-up rows)"
    )
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--json", type=Path, help="also write the curves to this file")
    asked = parser.parse_args(argv)

    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(place / "cache")
        rows = (
            made_up_rows(64)
            if asked.data is None
            else [json.loads(line) for line in asked.data.read_text().splitlines()]
        )
        data, model = place / "rows.jsonl", asked.model or place / "model"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if asked.model is None:
            made_up_model(model, rows)
        for i, case in enumerate(case for case in CASES if asked.only in case.name):
            ours = winnow_losses(case, model, data, place / f"winnow_{i}")
            theirs = trl_losses(case, model, in_order(case, rows), place / f"trl_{i}")
            results.append(
                {
                    "case": asdict(case),
                    "winnow": ours,
                    "trl": theirs,
                    "largest_difference": compare(case, ours, theirs),
                }
            )
    print()
    for result in results:
        far = result["largest_difference"]
        print(f"{'ok  ' if far <= asked.tolerance else 'FAR '} {far:.1e}  {result['case']['name']}")
    if asked.json is not None:
        asked.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(
        not results
        or any(not result["largest_difference"] <= asked.tolerance for result in results)
    )


if __name__ == "__main__":
    sys.exit(main())
