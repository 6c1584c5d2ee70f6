"""Checkpoints: every container is read, nothing in a file is run, and names find their tensors."""

import argparse
import hashlib
import json
import pickle
import random
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nanhunt.errors import CheckpointError
from nanhunt.training import checkpoint as module
from nanhunt.training.checkpoint import LOADERS, Checkpoint, load_checkpoint, load_into, match_state
from nanhunt.training.config import CheckpointKeys


def model(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


@pytest.fixture
def trained():
    """A model and its optimizer, scheduler and scaler after one step."""
    torch.manual_seed(0)
    net = model()
    optimizer = torch.optim.AdamW(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    net(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    return net, optimizer, scheduler, torch.amp.GradScaler("cpu", init_scale=1024.0)


def load(path: Path, keys: CheckpointKeys | None = None, *, trust_pickle: bool = False) -> Checkpoint:
    return load_checkpoint(path, keys=keys, trust_pickle=trust_pickle)


def refusal(path: Path, keys: CheckpointKeys | None = None, *, trust_pickle: bool = False) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load(path, keys, trust_pickle=trust_pickle)
    assert str(path) in caught.value.message
    return caught.value


def assert_same(state, expected):
    assert sorted(state) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("zipped", [True, False])
def test_a_nanogpt_checkpoint_is_read_whole(tmp_path, trained, zipped):
    net, optimizer, _, _ = trained
    path = tmp_path / "ckpt.pt"
    content = {
        "model": {f"_orig_mod.{k}": v for k, v in net.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": {"n_layer": 2},
        "iter_num": 1200,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dtype": "float16"},
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = load(path)
    assert (found.container, found.step, found.locations) == ("torch", 1200, frozenset({"cpu"}))
    assert_same(found.model, net.state_dict())
    assert found.optimizer["param_groups"][0]["lr"] == pytest.approx(1e-3)
    assert found.scheduler is found.scaler is found.rng is None
    assert sorted(found.extra) == ["best_val_loss", "config", "model_args"]
    assert found.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("key", ["model", "model_state_dict", "state_dict", "module", "net", "weights", "params"])
def test_the_model_is_found_under_its_usual_keys(tmp_path, key):
    torch.save({key: model().state_dict(), "ema": model().state_dict()}, tmp_path / "c.pt")
    assert len(load(tmp_path / "c.pt").model) == 7


@pytest.mark.parametrize("key", ["optimizer", "optimizer_state_dict", "optim", "opt", "optimizer_states"])
def test_the_optimizer_is_found_under_its_usual_keys(tmp_path, trained, key):
    state = trained[1].state_dict()
    torch.save({"model": model().state_dict(), key: [state] if key.endswith("s") else state}, tmp_path / "c.pt")
    assert load(tmp_path / "c.pt").optimizer["state"].keys() == state["state"].keys()


@pytest.mark.parametrize(
    "key", ["scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict", "lr_schedulers"]
)
def test_the_scheduler_is_found_under_its_usual_keys(tmp_path, trained, key):
    state = trained[2].state_dict()
    torch.save({"model": model().state_dict(), key: [state] if key.endswith("s") else state}, tmp_path / "c.pt")
    assert load(tmp_path / "c.pt").scheduler["last_epoch"] == 1


@pytest.mark.parametrize("key", ["scaler", "grad_scaler", "scaler_state_dict", "MixedPrecision"])
def test_the_scaler_is_found_under_its_usual_keys_or_by_its_looks(tmp_path, trained, key):
    torch.save({"model": model().state_dict(), key: trained[3].state_dict()}, tmp_path / "c.pt")
    assert load(tmp_path / "c.pt").scaler["scale"] == 1024.0


def test_a_disabled_scaler_is_no_scaler(tmp_path):
    state = torch.amp.GradScaler("cpu", enabled=False).state_dict()
    torch.save({"model": model().state_dict(), "scaler": state, "optimizer": None}, tmp_path / "c.pt")
    found = load(tmp_path / "c.pt")
    assert found.scaler is found.optimizer is None


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ({"step": 5}, 5),
        ({"global_step": torch.tensor(6)}, 6),
        ({"iteration": np.int64(7)}, 7),
        ({"it": 8.0}, 8),
        ({"steps": 9}, 9),
        ({"train_state": {"step": torch.tensor(10)}}, 10),
        ({"epoch": 3}, None),
        ({"step": {"train": 1}}, None),
        ({"step": True}, None),
        ({"step": 1.5}, None),
        ({"step": float("nan")}, None),
        ({"step": {"a": 1}, "iter_num": 4}, 4),
    ],
)
def test_the_step_is_a_whole_number_and_an_epoch_is_none(tmp_path, content, step):
    torch.save({"model": model().state_dict(), **content}, tmp_path / "c.pt")
    assert load(tmp_path / "c.pt").step == step


def states() -> dict[str, object]:
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}


@pytest.mark.parametrize(
    ("wrap", "generators"),
    [
        (lambda s: {"rng": s}, ["numpy", "python", "torch"]),
        (lambda s: {"rng_states": [s, s]}, ["numpy", "python", "torch"]),
        (lambda s: {"rng_state": s["torch"]}, ["torch"]),
        (lambda s: {"rng_state": {"cpu": s["torch"], "cuda": [s["torch"]]}}, ["cuda", "torch"]),
        (lambda s: {"torch_rng_state": s["torch"], "np_random_state": s["numpy"]}, ["numpy", "torch"]),
        (lambda s: {"random_state": 42}, []),
    ],
)
def test_random_states_are_found_by_generator(tmp_path, wrap, generators):
    torch.save({"model": model().state_dict(), **wrap(states())}, tmp_path / "c.pt")
    assert sorted(load(tmp_path / "c.pt").rng or {}) == generators


def test_random_states_survive_the_file(tmp_path):
    weights = model().state_dict()
    torch.save({"model": weights, "rng": states()}, tmp_path / "c.pt")
    drawn = np.random.random(), random.random(), torch.rand(1)
    found = load(tmp_path / "c.pt").rng
    np.random.set_state(found["numpy"])
    random.setstate(found["python"])
    torch.set_rng_state(found["torch"])
    assert (np.random.random(), random.random(), torch.rand(1)) == drawn


def test_a_plain_state_dict_is_the_model_alone(tmp_path):
    net = model()
    torch.save({**net.state_dict(), "step": torch.tensor(3)}, tmp_path / "w.pth")
    found = load(tmp_path / "w.pth")
    assert (found.container, found.step, found.optimizer) == ("state-dict", None, None)
    assert "step" in found.model


def test_weights_beside_counters_at_the_top_are_the_model(tmp_path):
    torch.save({**model().state_dict(), "step": 3, "name": "run"}, tmp_path / "w.pth")
    found = load(tmp_path / "w.pth")
    assert (found.step, len(found.model), found.extra) == (3, 7, {"name": "run"})


def test_a_second_set_of_weights_is_not_kept_as_extra(tmp_path):
    big = {"w": torch.zeros(100, 100)}
    torch.save({"model": big, "ema": big, "lr": 0.1}, tmp_path / "c.pt")
    assert load(tmp_path / "c.pt").extra == {"lr": 0.1}


def test_a_lightning_checkpoint_is_read_whole(tmp_path, trained):
    net, optimizer, scheduler, scaler = trained
    content = {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{k}": v for k, v in net.state_dict().items()},
        "optimizer_states": [optimizer.state_dict(), optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "MixedPrecision": scaler.state_dict(),
        "epoch": 2,
        "global_step": 77,
        "loops": {},
    }
    torch.save(content, tmp_path / "last.ckpt")
    found = load(tmp_path / "last.ckpt")
    assert (found.container, found.step) == ("lightning", 77)
    assert found.optimizer is not None
    assert found.scheduler["last_epoch"] == 1
    assert found.scaler["scale"] == 1024.0
    assert len(found.more_optimizers) == 1
    assert load_into(model(), found).renaming == "the leading 'model.' was dropped"


@pytest.mark.parametrize(
    "where", [("optimizer_g", "optimizer_d"), ("optimizers.g", "optimizers.d"), ("opt_g", "critic_optim")]
)
def test_states_of_several_optimizers_are_found_wherever_they_stand(tmp_path, trained, where):
    net, optimizer, _, _ = trained
    other = torch.optim.SGD(net.parameters(), lr=0.5)
    content = {"model": net.state_dict(), "step": 3, "critic": {"w": torch.ones(2)}}
    for key, state in zip(where, (optimizer.state_dict(), other.state_dict()), strict=True):
        first, _, second = key.partition(".")
        content.update({first: {**content.get(first, {}), second: state} if second else state})
    torch.save(content, tmp_path / "c.pt")
    found = load(tmp_path / "c.pt")
    assert "betas" in found.optimizer["param_groups"][0]
    assert [state["param_groups"][0]["lr"] for state in found.more_optimizers] == [0.5]
    assert list(found.more_models) == ["critic"]


def test_safetensors_hold_the_model_alone(tmp_path):
    net = model()
    save_file(net.state_dict(), tmp_path / "w.safetensors", metadata={"format": "pt"})
    found = load(tmp_path / "w.safetensors")
    assert (found.container, found.step, found.extra) == ("safetensors", None, {"format": "pt"})
    assert_same(found.model, net.state_dict())
    shutil.copy(tmp_path / "w.safetensors", tmp_path / "without-suffix")
    assert load(tmp_path / "without-suffix").container == "safetensors"


@pytest.fixture
def hf_folder(tmp_path, trained):
    net, optimizer, scheduler, scaler = trained
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    torch.save(scaler.state_dict(), folder / "scaler.pt")
    cpu, numpy, python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.save({"python": python, "numpy": numpy, "cpu": cpu, "cuda": cpu}, folder / "rng_state.pth")
    torch.save(argparse.Namespace(output_dir="x"), folder / "training_args.bin")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 500, "epoch": 1.5}))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return folder


