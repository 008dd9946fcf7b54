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

from winnow.commands.table import COMMANDS, GROUPS, PLAIN
from winnow.errors import SettingsError, Stopped, WinnowError
from winnow.options import command
from winnow.system import launch, signals
from winnow.system.console import complain, safe, say

TOGETHER = ("sft", "dpo", "reward")  # what several processes can do together


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


for _name, _entry in COMMANDS.items():
    _group, _, _last = _name.rpartition(" ")
    (votes if _group == "votes" else cli).add_command(command(_last, _entry))
for _plain in (objectives, report, verify, votes):
    cli.add_command(_plain)
click.rich_click.COMMAND_GROUPS = {
    "winnow": [
        {
            "name": group,
            "commands": [
                *(name for name, entry in COMMANDS.items() if entry.group == group),
                *(name for name, of in PLAIN.items() if of == group),
            ],
        }
        for group in GROUPS
    ]
}


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
