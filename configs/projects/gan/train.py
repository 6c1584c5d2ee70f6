"""A GAN with two optimizers, as the DCGAN tutorial trains one, on handwritten-like strokes that it draws.

    python configs/projects/gan/train.py --out out --steps 30
    nanhunt replay out/step-20.pt -c configs/projects/gan/nanhunt.yaml

The discriminator and the generator take turns within a step, each with its own Adam. The noise comes from torch's
global generator, so the checkpoint keeps the generator's state.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 16
LATENT = 24
BATCH = 32
SEED = 1337


class Generator(nn.Sequential):
    """Images (B, 1, 16, 16) in [-1, 1] from noise (B, LATENT, 1, 1)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.ConvTranspose2d(LATENT, 2 * width, 4, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1, bias=False),
            nn.Tanh(),
        )


class Discriminator(nn.Sequential):
    """Logits (B, 1, 1, 1) of images (B, 1, 16, 16)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(1, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4),
        )


class GAN(nn.Module):
    """Both networks, so that one model holds every parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = Generator()
        self.discriminator = Discriminator()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, std=0.02)


def strokes(step: int) -> Tensor:
    """Return real images (B, 1, 16, 16) in [-1, 1]: a slanted stroke each, a function of seed and step alone."""
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    slope, offset, width = torch.rand(3, BATCH, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    far = (y - (2 * slope - 1) * x - (offset - 0.5)).abs()
    return (2 * torch.exp(-((far / (0.15 + 0.15 * width)) ** 2)) - 1).unsqueeze(1)


# What nanhunt.yaml names.


def batches(start_step: int = 0, corrupt: int | None = None) -> Iterator[Tensor]:
    """Real images without end from `start_step` on; in the step `corrupt` one image has a pixel that is NaN."""
    step = start_step
    while True:
        images = strokes(step)
        if step == corrupt:
            images[5, 0, 8, 8] = torch.nan
        yield images
        step += 1


def make_optimizers(model: GAN) -> dict[str, torch.optim.Optimizer]:
    """The two optimizers, by the names under which the checkpoint keeps their states."""
    return {
        "discriminator": torch.optim.Adam(model.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999)),
        "generator": torch.optim.Adam(model.generator.parameters(), lr=2e-4, betas=(0.5, 0.999)),
    }


def train_step(model: GAN, real: Tensor, optimizers: dict[str, torch.optim.Optimizer]) -> Tensor:
    """One update of the discriminator, then one of the generator; return the sum of both losses."""
    fake = model.generator(torch.randn(len(real), LATENT, 1, 1, device=real.device))

    optimizers["discriminator"].zero_grad()
    on_real, on_fake = model.discriminator(real), model.discriminator(fake.detach())
    loss_d = F.binary_cross_entropy_with_logits(on_real, torch.ones_like(on_real))
    loss_d = loss_d + F.binary_cross_entropy_with_logits(on_fake, torch.zeros_like(on_fake))
    loss_d.backward()  # type: ignore[no-untyped-call]
    optimizers["discriminator"].step()

    optimizers["generator"].zero_grad()
    judged = model.discriminator(fake)
    loss_g = F.binary_cross_entropy_with_logits(judged, torch.ones_like(judged))
    loss_g.backward()  # type: ignore[no-untyped-call]
    optimizers["generator"].step()
    return loss_d.detach() + loss_g.detach()


def recording(model: GAN, optimizers: dict[str, torch.optim.Optimizer], folder: Path | None) -> Any:
    """nanhunt's recorder, which leaves a bundle in `folder` when a step breaks; nothing without a folder."""
    if folder is None:
        return contextlib.nullcontext()
    import nanhunt

    return nanhunt.Recorder(
        model, optimizers, build=GAN, build_optimizer=make_optimizers, train_step=train_step, out=folder
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small GAN on strokes.")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="let nanhunt record the run, bundles into FOLDER")
    parser.add_argument("--corrupt", type=int, metavar="STEP", help="break one pixel of one image in this step")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(SEED)
    model = GAN()
    optimizers = make_optimizers(model)
    stream = batches(corrupt=arguments.corrupt)
    with (
        (arguments.out / "losses.csv").open("w", newline="") as file,
        recording(model, optimizers, arguments.record) as recorder,
    ):
        log = csv.writer(file)
        log.writerow(["step", "loss"])
        for step in range(arguments.steps):
            if step % 10 == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
                    "rng_state": torch.get_rng_state(),
                    "step": step,
                }
                torch.save(state, arguments.out / f"step-{step}.pt")
            real = next(stream)
            if recorder is not None:
                recorder.step(real)
            loss = train_step(model, real, optimizers)
            if recorder is not None:
                recorder.loss(loss)  # two backward passes: it cannot hear which sum is the step's
            log.writerow([step, loss.item()])
            if step % 10 == 0:
                print(f"step {step}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
