"""Inputs for the reading of `nanhunt.yaml`: damaged, or sound YAML that says odd things."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

from nanhunt.training.config import load_config
from tests.fuzz.mutation import mutated
from tests.fuzz.odd import odd_config, odd_text

__all__ = ["load", "make_damaged", "make_odd", "seeds"]

_MORE = (
    b"model: &m {call: a:b, kwargs: {x: [1, 2.5e-4, .nan, 0x1f, true, ~]}}\ndata: *m\n",
    b"base: &b {steps: 3}\ntrain:\n  <<: *b\n  seed: 1\nmodel: 'a:b'\ndata: \"a:\\x62\"\n",
    b"model: >\n  a:b\ndata: |-\n  c:d\nprecision: {autocast: bf16, grad_scaler: true, params: torch.float16}\n",
)


def load(path: Path) -> None:
    """Read the config as `replay` does."""
    load_config(path).document()


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Return the configs of this repository and a few that use more of YAML."""
    root = Path(__file__).parents[2] / "configs"
    return (*(p.read_bytes() for p in sorted(root.rglob("*.yaml"))), *_MORE)


def make_damaged(folder: Path, rng: random.Random) -> Path:
    """Write a config of this repository with bytes changed."""
    path = folder / "nanhunt.yaml"
    path.write_bytes(mutated(rng.choice(seeds()), seeds(), rng))
    return path


def make_odd(folder: Path, rng: random.Random) -> Path:
    """Write sound YAML: a config with odd values, or a structure that grows or nests without end."""
    path = folder / "nanhunt.yaml"
    kind = rng.randrange(12)
    if kind == 0:
        depth = rng.choice((30, 1000, 100_000))
        text = rng.choice(("[" * depth, "[" * depth + "]" * depth, "{a: " * depth, "- " * depth, "? " * depth))
    elif kind == 1:
        levels = rng.choice((3, 9, 30))
        text = "a0: &a0 [x, x]\n" + "".join(
            f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels)
        )
    elif kind == 2:
        text = f"train: {{steps: {'9' * rng.choice((20, 5000, 1_000_000))}}}\nmodel: a:b\ndata: a:b\n"
    elif kind == 3:
        tag = rng.choice(
            (
                "python/object/apply:os.system",
                "python/name:os.system",
                "python/object/new:type",
                "binary",
                "set",
                "omap",
            )
        )
        text = f"model: !!{tag} {rng.choice(('[id]', '{a: b}', 'x', ''))}\ndata: a:b\n"
    elif kind == 4:
        text = "".join(f"{odd_text(rng)!r}: {odd_text(rng)!r}\n" for _ in range(5))
    else:
        # JSON is YAML, and the writer of JSON nests deeper than PyYAML's
        text = json.dumps(odd_config(rng), ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1)))
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return path
