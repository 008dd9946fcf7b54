"""What a training says before its first step: model, data, plan, and the data's warnings."""

from __future__ import annotations

from winnow.config.training import TrainSettings
from winnow.data.account import DataAccount
from winnow.data.dataset import Dataset
from winnow.data.layouts import unread
from winnow.models.loading import LoadedModel
from winnow.system.console import safe, say
from winnow.training.loop import Plan


def say_head(
    loaded: LoadedModel,
    counts: dict[str, int],
    engine: str,
    plan: Plan,
    settings: TrainSettings,
    train_set: Dataset,
    held_out: dict[str, Dataset],
) -> None:
    """Model, data, plan and the data's warnings, before the first step."""
    account, weight = train_set.account, next(loaded.model.parameters())
    dropped = ", ".join(f"{n} {reason}" for reason, n in account.dropped.items()) or "none"
    dropped += (
        f" (and {account.identical} comparisons of identical completions)"
        if account.identical
        else ""
    )
    kept = f"{_judged(account)}, {account.tokens.cut_share:.1%} of tokens cut"
    dtype = (
        f"{weight.dtype}, {settings.quantize} where frozen," if settings.quantize else weight.dtype
    )
    say(
        f"model: {safe(settings.model)}, {counts['total']:,} parameters, {counts['trainable']:,}"
        f" train, {dtype} on {loaded.device}, engine {engine}"
    )
    first = "" if settings.stream is None else "the first window: "
    say(f"data:  {first}{account.read:,} rows read, dropped: {dropped}; {kept}")
    for source in account.sources:
        if source.ignored:
            say(
                f"       columns of {safe(source.name)} that are not read:"
                f" {safe(unread(source.layout, source.ignored))}"
            )
    for prefix, one in held_out.items():
        say(f"{prefix.rstrip('_')}:  {_judged(one.account)}")
    say(
        f"plan:  {plan.steps} steps of {plan.batch_size} groups, warm-up {plan.warmup}, peak rate"
        f" {plan.lr:g}, micro-batches of {plan.tokens:,} tokens"
    )
    say_warnings(train_set)


def _judged(account: DataAccount) -> str:
    """Groups, and what was said about them."""
    labels = (
        f"{account.labels:,} labels"
        if account.labels and not account.comparisons
        else f"{account.comparisons:,} comparisons"
    )
    return f"{account.used:,} groups, {labels}"


def say_warnings(one: Dataset) -> None:
    for finding in one.account.findings:
        if finding.level == "warning":
            say(f"[yellow]{finding.code}:[/] {safe(finding.message)}")
