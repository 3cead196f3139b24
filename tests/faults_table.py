"""Run the fault tests and write what was tried, how often and what held: ``python tests/faults_table.py OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HEAD = """# What was tried to break it

Made by `make faults` from `tests/test_faults.py`, which `make test` runs too. Other damage is tested beside what it
damages: images in `tests/test_images.py`, tables and settings drawn at random in the tests of their readers.

| what was tried | cases | what held |
|---|---|---|
"""


class Rows:
    """A plugin of pytest: a test's docstring and how often it ended how."""

    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item):
        report = (yield).get_result()
        if report.when == "call" or report.skipped:
            cases = item.get_closest_marker("cases")
            outcomes = [report.outcome] * (cases.args[0] if cases else 1)
            self.rows.setdefault(item.function.__doc__, []).extend(outcomes)

    def table(self) -> str:
        lines = []
        for text, outcomes in self.rows.items():
            tried, _, held = (" ".join(part.split()) for part in text.partition("\n"))
            for kind in sorted({*outcomes} - {"passed"}):
                held += f" ({outcomes.count(kind)} {kind})"
            lines.append(f"| {tried} | {len(outcomes)} | {held} |")
        return "\n".join(lines) + "\n"


if __name__ == "__main__":
    rows = Rows()
    status = pytest.main(
        ["-q", "-p", "no:xdist", str(Path(__file__).with_name("test_faults.py"))], plugins=[rows]
    )
    Path(sys.argv[1]).parent.mkdir(exist_ok=True)
    Path(sys.argv[1]).write_text(HEAD + rows.table(), encoding="utf-8")
    sys.exit(status)
