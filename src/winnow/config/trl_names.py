"""The option names of TRL and other tools, and which of ours does the same: for people who come
from there.

Pure data and one function; imports nothing. `docs/from-trl.md` is generated from these tables by
`docs/generate.py`.
"""

from __future__ import annotations

from winnow.config.trl_fields import FIELDS
from winnow.config.trl_notes import KERNELS, Row, same

FREE = "--objective simpo, cpo or orpo, which have no reference"


# Arguments of DPOTrainer, TRL's command line, and fields of earlier versions.
MORE: dict[str, Row] = {
    "ref_model": (
        "reference",
        (
            "leave it away: the reference is the policy at step 0; with an adapter, the adapter as"
            " loaded is part of it"
        ),
    ),
    "ref_model_init_kwargs": ("reference", "a model folder, hub name or run folder"),
    "model_adapter_name": ("reference", "the policy at step 0 is the reference, adapter included"),
    "ref_adapter_name": ("reference", "the policy at step 0 is the reference, adapter included"),
    "force_use_ref_model": (
        None,
        (
            "the reference is a table of numbers, or the policy's own weights as they were: there"
            " is no second model to force"
        ),
    ),
    "reference_free": ("objective", FREE),
    "model_name_or_path": ("model", ""),
    "model_revision": (
        None,
        "save the revision as a folder, or keep it in the hub cache, and give that as model",
    ),
    "processing_class": ("model", "the tokenizer is the one in the model's folder"),
    "attn_implementation": (None, KERNELS),
    "torch_dtype": ("dtype", ""),
    "dataset_name": ("data", "a file, a folder or a hub name"),
    "dataset_config": ("data", "NAME:split"),
    "dataset_train_split": ("data", "NAME:split"),
    "dataset_test_split": ("eval_data", "NAME:split"),
    "train_dataset": ("data", ""),
    "eval_dataset": ("eval_data", ""),
    "peft_config": ("lora", "r=16,alpha=32,targets=auto"),
    "use_peft": ("lora", "lora=auto"),
    "lora_r": ("lora", "r=16"),
    "lora_alpha": ("lora", "alpha=32"),
    "lora_target_modules": ("lora", "targets=q_proj+v_proj, or targets=auto"),
    "lora_dropout": ("lora", "always 0, so that log-probs are not random"),
    **same(
        "lora_modules_to_save lora_target_parameters lora_task_type use_rslora use_dora",
        "lora has r, alpha and targets",
    ),
    "load_in_4bit": ("quantize", "quantize=nf4, with lora or a folder that is an adapter"),
    "bnb_4bit_quant_type": ("quantize", "nf4; there is no fp4, which is coarser"),
    "use_bnb_nested_quant": ("quantize", "always: scales are quantised too"),
    "quantization_config": ("quantize", "quantize=nf4"),
    "load_in_8bit": (None, "4 bits or 16: quantize=nf4, or nothing"),
    "max_prompt_length": (None, "removed: prompts are never cut"),
    "max_completion_length": ("max_length", "prompt and completion together"),
    "warmup_ratio": ("warmup", "below 1 it is a share of the steps"),
    "rpo_alpha": ("objective", "dpo:1,sft:ALPHA"),
    "simpo_gamma": (
        "objective",
        "simpo:gamma=1.4; TRL's simpo adds cpo_alpha times the NLL unless that is 0, ours has none",
    ),
    "cpo_alpha": (
        "objective",
        "cpo:alpha=1; TRL's NLL is a mean over all of a batch's tokens, which is cpo:alpha=0,sft:1",
    ),
    "alpha": ("objective", "alphapo:alpha=0.25"),
    "desirable_weight": ("objective", "kto:desirable=1"),
    "undesirable_weight": ("objective", "kto:undesirable=1"),
    "generate_during_eval": (
        None,
        (
            "samples.jsonl holds texts before and after; `winnow generate --before` shows two"
            " models side by side"
        ),
    ),
    "compute_metrics": (None, "`winnow eval --out DIR` writes rows.jsonl to compute on"),
    "callbacks": (
        None,
        (
            "no callbacks: metrics.jsonl can be followed while the run goes on, and the parts of"
            " the loop are functions"
        ),
    ),
    "overwrite_output_dir": (
        None,
        "a folder belongs to one run: choose another out, or remove it yourself",
    ),
    "evaluation_strategy": ("eval_every", ""),
    "group_by_length": (
        None,
        "micro-batches are filled by tokens (max_tokens), from lengths known after tokenising",
    ),
    "no_cuda": ("device", "device=cpu"),
}

