"""The command line: ``afp --help``. Every command is a few lines around the library."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import AfpError
from ..models import processes
from .echo import echo

os.environ.setdefault("TQDM_DELAY", "1")  # seconds: what is done at once shows no bar

# Command -> its module, and its line in the help. A module is imported when its command is called.
COMMANDS = {
    "doctor": ("data", "Check versions, memory, device, weights and data."),
    "demo": ("data", "Build the demo benchmark and the embedded weights, once."),
    "manifest": ("data", "Make a manifest from folders."),
    "audit": ("data", "Check a manifest: leaks, duplicates, unreadable files, shortcuts."),
    "fit": ("detect", "Train a detector; validation picks its hyperparameters and its threshold."),
    "calibrate": ("detect", "Move a run's threshold to your own photographs."),
    "score": ("detect", "Score images with a run: P(fake), a row each."),
    "evaluate": ("detect", "Metrics with 95 % intervals, per generator."),
    "test": ("detect", "AntifakePrompt's own command line: a verdict, or accuracy over two folders."),
    "attack": ("data", "Make a test set of attacked photographs."),
    "import-checkpoint": ("checkpoint", "Make a run of a released pseudo-word, or the reverse."),
    "run": ("notebooks", "Execute notebooks headlessly with papermill."),
    "gallery": ("notebooks", "Executed notebooks and figures as static pages that need no network."),
}
KEPT = {
    "demo": "the images made so far are kept; the same command goes on from there",
    "fit": "the features and training steps saved so far are kept; the same command goes on from there",
    "score": "the rows written so far, 64 at a time, are kept; the same command goes on from there",
    "run": "the notebooks executed so far are kept; a --grid goes on from there, and `afp run NAME` runs another",
}
SHARED = ("fit", "score")  # what several processes, as `torchrun` starts them, can do together


class _Commands(TyperGroup):
    """The commands by name; says what an interruption left."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=text) for name, (_, text) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name not in COMMANDS:
            return name, command, rest
        if name in SHARED:
            processes.join()
        elif processes.count() > 1:
            raise AfpError(
                f"afp {name}: {processes.count()} processes, expected one; only fit and score share work"
            )
        if processes.rank():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the first one speaks for all
        module = import_module(f".{COMMANDS[name][0]}", __package__)
        single = typer.Typer(add_completion=False)
        single.command(name)(getattr(module, name.replace("-", "_")))
        return name, typer.main.get_command(single), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            kept = KEPT.get(ctx.invoked_subcommand, "nothing was replaced or left half-written")
            echo(f"\ninterrupted: {kept}", fg="yellow", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Detect AI-generated images with vision-language models of which almost nothing is trained.",
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show every error's traceback.")] = False,
) -> None:
    """`main` reads them."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: what is the user's or the machine's to mend becomes one line and exit status 2.

    An error of the program itself keeps its traceback, and so does everything on the GPU. An interruption ends with
    status 130.

    Args:
        arguments: default those of the process.
    """
    arguments = _join_parameters(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # where a terminal's encoding lacks a character
    try:
        if "" in arguments:  # as a path it would be the current folder
            raise AfpError(
                "one of the arguments is empty, expected a value; is a variable of the shell not set?"
            )
        app(arguments)
    except Exception as error:
        from safetensors import SafetensorError

        if "--debug" in arguments[:1] or not isinstance(error, AfpError | OSError | SafetensorError):
            raise
        echo(f"error: {error}", fg="red", err=True)
        sys.exit(2)


def _join_parameters(arguments: list[str]) -> list[str]:
    """papermill's ``-p name value`` as ``-p name=value``: typer knows no repeatable option of two values."""
    joined: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        joined.append(argument)
        if argument in ("-p", "--parameter"):
            name = next(rest, None)
            if name is None:  # typer says that a value is missing
                break
            value = None if "=" in name else next(rest, None)
            joined.append(name if value is None else f"{name}={value}")
    return joined
