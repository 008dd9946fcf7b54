"""What is to be known of several of TRL's names at once."""

from __future__ import annotations

Row = tuple[str | None, str]  # our setting or None, and what to know


def same(names: str, note: str) -> dict[str, Row]:
    """Several names that are absent for one reason."""
    return dict.fromkeys(names.split(), (None, note))


MANY = (
    "torchrun starts several processes, and the model is cut by FSDP2 by itself: nothing to set"
    " (docs/scaling.md)"
)


LOADING = (
    "rows are tokenised once, before training, and held in memory: no loader processes to tune"
)


SHARING = (
    "training never uploads; `winnow export` writes a plain transformers folder, which any tool can"
    " upload"
)


COMPILING = "not offered in this version"


KERNELS = (
    "the engine is chosen by the program, not by an option; every engine must give the numbers of"
    " the plain one"
)


LOGGING = "metrics.jsonl gets one line for every optimizer step, whatever is shown in the terminal"


EXACT = (
    "resume is exact: data order, optimizer and metrics continue bit for bit on a CPU, so there is"
    " nothing to leave out"
)


FOLLOW = (
    "mix=0.6,every=512 is TRL's default; the paper has mix=0.6 (softly, each step) or every=512"
    " (replaced)"
)
