"""Folders that transformers itself wrote: what they hold reaches the right tensors, and what they hide is told."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from nanhunt.errors import CheckpointError, ConfigError
from nanhunt.training.assemble import assemble
from nanhunt.training.checkpoint import Checkpoint, load_checkpoint, load_into
from nanhunt.training.config import RunConfig
from nanhunt.training.run import TrainingRun

transformers.logging.set_verbosity_error()

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
}


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes}))


class BreaksAtTwo(Trainer):
    """A Trainer whose loss is NaN from its third step on."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss * math.nan if self.state.global_step >= 2 else loss


def trained(folder: Path, kind: type[Trainer] = Trainer) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randint(32, (8,), generator=generator) for _ in range(16)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        warmup_steps=1,
        learning_rate=1e-2,
        weight_decay=0.1,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = kind(model=llama(), args=arguments, train_dataset=[{"input_ids": b, "labels": b} for b in blocks])
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A Trainer at the end of its run, which is where its last checkpoint stands."""
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(trainer: Trainer, tmp_path: Path) -> Path:
    """A copy of the Trainer's last checkpoint."""
    return Path(shutil.copytree(Path(trainer.args.output_dir) / "checkpoint-4", tmp_path / "checkpoint-4"))


def load(path: Path) -> Checkpoint:
    return load_checkpoint(path, keys=None, trust_pickle=False)


def assembled(path: Path, root: Path, **config: Any) -> TrainingRun:
    (root / "feed.py").write_text("def batches(start_step): return iter([])\n")
    config = {"data": "feed.py:batches", **config}
    return assemble(RunConfig.model_validate(config), load(path), root=root, device=torch.device("cpu"))


def told(run: TrainingRun, words: str) -> str:
    (found,) = [a for a in run.assumptions if words in a]
    return found


def test_a_trainers_folder_is_read_whole(trainer: Trainer, folder: Path) -> None:
    found = load(folder)
    assert (found.container, found.step) == ("hf-trainer", 4)
    assert found.scheduler is not None
    assert found.scheduler["last_epoch"] == 4
    assert set(found.rng or {}) >= {"torch", "numpy", "python"}
    assert found.extra["trainer_state"]["max_steps"] == 4
    assert all(torch.equal(found.model[n], t) for n, t in trainer.model.state_dict().items())


def test_every_moment_lands_on_the_parameter_that_the_trainer_has_it_for(
    trainer: Trainer, folder: Path, tmp_path: Path
) -> None:
    run = assembled(folder, tmp_path)
    theirs = dict(trainer.model.named_parameters())
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(run.optimizer.state[parameter][key], trainer.optimizer.state[theirs[name]][key]), name
    decay = {id(p): g["weight_decay"] for g in run.optimizer.param_groups for p in g["params"]}
    kept = {n for n, p in run.model.named_parameters() if decay[id(p)] == 0.1}
    assert kept == set(trainer.get_decay_parameter_names(trainer.model))
    assert "LlamaForCausalLM" in told(run, "model: not in the config")


