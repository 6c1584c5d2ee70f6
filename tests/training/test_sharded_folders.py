"""Folders whose weights only another framework can put together are answered with that framework's command."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from nanhunt.errors import CheckpointError
from nanhunt.training.checkpoint import load_checkpoint


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, keys=None, trust_pickle=False)
    assert str(path) in caught.value.message
    return caught.value


def command(error: CheckpointError) -> list[str]:
    """The command between backquotes, as a shell would cut it."""
    assert error.hint
    return shlex.split(error.hint.split("`")[1])


#: DeepSpeed's names, of deepspeed/runtime/engine.py
ZERO_1 = ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
ZERO_3 = ("zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")


@pytest.mark.parametrize("states", [ZERO_1, ZERO_3])
@pytest.mark.parametrize("has_script", [True, False])
def test_a_zero_checkpoint_is_recognised_at_each_level(tmp_path: Path, states: tuple[str, ...], has_script: bool):
    root = made(tmp_path / "my run", "latest", *(f"global_step10/{name}" for name in states))
    if has_script:
        made(root, "zero_to_fp32.py")
    program = [str(root / "zero_to_fp32.py")] if has_script else ["-m", "deepspeed.utils.zero_to_fp32"]
    whole = ["python", *program, str(root), str(tmp_path / "my run-fp32")]
    assert command(refusal(root)) == whole
    assert command(refusal(root / "global_step10")) == [*whole, "--tag", "global_step10"]
    for name in states:
        refused = refusal(root / "global_step10" / name)
        assert "is one file of a DeepSpeed checkpoint" in refused.message
        assert command(refused) == [*whole, "--tag", "global_step10"]


def test_a_trainer_folder_that_deepspeed_wrote_is_its_root(tmp_path: Path):
    folder = made(
        tmp_path / "checkpoint-500", "trainer_state.json", "latest", "zero_to_fp32.py", f"global_step500/{ZERO_3[0]}"
    )
    assert command(refusal(folder))[1] == str(folder / "zero_to_fp32.py")


def test_a_lightning_folder_that_deepspeed_wrote_is_its_root(tmp_path: Path):
    folder = made(tmp_path / "last.ckpt", "latest", "zero_to_fp32.py", f"checkpoint/{ZERO_3[0]}")
    assert command(refusal(folder / "checkpoint"))[-2:] == ["--tag", "checkpoint"]


def test_a_universal_checkpoint_leads_to_the_one_that_it_was_made_from(tmp_path: Path):
    root = made(
        tmp_path / "run",
        "latest",
        "latest_universal",
        f"global_step10/{ZERO_1[0]}",
        "global_step10_universal/mp_rank_00_model_states.pt",
        "global_step10_universal/zero/lm_head.weight/fp32.pt",
        "global_step10_universal/zero/lm_head.weight/exp_avg.pt",
    )
    refused = refusal(root / "global_step10_universal")
    assert "universal checkpoint of DeepSpeed" in refused.message
    assert command(refused)[-3:] == [str(tmp_path / "run-fp32"), "--tag", "global_step10"]


LEGACY = ("iter_0000100/mp_rank_00/model_optim_rng.pt", "iter_0000100/mp_rank_01/model_optim_rng.pt")
PIPELINED = ("iter_0000100/mp_rank_00_000/model_optim_rng.pt", "iter_0000100/mp_rank_00_001/model_optim_rng.pt")
TORCH_DIST = tuple(f"iter_0000100/{name}" for name in (".metadata", "common.pt", "metadata.json", "__0_0.distcp"))


@pytest.mark.parametrize("files", [LEGACY, PIPELINED, TORCH_DIST])
def test_a_megatron_checkpoint_is_recognised_at_each_level(tmp_path: Path, files: tuple[str, ...]):
    root = made(tmp_path / "run", "latest_checkpointed_iteration.txt", *files)
    expected = (
        "python tools/checkpoint/convert.py --model-type GPT --loader core --saver core "
        f"--load-dir {root} --save-dir {root}-whole --target-tensor-parallel-size 1 --target-pipeline-parallel-size 1"
    )
    inside = [root / files[0], (root / files[0]).parent] if files is not TORCH_DIST else []
    for path in (root, root / "iter_0000100", *inside):
        refused = refusal(path)
        assert "Megatron" in refused.message
        assert command(refused) == expected.split()


def test_without_its_pointer_a_megatron_folder_is_recognised_by_its_iterations(tmp_path: Path):
    assert "Megatron" in refusal(made(tmp_path / "run", *LEGACY)).message


def test_a_megatron_bridge_checkpoint_is_exported_from_its_newest_iteration(tmp_path: Path):
    files = [
        name.replace("0000100", n)
        for n in ("0000100", "0000200")
        for name in (*TORCH_DIST, "iter_0000100/run_config.yaml")
    ]
    root = made(tmp_path / "run", "latest_checkpointed_iteration.txt", *files)
    python, dash, code = command(refusal(root))
    assert (python, dash) == ("python", "-c")
    assert "AutoBridge.from_hf_pretrained('HF_MODEL').export_ckpt(" in code
    assert str(root / "iter_0000200") in code
    compile(code, "command", "exec")


def test_the_file_of_the_only_rank_is_the_whole_model(tmp_path: Path):
    folder = tmp_path / "run" / "iter_0000100" / "mp_rank_00"
    folder.mkdir(parents=True)
    torch.save({"model": {"w": torch.ones(2)}, "iteration": 100}, folder / "model_optim_rng.pt")
    for path in (tmp_path / "run", folder.parent, folder):
        assert refusal(path).hint == f"name its file: {folder / 'model_optim_rng.pt'}"
    found = load_checkpoint(folder / "model_optim_rng.pt", keys=None, trust_pickle=False)
    assert (found.step, list(found.model)) == (100, ["w"])


def test_a_nemo_checkpoint_is_exported_by_nemo(tmp_path: Path):
    root = made(
        tmp_path / "step=99-last",
        "context/model.yaml",
        "weights/.metadata",
        "weights/common.pt",
        "weights/metadata.json",
    )
    for path in (root, root / "weights"):
        _, _, code = command(refusal(path))
        assert f"llm.export_ckpt(path={str(root)!r}, target='hf'" in code
        compile(code, "command", "exec")


def test_a_file_that_is_merely_called_so_is_read(tmp_path: Path):
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "model_states.pt")
    assert load_checkpoint(tmp_path / "model_states.pt", keys=None, trust_pickle=False).model
