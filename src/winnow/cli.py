"""The command line: every command, and a WinnowError as one readable paragraph."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

import rich_click as click
from click.exceptions import NoArgsIsHelpError

from winnow.config.collection import (
    GenerateSettings,
    JudgeSettings,
    LabelSettings,
    OnlineSettings,
    SampleSettings,
    VotesExportSettings,
    WinrateSettings,
)
from winnow.config.options import (
    CheckSettings,
    DemoSettings,
    DPOSettings,
    EvalSettings,
    ExportSettings,
    FrontierSettings,
    RewardSettings,
    SFTSettings,
)
from winnow.config.ppo import PPOSettings
from winnow.config.resolve import Resolved
from winnow.errors import SettingsError, Stopped, WinnowError
from winnow.options import command
from winnow.system import launch, signals
from winnow.system.console import complain, safe, say

TOGETHER = ("sft", "dpo", "reward")  # what several processes can do together


def _sft(resolved: Resolved[SFTSettings], line: str) -> None:
    from winnow.commands import train

    train.sft(resolved, line)


def _dpo(resolved: Resolved[DPOSettings], line: str) -> None:
    from winnow.commands import train

    train.dpo(resolved, line)


def _reward(resolved: Resolved[RewardSettings], line: str) -> None:
    from winnow.commands import train

    train.reward(resolved, line)


def _ppo(resolved: Resolved[PPOSettings], line: str) -> None:
    from winnow.commands import train

    train.ppo(resolved, line)


def _check(resolved: Resolved[CheckSettings], line: str) -> None:
    from winnow.commands import check

    if not check.run(resolved):
        raise SystemExit(2)


def _eval(resolved: Resolved[EvalSettings], line: str) -> None:
    from winnow.commands import eval as evaluation

    evaluation.run(resolved, line)


def _sample(resolved: Resolved[SampleSettings], line: str) -> None:
    from winnow.commands import sample

    sample.run(resolved)


def _judge(resolved: Resolved[JudgeSettings], line: str) -> None:
    from winnow.preferences.judging import judge

    judge.run(resolved)


def _label(resolved: Resolved[LabelSettings], line: str) -> None:
    from winnow.commands import label

    label.run(resolved)


def _generate(resolved: Resolved[GenerateSettings], line: str) -> None:
    from winnow.commands import generate

    generate.run(resolved)


def _online(resolved: Resolved[OnlineSettings], line: str) -> None:
    from winnow.commands import online

    online.run(resolved, line)


def _winrate(resolved: Resolved[WinrateSettings], line: str) -> None:
    from winnow.commands import winrate

    winrate.run(resolved, line)


def _export(resolved: Resolved[ExportSettings], line: str) -> None:
    from winnow.commands import export

    export.run(resolved)


def _demo(resolved: Resolved[DemoSettings], line: str) -> None:
    from winnow.experiments import demo

    demo.run(resolved, line)
    if resolved.settings.frontier:
        from winnow.experiments.frontier import run as frontier

        frontier.behind_demo(resolved.settings, line)


def _frontier(resolved: Resolved[FrontierSettings], line: str) -> None:
    from winnow.experiments.frontier import run as frontier

    frontier.run(resolved, line)


@click.command(epilog="Example: winnow report runs/beta_0.1 runs/beta_0.5 --out both.html")
@click.argument("given", nargs=-1, required=True, metavar="RUN|VOTES...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="the HTML file to write; default, of one run folder: its own report.html and report.json",
)
def report(given: tuple[str, ...], out: Path | None) -> None:
    """One page from run folders, side by side, and files of votes (of winnow label, or of winnow
    judge).
    """
    from winnow.experiments.frontier import report as frontier_page

    page = frontier_page.page(given, out) if out is not None else frontier_page.write_again(given)
    say(f"report: {safe(page)}")


@click.command(epilog="Example: winnow verify runs/dpo")
@click.argument("run", metavar="RUN")
def verify(run: str) -> None:
    """Is every byte of RUN as it was written? Checkpoints, model, metrics, by their hashes. Exit
    code 2 when not.
    """
    from winnow.commands import verify as looks

    if looks.run(run):
        raise SystemExit(2)


@click.command(epilog="Example: winnow objectives simpo")
@click.argument("names", nargs=-1, metavar="[NAME...]")
def objectives(names: tuple[str, ...]) -> None:
    """What can be trained: every objective with equation, unit, defaults and paper; with NAME
    everything about it.
    """
    from winnow.commands import objectives as catalogue

    catalogue.run(names)


def _votes_export(resolved: Resolved[VotesExportSettings], line: str) -> None:
    from winnow.commands import votes

    votes.export(resolved)


@click.group(name="votes")
def votes() -> None:
    """Votes of people (winnow label) and judges (winnow judge): as rows for training, how they
    agree, what they say of models.
    """


@votes.command(epilog="Example: winnow votes agreement votes.db judged.jsonl")
@click.argument(
    "files", nargs=-1, required=True, metavar="VOTES...", type=click.Path(path_type=Path)
)
def agreement(files: tuple[Path, ...]) -> None:
    """How annotators agree, with others and with themselves. Of several files the first one's are
    the people, and each other one is a judge.
    """
    from winnow.commands import votes

    votes.agreement(files)


@votes.command(epilog="Example: winnow votes stats votes.db")
@click.argument("file", metavar="VOTES", type=click.Path(path_type=Path))
def stats(file: Path) -> None:
    """Outcomes, annotators, and models by Bradley-Terry strength, where the answers say who wrote
    them.
    """
    from winnow.commands import votes

    votes.stats(file)


votes.add_command(
    command(
        VotesExportSettings,
        _votes_export,
        name="export",
        help=(
            "Votes as groups with comparisons that training takes as they are: probability is the"
            " share of votes."
        ),
        example="winnow votes export votes.db --out pairs.jsonl",
        positional="votes",
    )
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="winnow-lm", prog_name="winnow")
@click.pass_context
def cli(context: click.RichContext) -> None:
    """Align language models with what people prefer: rows of preferences in, a better model and the
    proof out.

    MODEL is a transformers folder, a hub name or a run folder. DATA is a file (JSONL, JSON, CSV,
    parquet, Arrow), a folder or a hub data set, NAME:split, several with weights. The same command
    again resumes an unfinished run.
    """
    name = context.invoked_subcommand
    if launch.count() > 1 and name not in TOGETHER:
        raise SettingsError(
            f"winnow {name} runs in one process, and this job has {launch.count()}",
            remedy=f"without torchrun; {' and '.join(TOGETHER)} take several",
        )


for made in (
    command(
        DemoSettings,
        _demo,
        name="demo",
        help=(
            "The whole way in three minutes on a small world made here: SFT, preferences, DPO,"
            " evaluation, report."
        ),
        example="winnow demo --out runs/demo",
    ),
    command(
        CheckSettings,
        _check,
        name="check",
        help=(
            "Everything but training: layout, bad rows, tokens in colour, lengths, steps, memory."
            " Exit code 2 on errors."
        ),
        example="winnow check --model runs/sft --data pairs.jsonl --eval-fraction 0.1",
    ),
    command(
        SFTSettings,
        _sft,
        name="sft",
        help=(
            "Supervised fine-tuning on demonstrations, or on the preferred answers of preference"
            " data."
        ),
        example=(
            "winnow sft --model MODEL --data demonstrations.jsonl --eval-fraction 0.05 --out"
            " runs/sft"
        ),
    ),
    command(
        DPOSettings,
        _dpo,
        name="dpo",
        help=(
            "Preference training: DPO and its family. The reference is the model as it is before"
            " the first step."
        ),
        example=(
            "winnow dpo --model runs/sft --data pairs.jsonl --eval-fraction 0.1 --out runs/dpo"
            " --preset zephyr --save-best"
        ),
    ),
    command(
        RewardSettings,
        _reward,
        name="reward",
        help=(
            "A reward model from comparisons: a number for each answer, for winnow judge, for PPO,"
            " or to be looked at."
        ),
        example=(
            "winnow reward --model runs/sft --data pairs.jsonl --eval-fraction 0.1 --out"
            " runs/reward"
        ),
    ),
    command(
        PPOSettings,
        _ppo,
        name="ppo",
        help=(
            "PPO: the policy answers prompts, a reward model or a function scores the answers, and"
            " what scored well is made likelier."
        ),
        example=(
            "winnow ppo --model runs/sft --prompts prompts.jsonl --reward runs/reward --out"
            " runs/ppo"
        ),
    ),
    command(
        EvalSettings,
        _eval,
        name="eval",
        help=(
            "Held-out accuracy, calibration, KL, displacement, slices and RewardBench of a policy"
            " or reward model, with intervals."
        ),
        example="winnow eval --model runs/dpo --data held_out.jsonl --out runs/eval",
    ),
    command(
        GenerateSettings,
        _generate,
        name="generate",
        help="What did it learn to say? Also two models side by side.",
        example="winnow generate --model runs/dpo --before runs/sft --prompts prompts.txt",
    ),
    command(
        SampleSettings,
        _sample,
        name="sample",
        help=(
            "Several answers to each prompt, to be compared: by people (winnow label) or by a"
            " judge. Goes on where it stopped."
        ),
        example="winnow sample --model runs/sft --prompts prompts.jsonl --k 4 --out answers.jsonl",
    ),
    command(
        LabelSettings,
        _label,
        name="label",
        help=(
            "Compare answers on a page in the browser: blind, side by side, by keys. Every vote is"
            " kept at once; the same command goes on."
        ),
        example="winnow label answers.jsonl --out votes.db",
        positional="answers",
    ),
    command(
        JudgeSettings,
        _judge,
        name="judge",
        help=(
            "Answers compared by a language model, a reward model or a rule: groups that winnow dpo"
            " trains on. Goes on where it stopped."
        ),
        example=(
            "winnow judge answers.jsonl --judge http://localhost:8000/v1 --judge-model NAME"
            " --question summary --out judged.jsonl"
        ),
        positional="answers",
    ),
    command(
        OnlineSettings,
        _online,
        name="online",
        help=(
            "Rounds of sample, judge and train, each from the policy of the one before; every round"
            " judged on held-out prompts. Goes on where it stopped."
        ),
        example=(
            "winnow online --model runs/sft --prompts prompts.jsonl --judge length --rounds 3 --out"
            " runs/online"
        ),
    ),
    command(
        FrontierSettings,
        _frontier,
        name="frontier",
        help=(
            "Reward against KL: DPO, PPO and the paper's baselines on two small worlds, beside the"
            " most there can be. Half an hour; --quick takes minutes."
        ),
        example="winnow frontier --out runs/frontier --quick",
    ),
    command(
        WinrateSettings,
        _winrate,
        name="winrate",
        help=(
            "How often are answers of MODELS preferred to the last one's, the baseline's, and how"
            " sure is that? Of several a ranking too."
        ),
        example=(
            "winnow winrate runs/dpo runs/sft --prompts prompts.jsonl --judge"
            " http://localhost:8000/v1 --judge-model NAME --out runs/winrate"
        ),
        positional="models",
    ),
    command(
        ExportSettings,
        _export,
        name="export",
        help=(
            "A plain transformers folder of RUN (or of a model), loaded again and compared with the"
            " live model."
        ),
        example="winnow export runs/dpo --out final --merge",
        positional="model",
    ),
    objectives,
    report,
    verify,
    votes,
):
    cli.add_command(made)


def main() -> None:
    """Entry point: designed errors are one paragraph on stderr and an exit code, never a
    traceback.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # waiting threads that spin make a busy machine three times slower (docs/log.md)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # a bug gives no token away either
    sys.excepthook = lambda kind, error, trace: complain(
        "".join(traceback.format_exception(error)).rstrip()
    )
    try:
        _quiet()
        _refuse_bytes(sys.argv[1:])
        with signals.caught():
            cli(prog_name="winnow", standalone_mode=False)
    except Stopped as stopped:
        _tell(str(stopped))
        sys.exit(stopped.exit_code)
    except WinnowError as error:
        _tell(f"error: {error}")
        sys.exit(error.exit_code)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        command = (
            error.ctx.command_path
            if isinstance(error, click.UsageError) and error.ctx
            else "winnow"
        )
        complain(f"error: command line: {error.format_message()}\n  -> {command} --help")
        sys.exit(error.exit_code)
    except (
        OSError
    ) as error:  # a full disk, a folder that went away: nothing a traceback would explain
        where = f": {error.filename}" if error.filename else ""
        _tell(
            f"error: {error.strerror or error}{where}\n  -> what was saved before is intact: mend"
            " this, and give the same command again"
        )
        sys.exit(1)


def _tell(message: str) -> None:
    """An error on stderr; of several processes the first one's first, and the same words once."""
    if launch.count() > 1 and "torch" in sys.modules:
        from winnow.system import distributed

        message = distributed.told(message)
    if message:
        complain(message)


def _refuse_bytes(words: list[str]) -> None:
    """Names that are no UTF-8 cannot be written into a run's files, and tokenizers cannot be saved
    under them.
    """
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise SettingsError(
                f"command line: {word!r} is not UTF-8",
                remedy="give the file or folder another name",
            )


def _quiet() -> None:
    """transformers' bars and notices would tear the progress line; its errors still come as
    exceptions.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # peft asks transformers by the old name
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    # where it is installed peft loads it, and it speaks of CPU kernels that are not used here
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
