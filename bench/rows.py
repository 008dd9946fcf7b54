"""From rows in a file to a plan: seconds and memory of a first start, which tokenises, and of a
second, which reads what the first wrote.

python bench/rows.py --pairs 1000000    (made-up words, a tokenizer trained on some of them; 10 GB
of disk for a million) Each start is a process of its own with an empty cache of its own before the
first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT, ANSWER = (40, 0.8), (80, 0.6)  # words: median, sigma of the log


def write_rows(file: Path, pairs: int) -> None:
    """Pairs of made-up words, lognormal lengths."""
    rng = random.Random(0)
    words = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9)))
        for _ in range(20_000)
    ]

    def text(shape: tuple[float, float]) -> str:
        count = max(1, round(shape[0] * rng.lognormvariate(0, shape[1])))
        return " ".join(rng.choices(words, k=count))

    with file.open("w") as out:
        for _ in range(pairs):
            out.write(
                json.dumps(
                    {
                        "prompt": text(PROMPT) + "\n",
                        "chosen": text(ANSWER),
                        "rejected": text(ANSWER),
                    }
                )
                + "\n"
            )


def write_model(folder: Path, rows: Path) -> None:
    """A model's configuration, and a byte-level BPE tokenizer of 16,384 tokens trained on the first
    rows.
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    with rows.open() as file:
        texts = [row["chosen"] for _, row in zip(range(5000), map(json.loads, file))]
    made = Tokenizer(BPE())
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), Decoder()
    made.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=16_384,
            special_tokens=["<eos>"],
            show_progress=False,
            initial_alphabet=ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096).save_pretrained(folder)


def start(model: Path, rows: Path) -> None:
    """What `winnow dpo` does before it loads the model."""
    from winnow.config.resolve import resolve
    from winnow.config.training import DPOSettings
    from winnow.training.plan import planned, prepared

    before = memory("VmRSS")
    resolved = resolve(
        DPOSettings,
        {"model": str(model), "data": [str(rows)], "out": str(model.parent / "run"), "lr": 1e-6},
    )
    began = time.perf_counter()
    _, epochs, _ = prepared(resolved.settings, "preference")
    train_set = epochs(0)
    read = time.perf_counter()
    planned(resolved, train_set)
    tokens = len(train_set.groups.columns["ids"])
    ended = time.perf_counter()
    print(
        json.dumps(
            {
                "rows to tokens": read - began,
                "plan": ended - read,
                "peak": memory("VmHWM") - before,
                "tokens": tokens,
            }
        )
    )


def memory(name: str) -> int:
    """VmRSS (now) or VmHWM (the most so far) of this process, bytes."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def main() -> None:
    """Write rows, start twice, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model, rows = Path(temporary) / "model", Path(temporary) / "rows.jsonl"
        write_rows(rows, asked.pairs)
        write_model(model, rows)
        print(
            f"{asked.pairs:,} pairs, {rows.stat().st_size / 1e9:.2f} GB,"
            f" {len(os.sched_getaffinity(0))} processors"
        )
        for name in ("first start", "second start"):
            code = (
                f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib"
                " import Path; import rows; "
            )
            code += f"rows.start(Path({str(model)!r}), Path({str(rows)!r}))"
            env = {
                **os.environ,
                "WINNOW_CACHE": str(Path(temporary) / "cache"),
                "HF_HUB_OFFLINE": "1",
            }
            done = subprocess.run(
                [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, check=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            seconds = f"{found['rows to tokens']:,.1f} s to tokens, {found['plan']:,.2f} s to plan"
            print(
                f"{name}: {seconds}, {found['tokens'] / 1e6:,.0f} million tokens, largest memory"
                f" {found['peak'] / 2**30:.2f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
