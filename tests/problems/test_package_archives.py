from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import write_atomically
from genrep_dist.problems.datasets.package_archives import Archive, download, read_members


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "package/a"
            archive.addfile(info)
    return path


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_named_members_are_read_and_nothing_is_written(tmp_path: Path, make: object) -> None:
    assert callable(make)
    path = make(tmp_path / "archive", {"package/a": b"first", "package/b": b"second", "package/code.py": b"raise SystemExit"})
    assert read_members(path, {"x": "package/b", "y": "package/a"}) == {"x": b"second", "y": b"first"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("evil", ["../outside", "package/../../outside", "/etc/outside", "..\\outside", "C:\\outside"])
def test_names_that_lead_out_are_refused_even_when_not_asked_for(tmp_path: Path, make: object, evil: str) -> None:
    assert callable(make)
    path = make(tmp_path / "archive", {"package/a": b"first", evil: b"evil"})
    with pytest.raises(ProblemError, match="leads out"):
        read_members(path, {"x": "package/a"})


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_missing_member_is_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    path = make(tmp_path / "archive", {"package/a": b"first"})
    with pytest.raises(ProblemError, match="lacks a member"):
        read_members(path, {"x": "package/b"})


def test_a_link_is_no_member(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "archive", {"package/a": b"first"}, link="package/link")
    with pytest.raises(ProblemError, match="lacks a member"):
        read_members(path, {"x": "package/link"})


def test_what_is_no_archive_or_damaged_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "page"
    text.write_text("<html>please log in</html>")
    whole = make_zip(tmp_path / "whole", {"package/a": b"first" * 100}).read_bytes()
    changed = tmp_path / "changed"
    changed.write_bytes(whole[:45] + bytes([whole[45] ^ 255]) + whole[46:])
    cut = tmp_path / "cut"
    cut.write_bytes(make_tar(tmp_path / "tar", {"package/a": bytes(range(256)) * 64}).read_bytes()[:-200])
    for path in (text, changed, cut, tmp_path / "missing"):
        with pytest.raises(ProblemError, match="cannot be read"):
            read_members(path, {"x": "package/a"})


def test_the_commands() -> None:
    pip = Archive("pip", "Some", "1.0", "", {})
    assert pip.command() == ["python", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", ".", "Some==1.0"]
    assert Archive("npm", "some", "1.0", "", {}).command() == ["npm", "pack", "--ignore-scripts", "some@1.0"]


@dataclass(frozen=True)
class Scripted(Archive):
    """An archive whose download is a Python script."""

    script: str = ""

    def command(self, python: str = "python", folder: str = ".") -> list[str]:
        return [python or sys.executable, "-c", self.script]


def test_the_file_that_a_download_left_is_returned(tmp_path: Path) -> None:
    archive = Scripted("npm", "some", "1.0", "", {}, "open('some-1.0.tgz', 'wb').write(b'data')")
    assert download(archive, tmp_path).read_bytes() == b"data"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise SystemExit('no network here')", "no network here"),
        ("pass", "0 files"),
        ("open('one', 'w').close(); open('two', 'w').close()", "2 files"),
    ],
)
def test_a_download_that_fails_says_why(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        download(Scripted("pip", "some", "1.0", "", {}, script), tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    assert path.read_bytes() == b"old"

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ProblemError, match="full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