def test_a_trainer_folder_is_read_whole_without_its_arguments(hf_folder, trained):
    found = load(hf_folder)
    assert (found.container, found.step, found.locations) == ("hf-trainer", 500, frozenset({"cpu"}))
    assert_same(found.model, trained[0].state_dict())
    assert found.optimizer["state"]
    assert found.scheduler["last_epoch"] == 1
    assert found.scaler["scale"] == 1024.0
    assert sorted(found.rng) == ["cuda", "numpy", "python", "torch"]
    assert found.extra["config"] == {"model_type": "gpt2"}


def test_sharded_weights_are_put_together(hf_folder, trained):
    state = trained[0].state_dict()
    (hf_folder / "model.safetensors").unlink()
    shards = {"model-1-of-2.safetensors": list(state)[:2], "model-2-of-2.safetensors": list(state)[2:]}
    for file, names in shards.items():
        save_file({n: state[n] for n in names}, hf_folder / file)
    index = {"weight_map": {n: file for file, names in shards.items() for n in names}}
    (hf_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load(hf_folder).model, state)
    (hf_folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-2-of-2\.safetensors, which is not in the folder"):
        load(hf_folder)


def test_weights_in_pytorch_model_bin_are_read(hf_folder, trained):
    (hf_folder / "model.safetensors").unlink()
    torch.save(trained[0].state_dict(), hf_folder / "pytorch_model.bin")
    assert_same(load(hf_folder).model, trained[0].state_dict())


def test_a_trainer_folder_without_weights_says_so(hf_folder):
    (hf_folder / "model.safetensors").unlink()
    assert "Trainer folder without weights" in refusal(hf_folder).message


def test_a_damaged_trainer_state_is_named(hf_folder):
    (hf_folder / "trainer_state.json").write_text('{"global_step": ')
    with pytest.raises(CheckpointError, match=r"trainer_state\.json: is not valid JSON"):
        load(hf_folder)


def test_the_folder_of_all_checkpoints_names_the_newest(hf_folder):
    assert "checkpoint-500" in refusal(hf_folder.parent).hint


def test_the_digest_of_a_folder_is_that_of_its_files(hf_folder):
    before = load(hf_folder).digest
    assert load(hf_folder).digest == before
    (hf_folder / "config.json").write_text("{}")
    assert load(hf_folder).digest != before


def test_of_a_large_file_both_ends_and_the_size_are_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WHOLE", 1000)
    monkeypatch.setattr(module, "ENDS", 64)
    path = tmp_path / "c.pt"
    torch.save({"model": {"w": torch.zeros(1000)}}, path)
    data = path.read_bytes()
    expected = hashlib.sha256(str(len(data)).encode() + data[:64] + data[-64:]).hexdigest()
    assert load(path).digest == f"sha256-ends:{expected}"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_folder_is_read_only_with_trust(tmp_path, trained):
    import torch.distributed.checkpoint as dcp

    net, optimizer, _, _ = trained
    folder = tmp_path / "step-7"
    content = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "train_state": {"step": 7}}
    dcp.save(content, checkpoint_id=folder)
    refused = refusal(folder)
    assert "--trust-pickle" in refused.hint
    assert "python -m torch.distributed.checkpoint.format_utils dcp_to_torch" in refused.hint
    found = load(folder, trust_pickle=True)
    assert (found.container, found.step) == ("dcp", 7)
    assert_same(found.model, net.state_dict())
    fresh = torch.optim.AdamW(net.parameters())
    fresh.load_state_dict(found.optimizer)
    for ours, theirs in zip(fresh.state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"])
    next(folder.glob("*.distcp")).unlink()
    assert "cannot be read" in refusal(folder, trust_pickle=True).message


def test_every_container_is_registered_once():
    assert [loader.name for loader in LOADERS] == [
        "accelerate",
        "hf-trainer",
        "hf-adapter",
        "deepspeed",
        "nemo",
        "megatron",
        "dcp",
        "dcp-shard",
        "safetensors",
        "torch",
    ]


def test_configured_keys_win_over_the_known_ones(tmp_path, trained):
    net, optimizer, _, scaler = trained
    content = {
        "model": {"decoy": torch.zeros(1)},
        "state": {"gen": net.state_dict(), "opts": [None, optimizer.state_dict()], "at": {"n": 5}},
        "amp.scaler": scaler.state_dict(),
    }
    torch.save(content, tmp_path / "c.pt")
    keys = CheckpointKeys(model="state.gen", optimizer="state.opts.1", step="state.at.n", scaler="amp.scaler")
    found = load(tmp_path / "c.pt", keys)
    assert_same(found.model, net.state_dict())
    assert (found.step, found.scaler["scale"]) == (5, 1024.0)
    assert found.optimizer["param_groups"]


def test_a_configured_key_that_is_absent_is_told_with_those_there(tmp_path):
    torch.save({"model": model().state_dict(), "meta": {"steps_done": 1}}, tmp_path / "c.pt")
    message = refusal(tmp_path / "c.pt", CheckpointKeys(model="modle")).message
    assert "checkpoint.model: no key 'modle'; there: model, meta; did you mean 'model'?" in message
    message = refusal(tmp_path / "c.pt", CheckpointKeys(step="meta.step_done")).message
    assert "checkpoint.step: no key 'meta.step_done'; under 'meta' there: steps_done;" in message
    assert "did you mean 'meta.steps_done'?" in message


@pytest.mark.parametrize("wrong", ["nets.nett", "net", "nest.net"])
def test_what_is_proposed_for_a_wrong_key_is_the_path_that_loads(wrong, tmp_path):
    net = model()
    torch.save({"nets": {"net": net.state_dict(), "ema": model().state_dict()}}, tmp_path / "c.pt")
    proposed = re.search("did you mean '([^']+)'", refusal(tmp_path / "c.pt", CheckpointKeys(model=wrong)).message)[1]
    assert_same(load(tmp_path / "c.pt", CheckpointKeys(model=proposed)).model, net.state_dict())


@pytest.mark.parametrize("below", [{"step": 9}, {"global_step": torch.tensor(9)}, {"loop": {"iteration": 9}}])
def test_a_step_below_a_dict_of_progress_is_found_and_a_plan_in_settings_is_none(below, tmp_path):
    plan = {
        "args": {"steps": 500, "step": 3},
        "loader": {"step": 1},
        "best": {"step": 8},
        "scheduler": {"last_epoch": 4, "base_lrs": [], "step": 2},
    }
    torch.save({"model": model().state_dict(), "meta": {**below, **plan}, "config": {"steps": 500}}, tmp_path / "c.pt")
    assert load(tmp_path / "c.pt").step == 9


def test_parts_of_a_model_that_were_saved_one_by_one_are_one_state(tmp_path):
    parts = {part: model().state_dict() for part in ("image", "text", "ema")}
    torch.save({"models": parts | {"scale": torch.zeros(())}, "meta": {"step": 2}}, tmp_path / "c.pt")
    found = load(tmp_path / "c.pt", CheckpointKeys(model="models"))
    own = {f"{part}.{name}": t for part in ("image", "text") for name, t in parts[part].items()}
    assert_same(found.model, own | {"scale": torch.zeros(())})


def test_what_lies_beside_a_part_in_its_dict_is_left_over(tmp_path):
    torch.save({"run": {"net": model().state_dict(), "args": {"width": 4}}}, tmp_path / "c.pt")
    assert load(tmp_path / "c.pt", CheckpointKeys(model="run.net")).extra == {"run": {"args": {"width": 4}}}


def test_a_configured_key_that_holds_something_else_is_told(tmp_path):
    torch.save({"model": model().state_dict(), "meta": {"a": 1}}, tmp_path / "c.pt")
    assert "'meta' holds a dict" in refusal(tmp_path / "c.pt", CheckpointKeys(optimizer="meta")).message


def test_an_ema_is_not_taken_for_the_model_but_offered(tmp_path):
    torch.save({"ema": model().state_dict(), "step": 3}, tmp_path / "c.pt")
    refused = refusal(tmp_path / "c.pt")
    assert "its keys: ema, step" in refused.message
    assert "checkpoint: {model: ema}" in refused.hint


class Payload:
    """Unpickling it runs a command that leaves a file."""

    def __init__(self, mark: Path, call: str) -> None:
        self.mark, self.call = mark, call

    def __reduce__(self):
        import os

        if self.call == "system":
            return os.system, (f"touch {self.mark}",)
        return eval, (f"open({str(self.mark)!r}, 'w').close()",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("call", ["system", "eval"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, zipped, call):
    mark, path = tmp_path / "pwned", tmp_path / "c.pt"
    content = {"model": model().state_dict(), "x": Payload(mark, call)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused = refusal(path)
    assert call in refused.message
    assert "attack" in refused.hint
    assert "--trust-pickle" not in refused.hint
    assert not mark.exists()
    # the payload is a real one: with trust it does run
    load(path, trust_pickle=True)
    assert mark.exists()


def test_a_malicious_plain_pickle_is_refused_and_not_run(tmp_path):
    mark, path = tmp_path / "pwned", tmp_path / "c.pt"
    path.write_bytes(pickle.dumps({"model": Payload(mark, "system")}))
    assert "not a file of torch.save" in refusal(path).message
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_needs_pickle_is_named_with_the_flag_and_never_loaded_unasked(tmp_path, zipped):
    path = tmp_path / "c.pt"
    content = {"model": model().state_dict(), "args": argparse.Namespace(lr=1), "step": 4}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused = refusal(path)
    assert "needs pickle: argparse.Namespace" in refused.message
    assert "if you trust this file: --trust-pickle" in refused.hint
    found = load(path, trust_pickle=True)
    assert found.step == 4
    assert found.extra["args"].lr == 1


def test_all_globals_that_need_pickle_are_named(tmp_path):
    content = {"model": model().state_dict(), "args": argparse.Namespace(), "out": Path("x")}
    torch.save(content, tmp_path / "c.pt")
    message = refusal(tmp_path / "c.pt").message
    assert "argparse.Namespace" in message
    assert "PosixPath" in message or "WindowsPath" in message


@pytest.mark.parametrize("name", ["numpy.core", "numpy._core"])
def test_numpy_values_need_no_trust_whichever_numpy_wrote_them(tmp_path, name):
    path, renamed = tmp_path / "c.pt", tmp_path / "renamed.pt"
    values = {"losses": np.arange(3.0), "best": np.float64(0.5), "names": np.array(["a"])}
    torch.save({"model": model().state_dict(), **values}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(renamed, "w") as target:
        for entry in source.namelist():
            data = source.read(entry)
            if entry.endswith("data.pkl"):
                data = data.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", f"{name}.".encode())
            target.writestr(entry, data)
    extra = load(renamed).extra
    assert np.array_equal(extra["losses"], values["losses"])
    assert extra["best"] == 0.5


def test_a_whole_module_is_refused_and_with_trust_its_state_is_taken(tmp_path):
    net = nn.Linear(2, 2)
    torch.save(net, tmp_path / "m.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "m.pt").message
    assert_same(load(tmp_path / "m.pt", trust_pickle=True).model, net.state_dict())


def test_a_class_that_cannot_be_imported_is_named_with_trust(tmp_path, monkeypatch):
    import sys
    import types

    gone = types.ModuleType("nh_gone")
    gone.Args = type("Args", (), {"__module__": "nh_gone"})
    monkeypatch.setitem(sys.modules, "nh_gone", gone)
    torch.save({"model": model().state_dict(), "args": gone.Args()}, tmp_path / "c.pt")
    monkeypatch.delitem(sys.modules, "nh_gone")
    assert "needs the module 'nh_gone'" in refusal(tmp_path / "c.pt", trust_pickle=True).message


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.pt", b"", "is empty (0 bytes)"),
        ("c.safetensors", b"", "is empty (0 bytes)"),
        ("c.pt", b"hello: world\n" * 50, "is a text file"),
        ("c.pt", "é".encode() * 400, "is a text file"),
        ("c.pt", b"\x89PNG\r\n\x1a\n" + bytes(50), "is an image"),
        ("c.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("c.pt", b"\x1f\x8b\x08" + bytes(20), "is compressed with gzip"),
        ("c.pt", bytes(range(256)), "is no checkpoint of a kind that nanhunt knows"),
        ("c.pt", pickle.dumps({"model": 1}), "is not a file of torch.save"),
        ("c.safetensors", b"\x10\0\0\0\0\0\0\0{}", "cannot be read as safetensors"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_for_what_it_is(tmp_path, name, content, message):
    refused = refusal(written(tmp_path / name, content))
    assert message in refused.message
    assert refused.hint


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path, zipped, kept):
    whole = tmp_path / "whole.pt"
    torch.save({"model": model(64).state_dict()}, whole, _use_new_zipfile_serialization=zipped)
    data = whole.read_bytes()
    refused = refusal(written(tmp_path / "c.pt", data[: int(len(data) * kept)]))
    assert refused.hint
    assert "cut short" in refused.message or "cannot be read" in refused.message


def test_safetensors_that_are_cut_short_are_refused(tmp_path):
    save_file(model(64).state_dict(), tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    assert "cannot be read" in refusal(written(tmp_path / "c.safetensors", data[:-20])).message


def test_a_trace_given_for_a_checkpoint_leads_to_report(tmp_path):
    import pandas as pd

    path = tmp_path / "trace.parquet"
    pd.DataFrame({"step": [1]}).to_parquet(path)
    refused = refusal(path)
    assert "is a trace" in refused.message
    assert f"nanhunt report {path}" in refused.hint


def test_archives_of_other_kinds_are_told_apart(tmp_path):
    np.savez(tmp_path / "n.npz", a=np.ones(2))
    assert "is a NumPy archive" in refusal(tmp_path / "n.npz").message
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    assert "is a zip archive" in refusal(tmp_path / "z.zip").message


def test_a_torchscript_archive_is_told_apart(tmp_path):
    path = tmp_path / "ts.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("ts/data.pkl", "ts/constants.pkl", "ts/code/__torch__/m.py"):
            archive.writestr(name, "")
    assert "TorchScript" in refusal(path).message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a dict"),
        (torch.ones(2), "holds one tensor, not a dict"),
        ({"lr": 0.1, "epoch": 3}, "holds no tensors; its keys: lr, epoch"),
        ({}, "holds no tensors; its keys: none"),
        (torch.optim.Adam([torch.ones(1, requires_grad=True)]).state_dict(), "holds no tensors"),
    ],
)
def test_a_file_without_a_model_is_named_for_what_it_holds(tmp_path, content, message):
    torch.save(content, tmp_path / "c.pt")
    assert message in refusal(tmp_path / "c.pt").message


def test_an_optimizers_state_alone_is_told(tmp_path, trained):
    torch.save(trained[1].state_dict(), tmp_path / "optimizer.pt")
    assert "is an optimizer's state alone" in refusal(tmp_path / "optimizer.pt").message


def test_a_missing_checkpoint_is_told_with_its_neighbours(tmp_path):
    (tmp_path / "ckpt_100.pt").touch()
    refused = refusal(tmp_path / "ckpt_10.pt")
    assert "no such file" in refused.message
    assert "ckpt_100.pt" in refused.hint
    assert "no such file" in refusal(tmp_path / "absent" / "c.pt").message


def test_a_folder_of_no_known_kind_is_refused(tmp_path):
    assert "is a folder of no kind" in refusal(tmp_path).message


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in net.state_dict().items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "model.",
        "net.",
        "_forward_module.",
        "_orig_mod.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "module.model.",
        "_forward_module.model.",
    ],
)
def test_leading_names_of_wrappers_are_dropped(prefix):
    net = model()
    match = match_state(shapes(net), {prefix + k: v for k, v in net.state_dict().items()})
    assert match.matched == {k: prefix + k for k in net.state_dict()}
    assert (match.missing, match.unexpected, match.mismatched) == ((), (), ())


def test_names_of_wrappers_are_dropped_anywhere():
    state = {"0._checkpoint_wrapped_module.weight": torch.zeros(4, 3), "_fsdp_wrapped_module.0.bias": torch.zeros(4)}
    assert len(match_state({"0.weight": (4, 3), "0.bias": (4,)}, state).matched) == 2


def test_a_prefix_is_added_where_the_model_has_it():
    net = nn.ModuleDict({"model": model()})
    match = match_state(shapes(net), model().state_dict())
    assert len(match.matched) == 7
    assert match.renaming == "the leading 'model.' was added"


def test_a_prefix_that_the_model_itself_has_stays():
    net = nn.ModuleDict({"model": nn.Linear(2, 2), "module": nn.Linear(2, 2)})
    match = match_state(shapes(net), net.state_dict())
    assert match.matched == {k: k for k in net.state_dict()}
    assert match.renaming == ""


def test_a_prefix_is_dropped_from_all_names_or_none():
    """DDP around a model whose own child is called `module`: dropping it twice would lose a tensor."""
    net = nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    wrapped = {f"module.{k}": v for k, v in net.state_dict().items()}
    assert match_state(shapes(net), wrapped).matched == {k: f"module.{k}" for k in net.state_dict()}


def test_a_match_is_told_in_a_sentence():
    net = model()
    state = {f"module.{k}": v for k, v in net.state_dict().items()} | {"module.head.weight": torch.zeros(1)}
    sentence = match_state(shapes(net), state).sentence
    assert sentence == (
        "matched 7 of 7 tensors; the leading 'module.' was dropped; of the checkpoint not used: module.head.weight"
    )


def saved(state: dict[str, torch.Tensor]) -> Checkpoint:
    return Checkpoint(path=Path("c.pt"), container="torch", step=0, model=state)


def test_weights_are_copied_in_place():
    net, source = model(), model()
    before = dict(net.named_parameters())
    match = load_into(net, saved(source.state_dict()))
    assert match.sentence == "matched 7 of 7 tensors"
    assert_same(net.state_dict(), source.state_dict())
    assert all(p is before[n] for n, p in net.named_parameters())
    assert all(p.requires_grad and p.grad_fn is None for p in net.parameters())


def test_a_change_to_the_model_does_not_reach_the_checkpoint():
    net, source = model(), {k: v.clone() for k, v in model().state_dict().items()}
    kept = source["0.weight"].clone()
    load_into(net, saved(source))
    with torch.no_grad():
        net[0].weight.add_(1)
    assert torch.equal(source["0.weight"], kept)


def test_a_compiled_model_takes_the_weights():
    net, source = model(), model()
    load_into(torch.compile(net), saved(source.state_dict()))
    assert_same(net.state_dict(), source.state_dict())


def test_a_cast_is_told():
    match = load_into(model().bfloat16(), saved(model().state_dict()))
    assert match.sentence == "matched 7 of 7 tensors; cast: 6 from float32 to bfloat16"


def test_non_finite_weights_are_copied_as_they_are():
    source = model().state_dict()
    source["0.bias"] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    net = model()
    load_into(net, saved(source))
    assert torch.equal(net[0].bias.isnan(), torch.tensor([True, False, False, False]))
    assert net[0].bias[2] == -float("inf")


def test_a_missing_tied_weight_is_its_twin():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte = nn.Embedding(5, 3)
            self.lm_head = nn.Linear(3, 5, bias=False)
            self.lm_head.weight = self.wte.weight

    net, weight = Tied(), torch.randn(5, 3)
    match = load_into(net, saved({"wte.weight": weight}))
    assert match.matched == {"wte.weight": "wte.weight", "lm_head.weight": "wte.weight"}
    assert torch.equal(net.lm_head.weight, weight)


def test_a_part_of_the_model_that_the_checkpoint_does_not_have_is_told_and_left_as_built():
    net = nn.ModuleDict({"wte": nn.Embedding(5, 3), "lm_head": nn.Linear(3, 5, bias=False)})
    match = load_into(net, saved({"wte.weight": torch.randn(5, 3)}))
    assert "missing, left as built: lm_head.weight" in match.sentence


def test_a_weight_that_may_be_there_under_another_name_is_an_error():
    net = nn.ModuleDict({"wte": nn.Embedding(5, 3), "lm_head": nn.Linear(3, 5, bias=False)})
    with pytest.raises(CheckpointError, match=r"matched 1 of 2 tensors; missing: lm_head\.weight"):
        load_into(net, saved({"wte.weight": torch.randn(5, 3), "head.weight": torch.randn(5, 3)}))


def test_missing_buffers_stay_as_built_and_are_told():
    state = model().state_dict()
    del state["1.num_batches_tracked"]
    match = load_into(model(), saved(state))
    assert match.missing == ("1.num_batches_tracked",)
    assert "missing, left as built: 1.num_batches_tracked" in match.sentence


def test_unexpected_names_are_no_error():
    state = {**model().state_dict(), "ema_decay": torch.tensor(0.9)}
    assert load_into(model(), saved(state)).unexpected == ("ema_decay",)


def test_other_shapes_are_told_side_by_side_and_nothing_is_copied():
    net, state = model(), model().state_dict()
    state["0.weight"] = torch.zeros(8, 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"shape differs: 0\.weight model \(4, 3\) checkpoint \(8, 3\)"):
        load_into(net, saved(state))
    assert_same(net.state_dict(), before)


def test_other_names_are_told_with_the_nearest():
    state = {k.replace("0.", "fc1."): v for k, v in model().state_dict().items()}
    net = nn.Sequential()
    net.add_module("fc_1", nn.Linear(3, 4))
    net.add_module("1", nn.BatchNorm1d(4))
    with pytest.raises(CheckpointError, match=r"nearest names: fc_1\.weight ~ fc1\.weight"):
        load_into(net, saved(state))


def test_many_missing_names_are_counted():
    net = nn.Sequential(*(nn.Linear(1, 1) for _ in range(6)))
    with pytest.raises(CheckpointError, match=r"missing: 0\.weight, 0\.bias, 1\.weight … \(9 more\)"):
        load_into(net, saved({"other": torch.zeros(1)}))


@pytest.mark.parametrize("net", [nn.ReLU(), nn.LazyLinear(3)])
def test_a_model_without_tensors_to_fill_is_refused(net):
    with pytest.raises(CheckpointError):
        load_into(net, saved({"w": torch.zeros(1)}))
