"""TRL's DPOTrainer on the models and rows of `gpu.py`: what Winnow's figures there are to be
divided by.

.venv-bench/bin/python bench/gpu_trl.py --shape 4B      (in an environment with the extra `bench`)

Every setting is a process of its own, because two models of this size do not fit: batch 1, 4 and 8
with the reference computed before and no checkpointing, of which the quickest is TRL's best, and
its defaults. Whole models are float32 under bfloat16 autocast, so that gradients are added up in
float32; the adapter's base is bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

from gpu import PAIRS, SHAPES
from workloads import WORKLOADS, pair_rows

SETTINGS = ("1", "4", "8", "default")
WARM = 2  # steps before the measured ones


def measure(shape: str, name: str, setting: str, device: str, steps: int) -> dict[str, Any]:
    """One setting of TRL's on one model and workload."""
    import torch
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback
    from trl_trainer import trainer

    gpu = device != "cpu"
    family, shaped, adapter = SHAPES[shape]
    workload = replace(WORKLOADS[name], groups=PAIRS[name])
    vocabulary = shaped["vocab_size"]
    pairs = [
        {key: [t % vocabulary for t in ids] for key, ids in row.items()}
        for row in pair_rows(workload)
    ]
    config = AutoConfig.for_model(family, **shaped, max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device(device):
        policy = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if gpu and adapter else torch.float32
        )
    seconds: list[float] = []

    class Clock(TrainerCallback):
        """Seconds of each optimizer step."""

        began = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = _now(gpu)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(_now(gpu) - self.began)

    lora = (
        LoraConfig(
            r=16,
            lora_alpha=32,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        if adapter
        else None
    )
    # made here, so there is no folder to load it from
    live = copy.deepcopy(policy) if setting == "default" and not adapter else None
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(
            policy,
            pairs,
            setting,
            Path(folder),
            Clock(),
            max_steps=WARM + steps,
            bf16=gpu,
            use_cpu=not gpu,
            peft_config=lora,
            ref_model=live,
        )
        made.train()
    best = min(seconds[WARM:])
    memory = torch.cuda.max_memory_allocated() if gpu else None
    return {
        "shape": shape,
        "workload": name,
        "trl": setting,
        "pairs_per_second": workload.pairs / best,
        "seconds": seconds[WARM:],
        "memory": memory,
    }


def _now(gpu: bool) -> float:
    import torch

    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Each shape, workload and setting; one JSON line each, also for one that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", choices=SHAPES, action="append", help="may be repeated; default: all but tiny"
    )
    parser.add_argument("--workload", choices=PAIRS, action="append")
    parser.add_argument("--setting", choices=SETTINGS, action="append")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    shapes, names, settings = (
        asked.shape or ["0.6B", "4B", "8B"],
        asked.workload or list(PAIRS),
        asked.setting or list(SETTINGS),
    )
    if (len(shapes), len(names), len(settings)) == (1, 1, 1):
        print(
            json.dumps(measure(shapes[0], names[0], settings[0], asked.device, asked.steps)),
            flush=True,
        )
        return
    for shape in shapes:
        for name in names:
            for setting in settings:
                words = [
                    "--shape",
                    shape,
                    "--workload",
                    name,
                    "--setting",
                    setting,
                    "--device",
                    asked.device,
                    "--steps",
                    str(asked.steps),
                ]
                done = subprocess.run(
                    [sys.executable, __file__, *words], capture_output=True, text=True
                )
                failed = {
                    "shape": shape,
                    "workload": name,
                    "trl": setting,
                    "failed": done.stderr[-300:],
                }
                print(
                    done.stdout.splitlines()[-1] if done.returncode == 0 else json.dumps(failed),
                    flush=True,
                )


if __name__ == "__main__":
    main()
