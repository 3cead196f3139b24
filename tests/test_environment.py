"""One environment everywhere: what is imported is declared, what is declared is pinned, extras may be missing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from afp.errors import AfpError
from afp.paths import ROOT
from afp.studies import attacks

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(r) for r in PROJECT["dependencies"]]
OPTIONAL = [Requirement(r) for extra in EXTRAS.values() for r in extra if not r.startswith("afp[")]
PYTHON = [*(ROOT / "afp").rglob("*.py"), *(ROOT / "data" / "build").glob("*.py")]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(p) == 2 for p in pairs), "constraints.txt: every line is name==version"
    return {normal(name): version for name, version in pairs}


@pytest.mark.parametrize("requirement", REQUIREMENTS + OPTIONAL, ids=str)
def test_every_requirement_has_a_tested_version_and_an_upper_bound(requirement, pinned):
    assert pinned[normal(requirement.name)] in requirement.specifier
    assert any(s.operator in ("<", "==", "~=") for s in requirement.specifier)
    if requirement.name == "torch":  # a range takes a build of several gigabytes
        assert str(requirement.specifier) == "==2.13.0"


def test_what_the_tested_set_needs_is_in_it(pinned):
    """Nothing of the environment is left to the day on which it is installed."""
    optional = [r for r in OPTIONAL if r.name != "bitsandbytes"]  # a GPU's, not installed here
    todo, seen = [*REQUIREMENTS, *optional], set()
    while todo:
        requirement = todo.pop()
        extras = {"", *requirement.extras}
        if (key := (normal(requirement.name), *sorted(extras))) in seen:
            continue
        seen.add(key)
        for need in map(Requirement, metadata.requires(requirement.name) or []):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(need)
    names = {name for name, *_ in seen}
    build_tools = {"setuptools", "pip", "wheel"}
    platform = {n for n in names if n.startswith(("nvidia-", "triton", "cuda-"))}
    assert names - set(pinned) - build_tools - platform == set()


def test_conda_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, from_pip = environment["dependencies"]
    assert from_pip == {"pip": ["-c constraints.txt", "-e .[all,test]"]}
    assert {re.split(r"[<>=]", c)[0] for c in conda} == {"python", "pip", "make"}
    python = SpecifierSet(next(c for c in conda if c.startswith("python")).removeprefix("python"))
    ours = SpecifierSet(PROJECT["requires-python"])
    for minor in range(9, 14):
        assert (f"3.{minor}.0" in python) == (f"3.{minor}.0" in ours), f"3.{minor}"


def imported(code: str) -> set[str]:
    """Top-level names of all modules that a source imports or requires, wherever it does."""
    found = set(re.findall(r'require\("(\w+)', code))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.fixture(scope="module")
def codes() -> dict[str, str]:
    found = {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for f in PYTHON}
    for file in NOTEBOOKS:
        cells = nbformat.read(file, as_version=4).cells
        found[str(file.relative_to(ROOT))] = "\n".join(c.source for c in cells if c.cell_type == "code")
    return found


def test_everything_imported_is_declared(codes):
    owners = metadata.packages_distributions()
    declared = {normal(r.name) for r in REQUIREMENTS + OPTIONAL}
    missing = {}
    for file, code in codes.items():
        beside = {path.stem for path in (ROOT / file).parent.glob("*.py")}
        for module in imported(code) - set(sys.stdlib_module_names) - beside - {"afp"}:
            if not declared & {normal(d) for d in owners.get(module, [module])}:
                missing.setdefault(file, set()).add(module)
    assert not missing


def test_no_code_loads_what_could_run_code(codes):
    """What the linter has no rule for."""
    for file, code in codes.items():
        assert "trust_remote_code=True" not in code and "weights_only=False" not in code, file


def test_without_its_package_a_chapter_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(
        AfpError, match=r"foolbox is not installed; `pip install -e '\.\[attacks\]'` brings it"
    ):
        attacks.pgd_attack(None, None, None, 0.1, 2)


def test_the_command_line_starts_without_what_takes_long():
    slow = {"torch", "pandas", "numpy", "transformers", "rich"}
    code = f"import afp.cli, sys; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_no_file_holds_a_path_of_one_machine():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], capture_output=True, cwd=ROOT, check=True
    ).stdout.decode()
    pattern = re.compile(r"(?<![\w.:/])/(?:home|work|tmp|root|Users|mnt|content|workspace)/[\w.]")
    suffixes = {".py", ".ipynb", ".md", ".toml", ".yml", ".txt", ".csv", ".json", ".cff", ""}
    found = {}
    for name in filter(None, listed.split("\0")):
        file = ROOT / name
        text = file.read_text("utf-8", "replace") if file.suffix in suffixes and file.is_file() else ""
        if match := pattern.search(text):
            found[name] = match.group()
    found.pop("tests/test_environment.py", None)
    assert not found