@pytest.mark.parametrize("named", [True, False])
def test_biases_and_norms_are_grouped_as_the_trainer_does(tmp_path: Path, named: bool) -> None:
    """GPT-2 has biases and LayerNorms, and all its layers are alike: shapes alone would not tell."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path / "checkpoint-1")
    decayed = Trainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]
    items = list(model.named_parameters())
    groups = [[(n, p) for n, p in items if (n in decayed) is is_decayed] for is_decayed in (True, False)]
    optimizer = torch.optim.AdamW([{"params": g if named else [p for _, p in g]} for g in groups], lr=0.1)
    for number, (_, parameter) in enumerate(items):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "checkpoint-1" / "optimizer.pt")
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text('{"global_step": 1}')
    run = assembled(tmp_path / "checkpoint-1", tmp_path)
    for number, (name, parameter) in enumerate(run.model.named_parameters()):
        assert run.optimizer.state[parameter]["exp_avg"].unique().tolist() == pytest.approx([(number + 1) / 10]), name


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("position", [5, 20])
def test_the_schedule_goes_on_as_the_library_would(tmp_path: Path, kind: str, warmup: int, position: int) -> None:
    if kind == "constant" and warmup:
        return
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    schedule = transformers.get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=50)
    history = []
    for step in range(1, position + 1):
        history.append({"step": step, "loss": 1.0, "learning_rate": schedule.get_last_lr()[0]})
        optimizer.step()
        schedule.step()
    folder = written(tmp_path / "checkpoint", model, optimizer, schedule, history)
    run = assembled(folder, tmp_path)
    assert run.optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0]
    # while the warm-up lasts, and the length of it is known, all kinds are one
    for _ in range(warmup - position if position < warmup else 30):
        for one in (run.optimizer, run.scheduler, optimizer, schedule):
            one.step()
        assert run.optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0]
    assert f"gives all {position} learning rates" in told(run, "scheduler: not in the config")


def test_a_schedule_that_the_log_does_not_show_leaves_the_rate_where_it_was(tmp_path: Path) -> None:
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    schedule = transformers.get_inverse_sqrt_schedule(optimizer, num_warmup_steps=3)
    history = []
    for step in range(1, 9):
        history.append({"step": step, "loss": 1.0, "learning_rate": schedule.get_last_lr()[0]})
        optimizer.step()
        schedule.step()
    run = assembled(written(tmp_path / "checkpoint", model, optimizer, schedule, history), tmp_path)
    assert run.scheduler is None
    assert f"stays fixed at {schedule.get_last_lr()[0]:g}" in told(run, "learning rate")


@pytest.mark.parametrize(
    "state",
    [
        {"max_steps": 10**400},
        {"max_steps": "50"},
        {"max_steps": 50, "log_history": [{"step": 10**400, "loss": 1.0, "learning_rate": 1e308}] * 4},
        {"max_steps": 50, "log_history": [{"step": 2, "loss": 1.0, "learning_rate": math.nan}] * 4},
    ],
)
@pytest.mark.parametrize("rates", [[0.1], ["x"], [math.inf], [], [[]]])
def test_a_malformed_schedule_or_log_leaves_the_rate(
    folder: Path, tmp_path: Path, state: Any, rates: list[Any]
) -> None:
    saved = torch.load(folder / "scheduler.pt", weights_only=True)
    torch.save({**saved, "base_lrs": rates, "_last_lr": rates}, folder / "scheduler.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 4, **state}))
    assert assembled(folder, tmp_path).scheduler is None


def written(folder: Path, model: Any, optimizer: Any, schedule: Any, history: list[dict[str, Any]]) -> Path:
    """Write what a Trainer would of a run of 50 steps."""
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(schedule.state_dict(), folder / "scheduler.pt")
    state = {"global_step": len(history), "max_steps": 50, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_a_loss_that_the_trainer_hides_is_told_with_the_checkpoint_from_before(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", BreaksAtTwo)
    logged = [e for e in trainer.state.log_history if "grad_norm" in e]
    assert [e["loss"] for e in logged][2:] == [0.0, 0.0]  # what the library does, and what this is about
    (note,) = [n for n in load(tmp_path / "run" / "checkpoint-4").notes if "hides NaN" in n]
    assert "at 2 logged steps, 3 to 4" in note
    assert "logging_nan_inf_filter" in note
    assert f"{tmp_path / 'run' / 'checkpoint-2'} is from before" in note
    assert not load(tmp_path / "run" / "checkpoint-2").notes
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path / "run")
    assert "2, checkpoint-2 to checkpoint-4" in refused.value.message
    assert str(refused.value.hint).endswith("checkpoint-2")


def test_a_config_that_does_not_clip_is_told_of_the_trainers_clip(folder: Path, tmp_path: Path) -> None:
    assert "max_grad_norm 1.0" in told(assembled(folder, tmp_path), "does not clip")
    assert not any("clip" in a for a in assembled(folder, tmp_path, train={"clip_grad_norm": 1.0}).assumptions)


def test_the_random_state_of_the_lowest_rank_is_taken_and_told(folder: Path, tmp_path: Path) -> None:
    for rank in (10, 2):
        shutil.copy(folder / "rng_state.pth", folder / f"rng_state_{rank}.pth")
    (folder / "rng_state.pth").unlink()
    assert "random state: of rank 2, one of 2" in told(assembled(folder, tmp_path), "of rank")


def test_the_scaler_of_a_run_in_fp16_is_loaded(folder: Path, tmp_path: Path) -> None:
    torch.save(torch.amp.GradScaler("cpu", init_scale=512.0).state_dict(), folder / "scaler.pt")
    run = assembled(folder, tmp_path, precision={"autocast": "fp16", "grad_scaler": True})
    assert run.scaler is not None
    assert run.scaler.get_scale() == 512.0


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path]:
    """A model that save_pretrained cut into several files."""
    model = llama(tie_word_embeddings=request.param)
    path = tmp_path_factory.mktemp("shards")
    model.save_pretrained(path, max_shard_size="6KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return model, path


@pytest.mark.parametrize("named", ["folder", "index", "without an index"])
def test_shards_are_one_model_however_they_are_named(
    shards: tuple[LlamaForCausalLM, Path], tmp_path: Path, named: str
) -> None:
    model, source = shards
    path = Path(shutil.copytree(source, tmp_path / "m"))
    if named == "index":
        path = path / "model.safetensors.index.json"
    if named == "without an index":
        (path / "model.safetensors.index.json").unlink()
    fresh = llama(tie_word_embeddings=model.config.tie_word_embeddings)
    for parameter in fresh.parameters():
        parameter.data.zero_()
    match = load_into(fresh, load(path))
    assert (match.missing, match.unexpected) == ((), ())
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in fresh.state_dict().items())


def test_a_shard_that_is_missing_or_alone_is_told(shards: tuple[LlamaForCausalLM, Path], tmp_path: Path) -> None:
    _, source = shards
    path = Path(shutil.copytree(source, tmp_path / "m"))
    first, second, *rest = sorted(path.glob("*.safetensors"))
    with pytest.raises(CheckpointError) as refused:
        load_into(llama(), load(first))
    assert f"shard 1 of {2 + len(rest)}: name the folder {path}" in str(refused.value.hint)
    second.unlink()
    with pytest.raises(CheckpointError, match=second.name):
        load(path)
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=f"lacks shard 2 of {2 + len(rest)}"):
        load(path)


def test_an_index_names_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for name in ("../other.safetensors", "a\0b", "x" * 300):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="no file of the folder"):
            load(index)


def test_experts_whose_names_differ_on_disk_are_converted(tmp_path: Path) -> None:
    sizes = {**SIZES, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))
    model.save_pretrained(tmp_path / "moe")
    run = assembled(tmp_path / "moe", tmp_path, optimizer="torch.optim:SGD")
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in run.model.state_dict().items())


def test_a_conversion_keeps_every_bit_whatever_dtype_the_config_names(tmp_path: Path) -> None:
    sizes = {**SIZES, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))
    model.save_pretrained(tmp_path / "moe")
    path = tmp_path / "moe" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "bfloat16"}))
    run = assembled(tmp_path / "moe", tmp_path, optimizer="torch.optim:SGD")
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in run.model.state_dict().items())


def test_weights_in_bf16_make_a_model_in_bf16_whose_rotary_buffers_stay_wide(tmp_path: Path) -> None:
    llama().bfloat16().save_pretrained(tmp_path / "m")
    run = assembled(tmp_path / "m", tmp_path, optimizer="torch.optim:SGD")
    assert {p.dtype for p in run.model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in run.model.buffers()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, r"code of its own \(auto_map: modeling_x.X\)"),
        ({"architectures": None}, "names no architecture"),
        ({"architectures": ["Trainer"]}, "no model of transformers"),
        ({"architectures": ["os"]}, "no model of transformers"),
        ({"model_type": "no-such"}, "cannot be built from it"),
        ({"num_attention_heads": 0}, "cannot be built from it"),
    ],
)
def test_a_config_that_is_no_plain_model_is_refused_with_the_mend(
    folder: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    mark = folder / "ran"
    (folder / "modeling_x.py").write_text(f"open({str(mark)!r}, 'w')")
    with pytest.raises(CheckpointError, match=words) as refused:
        assembled(folder, tmp_path)
    assert "under model:" in str(refused.value.hint)
    assert not mark.exists()


def test_without_transformers_the_extra_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError) as refused:
        assembled(folder, tmp_path)
    assert "nanhunt[hf]" in str(refused.value.hint)


def test_without_a_model_or_a_config_both_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"model: is missing, and .*checkpoint-4 has no config\.json"):
        assembled(folder, tmp_path)


def test_an_adapter_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="PEFT adapter"):
        load(tmp_path)


MEASURE = """
    import re, sys
    from pathlib import Path
    import torch
    from nanhunt.training.checkpoint import load_checkpoint, load_into

    def anonymous():  # MiB that are no file's pages
        return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    model = torch.nn.ModuleDict({f"w{i}": torch.nn.Linear(1024, 1024, bias=False) for i in range(16)})
    before = anonymous()
    checkpoint = load_checkpoint(Path(sys.argv[1]), keys=None, trust_pickle=False)
    load_into(model, checkpoint)
    print(anonymous() - before)
"""


@pytest.fixture
def offered(tmp_path: Path) -> Iterator[Path]:
    """64 MiB of weights in four shards."""
    from safetensors.torch import save_file

    for number in range(4):
        names = [f"w{i}.weight" for i in range(4 * number, 4 * number + 4)]
        save_file({n: torch.ones(1024, 1024) for n in names}, tmp_path / f"model-0000{number + 1}-of-00004.safetensors")
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_loading_takes_no_memory_beside_the_model(offered: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(offered)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert float(done.stdout) < 16, "64 MiB of weights were copied on the way into the model"
