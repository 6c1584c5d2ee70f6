"""A wheel holds what the package reads at run time and is no Python: the page's style and scripts, uPlot, the schema."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

from nanhunt.report.html import page

ROOT = Path(__file__).resolve().parents[1]


def test_a_built_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    # the build backend itself, in this process: pip would want a network, or seconds
    wheel = pytest.importorskip("hatchling.builders.wheel")
    built = list(wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with ZipFile(built[0]) as archive:
        packed = {name: archive.getinfo(name).file_size for name in archive.namelist()}
    files = [p for p in (ROOT / "nanhunt").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {p.relative_to(ROOT).as_posix() for p in files} <= set(packed)
    read = {f"nanhunt/report/html/{name}" for name in (*page._STYLES, *page._SCRIPTS, "vendor/LICENSE")}
    for name in (*read, "nanhunt/schema/nanhunt.schema.json"):
        assert packed[name] == (ROOT / name).stat().st_size > 0
