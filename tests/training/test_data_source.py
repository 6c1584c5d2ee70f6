"""Batches after a resume are those of the run that was never interrupted; what cannot be known is said."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from nanhunt.errors import CheckpointError, ConfigError
from nanhunt.training.batch_file import write_batches
from nanhunt.training.batches import BatchSource, DataEndedError
from nanhunt.training.checkpoint import Checkpoint, load_checkpoint
from nanhunt.training.config import RunConfig
from nanhunt.training.data_source import batch_source
from nanhunt.training.rng import RngState, restore_saved

CODE = """
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

def seeded():
    return torch.Generator().manual_seed(3)

class Noisy(torch.utils.data.Dataset):
    loads = 0
    def __len__(self):
        return 20
    def __getitem__(self, index):
        Noisy.loads += 1
        return index + torch.rand(())  # an augmentation

class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(20.0))

def plain(): return DataLoader(torch.arange(20.0), batch_size=4)
def shuffled(workers=0): return DataLoader(torch.arange(20.0), batch_size=4, shuffle=True, generator=seeded(), num_workers=workers)
def drawn(): return DataLoader(torch.arange(20.0), batch_size=4, shuffle=True)
def noisy(): return DataLoader(Noisy(), batch_size=4, shuffle=True, generator=seeded())
def streamed(): return DataLoader(Stream(), batch_size=4)
def stateful(workers=0): return StatefulDataLoader(torch.arange(20.0), batch_size=4, shuffle=True, num_workers=workers)
def stateful_noisy(): return StatefulDataLoader(Noisy(), batch_size=4, shuffle=True)
def sharded(ranks=1):
    data = torch.arange(20.0)
    return DataLoader(data, batch_size=4, sampler=DistributedSampler(data, num_replicas=ranks, rank=0, seed=5))
def generator():
    yield from torch.arange(40.0)
def placed(start_step): return iter(range(start_step, 1000))
def ranked(start_step, rank, world_size): return [torch.tensor([start_step, rank, world_size])]
def nothing(): return DataLoader([])
def accelerated():
    import accelerate
    from accelerate.utils import DataLoaderConfiguration
    settings = DataLoaderConfiguration(use_stateful_dataloader=True, use_seedable_sampler=True, data_seed=7)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=settings)
    _, loader = accelerator.prepare(torch.nn.Linear(1, 1), drawn())
    return accelerator, loader
