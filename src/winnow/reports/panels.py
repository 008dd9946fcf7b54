"""The drawings of a training: what each shows, and of which metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Panel:
    """One small plot: which metrics share it and how to read it. Evaluations of the same metrics
    join by themselves.
    """

    title: str
    caption: str
    metrics: tuple[str, ...]
    level: float | None = None
    bottom: float | None = None
    label: str = "training"
    smooth: bool = True
    unpaired: str = ""  # the caption where there are no pairs
    scored: str = ""  # the caption of reward models
    axis: str = "step"


PANELS = (
    Panel(
        "Loss",
        "It starts at the value the objective has where policy and reference agree; dpo has ln 2 ="
        " 0.693 there.",
        ("loss",),
        unpaired="Nats per token: how surprised the model is by the answers.",
        scored=(
            "−log σ(margin), in nats per comparison; 0.693 is what a model has that cannot tell"
            " answers apart."
        ),
    ),
    Panel(
        "Accuracy",
        "Share of pairs whose chosen answer has the higher reward; 0.5 is chance.",
        ("rewards/accuracies",),
        0.5,
    ),
    Panel(
        "Score", "Mean score of the policy's own answers, before the KL penalty.", ("score",), None
    ),
    Panel(
        "Reward margin",
        "Chosen minus rejected reward: how far apart the answers have been pulled.",
        ("rewards/margins",),
        0.0,
    ),
    Panel(
        "Rewards",
        "β times the log-ratio to the reference; without one, β times the score. Best is chosen"
        " rising, rejected falling.",
        ("rewards/chosen", "rewards/rejected"),
        0.0,
        scored=(
            "The model's own numbers. Only their differences mean something: all may move together."
        ),
    ),
    Panel(
        "Change per token",
        "Nats per token since step 0. Chosen well below zero is displacement.",
        ("logratio/chosen", "logratio/rejected"),
        0.0,
    ),
    Panel(
        "Log-probability",
        "Of the whole answer, in nats. Both may fall; chosen should fall little.",
        ("logps/chosen", "logps/rejected"),
    ),
    Panel(
        "KL to the reference",
        "Nats per answer, on some of the policy's own samples: an estimate.",
        ("kl",),
        None,
        0.0,
        "own samples",
    ),
    Panel(
        "KL coefficient",
        "What a nat of KL costs, in units of the score.",
        ("beta",),
        None,
        0.0,
        "beta",
        smooth=False,
    ),
    Panel(
        "Clip fraction",
        "Share of tokens that had moved far enough in an iteration to have no slope any more.",
        ("clip_fraction",),
        None,
        0.0,
    ),
    Panel(
        "Value loss",
        "The critic's squared error, half of it: it rises where the policy finds what the critic"
        " has not seen.",
        ("loss/value",),
        None,
        0.0,
    ),
    Panel(
        "Explained variance",
        "Of the returns, by the critic: 1 is perfect, 0 says no more than their mean.",
        ("explained_variance",),
        0.0,
    ),
    Panel(
        "Finished",
        "Share of own answers that came to their end by themselves.",
        ("finished",),
        1.0,
        0.0,
        "own samples",
    ),
    Panel("Length", "Tokens per answer in the batches.", ("length/chosen", "length/rejected")),
    Panel(
        "Length of own answers",
        "Tokens the policy writes. Growing means longer, not better.",
        ("length/sampled",),
        None,
        0.0,
        "own samples",
    ),
    Panel("Entropy", "Nats per token: how open the next word still is.", ("entropy",)),
    Panel(
        "Gradient norm",
        "Before clipping; the fine line is where it clips.",
        ("grad_norm",),
        None,
        0.0,
    ),
    Panel(
        "Learning rate",
        "A pure function of the step.",
        ("learning_rate",),
        None,
        0.0,
        "rate",
        smooth=False,
    ),
    Panel("Speed", "Tokens per second.", ("tokens_per_second",), None, 0.0),
    Panel(
        "Share of the hardware",
        "Useful arithmetic over the machine's own matrix product, measured at the start.",
        ("hardware_share",),
        None,
        0.0,
    ),
)
