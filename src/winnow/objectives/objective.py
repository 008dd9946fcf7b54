"""An objective bound to data: from the log-probs of a batch to a loss, its weight, and what
dashboards show.

Axes: N scored tokens, C completions, M comparisons, J judged completions. A term gives sums; they
are divided once, by counts of the whole optimizer batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.engine.base import Columns
from winnow.engine.batch import Batch
from winnow.objectives import scores
from winnow.objectives.parsing import Choice, choices
from winnow.objectives.scores import Sums
from winnow.objectives.table import Value
from winnow.objectives.terms import Known, Term

# ---------------------------------------------------------------- sums, by unit


# ---------------------------------------------------------------- what must be known of a whole
# batch


# ---------------------------------------------------------------- all members together


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms, each the mean over its own units."""

    terms: tuple[Term, ...]

    @cached_property
    def name(self) -> str:
        """As it can be given again."""
        return ",".join(
            term.choice.spelled(without=() if len(self.terms) > 1 else FLAGS) for term in self.terms
        )

    @property
    def reference(self) -> bool:
        """Whether any member compares with a reference."""
        return any(term.entry.reference for term in self.terms)

    @property
    def whole(self) -> bool:
        """Whether any member must see the whole optimizer batch before a gradient: one more forward
        pass.
        """
        return any(term.entry.batch for term in self.terms)

    @property
    def live(self) -> bool:
        """Whether any member asks the reference for whole distributions, which nobody stores."""
        return any("kl_win" in term.entry.takes for term in self.terms)

    @property
    def rewards(self) -> bool:
        """Whether it is about a scalar head's numbers, one per answer (`collate(whole=True)`), and
        not about log-probs.
        """
        return any(term.entry.rewards for term in self.terms)

    @property
    def margins(self) -> bool:
        """Whether any member looks at how far ahead the data says a winner is."""
        return any("gap" in term.entry.takes or term.settings.get("offset") for term in self.terms)

    @property
    def want(self) -> tuple[str, ...]:
        """The columns it asks an engine for."""
        return (
            "entropy",
            *(("collision",) if any(term.settings.get("wpo") for term in self.terms) else ()),
            *(("kl",) if self.live else ()),
        )

    @property
    def beta(self) -> float:
        """What scales the rewards on dashboards: the first member's that has one, else 1."""
        return next(
            (float(term.settings["beta"]) for term in self.terms if "beta" in term.settings), 1.0
        )

    def counts(self, batches: Sequence[Batch]) -> tuple[float, ...]:
        """For each member what its sum over these batches is divided by."""
        return tuple(math.fsum(term.count(batch) for batch in batches) for term in self.terms)

    def totals(self, columns: Columns, batch: Batch, known: Known) -> list[Tensor]:
        """Each member's sum over the batch."""
        return [term.total(columns, batch, _own(term, known)) for term in self.terms]

    def slopes(
        self, columns: Columns, batch: Batch, counts: Sequence[float], known: Known
    ) -> tuple[Float[Tensor, " terms"], Columns]:
        """Each member's sum over the batch, and d loss / d column, where the optimizer batch has
        `counts`.
        """
        leaves: Columns = {
            name: columns[name].detach().requires_grad_()
            for name in ("logp", "kl")
            if name in columns
        }
        slopes: Columns = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        with torch.enable_grad():
            totals = self.totals({**columns, **leaves}, batch, known)
        for term, total, count in zip(self.terms, totals, counts):
            if count:
                found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
                slopes = {
                    name: slope + term.choice.weight * (own / count)
                    for (name, slope), own in zip(slopes.items(), found)
                }
        return torch.stack(totals).detach(), slopes

    def losses(self, totals: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
        """The loss, and of a mixture each member's, from sums and counts of a whole batch; what
        counted nothing has none.
        """
        means = [
            (term.choice, total / count)
            for term, total, count in zip(self.terms, totals, counts)
            if count
        ]
        members = (
            {f"loss/{choice.name}": mean for choice, mean in means} if len(self.terms) > 1 else {}
        )
        return (
            {"loss": math.fsum(choice.weight * mean for choice, mean in means), **members}
            if means
            else {}
        )

    def known(
        self, columns: Columns, batch: Batch, before: Known, *, train: bool
    ) -> dict[str, float]:
        """What the members must know of the optimizer batch `batch`, as `member/name`; `before`:
        the same at the step before.
        """
        found = {
            term.choice.name: term.known(columns, batch, _own(term, before), train=train)
            for term in self.terms
        }
        return {
            f"{name}/{key}": value
            for name, values in found.items()
            for key, value in values.items()
        }

    def sums(self, logp_N: Float[Tensor, " N"], batch: Batch) -> Sums:
        """What dashboards show beside the loss; nothing of demonstrations alone, and no rewards of
        what is imitation alone.
        """
        imitates = all(term.entry.unit == "token" for term in self.terms)
        if imitates and not len(batch.pair_M2):
            return {}
        found = scores.sums(
            logp_N, batch, beta=self.beta, reference=self.reference, mean=self.terms[0].mean
        )
        if (
            self.rewards
        ):  # the head's numbers are the rewards, and there are no log-probs or tokens to show
            return {name: value for name, value in found.items() if name.startswith("rewards/")}
        return {
            name: value
            for name, value in found.items()
            if not imitates or not name.startswith("rewards/")
        }


# settings that have an option of their own
FLAGS = (
    "beta",
    "label_smoothing",
    "score",
    "offset",
    "tail_weight",
    "wpo",
    "divergence",
)


def _own(term: Term, known: Known) -> dict[str, float]:
    head = f"{term.choice.name}/"
    return {
        name.removeprefix(head): value for name, value in known.items() if name.startswith(head)
    }


def objective(text: str, **given: Value) -> Objective:
    """The objective `text` names, with its own defaults where nothing is given. Raises
    SettingsError.
    """
    return Objective(tuple(Term(one) for one in choices(text, given)))


def reward(
    *, listwise: bool = False, label_smoothing: float = 0.0, offset: float = 0.0
) -> Objective:
    """What a reward model is trained on: Bradley-Terry's comparisons (arXiv 2305.18290 eq. 2), or
    whole rankings, which take neither setting.

    offset: by how much winners must be ahead, in nats per unit of the data's margin.
    """
    if listwise:
        return Objective((Term(Choice("bradley_terry_listwise", 1.0, {"beta": 1.0})),))
    return Objective(
        (
            Term(
                Choice(
                    "bradley_terry",
                    1.0,
                    {"beta": 1.0, "label_smoothing": label_smoothing, "offset": offset},
                )
            ),
        )
    )


DEMONSTRATION = objective("sft")
