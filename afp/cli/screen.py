"""What commands share: tables on the screen, name=value pairs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..errors import DataError
from ..files import written_whole
from .echo import echo, print_table

if TYPE_CHECKING:
    from ..results.verdict import Standing


def print_findings(findings: Iterable) -> bool:
    """Print `afp.data.audit.Finding`s, a line each; returns whether all are well."""
    ok = True
    for finding in findings:
        ok &= finding.ok
        echo("OK  " if finding.ok else "FAIL", fg="green" if finding.ok else "red", nl=False)
        echo(f" {finding.check}: {finding.detail}")
    return ok


def pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise DataError(f"{option}: {text!r}, expected name=value")
    return name, value


def setting(text: str) -> tuple[str, object]:
    """``--set name=value``; the value is read as JSON where it is JSON, else as text."""
    name, value = pair("--set", text)
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def print_metrics(table: pd.DataFrame, out: Path | None, markdown: bool = False) -> None:
    """A table a detector, one that compares them, and all metrics into ``out`` (.csv or .json)."""
    from ..results import metrics
    from ..results.scores import write_rows
    from ..results.tables import comparison_table, held_out_table, to_markdown

    results = metrics.evaluate(table, progress=True)
    parts = list(results.groupby(["detector", "perturbation"], sort=False))
    if results["perturbation"].nunique() > 1:
        from ..studies.robustness import robustness_table

        wide = robustness_table(results)
        if markdown:
            echo(to_markdown(wide))
        else:
            print_frame(wide, title="mean over held-out generators")
    elif markdown:
        echo(to_markdown(comparison_table(results) if len(parts) > 1 else held_out_table(results)))
    else:
        for (detector, perturbation), part in parts:
            title = detector if perturbation == "none" else f"{detector}, {perturbation}"
            print_frame(held_out_table(part), title=title)
        if results["detector"].nunique() > 1:
            print_frame(comparison_table(results), title="AUC with 95 % intervals")
    fakes = results[results["kind"] != "real"]
    for detector, labels in table.groupby("detector", sort=False)["label"]:
        if labels.nunique() == 1:
            only = "fake" if labels.iloc[0] else "real"
            lacking = "AUC and AP compare both classes, and are n/a"
            echo(f"{detector}: all images are {only}; {lacking}", fg="yellow")
    if table["threshold"].isna().all():
        echo("the table has no threshold; accuracy at one is n/a", fg="yellow")
    against_all = fakes[(fakes["against"] == "real") & fakes["reals"].str.contains(" + ", regex=False)]
    for reals in against_all["reals"].unique():
        echo(f"real images are pooled ({reals}); a column `set` pairs each generator with its own")
    for text in metrics.questions(results):
        echo(f"question: {text}", fg="yellow", err=True)
    if failed := int(((table["error"] != "") | table["score"].isna()).sum()):
        echo(f"{failed} of {len(table)} rows failed and are left out", fg="yellow", err=True)
    if out is None:
        return
    with written_whole(out) as partial:
        if out.suffix.lower() == ".csv":
            write_rows(results, partial, header=True)
        else:
            results.to_json(partial, orient="records", indent=1)
    echo(f"metrics: {out}")


def print_answers(table: pd.DataFrame, frame: pd.DataFrame, standing: Standing) -> None:
    """A few scored images (all readable): verdict, and what speaks against it."""
    from ..results.scores import with_files
    from ..results.verdict import cautions

    for row, file in with_files(table, frame):
        verdict = "FAKE" if row.verdict == "fake" else row.verdict
        echo(f"{verdict}  P(fake) {row.score:.3f} (threshold {row.threshold:.3g})  {row.path}")
        echo(f"      {standing.among(row.score)}")
        for text in cautions(file, standing.normalisation):
            echo(f"      caution, {text}", fg="yellow")


def print_frame(frame: pd.DataFrame, title: str = "") -> None:
    print_table(frame.columns, frame.itertuples(index=False), title)
