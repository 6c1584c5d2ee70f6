"""What is done with the tiles of an update on a CUDA device, in Triton's Python; `update_kernel` says how and why.

`facts` has of each parameter: addresses of weight, gradient, first and second moment; elements; of how many tiles one is
looked at; its first tile among all that are looked at. `programs` has (parameter, tile) of each program.
"""

import triton
import triton.language as tl

__all__ = ["keep", "measure"]


@triton.jit
def _places(facts, programs, width: tl.constexpr):
    """Return the parameter's facts, where its tile lies, whether it is there, and where it is kept."""
    whose = tl.load(programs + 2 * tl.program_id(0))
    tile = tl.load(programs + 2 * tl.program_id(0) + 1)
    fact = facts + 7 * whose
    size = tl.load(fact + 4)
    every = tl.load(fact + 5)
    stride = every * 618 // 1000 | 1
    lane = tl.arange(0, width)
    at = (tile * every + tile * stride % every) * width + lane
    return whose, fact, at, at < size, (tl.load(fact + 6) + tile) * width + lane


@triton.jit
def keep(facts, programs, kept, dtype: tl.constexpr, which: tl.constexpr, width: tl.constexpr):
    """Copy the tiles of one of each parameter's tensors, the `which`-th, to where they are kept."""
    _, fact, at, there, place = _places(facts, programs, width)
    x = tl.load(fact + which).to(tl.pointer_type(dtype))
    tl.store(kept + place, tl.load(x + at, mask=there, other=0.0))


@triton.jit
def measure(facts, programs, limits, before, v_before, sums, w_type: tl.constexpr, g_type: tl.constexpr, m_type: tl.constexpr, v_type: tl.constexpr, width: tl.constexpr):  # fmt: skip
    """Turn the weights of before into what they changed by, and leave a tile's sums (`update_kernel.SUMS`).

    `limits` has of each parameter: ε², and what v is divided by for its correction, now and before.
    """
    whose, fact, at, there, place = _places(facts, programs, width)
    w = tl.load(tl.load(fact).to(tl.pointer_type(w_type)) + at, mask=there, other=0.0).to(tl.float32)
    g = tl.load(tl.load(fact + 1).to(tl.pointer_type(g_type)) + at, mask=there, other=0.0).to(tl.float64)
    m = tl.load(tl.load(fact + 2).to(tl.pointer_type(m_type)) + at, mask=there, other=0.0).to(tl.float32)
    v = tl.load(tl.load(fact + 3).to(tl.pointer_type(v_type)) + at, mask=there, other=0.0).to(tl.float64)
    old = tl.load(before + place).to(tl.float32)
    v_old = tl.load(v_before + place).to(tl.float64)
    update = (w - old).to(w_type)
    tl.store(before + place, update)
    eps2 = tl.load(limits + 3 * whose)
    v_hat = v / tl.load(limits + 3 * whose + 1)
    v_hat_old = v_old / tl.load(limits + 3 * whose + 2)
    g2 = g * g
    # a NaN must come through, as it does in torch's clamp
    floor = tl.where(v_hat < eps2, eps2, v_hat)
    has = (g != 0.0) & there
    wide = update.to(tl.float64)
    out = sums + 11 * tl.program_id(0).to(tl.int64)
    tl.store(out, tl.sum(tl.where(there, g2, 0.0)))
    tl.store(out + 1, tl.sum(tl.where(there, g2 / floor, 0.0)))
    tl.store(out + 2, tl.sum(tl.where(there, v_hat, 0.0)))
    tl.store(out + 3, tl.sum(((v == 0.0) & (m != 0.0) & there).to(tl.float64)))
    tl.store(out + 4, tl.sum(((v_hat < eps2) & (g2 > 0.0) & there).to(tl.float64)))
    tl.store(out + 5, tl.sum(((v == v_old) & (g2 > 0.0) & (g2 < 0.5 * v) & there).to(tl.float64)))
    tl.store(out + 6, tl.sum(((g2 > 0.0) & there).to(tl.float64)))
    tl.store(out + 7, tl.sum(tl.where(there, v_hat_old, 0.0)))
    tl.store(out + 8, tl.sum(has.to(tl.float64)))
    tl.store(out + 9, tl.sum((has & (wide == 0.0)).to(tl.float64)))
    tl.store(out + 10, tl.sum(tl.where(there, wide * wide, 0.0)))
