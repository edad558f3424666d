"""Texts of the commands in terminals and logs of any encoding."""

from __future__ import annotations

import io
import sys

import pytest

from genrep_dist.cli.display import table
from genrep_dist.cli.terminal import PlainConsole, accept_any_text, moves_cursor, write_line


def printed(encoding: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
    accept_any_text()
    rows = [("ntk", "± 0.1"), ("größe", "-")]
    PlainConsole(width=60, file=sys.stdout).print(table("AUC-DEL₋ ×", ("method", "±"), rows))
    write_line("known to ± 0.1 … 日本")
    sys.stdout.flush()
    return buffer.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "utf-8"])
def test_every_encoding_gets_aligned_tables(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *lines, last = printed(encoding, monkeypatch)
    assert len({len(line) for line in lines}) == 1, "the columns are aligned"
    titles = {"utf-8": "AUC-DEL₋ ×", "latin-1": "AUC-DEL- ×", "cp1252": "AUC-DEL- ×"}
    assert lines[0].rstrip() == titles.get(encoding, "AUC-DEL- x")
    assert last == ("known to ± 0.1 … 日本" if encoding == "utf-8" else last)
    if encoding == "ascii":
        assert "+/- 0.1" in "".join(lines)
        assert r"gr\xf6\xdfe" in "".join(lines)
        assert last == r"known to +/- 0.1 ... \u65e5\u672c"


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert moves_cursor(PlainConsole(force_terminal=True, _environ={"TERM": "xterm"}))
    assert not moves_cursor(PlainConsole(force_terminal=True, _environ={"TERM": "dumb"}))
    assert not moves_cursor(PlainConsole(file=io.StringIO()))
