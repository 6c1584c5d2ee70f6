"""Choosing a format and writing the file."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path

import pytest

from nanhunt.errors import UsageError
from nanhunt.report import renderer
from nanhunt.report.renderer import choose_renderer, write_report


@pytest.mark.parametrize(
    ("format", "out", "name"),
    [
        (None, None, "terminal"),
        ("json", None, "json"),
        (None, "r.json", "json"),
        (None, "r.MD", "markdown"),
        (None, "r.txt", "terminal"),
        (None, "report", "terminal"),
        ("markdown", "r.json", "markdown"),
        ("terminal", "r.html", "terminal"),
    ],
)
def test_format_wins_over_suffix_and_suffix_over_default(format: str | None, out: str | None, name: str) -> None:
    assert choose_renderer(format, Path(out) if out else None).name == name


def test_an_unknown_format_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        choose_renderer("Markdwon", None)
    assert "terminal, json, markdown" in caught.value.message
    assert caught.value.hint == "did you mean 'markdown'?"


def test_an_unknown_suffix_names_the_file_and_the_formats_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        choose_renderer(None, Path("r.pdf"))
    assert "r.pdf" in caught.value.message
    assert ".json (json)" in caught.value.message
    assert "--format" in (caught.value.hint or "")


def test_a_report_replaces_the_earlier_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "r.md"
    out.write_text("old")
    write_report("new ✗\n", out)
    assert out.read_text(encoding="utf-8") == "new ✗\n"
    assert os.listdir(tmp_path) == ["r.md"]


def test_a_report_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write_report("x", tmp_path / "r.md")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "r.md")]
    assert modes[0] == modes[1]


def test_a_failed_write_keeps_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "r.md"
    out.write_text("old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match="No space left on device"):
        write_report("new", out)
    assert out.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.md"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder") as caught:
        write_report("x", tmp_path / "no" / "r.md")
    assert str(tmp_path / "no") in caught.value.message


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is a folder"):
        write_report("x", tmp_path)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target.md").write_text("old")
    (tmp_path / "link.md").symlink_to(tmp_path / "target.md")
    write_report("new", tmp_path / "link.md")
    assert (tmp_path / "link.md").is_symlink()
    assert (tmp_path / "target.md").read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_device_is_written_to_and_not_replaced() -> None:
    write_report("x", Path(os.devnull))
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_standard_output_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    write_report("✗ fault\n", None)
    assert capsys.readouterr().out == "✗ fault\n"


def test_a_terminal_without_the_sign_gets_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write_report("✗ fault\n", None)
    assert raw.getvalue() == b"? fault\n"


def test_a_renderer_is_made_with_its_options() -> None:
    made: renderer.Renderer = choose_renderer("terminal", None)(width=100, color=True, top=2, verbose=True)
    assert (made.name, made.suffix) == ("terminal", ".txt")
