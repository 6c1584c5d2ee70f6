"""Every planted fault, from training to report, through the command's own code: the planted cause ranks first."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nanhunt.commands.demo import demo
from nanhunt.demo import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_the_planted_cause_ranks_first(fault: Fault, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sys.modules.pop("train", None)
    demo(fault.name, folder=tmp_path, quiet=True, format="json")
    document = json.loads(capsys.readouterr().out)
    if fault.name == "none":
        assert document["outcome"] == "healthy", document["summary"]
        assert document["suspects"] == []
        return
    assert document["outcome"] == "fault"
    assert document["suspects"][0]["cause"] == fault.cause, document["summary"]
    assert document["suspects"][0]["grade"] in ("proved", "confirmed", "supported")
