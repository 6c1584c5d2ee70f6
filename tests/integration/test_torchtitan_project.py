"""The torchtitan example: its DCP folder, and the file that it converts to, replay the run's losses bit for bit."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.forked import python
from tests.integration.project import Project, copied, losses


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = copied("torchtitan", tmp_path_factory.mktemp("torchtitan"))
    project.train("--out", "out", "--steps", "30")
    return project


def of_the_run(project: Project) -> dict[int, float]:
    logged = pd.read_csv(project.folder / "out" / "losses.csv", float_precision="round_trip").set_index("step")["loss"]
    return {step: logged[step] for step in range(20, 30)}


def test_a_folder_needs_trust_and_the_message_says_how(project: Project) -> None:
    done = project.nanhunt("replay", "out/checkpoint/step-20")
    assert done.returncode == 2
    assert "--trust-pickle" in done.stderr
    assert "dcp_to_torch out/checkpoint/step-20 step-20.pt" in done.stderr


def test_the_folder_replays_bit_for_bit(project: Project) -> None:
    document = project.replay("out/checkpoint/step-20", "--trust-pickle", steps=10)
    assert document["outcome"] == "healthy"
    assert losses(project.trace) == of_the_run(project)


def test_the_converted_file_replays_bit_for_bit_without_trust(project: Project) -> None:
    module = "torch.distributed.checkpoint.format_utils"
    done = python("-m", module, "dcp_to_torch", "out/checkpoint/step-20", "step-20.pt", cwd=project.folder)
    done.check_returncode()
    assert project.replay("step-20.pt", steps=10)["outcome"] == "healthy"
    assert losses(project.trace) == of_the_run(project)


def test_a_planted_fault_is_found(project: Project) -> None:
    document = project.replay("out/checkpoint/step-20", "--trust-pickle", steps=10, data={"bad_step": 23})
    assert document["onset"]["step"] == 23
    assert document["suspects"][0]["cause"] == "empty-reduction"


def test_the_folder_of_all_steps_leads_to_the_newest(project: Project) -> None:
    for named in ("out", "out/checkpoint"):
        assert "did you mean out/checkpoint/step-30?" in project.nanhunt("replay", named).stderr
