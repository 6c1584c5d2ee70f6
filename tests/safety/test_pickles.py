"""A checkpoint that would run code when it is opened does nothing, whatever it is dressed as; opened without a guard it does."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nanhunt.errors import CheckpointError
from nanhunt.training.checkpoint import load_checkpoint
from tests.safety.attacks import PAYLOADS, WRITERS

SOUND = {"model": {"w": torch.zeros(2)}}


def opened(path: Path):
    return load_checkpoint(path, keys=None, trust_pickle=False)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "it_ran"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_each_payload_works_where_nothing_guards(payload, marker):
    """The control: what the other tests defuse is live."""
    pickle.loads(pickle.dumps(PAYLOADS[payload](marker)))
    assert marker.exists()


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_payload_does_nothing_in_any_kind_of_file(writer, payload, marker, tmp_path):
    write, suffix = WRITERS[writer]
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(write(PAYLOADS[payload](marker)))
    before = set(tmp_path.rglob("*"))
    if writer == "zip-with-a-second-pickle":
        assert list(opened(path).model) == ["w"]  # the extra member is no part of the state, and is never looked at
    else:
        with pytest.raises(CheckpointError):
            opened(path)
    assert not marker.exists()
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "writer", [name for name in WRITERS if name in ("zip", "zip-alone", "zip-among-weights", "legacy", "zip-as-a-key")]
)
def test_the_same_files_run_where_torch_is_told_not_to_look(writer, marker, tmp_path):
    """The control for the containers: `weights_only=False` runs them."""
    write, suffix = WRITERS[writer]
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(write(PAYLOADS["open"](marker)))
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("trust", [False, True])
def test_trust_is_what_lets_a_payload_run(trust, marker, tmp_path):
    torch.save({**SOUND, "extra": PAYLOADS["os.system"](marker)}, tmp_path / "evil.pt")
    if trust:
        load_checkpoint(tmp_path / "evil.pt", keys=None, trust_pickle=True)
    else:
        with pytest.raises(CheckpointError, match=r"system.*was not run"):
            opened(tmp_path / "evil.pt")
    assert marker.exists() == trust


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def trainer_folder(tmp_path):
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 7}')
    torch.save(SOUND["model"], folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "scheduler.pt",
        "scaler.pt",
        "rng_state.pth",
        "random_states_0.pkl",
        "pytorch_model.bin",
        "optimizer.bin",
    ],
)
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_no_part_of_a_trainers_folder_runs(name, form, marker, trainer_folder):
    evil = PAYLOADS["exec"](marker)
    if form == "torch":
        torch.save({"w": torch.zeros(2), "x": evil}, trainer_folder / name)
    else:
        (trainer_folder / name).write_bytes(pickle.dumps(evil))
    with pytest.raises(CheckpointError, match=name):
        opened(trainer_folder)
    assert not marker.exists()


def test_what_says_nothing_of_the_state_is_left_alone(marker, trainer_folder):
    for name in ("training_args.bin", "custom_checkpoint_0.pkl", "model.pkl", "setup.py"):
        torch.save(PAYLOADS["exec"](marker), trainer_folder / name)
    assert opened(trainer_folder).step == 7
    assert not marker.exists()


@pytest.mark.parametrize("hidden", [".metadata", "__0_0.distcp"])
def test_a_distributed_checkpoint_is_not_opened_without_trust(hidden, marker, tmp_path):
    folder = tmp_path / "step-7"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(SimpleNamespace(state_dict_metadata={})))
    (folder / hidden).write_bytes(pickle.dumps(PAYLOADS["os.system"](marker)))
    with pytest.raises(CheckpointError, match=r"\.metadata is a pickle"):
        opened(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "..", "sub/a.bin", "a\\b.bin", "", "\0", 7, ["x"]]
)
def test_an_index_reads_no_file_outside_of_its_folder(name, trainer_folder):
    (trainer_folder / "pytorch_model.bin").rename(trainer_folder.parent / "secret.safetensors")
    (trainer_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match=r"weight_map names .* no file of the folder"):
        opened(trainer_folder)


# --- NumPy: its own types are a way in -----------------------------------------------------------------------------


class _LyingDtype:
    """A dtype with a field of objects whose flags say that it has none."""

    def __reduce__(self):
        return np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)


class _Pointers:
    """An array whose bytes NumPy takes for pointers."""

    def __reduce__(self):
        rebuild = np.zeros(1).__reduce__()[0]
        return rebuild, (np.ndarray, (0,), b"b"), (1, (1,), _LyingDtype(), False, b"\x41" * 8)


def test_bytes_that_numpy_takes_for_pointers_end_a_process_that_looks(tmp_path):
    """The control: NumPy's own types, named as safe, follow an address that the file gives."""
    torch.save({"step": _Pointers()}, tmp_path / "evil.pt")
    allowed = "np.ndarray, np.dtype, np.dtypes.VoidDType, np.dtypes.ObjectDType, np.zeros(1).__reduce__()[0]"
    code = (
        f"import numpy as np, torch\ntorch.serialization.add_safe_globals([{allowed}])\n"
        f"torch.load({str(tmp_path / 'evil.pt')!r}, weights_only=True)['step'].item()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode < 0, done.stderr  # a signal


def test_bytes_that_numpy_takes_for_pointers_are_refused(tmp_path):
    torch.save({**SOUND, "step": _Pointers()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="NumPy dtype"):
        opened(tmp_path / "evil.pt")


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()], dtype=object), np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), np.datetime64("2026-01-01"),
        np.ma.masked_array([1]), np.void(b"abc"), np.array(["2026"], dtype="M8[Y]"),
    ],
    ids=["objects", "fields", "date", "masked", "void", "dates"],
)  # fmt: skip
def test_what_is_more_than_plain_numbers_of_numpy_is_refused(value, tmp_path):
    torch.save({**SOUND, "x": value}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError):
        opened(tmp_path / "odd.pt")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", ["?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16", "S5", "U3"])
def test_plain_arrays_and_scalars_of_numpy_come_back_as_they_were(code, order, tmp_path):
    rng = np.random.default_rng(0)
    array = np.asfortranarray(rng.integers(0, 2, (3, 4)).astype(np.dtype(code).newbyteorder(order)))
    torch.save({**SOUND, "a": array, "s": array[1, 2], "empty": array[:0]}, tmp_path / "sound.pt")
    found = opened(tmp_path / "sound.pt").extra
    assert found["a"].dtype == pickle.loads(pickle.dumps(array)).dtype
    np.testing.assert_array_equal(found["a"], array)
    assert type(pickle.loads(pickle.dumps(found["a"]))) is np.ndarray
    np.testing.assert_array_equal(copy.deepcopy(found["a"]), array)
    assert found["s"] == array[1, 2]
    assert type(found["s"]) is type(array[1, 2])
    assert found["empty"].shape == (0, 4)
