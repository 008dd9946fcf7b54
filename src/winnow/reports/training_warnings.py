"""What a look at the numbers of a run should tell its owner: pure functions from numbers to
sentences.

Each symptom reads one run (settings, data, metrics, summary) and returns nothing, or a sentence
with the numbers and one piece of advice. `needs` names the metrics without which it cannot say
anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from winnow.reports.rlhf_warnings import (
    STUCK_STEPS,
    Run,
    average,
    hurried,
    ignorant,
    off_target,
    unending,
)
from winnow.system.findings import Finding, by_level
from winnow.system.format import (
    RECENT,
    decided,
    first_set,
    held_out,
    looks,
    median,
    number,
    percent,
    points,
    recent,
    wilson,
)

# nats per token: at this loss an answer of 20 tokens has become e^4 = 55 times less likely than at
# the start
DISPLACED = 0.2
SATURATED = 0.99  # training accuracy from which no pair is left that could still teach
# training minus held-out accuracy; with 100 held-out pairs this is two standard errors
OVERFIT_GAP = 0.1
# rise of the held-out loss over its minimum, as a share of it; less is the usual jitter between
# evaluations
RISEN = 0.05
# change of the loss since the first step: for dpo a reward margin of 0.004, far below any trained
# model's
STUCK = 0.002
CLIPPED = 0.5  # share of steps at which clipping, meant for outliers, sets the length of the step
# mean tokens of winners over losers (or the inverse): beyond a fifth, length alone predicts who
# wins
LENGTH_RATIO = 1.2
# mean length of answers after over before: a quarter more is more than the noise of sampling
LONGER = 1.25
COLLAPSED = (
    0.5  # entropy now over entropy at the start: half the nats means samples that repeat each other
)
# nats of KL per answer: beyond about 10 the reference hardly ever says what the policy says
FAR = 10.0
OF_SUMMARY = ("kl", "length_ratio")  # numbers of a summary over several runs that are looked at


@dataclass(frozen=True, slots=True)
class Symptom:
    """`find` looks for it; `needs`: metric names, all of them, before it can be looked for."""

    title: str
    needs: tuple[str, ...]
    find: Callable[[Run], Finding | None]
    of_writers: bool = False  # nothing to look for in a model that only judges
    of_rewards: bool = False  # nothing to look for where no answers are sampled and scored


def displacement(run: Run) -> Finding | None:
    """Both answers lose probability, the rejected one faster: the margin grows while the model
    unlearns its data.
    """
    held = held_out(run["metrics"], "logratio/chosen")
    series = held_out if held else points
    chosen, other = (
        series(run["metrics"], "logratio/chosen"),
        series(run["metrics"], "logratio/rejected"),
    )
    now = chosen[-1][1] if held else recent(chosen)
    if now > -DISPLACED:
        return None
    beside = ""
    if other:
        rejected = other[-1][1] if held else recent(other)
        beside = f" (rejected: {'fell' if rejected < 0 else 'rose'} {abs(rejected):.2f})"
    where = (
        "on held-out answers" if held else f"over the last {min(RECENT, len(chosen))} logged steps"
    )
    text = (
        f"Chosen log-probability fell {-now:.2f} nats per token since the start, measured"
        f" {where}{beside}: displacement."
    )
    return Finding(
        "warning",
        "displacement",
        text,
        remedy="Consider a higher beta, a lower rate, fewer steps, or an SFT term.",
    )


def overfit(run: Run) -> Finding | None:
    """Training pairs all won, held-out pairs not."""
    trained, (step, held) = (
        recent(points(run["metrics"], "rewards/accuracies")),
        held_out(run["metrics"], "rewards/accuracies")[-1],
    )
    if step == 0 or trained < SATURATED or trained - held < OVERFIT_GAP:
        return None
    text = (
        f"Accuracy is {trained:.2f} on training pairs and {held:.2f} on held-out ones: the pairs"
        " are memorised."
    )
    return Finding(
        "warning",
        "overfit",
        text,
        remedy="Train for fewer epochs or at a lower rate, or bring more pairs.",
    )


def rising(run: Run) -> Finding | None:
    """The held-out loss has passed its minimum; of several evaluation sets the one that rose
    most.
    """
    names = sorted(
        {
            key
            for row in run["metrics"]
            for key in row
            if key.startswith("eval_") and key.endswith("loss")
        }
    )
    worst: tuple[float, str, tuple[float, float], tuple[float, float]] | None = None
    for name in names:
        series = points(run["metrics"], name)
        if not series:
            continue
        lowest, last = min(series, key=lambda point: point[1]), series[-1]
        rise = (last[1] - lowest[1]) / abs(lowest[1]) if lowest[1] else 0.0
        if rise > RISEN and (worst is None or rise > worst[0]):
            worst = (rise, name, lowest, last)
    if worst is None:
        return None
    _, name, lowest, last = worst
    which = name.removeprefix("eval_").removesuffix("loss").rstrip("_")
    text = (
        f"Held-out loss{f' on {which}' if which else ''} rose from {lowest[1]:.4f} at step"
        f" {lowest[0]:,} to {last[1]:.4f} at step {last[0]:,}."
    )
    return Finding(
        "warning",
        "rising",
        text,
        remedy="Keep the best checkpoint with save_best, or stop earlier.",
    )


def stuck(run: Run) -> Finding | None:
    """The loss has not left the value it must have where policy and reference are the same."""
    losses, complete = (
        points(run["metrics"], "loss"),
        run.get("status", {}).get("state") == "complete",
    )
    if (
        len(losses) < (2 if complete else STUCK_STEPS)
        or abs(recent(losses) - losses[0][1]) >= STUCK
    ):
        return None
    last = min(RECENT, len(losses))
    text = (
        f"Loss was {losses[0][1]:.4f} at step {losses[0][0]:,} and is {recent(losses):.4f} over the"
        f" last {last} logged steps: it has not left its start."
    )
    return Finding(
        "warning",
        "stuck",
        text,
        remedy="Raise lr: small models and adapters often need 10 to 100 times the default.",
    )


def clipped(run: Run) -> Finding | None:
    """Clipping at most steps makes the norm, not the gradient, decide."""
    clip, norms = (
        run["settings"].get("clip"),
        [value for _, value in points(run["metrics"], "grad_norm")],
    )
    if not isinstance(clip, int | float) or not norms:
        return None
    cut = sum(norm > clip for norm in norms)
    if cut <= CLIPPED * len(norms):
        return None
    text = (
        f"The gradient was clipped at {cut:,} of {len(norms):,} logged steps"
        f" ({percent(cut / len(norms))}): median norm {number(median(norms))}, clip"
        f" {number(float(clip), 2)}."
    )
    return Finding(
        "note", "clipped", text, remedy="Raise clip if the loss is steady; lower lr if it is not."
    )


def length_bias(run: Run) -> Finding | None:
    """Winners longer (or shorter) than losers; silent where the doctor has said so already."""
    if any(
        str(finding.get("code")).startswith("length_") and finding.get("level") == "warning"
        for finding in _findings(run)
    ):
        return None
    mean = {side: _mean(run, f"length/{side}") for side in ("chosen", "rejected")}
    low, high = sorted(mean.values())
    if low <= 0 or high / low <= LENGTH_RATIO:
        return None
    word = "longer" if mean["chosen"] > mean["rejected"] else "shorter"
    text = (
        f"Chosen answers average {mean['chosen']:.0f} tokens, rejected ones {mean['rejected']:.0f}:"
        f" the model can learn to be {word} instead of better."
    )
    return Finding(
        "warning",
        "length-bias",
        text,
        remedy="Compare with --objective dpo_norm, or balance the lengths of the pairs.",
    )


def longer(run: Run) -> Finding | None:
    """Answers grew while training."""
    series = points(run["metrics"], "length/sampled")
    ratio = run["summary"].get(
        "length_ratio", series[-1][1] / max(series[0][1], 1.0) if series else None
    )
    if ratio is None or ratio <= LONGER:
        return None
    return Finding(
        "warning",
        "longer",
        f"Answers after training are {ratio:.2f} times as long as before.",
        remedy="Compare with --objective dpo_norm, or a higher beta.",
    )


def chance(run: Run) -> Finding | None:
    """Held-out accuracy that a coin could have reached, or worse."""
    step, share = held_out(run["metrics"], "rewards/accuracies")[-1]
    count, many = decided(run), looks(first_set(run))
    if step == 0 or not count or not many:
        return None
    low, high = wilson(share, many)
    if low > 0.5:
        return None
    seen = (
        f"Held-out accuracy is {share:.2f} over {count:,} comparisons (95 % interval {low:.2f} to"
        f" {high:.2f}): "
    )
    if high < 0.5:
        return Finding(
            "warning",
            "chance",
            f"{seen}below chance.",
            remedy="Check that chosen and rejected are not swapped in the data.",
        )
    return Finding(
        "warning",
        "chance",
        f"{seen}it cannot be told from chance.",
        remedy="Hold out more comparisons, or train longer, before believing this run.",
    )


def collapse(run: Run) -> Finding | None:
    """The model has become sure of itself, token by token. Rightly so in SFT from scratch, hence
    only where a policy is tuned.
    """
    series = points(run["metrics"], "entropy")
    start, now = average(series[:RECENT]), recent(series)
    if start <= 0 or now / start >= COLLAPSED:
        return None
    text = (
        f"Entropy fell from {start:.2f} to {now:.2f} nats per token: samples will repeat each"
        " other."
    )
    return Finding("warning", "collapse", text, remedy="Raise beta, or train for fewer steps.")


def far(run: Run) -> Finding | None:
    """The policy has gone far from the reference."""
    series = points(run["metrics"], "kl")
    kl = run["summary"].get("kl", series[-1][1] if series else None)
    if kl is None or kl <= FAR:
        return None
    return Finding(
        "warning",
        "far",
        f"KL to the reference is {kl:.1f} nats per answer: the model says what the reference hardly"
        " ever would.",
        remedy="Raise beta, or stop earlier.",
    )


def cut(run: Run) -> Finding | None:
    """Tokens the length limit took away."""
    tokens = ((run["data"] or {}).get("train") or {}).get("tokens") or {}
    lost = tokens.get("cut") or 0
    if not lost:
        return None
    share = lost / (lost + (tokens.get("prompt") or 0) + (tokens.get("scored") or 0))
    return Finding(
        "warning",
        "cut",
        f"max_length cut {lost:,} tokens off the training data ({percent(share, 1)} of it).",
        remedy="Raise max_length if memory allows.",
    )


PAIRS = "rewards/margins"

SYMPTOMS = {
    "displacement": Symptom("displacement", ("logratio/chosen",), displacement, True),
    "overfit": Symptom("overfitting", ("rewards/accuracies", "eval_*rewards/accuracies"), overfit),
    "rising": Symptom("rising held-out loss", ("eval_*loss",), rising),
    "stuck": Symptom("a loss that never moves", (PAIRS, "loss"), stuck),
    "clipped": Symptom("clipping", ("grad_norm",), clipped),
    "length-bias": Symptom("length bias", ("length/chosen", "length/rejected"), length_bias, True),
    "longer": Symptom("answers growing longer", ("*length",), longer, True),
    "chance": Symptom("accuracy at chance", ("eval_*rewards/accuracies",), chance),
    "collapse": Symptom("entropy collapse", ("*tuned", "entropy"), collapse, True),
    "far": Symptom("distance from the reference", ("*kl",), far, True),
    "cut": Symptom("truncation", ("data:train",), cut),
    "ignorant": Symptom(
        "a critic that knows nothing", ("explained_variance",), ignorant, of_rewards=True
    ),
    "hurried": Symptom(
        "steps too large for their answers", ("clip_fraction", "kl/step"), hurried, of_rewards=True
    ),
    "off-target": Symptom(
        "a KL that misses its target", ("beta", "kl"), off_target, of_rewards=True
    ),
    "unending": Symptom("answers that no longer end", ("finished",), unending, of_rewards=True),
}


def examine(run: Run) -> tuple[list[Finding], list[str], list[str]]:
    """(signs, titles of what was looked for, titles of what could not be for want of numbers)."""
    known = {key for row in run["metrics"] for key, value in row.items() if value is not None}
    known |= {f"summary:{key}" for key in run["summary"]} | {
        f"data:{key}" for key, value in (run["data"] or {}).items() if value
    }
    known |= {
        f"eval_*{name}" for name in ("loss", "rewards/accuracies") if held_out(run["metrics"], name)
    }
    known |= {"*kl" for key in known if key in ("kl", "summary:kl")}
    known |= {"*length" for key in known if key in ("length/sampled", "summary:length_ratio")}
    known |= {"*tuned" for key in known if key in (PAIRS, "score")}
    able = {code: known.issuperset(symptom.needs) for code, symptom in SYMPTOMS.items()}
    signs = [
        sign for code, symptom in SYMPTOMS.items() if able[code] and (sign := symptom.find(run))
    ]
    signs += [
        Finding(
            finding["level"],
            str(finding.get("code", "data")),
            in_words(finding),
            remedy=str(finding.get("remedy", "")),
        )
        for finding in _findings(run)
        if finding.get("level")
        in ("warning", "error")  # what the doctor only notes stands beside the data
    ]
    judges, others = run.get("recipe") == "reward", run.get("recipe") not in (None, "ppo")
    unable = [
        s.title
        for code, s in SYMPTOMS.items()
        if not able[code] and not (judges and s.of_writers) and not (others and s.of_rewards)
    ]
    return by_level(signs), [s.title for code, s in SYMPTOMS.items() if able[code]], unable


def _findings(run: Run) -> list[Mapping[str, Any]]:
    data = run["data"] or {}
    accounts = [data.get("train") or {}, *(data.get("eval") or {}).values()]
    return [finding for account in accounts for finding in account.get("findings") or ()]


def in_words(finding: Mapping[str, Any]) -> str:
    """A finding of the doctor's with the first rows it is about."""
    rows = [str(row) for row in finding.get("rows") or ()]
    more = f" and {len(rows) - 3:,} more" if len(rows) > 3 else ""
    return str(finding.get("message", "")) + (f" ({', '.join(rows[:3])}{more})" if rows else "")


def _mean(run: Run, name: str) -> float:
    return average(points(run["metrics"], name))