# Names in use elsewhere (LLaMA-Factory, Axolotl, torchtune, OpenRLHF) that are not TRL's.
OTHERS: dict[str, Row] = {
    "base_model": ("model", ""),
    "pretrain": ("model", ""),
    "ref_pretrain": ("reference", "leave it away: the reference is the policy at step 0"),
    "dataset": ("data", ""),
    "datasets": ("data", ""),
    "val_set_size": ("eval_fraction", "split by prompt"),
    "val_size": ("eval_fraction", "split by prompt"),
    "eval_dataset_size": ("eval_fraction", "split by prompt"),
    "max_samples": ("limit", ""),
    "cutoff_len": ("max_length", ""),
    "max_len": ("max_length", ""),
    "sequence_len": ("max_length", ""),
    "max_seq_len": ("max_length", ""),
    "micro_batch_size": ("max_tokens", "micro-batches are counted in tokens"),
    "micro_train_batch_size": ("max_tokens", "micro-batches are counted in tokens"),
    "train_batch_size": ("batch_size", ""),
    "num_epochs": ("epochs", ""),
    "max_epochs": ("epochs", ""),
    "max_steps_per_epoch": ("steps", ""),
    "lr_scheduler": ("schedule", ""),
    "lr_warmup_ratio": ("warmup", "below 1 it is a share of the steps"),
    "gradient_clipping": ("clip", ""),
    "max_norm": ("clip", ""),
    "l2": ("weight_decay", ""),
    "adapter": ("lora", "lora=auto"),
    "finetuning_type": ("lora", "lora=auto, or nothing for full training"),
    "lora_rank": ("lora", "r=16"),
    "quantization_bit": ("quantize", "quantize=nf4"),
    "bnb_4bit_compute_dtype": ("quantize", "always bfloat16"),
    "lora_target": ("lora", "targets=auto"),
    "pref_loss": (
        "objective",
        "sigmoid -> dpo, kto_pair -> kto; ipo, hinge, orpo and simpo have the same names",
    ),
    "gamma": (
        "objective",
        "a setting of simpo and alphapo, given behind the name: simpo:gamma=1.4",
    ),
    "pref_ftx": ("objective", "dpo:1,sft:WEIGHT"),
    "pref_beta": ("beta", ""),
    "dpo_beta": ("beta", ""),
    "rl_beta": ("beta", ""),
    "dpo_label_smoothing": ("label_smoothing", ""),
    "template": ("chat_template", "a Jinja file; default: the tokenizer's own"),
    "resume": (None, "give the same command again"),
    "output": ("out", ""),
    "save_path": ("out", ""),
    "sample_packing": (None, KERNELS),
    "packing": (None, KERNELS),
    "flash_attn": (None, KERNELS),
    "flash_attention": (None, KERNELS),
}

# TRL's name -> (our setting or None, what to know)
NAMES: dict[str, Row] = {
    name: row for table in (*FIELDS.values(), MORE) for name, row in table.items()
}


def advice(name: str) -> str | None:
    """What to say when another tool's name is used as a setting; None when it is not one, or is
    ours as well.
    """
    plain = name.lstrip("-").replace("-", "_")
    ours, note = NAMES.get(plain) or OTHERS.get(plain) or (plain, "")
    if ours == plain:
        return None
    whose = "TRL's name" if plain in NAMES else "another tool's name"
    head = (
        f"{plain} is {whose}; ours is {ours}"
        if ours
        else f"{plain} is {whose}; Winnow has no such setting"
    )
    return f"{head}: {note}" if note else head