def accelerated_loader(): return accelerated()[1]
listed = [torch.tensor(float(i)) for i in range(6)]
loader = plain()
"""


class Steps:
    """A checkpoint of a step, with a loader's state where it is given, and what was assumed of its data."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.assumptions: list[str] = []
        self.advanced = 0

    def of(
        self, data: Any, *, step: int = 0, at: int | None = None, accumulate: int = 1, loader: Any = None
    ) -> BatchSource:
        config = RunConfig.model_validate({"model": "train:model", "data": data, "train": {"accumulate": accumulate}})
        checkpoint = Checkpoint(path=self.root / "ckpt.pt", container="torch", step=step, model={}, loader=loader)
        return self.built(config, checkpoint, step if at is None else at)

    def built(self, config: RunConfig, checkpoint: Checkpoint, step: int) -> BatchSource:
        return batch_source(
            config,
            checkpoint,
            root=self.root,
            step=step,
            device=torch.device("cpu"),
            floats=None,
            assumptions=self.assumptions,
            track=self.track,
        )

    def track(self, count: int) -> AbstractContextManager[Callable[[], object]]:
        def advance() -> None:
            self.advanced += 1

        return nullcontext(advance)

    @property
    def told(self) -> str:
        return "\n".join(self.assumptions)


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    (tmp_path / "train.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Steps(tmp_path)
    sys.modules.pop("train", None)


def read(source: BatchSource, first: int, count: int, accumulate: int = 1) -> list[Any]:
    indices = range(first * accumulate, first * accumulate + count)
    return [source.get(i // accumulate, i % accumulate) for i in indices]


def same(found: list[Any], expected: list[Any]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def trained(loader: Any, epochs: int, saved_at: int, path: Path, **more: Any) -> list[Any]:
    """Train as scripts do, save the loader's state after some steps, and return every batch."""
    model, batches = nn.Dropout(0.5), []
    for _ in range(epochs):
        for batch in loader:
            batches.append(batch)
            model(torch.ones(3))  # a step draws as well
            if len(batches) == saved_at:
                content = {"model": nn.Linear(1, 1).state_dict(), "step": saved_at, "rng_state": torch.get_rng_state()}
                torch.save(content | {"dataloader": loader.state_dict()} | more, path)
    return batches


# --- resumed exactly -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("saved_at", [7, 10], ids=["inside an epoch", "at its end"])
def test_a_stateful_loader_goes_on_where_the_run_did(steps: Steps, saved_at: int, workers: int) -> None:
    torch.manual_seed(1)
    path = steps.root / "ckpt.pt"
    loader = StatefulDataLoader(torch.arange(20.0), batch_size=4, shuffle=True, num_workers=workers)
    batches = trained(loader, 4, saved_at, path)
    torch.manual_seed(99)
    config = RunConfig.model_validate(
        {"model": "train:model", "data": {"call": "train:stateful", "kwargs": {"workers": workers}}}
    )
    checkpoint = load_checkpoint(path, keys=None, trust_pickle=False)
    source = steps.built(config, checkpoint, saved_at)
    restore_saved(checkpoint.rng or {})
    found = []
    for step in range(saved_at, 20):
        found.append(source.get(step, 0))
        nn.Dropout(0.5)(torch.ones(3))
    assert same(found, batches[saved_at:])
    assert "resumed from the loader's state in the checkpoint" in steps.told


def test_augmentations_and_dropout_go_on_as_in_the_run(steps: Steps) -> None:
    sys.path.insert(0, str(steps.root))
    import train  # type: ignore[import-not-found]

    torch.manual_seed(1)
    batches = trained(train.stateful_noisy(), 2, 3, steps.root / "ckpt.pt")
    checkpoint = load_checkpoint(steps.root / "ckpt.pt", keys=None, trust_pickle=False)
    config = RunConfig.model_validate({"model": "train:model", "data": "train:stateful_noisy"})
    source = steps.built(config, checkpoint, 3)
    restore_saved(checkpoint.rng or {})
    found = []
    for step in range(3, 10):
        found.append(source.get(step, 0))
        nn.Dropout(0.5)(torch.ones(3))
    assert same(found, batches[3:])


@pytest.mark.parametrize("key", ["train_dataloader", "loader", "dl_state_dict", "nested.place"])
def test_the_loaders_state_is_found_under_its_usual_names_or_the_configured_one(steps: Steps, key: str) -> None:
    loader = StatefulDataLoader(torch.arange(20.0), batch_size=4)
    next(iterator := iter(loader))
    next(iterator)
    state = loader.state_dict()
    content = {"model": nn.Linear(1, 1).state_dict(), "step": 2}
    content |= {"nested": {"place": state}} if key == "nested.place" else {key: state}
    torch.save(content, steps.root / "ckpt.pt")
    keys = {"checkpoint": {"loader": key}} if key == "nested.place" else {}
    config = RunConfig.model_validate(
        {"model": "train:model", "data": {"call": "train:stateful", "kwargs": {}}, **keys}
    )
    checkpoint = load_checkpoint(steps.root / "ckpt.pt", keys=config.checkpoint, trust_pickle=False)
    assert checkpoint.loader["_num_yielded"] == 2
    assert "loader" not in checkpoint.extra


def test_accelerates_loader_is_resumed_from_its_own_file(steps: Steps) -> None:
    sys.path.insert(0, str(steps.root))
    import train

    torch.manual_seed(4)
    accelerator, loader = train.accelerated()
    batches: list[Tensor] = []
    for _ in range(3):
        for batch in loader:
            batches.append(batch)
            if len(batches) == 7:
                accelerator.save_state(str(steps.root / "state"))
    checkpoint = load_checkpoint(steps.root / "state", keys=None, trust_pickle=False)
    config = RunConfig.model_validate({"model": "train:model", "data": "train:accelerated_loader"})
    source = steps.built(config, checkpoint, 7)
    assert same(read(source, 7, 8), batches[7:])
    assert "shuffled by seed 7 and epoch 1" in steps.told


def test_lightnings_loader_is_resumed_from_its_fit_loop(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = nn.Linear(1, 1), list[Tensor]()

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            self.seen.append(batch)
            loss: Tensor = self.layer(batch[:, None]).mean()
            return loss

        def on_train_batch_end(self, *args: Any) -> None:
            if self.global_step == 7:
                self.trainer.save_checkpoint(steps.root / "run.ckpt")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    monkeypatch.chdir(steps.root)
    module = Module()
    trainer = lightning.Trainer(
        max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, StatefulDataLoader(torch.arange(20.0), batch_size=4, shuffle=True))
    checkpoint = load_checkpoint(steps.root / "run.ckpt", keys=None, trust_pickle=False)
    config = RunConfig.model_validate({"model": "train:model", "data": "train:stateful"})
    assert same(read(steps.built(config, checkpoint, 7), 7, 3), module.seen[7:])


def test_a_state_of_another_step_is_not_used(steps: Steps) -> None:
    steps.of("train:stateful", step=7, at=5, loader={"any": 1})
    assert "loader state is of step 7, not 5: not used" in steps.told


def test_a_state_that_the_data_cannot_take_is_told(steps: Steps) -> None:
    steps.of("train:plain", step=7, loader={"any": 1})
    assert "train:plain has no load_state_dict" in steps.told


def test_a_state_that_does_not_fit_is_refused_with_the_mend(steps: Steps) -> None:
    with pytest.raises(CheckpointError, match="does not fit train:stateful") as refused:
        steps.of("train:stateful", step=7, loader={"any": 1})
    assert "number of workers" in str(refused.value.hint)


# --- at their place --------------------------------------------------------------------------------------------------


def test_start_step_and_rank_are_filled_in_and_the_rank_is_told(steps: Steps) -> None:
    assert steps.of("train:ranked", step=7).get(7, 0).tolist() == [7, 0, 1]
    assert "rank 0 of 1" in steps.told
    assert "first batch" not in steps.told


def test_without_a_place_the_first_batch_is_taken_and_the_mend_is_told(steps: Steps) -> None:
    assert steps.of("train:plain", step=3).get(3, 0).tolist() == [0, 1, 2, 3]
    assert "its first batch is taken for step 3 (`skip: true` under data:" in steps.told


def test_at_step_zero_nothing_is_assumed_of_the_place(steps: Steps) -> None:
    steps.of("train:plain")
    assert steps.assumptions == []


# --- skipped to ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    ["train:plain", "train:shuffled", "train:sharded", "train:streamed", "train:loader", "train:listed"],
)
def test_skipping_reads_up_to_the_checkpoint_over_the_ends_of_epochs(steps: Steps, call: str) -> None:
    source = steps.of({"call": call, "skip": True}, step=8, accumulate=2)
    expected = looped(call, 40)
    assert same(read(source, 8, 12, accumulate=2), expected[16:28])
    assert "the first 16 batches" in steps.told
    assert "2 a step before step 8" in steps.told
    assert steps.advanced == 16


def looped(call: str, count: int) -> list[Any]:
    """What a training loop over epochs reads, with `set_epoch` where the sampler has it."""
    import train

    made: Any = getattr(train, call.partition(":")[2])
    data = made() if callable(made) else made
    batches: list[Any] = []
    epoch = 0
    while len(batches) < count:
        if isinstance(getattr(data, "sampler", None), DistributedSampler):
            data.sampler.set_epoch(epoch)
        batches += list(data)
        epoch += 1
    return batches


def test_worker_processes_do_not_change_what_is_skipped(steps: Steps) -> None:
    alone = read(steps.of({"call": "train:shuffled", "skip": True}, step=7), 7, 6)
    others = read(steps.of({"call": "train:shuffled", "kwargs": {"workers": 2}, "skip": True}, step=7), 7, 6)
    assert same(alone, others)
    assert "2 worker processes" in steps.told


def test_a_map_style_loader_is_skipped_without_loading_a_sample(steps: Steps) -> None:
    source = steps.of({"call": "train:noisy", "skip": True}, step=13)
    import train

    assert train.Noisy.loads == 0
    found = source.get(13, 0).long()
    assert torch.equal(found, looped("train:noisy", 14)[13].long())


def test_a_number_skips_so_many_batches(steps: Steps) -> None:
    assert steps.of({"call": "train:generator", "skip": 5}, step=100).get(100, 0).item() == 5


def test_what_ends_while_it_is_skipped_is_refused_with_the_count(steps: Steps) -> None:
    with pytest.raises(ConfigError, match=r"train:generator ended after 40 of the 41 batches to skip"):
        steps.of({"call": "train:generator", "skip": 41})


def test_data_without_a_batch_ends_rather_than_beginning_for_ever(steps: Steps) -> None:
    with pytest.raises(DataEndedError):
        steps.of("train:nothing").get(0, 0)
    with pytest.raises(ConfigError, match="ended after 0 of the 3"):
        steps.of({"call": "train:nothing", "skip": 3})


def test_skipping_data_that_is_at_its_place_is_refused(steps: Steps) -> None:
    with pytest.raises(ConfigError, match="at its place already: it takes start_step"):
        steps.of({"call": "train:placed", "skip": True}, step=4)


def test_a_resumed_loader_is_where_skip_true_asks_for_and_nowhere_else(steps: Steps) -> None:
    loader = StatefulDataLoader(torch.arange(20.0), batch_size=4, shuffle=True)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    found = steps.of({"call": "train:stateful", "skip": True}, step=1, loader=state).get(1, 0)
    assert torch.equal(found, next(iterator))
    assert steps.advanced == 0
    with pytest.raises(ConfigError, match="the checkpoint holds its loader's state"):
        steps.of({"call": "train:stateful", "skip": 3}, step=1, loader=state)


def test_a_look_at_what_would_be_done_skips_nothing(steps: Steps) -> None:
    config = RunConfig.model_validate({"model": "train:model", "data": {"call": "train:plain", "skip": True}})
    checkpoint = Checkpoint(path=steps.root, container="torch", step=10**12, model={})
    batch_source(
        config, checkpoint, root=steps.root, step=10**12, device=torch.device("cpu"), floats=None,
        assumptions=steps.assumptions, track=None,
    )  # fmt: skip
    assert "the first 1000000000000 batches" in steps.told


# --- epochs and order ------------------------------------------------------------------------------------------------


def test_a_loader_that_ends_is_read_again_and_a_list_is_not(steps: Steps) -> None:
    source = steps.of("train:plain", step=3, accumulate=2)
    batches = read(source, 3, 7, accumulate=2)
    assert torch.equal(batches[5], batches[0])
    assert "train:plain ended and was begun anew in step 5 (in the middle of it" in steps.told
    with pytest.raises(DataEndedError):
        read(steps.of("train:listed"), 0, 7)


def test_only_the_first_new_epoch_is_told(steps: Steps) -> None:
    read(steps.of("train:plain"), 0, 18)
    assert steps.told.count("begun anew") == 1
    assert "begun anew in step 5, as by" in steps.told


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("train:drawn", "torch's global generator"),
        ("train:shuffled", "a generator of its own"),
        ("train:sharded", "seed 5 and epoch 0"),
        ({"call": "train:sharded", "kwargs": {"ranks": 2}}, "one of 2 ranks' shards"),
        ("train:streamed", "an IterableDataset orders itself"),
    ],
)
def test_what_is_not_known_of_the_order_is_said(steps: Steps, data: Any, said: str) -> None:
    steps.of(data)
    assert said in steps.told


def test_of_a_resumed_loader_the_order_is_known(steps: Steps) -> None:
    loader = StatefulDataLoader(torch.arange(20.0), batch_size=4, shuffle=True)
    next(iter(loader))
    steps.of("train:stateful", step=1, loader=loader.state_dict())
    assert "generator" not in steps.told


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_batches_of_the_steps_that_it_was_written_for(steps: Steps) -> None:
    write_batches(steps.root / "b.pt", [torch.tensor(float(i)) for i in range(8)], first_step=10, accumulate=2)
    source = steps.of("b.pt", step=12, accumulate=2)
    assert [b.item() for b in read(source, 12, 4, accumulate=2)] == [4, 5, 6, 7]
    with pytest.raises(DataEndedError):
        source.get(14, 0)
    assert steps.assumptions == []


@pytest.mark.parametrize("step", [9, 14])
def test_a_file_of_other_steps_is_refused_with_those_it_holds(steps: Steps, step: int) -> None:
    write_batches(steps.root / "b.pt", [torch.ones(1)] * 4, first_step=10)
    with pytest.raises(ConfigError, match=f"holds steps 10 to 13, the replay begins with step {step}"):
        steps.of("b.pt", step=step)


def test_a_file_of_another_accumulation_is_refused(steps: Steps) -> None:
    write_batches(steps.root / "b.pt", [torch.ones(1)] * 4, first_step=0, accumulate=4)
    with pytest.raises(ConfigError, match=r"4 batches a step, train\.accumulate is 1"):
        steps.of("b.pt")


def test_a_list_of_batches_begins_with_the_checkpoints_step_and_says_so(steps: Steps) -> None:
    torch.save([{"x": torch.ones(2)}], steps.root / "b.pt")
    assert steps.of("b.pt", step=5).get(5, 0)["x"].tolist() == [1, 1]
    assert "b.pt does not tell its step" in steps.told


def test_a_file_brings_back_the_random_state_behind_each_batch(steps: Steps) -> None:
    torch.manual_seed(0)
    batches: list[Tensor] = []
    states, masks = [], []
    for _ in range(4):
        batches.append(torch.rand(3))
        states.append(RngState.capture().saved())
        masks.append(torch.rand(5))
    write_batches(steps.root / "b.pt", batches, first_step=0, random_states=states)
    source = steps.of("b.pt", step=2)
    for step in (2, 3, 2):
        assert torch.equal(source.get(step, 0), batches[step])
        assert torch.equal(torch.rand(5), masks[step])
    assert "random state: of each batch restored from b.pt" in steps.told
