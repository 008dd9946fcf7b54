"""Which of a job's processes this one is. A launcher (torchrun) says so in the environment; one
process alone is rank 0 of 1.
"""

from __future__ import annotations

import os


def count() -> int:
    """Processes of the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def here() -> int:
    """Processes of the job on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this one, from 0 on."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def leads() -> bool:
    """Whether this process writes the run folder and speaks: one of all does."""
    return rank() == 0
