"""Every field of TRL's DPOConfig, with our setting's name and what to know."""

from __future__ import annotations

from winnow.config.trl_notes import (
    COMPILING,
    EXACT,
    FOLLOW,
    KERNELS,
    LOADING,
    LOGGING,
    MANY,
    SHARING,
    Row,
    same,
)

# Every field of DPOConfig in TRL 1.16, by subject.
FIELDS: dict[str, dict[str, Row]] = {
    "The loss": {
        "loss_type": (
            "objective",
            (
                "sigmoid -> dpo, sigmoid_norm -> dpo_norm, exo_pair -> exo, nca_pair -> nca,"
                " bco_pair -> bco (ours has the paper's shift), sppo_hard -> sppo; ipo, hinge,"
                " robust, aot, aot_unpaired, apo_zero, apo_down, discopop and sft have the same"
                " names"
            ),
        ),
        "beta": (
            "beta",
            (
                "the same; but its default is the objective's own (0.1 for dpo, 5 for dpo_norm),"
                " where TRL has 0.1 for all"
            ),
        ),
        "label_smoothing": (
            "label_smoothing",
            (
                "ours is cDPO's and acts on all but rankings and sft; TRL's acts on `robust`,"
                " `exo_pair` and `aot*` only, and on `sigmoid` does nothing"
            ),
        ),
        "loss_weights": ("objective", "behind each name: dpo:0.8,bco:0.2,sft:1"),
        "f_divergence_type": (
            "divergence",
            "reverse_kl, forward_kl, js_divergence -> js, alpha_divergence -> the alpha itself",
        ),
        "f_alpha_divergence_coef": (
            "divergence",
            "ours is the paper's alpha, which is 1 minus TRL's coefficient",
        ),
        "discopop_tau": ("objective", "discopop:temperature=0.05"),
        "ld_alpha": ("tail_weight", "the same"),
        "use_weighting": (
            "wpo",
            "the same, with weights of at most 1, as in the authors' code; TRL's are not bounded",
        ),
        "router_aux_loss_coef": (
            None,
            (
                "a mixture-of-experts model is trained on the preference loss alone, without the"
                " load-balancing term"
            ),
        ),
        "label_smoothing_factor": (
            None,
            (
                "smooths over the vocabulary, which has no meaning for preferences (TRL ignores it"
                " too); label_smoothing is what you want"
            ),
        ),
        "neftune_noise_alpha": (
            None,
            (
                "noise in the embeddings would make log-probs random, and the loss at step 0 could"
                " not be checked"
            ),
        ),
    },
    "The reference": {
        "precompute_ref_log_probs": (
            None,
            (
                "always done, but for tdpo and a moving reference, which ask it at every step: a"
                " table of numbers, and no second model in memory"
            ),
        ),
        "precompute_ref_batch_size": (
            "max_tokens",
            "the reference is computed with the micro-batches of the training",
        ),
        "sync_ref_model": ("moving_reference", FOLLOW),
        "ref_model_mixup_alpha": ("moving_reference", FOLLOW),
        "ref_model_sync_steps": ("moving_reference", FOLLOW),
    },
    "The data": {
        "max_length": (
            "max_length",
            (
                "default: the model's limit and nothing may be cut, where TRL cuts at 1024; with it"
                " given, cut_budget bounds the share that may be lost"
            ),
        ),
        "truncation_mode": (
            None,
            (
                "completions are cut at their end, prompts never; each cut is counted and bounded"
                " by cut_budget"
            ),
        ),
        "padding_free": (None, KERNELS),
        "pad_to_multiple_of": (None, KERNELS),
        "pad_token": (
            None,
            "no padding token is needed: padding is told apart by length, never by token",
        ),
        "dataset_num_proc": (None, LOADING),
        "remove_unused_columns": (
            None,
            "columns that the layout does not know are ignored, and listed by `winnow check`",
        ),
        "label_names": (
            None,
            "rows become groups of completions and comparisons; there are no label columns",
        ),
        "train_sampling_strategy": (
            None,
            (
                "the order is a pure function of seed and epoch: shuffled, and the same on every"
                " machine"
            ),
        ),
        "length_column_name": (
            None,
            "micro-batches are filled by tokens (max_tokens), from lengths known after tokenising",
        ),
        **same(
            "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers"
            " dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order",
            LOADING,
        ),
        "dataloader_drop_last": (
            None,
            "never: an epoch's last batch is smaller, and its loss is divided by its own weight",
        ),
    },
    "The amount": {
        "per_device_train_batch_size": (
            "batch_size",
            "ours counts groups per optimizer step; the micro-batch is max_tokens",
        ),
        "gradient_accumulation_steps": (
            "batch_size",
            (
                "batch_size = per_device_train_batch_size x gradient_accumulation_steps x devices;"
                " max_tokens cuts it into micro-batches"
            ),
        ),
        "auto_find_batch_size": (
            "max_tokens",
            (
                "lower it when memory runs out: the result stays the same; `winnow check` estimates"
                " what fits"
            ),
        ),
        "num_train_epochs": ("epochs", "default 1, where TRL has 3"),
        "max_steps": ("steps", "give steps or epochs, not both; TRL's -1 is our default"),
        "average_tokens_across_devices": (
            None,
            "always: the loss is summed over everything and divided once",
        ),
        "torch_empty_cache_steps": (None, "lower max_tokens instead"),
    },
    "The optimizer": {
        "learning_rate": ("lr", "default 5e-7 (5e-6 for LoRA), where TRL has 1e-6"),
        "lr_scheduler_type": (
            "schedule",
            "constant, linear or cosine; constant_with_warmup -> constant with warmup",
        ),
        "lr_scheduler_kwargs": (None, "the three schedules have no further settings"),
        "warmup_steps": (
            "warmup",
            (
                "the same meaning: below 1 a share, from 1 a number of steps; ours starts at"
                " 1/warmup, TRL's first step has rate 0"
            ),
        ),
        "optim": ("optimizer", "adamw_torch and adamw_torch_fused -> adamw; rmsprop -> rmsprop"),
        "optim_args": (
            None,
            "adamw has betas 0.9 and 0.999 and epsilon 1e-8; rmsprop has alpha 0.99",
        ),
        "optim_target_modules": (
            None,
            (
                "for GaLore and APOLLO, which do not exist here; which modules an adapter stands"
                " beside is part of lora"
            ),
        ),
        "adam_beta1": (None, "fixed at 0.9"),
        "adam_beta2": (
            None,
            "fixed at 0.999: with 0.95 the demo's win rate stays while its text falls apart",
        ),
        "adam_epsilon": (None, "fixed at 1e-8"),
        "weight_decay": ("weight_decay", "on matrices only, as there"),
        "max_grad_norm": ("clip", "the same; `none` for no clipping, where TRL has 0"),
    },
    "The model": {
        "bf16": (
            "dtype",
            (
                "dtype=bfloat16; auto takes float32 on a CPU, where TRL's default is bfloat16"
                " autocast even there"
            ),
        ),
        "fp16": (None, "float16 overflows without loss scaling; dtype=bfloat16 needs none"),
        "tf32": (None, "not switched by Winnow"),
        "bf16_full_eval": (
            "dtype",
            "training and evaluation use one precision, so that their numbers can be compared",
        ),
        "fp16_full_eval": (
            "dtype",
            "training and evaluation use one precision, so that their numbers can be compared",
        ),
        "gradient_checkpointing": ("checkpointing", "default off, where TRL has it on"),
        "gradient_checkpointing_kwargs": (None, "always the non-reentrant kind"),
        "activation_checkpointing": ("checkpointing", "default off"),
        "activation_checkpointing_kwargs": (None, "every layer, always the non-reentrant kind"),
        "activation_offloading": (
            None,
            "checkpointing=true, or a lower max_tokens, saves the memory instead",
        ),
        "disable_dropout": (
            None,
            (
                "dropout is always off, all of it: TRL's switch does not reach the"
                " attention_dropout of Llama-shaped models"
            ),
        ),
        "trust_remote_code": (
            "trust_remote_code",
            "the same, but only from the command line: a file cannot ask for it",
        ),
        "model_init_kwargs": (
            "dtype",
            (
                "dtype is the one keyword that is a setting; for others save the model as a folder"
                " first"
            ),
        ),
        "use_liger_kernel": (None, KERNELS),
        "liger_kernel_config": (None, KERNELS),
        "use_cache": (None, "off while training, on while sampling"),
        "use_cpu": ("device", "device=cpu"),
        "torch_compile": ("compile", "layer by layer, one function for every length"),
        **same("torch_compile_backend torch_compile_mode", COMPILING),
    },
    "Evaluation": {
        "eval_strategy": (
            "eval_every",
            (
                "evaluation runs when there is eval_data or eval_fraction: ten times a run, or"
                " every eval_every steps"
            ),
        ),
        "eval_steps": ("eval_every", "whole steps, not a share"),
        "eval_delay": (
            None,
            "evaluation starts before the first step, so that there is a value to compare with",
        ),
        "eval_on_start": (None, "always, so that there is a value to compare with"),
        "per_device_eval_batch_size": (
            "max_tokens",
            "evaluation takes the micro-batches of the training; results do not depend on them",
        ),
        "eval_accumulation_steps": (
            None,
            "sums are kept, not predictions: memory does not grow with the set",
        ),
        "batch_eval_metrics": (
            None,
            "sums are kept, not predictions: memory does not grow with the set",
        ),
        "prediction_loss_only": (
            None,
            (
                "loss, accuracy, margins and rewards always; per-row results with `winnow eval"
                " --out DIR`"
            ),
        ),
        "include_for_metrics": (
            None,
            (
                "no metric functions of your own; `winnow eval --out DIR` writes rows.jsonl to"
                " compute on"
            ),
        ),
        "eval_do_concat_batches": (
            None,
            (
                "no metric functions of your own; `winnow eval --out DIR` writes rows.jsonl to"
                " compute on"
            ),
        ),
        "eval_use_gather_object": (None, MANY),
        "do_eval": ("eval_data", "give eval_data or eval_fraction"),
        "do_predict": (None, "`winnow eval` and `winnow generate` are commands of their own"),
        "do_train": (None, "`winnow check` does everything but training"),
        "load_best_model_at_end": (
            "save_best",
            "model/ is then the checkpoint with the lowest eval_loss of the first evaluation set",
        ),
        "metric_for_best_model": (None, "save_best watches eval_loss of the first evaluation set"),
        "greater_is_better": (None, "save_best watches eval_loss, and less is better"),
    },
    "The run folder": {
        "output_dir": ("out", "the same command on an unfinished folder resumes it"),
        "save_strategy": ("save_every", "in steps; the end of the run is always saved"),
        "save_steps": ("save_every", "whole steps, not a share"),
        "save_total_limit": ("keep", "default 2, where TRL keeps all"),
        "save_only_model": (
            None,
            "checkpoints/ is for resuming and complete; model/ holds the model alone",
        ),
        "save_on_each_node": (None, "one run folder on a file system all machines share"),
        "enable_jit_checkpoint": (
            None,
            "always so: SIGTERM and SIGINT save at the end of the step, exit codes 143 and 130",
        ),
        "resume_from_checkpoint": (
            None,
            "give the same command again: it resumes from the newest checkpoint that verifies",
        ),
        "ignore_data_skip": (None, EXACT),
        "restore_callback_states_from_checkpoint": (None, "there are no callbacks; " + EXACT),
        "seed": ("seed", "default 0, where TRL has 42"),
        "data_seed": ("seed", "one seed for data order, evaluation split and new adapters"),
        "full_determinism": (
            None,
            "on a CPU the same settings give the same bytes; nothing to switch on",
        ),
        "run_name": ("out", "a run is its folder"),
    },
    "Logging": {
        "report_to": (
            "trackers",
            "tensorboard, wandb, trackio; metrics.jsonl and report.html are always written",
        ),
        "project": ("trackers", "set the tracker's own environment variables"),
        **same(
            "trackio_space_id trackio_bucket_id trackio_static_space_id",
            "set the tracker's own environment variables",
        ),
        **same(
            "logging_strategy logging_steps logging_first_step log_on_each_node log_level"
            " log_level_replica",
            LOGGING,
        ),
        "logging_nan_inf_filter": (
            None,
            (
                "a loss or gradient that is not finite stops the run before the weights are"
                " touched, and names the rows"
            ),
        ),
        "disable_tqdm": (
            None,
            "the progress bar leaves by itself when the output is not a terminal",
        ),
        "include_num_input_tokens_seen": (None, "num_tokens is in every line of metrics.jsonl"),
        "skip_memory_metrics": (None, "`winnow check` prints a memory estimate"),
        "debug": (None, "not offered"),
    },
    "Several devices": {
        **same("fsdp fsdp_config deepspeed parallelism_config accelerator_config local_rank", MANY),
        "ddp_timeout": ("rank_timeout", "in seconds; default 600, where TRL waits 1800"),
        **same(
            "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph"
            " ddp_backend",
            MANY,
        ),
    },
    "Uploading": same(
        "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push"
        " hub_revision",
        SHARING,
    ),
}
