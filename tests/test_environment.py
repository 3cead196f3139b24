"""One environment for make, pip and conda; sources that stay small, declared and free of one machine's paths."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from afp.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [Requirement(r) for r in PROJECT["dependencies"]]
TESTING = [Requirement(r) for r in PROJECT["optional-dependencies"]["test"]]
SOURCES = sorted((ROOT / "afp").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("**/[0-9][0-9]_*.ipynb"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(p) == 2 for p in pairs), "constraints.txt: every line is name==version"
    return {normal(name): version for name, version in pairs}


@pytest.mark.parametrize("requirement", REQUIREMENTS + TESTING, ids=str)
def test_every_requirement_has_a_tested_version_and_an_upper_bound(requirement, pinned):
    assert pinned[normal(requirement.name)] in requirement.specifier
    assert any(s.operator in ("<", "==", "~=") for s in requirement.specifier)


def test_torch_is_pinned_exactly():
    assert [str(r.specifier) for r in REQUIREMENTS if r.name == "torch"] == ["==2.13.0"]


def test_what_the_tested_set_needs_is_in_it(pinned):
    """Nothing of the environment is left to the day on which it is installed."""
    todo, seen = [r.name for r in REQUIREMENTS + TESTING], set()
    while todo:
        name = normal(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        for text in metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                todo.append(need.name)
    build_tools = {"setuptools", "pip", "wheel"}
    platform = {n for n in seen if n.startswith(("nvidia-", "triton", "cuda-"))}
    assert seen - set(pinned) - build_tools - platform == set()


def test_conda_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, from_pip = environment["dependencies"]
    assert from_pip == {"pip": ["-c constraints.txt", "-e .[test]"]}
    assert {re.split(r"[<>=]", c)[0] for c in conda} == {"python", "pip", "make"}
    python = SpecifierSet(next(c for c in conda if c.startswith("python")).removeprefix("python"))
    ours = SpecifierSet(PROJECT["requires-python"])
    for minor in range(9, 14):
        assert (f"3.{minor}.0" in python) == (f"3.{minor}.0" in ours), f"3.{minor}"


def test_make_installs_the_same():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"pip install .*-c constraints\.txt -e '\.\[test\]'", makefile)


def imported(code: str) -> set[str]:
    """Top-level names of all modules that a source imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def codes() -> dict[str, str]:
    found = {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for f in SOURCES}
    for file in NOTEBOOKS:
        cells = nbformat.read(file, as_version=4).cells
        found[str(file.relative_to(ROOT))] = "\n".join(c.source for c in cells if c.cell_type == "code")
    return found


def test_everything_imported_is_declared():
    owners = metadata.packages_distributions()
    declared = {normal(r.name) for r in REQUIREMENTS}
    missing = {}
    for file, code in codes().items():
        for module in imported(code) - set(sys.stdlib_module_names) - {"afp"}:
            if not declared & {normal(d) for d in owners.get(module, [module])}:
                missing.setdefault(file, set()).add(module)
    assert not missing


def test_torchvision_is_imported_nowhere():
    tests = {str(f): f.read_text(encoding="utf-8") for f in (ROOT / "tests").rglob("*.py")}
    assert [file for file, code in (codes() | tests).items() if "torchvision" in imported(code)] == []


def test_every_package_of_the_library_is_installed():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "afp").rglob("__init__.py")}
    assert set(config["tool"]["setuptools"]["packages"]) == folders


def test_no_code_loads_what_could_run_code():
    for file, code in codes().items():
        assert "trust_remote_code=True" not in code, file
        assert "weights_only=False" not in code, file
        assert not imported(code) & {"pickle", "dill", "joblib", "cloudpickle"}, file


def test_no_file_holds_a_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.:/])/(?:home|work|tmp|root|Users|mnt|content|workspace)/[\w.]")
    suffixes = {".py", ".ipynb", ".md", ".toml", ".yml", ".txt", ".csv", ".json", ".cff", ""}
    folders = [ROOT / n for n in ("afp", "tests", "notebooks", "data/published", "data/results", "figures")]
    files = [f for folder in folders for f in folder.rglob("*") if f.is_file()]
    files += [f for f in [*ROOT.iterdir(), *(ROOT / "data").iterdir()] if f.is_file()]
    found = {}
    for file in files:
        hidden = any(part.startswith((".", "__")) for part in file.relative_to(ROOT).parts[1:])
        if file.suffix not in suffixes or hidden:
            continue
        for match in pattern.finditer(file.read_text(encoding="utf-8", errors="replace")):
            if file != Path(__file__):
                found.setdefault(file.relative_to(ROOT).as_posix(), match.group() + "…")
    assert not found
