"""Commands in processes of their own, forked from one that has imported what takes a new one ten seconds."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["afp.cli.data", "afp.cli.detect", "afp.cli.notebooks", "afp.figures.gallery"])
_COUNT = itertools.count()


def _run(arguments: list[str], environment: dict[str, str], said: Path, stop: tuple[int, int, str]) -> None:
    os.setsid()  # a group of its own, as a terminal gives it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    out = os.open(said, os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(out, stream.fileno())
    left, number, doing = stop
    act = getattr(os, doing)

    def count(*given: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), number)
        return act(*given)

    setattr(os, doing, count)
    from afp.cli import main

    main(arguments)


class Command:
    """An `afp` command that runs; with `stop`, it sends itself a signal before it does a thing for the n-th time."""

    def __init__(
        self, folder: Path, *arguments: object, stop: tuple[int, int, str] = (0, 0, "replace")
    ) -> None:
        self._said = folder / f"{next(_COUNT)}.txt"
        given = ([str(a) for a in arguments], dict(os.environ), self._said, stop)
        self.process = _FORKS.Process(target=_run, args=given)
        self.process.start()

    def end(self) -> tuple[int | None, str]:
        """Its exit status, and what it said."""
        self.process.join()
        return self.process.exitcode, self._said.read_text(encoding="utf-8")
