"""What the bound on attention scores does on a CUDA device, in Triton's Python; `score_bound` says how and why."""

import triton
import triton.language as tl

__all__ = ["largest_norms"]


@triton.jit(do_not_specialize=["first", "heads", "tokens", "width", "of_batch", "of_head", "of_token"])
def largest_norms(x, out, first, heads, tokens, width, of_batch, of_head, of_token, unit: tl.constexpr, rows: tl.constexpr, lanes: tl.constexpr):  # fmt: skip
    """Leave the bits of the largest squared norm of a head's vectors at `first` + (batch, head) of `out`.

    `x` is (batch, heads, tokens, width) without gaps along the last; strides are in `unit` elements.
    """
    head = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * rows + tl.arange(0, rows)
    lane = tl.arange(0, lanes)
    base = x + (head // heads * of_batch + head % heads * of_head) * unit
    at = base + (token.to(tl.int64) * of_token * unit)[:, None] + lane[None, :]
    value = tl.load(at, mask=(token < tokens)[:, None] & (lane < width)[None, :], other=0.0).to(tl.float32)
    squared = tl.sum(value * value, axis=1)
    # of numbers without a sign bits compare as the numbers do, and a NaN is above all of them
    tl.atomic_max(out + first + head, tl.max(squared.to(tl.int32, bitcast=True) & 0x7FFFFFFF))
