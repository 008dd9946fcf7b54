"""Presets: settings people trust, by name (docs/presets.md)."""

from __future__ import annotations

from typing import Any

# What people trust. The part under "lora" replaces values when an adapter is trained.
PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2305.18290, appendix B
    "paper": {
        "optimizer": "rmsprop",
        "lr": 1e-6,
        "batch_size": 64,
        "beta": 0.1,
        "schedule": "constant",
        "warmup": 150,
        "clip": 10.0,
        "epochs": 1.0,
    },
    # Zephyr-7B-beta's recipe; its QLoRA variant for adapters
    "zephyr": {
        "beta": 0.01,
        "lr": 5e-7,
        "schedule": "cosine",
        "warmup": 0.1,
        "batch_size": 128,
        "max_length": 1024,
        "epochs": 1.0,
        "lora": {"lr": 5e-6},
    },
    # Tulu 3, arXiv 2411.15124
    "tulu3": {
        "objective": "dpo_norm",
        "beta": 5.0,
        "lr": 5e-7,
        "schedule": "linear",
        "warmup": 0.1,
        "batch_size": 128,
        "max_length": 2048,
        "epochs": 1.0,
    },
    # SimPO, arXiv 2405.14734, its setting for Llama-3-Instruct
    "simpo": {
        "objective": "simpo:gamma=1.4",
        "beta": 2.5,
        "lr": 1e-6,
        "schedule": "cosine",
        "warmup": 0.1,
        "batch_size": 128,
        "max_length": 2048,
        "epochs": 1.0,
    },
    # MPO, arXiv 2411.10442
    "mpo": {
        "objective": "dpo:0.8,bco:0.2,sft:1",
        "beta": 0.1,
        "lr": 5e-6,
        "schedule": "cosine",
        "warmup": 0.05,
        "batch_size": 256,
        "epochs": 1.0,
    },
    # the founding tutorial: adapter on q and v
    "seed": {
        "lora": "r=8,alpha=16,targets=q_proj+v_proj",
        "beta": 0.1,
        "lr": 5e-7,
        "batch_size": 4,
        "clip": 1.0,
        "epochs": 3.0,
    },
}
