"""Settings of the commands around training: answers to prompts, people and judges who compare them,
and rounds of all of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from winnow.config.judges import EndpointURL, JudgeName, parse_judge
from winnow.config.options import FrozenSettings, Settings, setting
from winnow.config.training import DPOSettings


class PromptSettings(Settings):
    """How prompts are put to a model."""

    as_: Literal["text", "chat"] | None = Field(
        None,
        alias="as",
        description=(
            "text leaves prompts as they are, chat makes them one user turn; default: chat where"
            " the tokenizer has a template"
        ),
        json_schema_extra={"group": "data"},
    )
    chat_template: Path | None = setting(
        None, "a Jinja file to use instead of the tokenizer's chat template", "data"
    )
    max_new_tokens: int = setting(256, "longest completion", "amount", ge=1)


class AnswerSettings(PromptSettings):
    """How prompts are answered."""

    temperature: float = setting(1.0, "0 takes the most likely token", "amount", ge=0)
    top_p: float = setting(
        1.0, "sample from the smallest set of tokens with this probability", "amount", gt=0, le=1
    )
    seed: int = setting(
        0,
        "of the sampling; neither the order of prompts nor what is sampled beside one has a part in"
        " its answers",
        "data",
        ge=0,
        lt=2**63,
    )


class SamplingSettings(AnswerSettings, FrozenSettings):
    """How a model answers prompts."""


class GenerateSettings(SamplingSettings):
    """winnow generate: what did it learn to say."""

    before: str | None = setting(
        None, "a second model, answering the same prompts beside the first", "model"
    )
    prompt: tuple[str, ...] = setting((), "a prompt; may be repeated", "data")
    prompts: str | None = setting(
        None,
        "prompts: a text file with one per line, or any data set; what they were answered with"
        " there is not read",
        "data",
    )
    k: int = setting(1, "completions per prompt", "amount", ge=1)
    out: Path | None = setting(None, "also write the answers to this JSON-lines file", "run")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.prompt and self.prompts is None:
            raise ValueError("nothing to answer: give prompt or prompts")
        return self


class SampleSettings(SamplingSettings):
    """winnow sample: several answers to each prompt, to be compared."""

    prompts: str = setting(
        ...,
        "prompts: a text file with one per line, or any data set; what they were answered with"
        " there is not read",
        "data",
    )
    limit: int | None = setting(None, "only the first so many prompts", "data", ge=1)
    k: int = setting(4, "completions per prompt", "amount", ge=1)
    sampler: Literal["transformers", "vllm"] = setting(
        "transformers", "what samples; vllm: on a GPU, where it is installed", "model"
    )
    out: Path = setting(
        ..., "a JSON-lines file; the same command again goes on where it stopped", "run"
    )


class LabelSettings(Settings):
    """winnow label: answers compared by people, on a page of this machine."""

    answers: str = setting(
        ...,
        "prompts with two answers or more: what winnow sample wrote, or any data set of such rows",
        "needed",
    )
    out: Path = setting(
        ..., "the file of votes (SQLite); the same command again goes on with it", "run"
    )
    limit: int | None = setting(None, "only the first so many prompts", "data", ge=1)
    annotator: tuple[str, ...] = setting(
        (), "who labels; several are several links. Without it: your user name", "page"
    )
    guidelines: Path | None = setting(
        None, "what annotators are to go by: a text file, markdown", "page"
    )
    overlap: int = setting(1, "annotators per pair", "amount", ge=1)
    pairs: Annotated[int, Field(ge=1)] | Literal["all"] | None = setting(
        None, "pairs per prompt: a number, or all; default: one fewer than it has answers", "amount"
    )
    random_share: float = setting(
        0.1,
        "of the pairs that are drawn; the others are chosen where the answer is least certain",
        "amount",
        ge=0,
        le=1,
    )
    repeats: float = setting(
        0.0,
        "share of tasks that are asked again later, sides swapped: does one agree with oneself?",
        "amount",
        ge=0,
        le=0.5,
    )
    gold: str | None = setting(
        None,
        "a data set whose better answers are known: a tenth of all tasks comes from it",
        "data",
    )
    seed: int = setting(0, "of sides, repeats and drawn pairs", "run")
    host: str = setting(
        "127.0.0.1",
        "the address to listen at; any other than this machine's own is not encrypted",
        "page",
    )
    port: int = setting(0, "0: a free one", "page", ge=0, le=65535)
    open: bool = setting(
        True, "show the page in a browser, where there is one annotator and a display", "page"
    )


JUDGES = (
    "http(s)://HOST/v1: a language model; reward:MODEL; or a rule: length, shorter, regex:PATTERN,"
    " exact:TEXT, module:function, FILE.py:function"
)


class JudgingSettings(Settings):
    """Who compares answers, and how."""

    judge: str = setting(..., JUDGES, "judge")
    labels: Literal["hard", "soft", "drawn"] = setting(
        "hard",
        "scores: the higher wins; a Bradley-Terry probability sigmoid(scale x difference); or one"
        " label drawn from it, as from somebody who errs",
        "judge",
    )
    scale: float = setting(
        1.0,
        "soft and drawn labels: by what differences of scores are multiplied",
        "judge",
        gt=0,
        le=1e6,
    )
    judge_model: str | None = setting(None, "the model's name there", "endpoint")
    question: str = setting(
        "helpful",
        "summary, dialogue, helpful, or a text file that says what makes an answer better",
        "endpoint",
    )
    verdict: Literal["line", "json"] = setting(
        "line",
        "the reply ends with a line, or is JSON by a schema the server must know",
        "endpoint",
    )
    orders: Literal["both", "one"] = setting(
        "both",
        "ask about each pair in both orders (two requests), or in one, drawn by the seed (then the"
        " order's effect stays in)",
        "endpoint",
    )
    key_env: str | None = setting(
        "OPENAI_API_KEY",
        "the environment variable that holds the key; none: no key is sent",
        "endpoint",
    )
    judge_temperature: float | None = setting(
        0.0, "0: the likeliest words; none: as the server likes", "endpoint", ge=0
    )
    reply_tokens: int | None = setting(
        512, "longest reply; none: as the server likes", "endpoint", ge=1
    )
    timeout: float = setting(60.0, "seconds to wait for a reply", "endpoint", gt=0)
    concurrency: int = setting(
        8, "rows that are judged at the same time", "endpoint", ge=1, le=1000
    )
    budget: int | None = setting(
        None,
        "most requests this command may send, tries again included; the next one goes on",
        "endpoint",
        ge=1,
    )

    @property
    def judge_name(self) -> JudgeName:
        """The judge, parsed."""
        return parse_judge(self.judge)

    @model_validator(mode="after")
    def _names_a_model(self) -> Self:
        if isinstance(self.judge_name, EndpointURL) and self.judge_model is None:
            raise ValueError("judge_model: an endpoint must be told which of its models is asked")
        return self


class ComparingSettings(JudgingSettings):
    """A judge whose comparisons are trained on."""

    ties: Literal["keep", "drop"] = setting(
        "keep", "a tie is a comparison with probability 0.5, or none", "judge"
    )


class JudgeSettings(ComparingSettings):
    """winnow judge: answers compared by a language model, a reward model or a rule."""

    judge: str = setting(..., f"{JUDGES}, column:NAME", "judge")
    answers: str = setting(
        ...,
        "rows with two answers or more to a prompt, as winnow sample writes them, or any rows that"
        " have several",
        "data",
    )
    out: Path = setting(
        ...,
        "a JSON-lines file of groups with comparisons; the same command again goes on where it"
        " stopped",
        "run",
    )
    limit: int | None = setting(
        None, "only the first so many rows that can be judged", "data", ge=1
    )
    pairs: int | None = setting(
        None,
        "judge so many pairs of each row's answers, drawn by the seed; default: all",
        "amount",
        ge=1,
    )
    seed: int = setting(
        0,
        "of all that is drawn: pairs, labels, the order of two answers; the order of the rows has"
        " no part in it",
        "judge",
        ge=0,
        lt=2**63,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = setting(
        "auto", "reward model: of its weights; auto: float32 on CPU, bfloat16 on GPU", "model"
    )
    device: str = setting("auto", "reward model: auto, cpu, cuda, cuda:1 ...", "model")
    trust_remote_code: bool = setting(
        False, "reward model: run code that comes with it (only from the command line)", "model"
    )


class OnlineSettings(DPOSettings, SamplingSettings, ComparingSettings):
    """winnow online: rounds of sample, judge and train. What the three commands are told is told
    here by the same names.
    """

    data: tuple[str, ...] = setting(
        (),
        "comparisons you have: trained on in every round beside the round's own; may be repeated",
        "data",
    )
    prompts: str = setting(
        ...,
        "prompts: a text file with one per line, or any data set; what they were answered with"
        " there is not read",
        "data",
    )
    limit: int | None = setting(None, "only the first so many prompts", "data", ge=1)
    rounds: int = setting(
        3, "how often to go round; more of them go on from the last", "amount", ge=1
    )
    per_round: int | None = setting(
        None,
        "prompts answered in each round; default: an equal share, none asked twice",
        "amount",
        ge=1,
    )
    held_out: int = setting(
        64,
        "prompts set aside, on which each round is held against the start and the round before; 0:"
        " none",
        "data",
        ge=0,
    )
    k: int = setting(4, "completions per prompt", "amount", ge=2)
    reference: str | None = setting(
        None,
        "previous: what the round begins with; first: what the first round began with, so that beta"
        " bounds the distance to it; or a model; default: first",
        "objective",
    )
    out: Path = setting(
        ..., "a folder for the rounds; the same command again goes on where it stopped", "run"
    )

    @model_validator(mode="after")
    def _round(self) -> Self:
        if self.held_out == 1:
            raise ValueError(
                "held_out: one prompt has no interval: give two or more, or 0 for none"
            )
        if self.judge.startswith("column:"):
            raise ValueError(
                "judge: sampled answers have no column beside them: a function module:function can"
                " look up what is right for a prompt"
            )
        if self.allow_change:
            raise ValueError(
                "allow_change: rounds that began one way go on that way: choose another out"
            )
        if self.stream is not None:
            raise ValueError(
                "stream: a round's comparisons are few and there when it begins: leave it away"
            )
        return self


class VotesExportSettings(Settings):
    """winnow votes export: votes as rows for training."""

    votes: Path = setting(
        ..., "votes of people (winnow label), of a judge (winnow judge), or exported before", "data"
    )
    out: Path = setting(
        ..., "a JSON-lines file of groups with comparisons; written anew each time", "run"
    )
    min_votes: int = setting(1, "pairs with fewer votes are left out", "data", ge=1)
    ties: Literal["keep", "drop"] = setting(
        "keep",
        "pairs for which votes are even: keep them with probability 0.5, or drop them",
        "data",
    )
    weight: Literal["pair", "votes"] = setting(
        "pair", "of a comparison in the loss: 1 for each pair, or 1 for each vote", "data"
    )
    annotators: tuple[str, ...] = setting((), "these alone; several are possible", "data")
    exclude: tuple[str, ...] = setting((), "all but these; several are possible", "data")
