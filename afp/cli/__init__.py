"""The command line: ``afp --help``. Every command is a few lines around the library."""

from __future__ import annotations

import sys

import typer

from . import attack, checkpoint, data, detect, notebooks

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Detect AI-generated images with vision-language models of which almost nothing is trained.",
)
for command in (
    *(data.doctor, data.demo, data.manifest, data.audit),
    *(detect.fit, detect.calibrate, detect.score, detect.evaluate, detect.test),
    *(attack.attack, checkpoint.import_checkpoint, notebooks.run, notebooks.gallery),
):
    app.command()(command)


def main() -> None:
    """Entry point: known errors become one line and exit status 2, an interruption 130."""
    try:
        app(notebooks.join_parameters(sys.argv[1:]))
    except (ValueError, OSError, RuntimeError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("interrupted; the same command goes on where it stopped", fg="yellow", err=True)
        sys.exit(130)
