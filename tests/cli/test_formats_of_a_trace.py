"""`nanhunt formats --trace`: the table of one format, the summary of seven, and what it refuses."""

from __future__ import annotations

import json

import pytest
from rich.cells import cell_len


@pytest.mark.parametrize("width", [40, 80, 120, 160])
@pytest.mark.parametrize("options", [(), ("--dtype", "e4m3"), ("--dtype", "fp16", "--dtype", "nvfp4")])
def test_no_line_is_wider_than_the_terminal(fault_trace, nanhunt, width, options, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    done = nanhunt("formats", "--trace", fault_trace, *options)
    assert done.code == 0
    assert max(cell_len(line) for line in done.out.splitlines()) <= width


def test_a_named_format_is_a_table_of_every_tensor_worst_first(fault_trace, nanhunt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    document = json.loads(nanhunt("formats", "--trace", fault_trace, "--dtype", "e4m3", "-f", "json").out)
    assert {row["format"] for row in document["headroom"]} == {"e4m3fn"}
    assert [v["format"] for v in document["verdicts"]] == ["e4m3fn"]
    page = nanhunt("formats", "--trace", fault_trace, "--dtype", "e4m3").out
    for title in (
        "to overflow",
        "to underflow",
        "subnormal",
        "to zero",
        "per tensor",
        "per row",
        "per block",
        "best scale",
    ):
        assert title in page
    table = page[page.index("\ntensor") :].splitlines()[2:]
    assert len(table) == len(document["headroom"])
    worst = [row["scaled"]["tensor"]["flushed_energy"] for row in document["headroom"] if row["role"] == "output"]
    assert worst == sorted(worst, reverse=True)


def test_without_a_name_it_is_a_line_for_each_of_seven_formats(fault_trace, nanhunt):
    page = nanhunt("formats", "--trace", fault_trace).out
    formats = ("fp16", "bf16", "e4m3fn", "e5m2", "mxfp8_e4m3", "mxfp4", "nvfp4")
    places = [page.index(f"\n  {name} ") for name in formats]
    assert places == sorted(places)
    document = json.loads(nanhunt("formats", "--trace", fault_trace, "-f", "json").out)
    assert [v["format"] for v in document["verdicts"]] == [*formats]


def test_markdown_is_a_table_with_every_column(fault_trace, nanhunt, tmp_path):
    nanhunt("formats", "--trace", fault_trace, "--dtype", "e5m2", "-o", tmp_path / "t.md")
    text = (tmp_path / "t.md").read_text()
    assert "| tensor | role | to overflow | to underflow |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_names_of_one_format_are_one_table(fault_trace, nanhunt):
    document = json.loads(
        nanhunt("formats", "--trace", fault_trace, "--dtype", "fp8", "--dtype", "e4m3fn", "-f", "json").out
    )
    assert len(document["verdicts"]) == 1


@pytest.mark.parametrize("name", ["fp64", "tf32", "e4m3fnuz", "e8m0fnu", "e2m1fn", "mxfp6"])
def test_every_format_of_the_catalogue_can_be_asked_for(fault_trace, nanhunt, name):
    done = nanhunt("formats", "--trace", fault_trace, "--dtype", name)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--dtype", "e4m4"), "unknown number format"),
        (("--value", "3"), "--value and --trace"),
        (("-f", "html"), "terminal, json or markdown"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_2(fault_trace, nanhunt, options, said):
    done = nanhunt("formats", "--trace", fault_trace, *options)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err


def test_what_is_no_trace_is_refused(nanhunt, tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"nothing of the kind")
    for path in (tmp_path / "x.parquet", tmp_path / "none.parquet"):
        done = nanhunt("formats", "--trace", path, "--dtype", "bf16")
        assert done.code == 2
        assert path.name in done.err
