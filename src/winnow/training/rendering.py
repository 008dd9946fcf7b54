"""From settings to the Renderer of a model's tokenizer: its template, its length limit, and what
they may be.
"""

from __future__ import annotations

from winnow.config.evaluation import EvalSettings
from winnow.config.resolve import read_text
from winnow.config.training import TrainSettings, scores
from winnow.data.render import Renderer
from winnow.errors import DataError, SettingsError
from winnow.models import loading


def renderer(settings: TrainSettings | EvalSettings, *, scorer: bool = False) -> Renderer:
    """The renderer for settings that name a model and data. scorer: the model is a reward model,
    though no setting says so. Raises ModelError, SettingsError, DataError.
    """
    tokenizer = loading.load_tokenizer(settings.model, trust_remote_code=settings.trust_remote_code)
    if settings.chat_template is not None:
        tokenizer.chat_template = read_text(settings.chat_template, "the chat template")
    longest = loading.length_limit(settings.model, trust_remote_code=settings.trust_remote_code)
    if settings.max_length is not None and longest is not None and settings.max_length > longest:
        raise DataError(
            f"max_length {settings.max_length} is beyond the model's limit of {longest} tokens",
            remedy=f"--max-length {longest}",
        )
    whole = scorer or scores(settings)
    if whole and settings.as_ == "text" and tokenizer.chat_template:
        raise SettingsError(
            "as: text, and a reward model reads text as the chat template writes it, as whoever"
            " asks it will",
            remedy="leave --as away",
        )
    return Renderer(
        tokenizer,
        limit=settings.max_length or longest,
        may_cut=settings.max_length is not None,
        whole=whole,
    )
