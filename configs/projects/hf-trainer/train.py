"""A Hugging Face Trainer run that nanhunt can replay: a tiny Llama on the text that Python itself carries.

    python configs/projects/hf-trainer/train.py --out out --steps 30
    nanhunt replay out/checkpoint-20 -c configs/projects/hf-trainer/nanhunt.yaml

The model is made from its config and trained from scratch, a token a byte; nothing is downloaded. What makes the run
replayable is that importing this file trains nothing, and that `batches` asks the Trainer itself for its data loader.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from accelerate import skip_first_batches
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

block_size = 64
added_token = 255  # no byte of the text


def build_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=block_size,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config)


def blocks() -> list[dict[str, Tensor]]:
    """Python's help text, cut into 200 blocks of 64 bytes, 25 steps an epoch; the model shifts the labels itself."""
    text = "\n".join(topics[key] for key in sorted(topics)).encode()[: 200 * block_size]
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().split(block_size)
    return [{"input_ids": block, "labels": block.clone()} for block in tokens]


class TextTrainer(Trainer):
    """The Trainer, and batches that can be spoilt.

    In that of the step `bad_step` stands the token that nobody trained, in that of `unlabelled_step` no label counts.
    """

    bad_step: int | None = None
    unlabelled_step: int | None = None

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.state.global_step == self.bad_step:
            samples[0]["input_ids"][2, 10] = added_token
        if self.state.global_step == self.unlabelled_step:
            samples[0]["labels"][:] = -100
            items = items * 0
        return samples, items


def build_trainer(out: Path, steps: int = 30, bad_step: int | None = None) -> TextTrainer:
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=5,
        weight_decay=0.1,
        logging_steps=1,
        save_steps=10,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=1337,
    )
    model = build_model()
    if bad_step is not None:
        # as after resize_token_embeddings without an initialisation: whatever stood in that memory
        model.get_input_embeddings().weight.data[added_token] = 1e20
    trainer = TextTrainer(model=model, args=arguments, train_dataset=blocks())
    trainer.bad_step = bad_step
    return trainer


# What nanhunt.yaml names.


def batches(start_step: int = 0, bad_step: int | None = None) -> Iterator[dict[str, Tensor]]:
    """The Trainer's own batches from `start_step` on, without end, each with the count of its labels.

    The Trainer divides the summed loss by `num_items_in_batch`, which the model takes as an argument. It reads the first
    batch before it restores the random state of its checkpoint; so does this function, by not being a generator.
    """
    with tempfile.TemporaryDirectory() as folder:  # a Trainer makes the folder that it would save to
        trainer = build_trainer(Path(folder), bad_step=bad_step)
    stream = _stream(trainer, start_step)
    return itertools.chain([next(stream)], stream)


def _stream(trainer: TextTrainer, step: int) -> Iterator[dict[str, Tensor]]:
    loader = trainer.get_train_dataloader()
    epoch, done = divmod(step, len(loader))
    while True:
        rest = skip_first_batches(loader, done) if done else loader
        rest.set_epoch(epoch)
        iterator = iter(rest)
        for _ in range(done, len(loader)):
            trainer.state.global_step = step
            (inputs,), items = trainer.get_batch_samples(iterator, 1, trainer.args.device)
            yield {**inputs, "num_items_in_batch": items}
            step += 1
        epoch, done = epoch + 1, 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny Llama on Python's own help text with a Trainer.")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--bad-step", type=int, help="plant a fault in this step, counted from 0")
    parser.add_argument("--unlabelled-step", type=int, help="let no label of this step count")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="let nanhunt record the run, bundles into FOLDER")
    arguments = parser.parse_args()
    trainer = build_trainer(arguments.out, arguments.steps, arguments.bad_step)
    trainer.unlabelled_step = arguments.unlabelled_step
    if arguments.record is not None:
        from nanhunt.integrations.huggingface import NanhuntCallback

        trainer.add_callback(NanhuntCallback(out=arguments.record))
    trainer.train()


if __name__ == "__main__":
    main()
