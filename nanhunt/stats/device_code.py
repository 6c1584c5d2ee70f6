"""What the statistics' programs do on a CUDA device, in Triton's Python; `triton_kernel` says how and why.

A row of the table is 147 words of 8 bytes: zeros, subnormals, NaN, +inf, -inf; sum and sum of squares as float64; then in
halves of a word the bits of the largest magnitude, 0x7FFFFFFF less those of the smallest non-zero one, and 277 counts of
exponents. Zeros are the neutral element of each, so that programs add in any order.
"""

import triton
import triton.language as tl

__all__ = ["measure_many", "measure_one"]

#: Elements at once where an element is read a second time.
PIECE = tl.constexpr(512)


@triton.jit(do_not_specialize=["size", "row", "chunks", "every"])
def measure_one(x, size, table, row, chunks, every, tiny: tl.constexpr, width: tl.constexpr):
    """Measure one tensor into a row; a program reads `chunks` times four tiles of `width`."""
    _span(x, size, tl.program_id(0).to(tl.int64), table + row * 147, chunks, every, tiny, width)


@triton.jit(do_not_specialize=["chunks"])
def measure_many(facts, programs, table, chunks, dtype: tl.constexpr, aligned: tl.constexpr, tiny: tl.constexpr, width: tl.constexpr):  # fmt: skip
    """Measure many tensors: `facts` has (address, elements, row, sparseness) of each, `programs` (tensor, span)."""
    program = tl.program_id(0)
    whose = tl.load(programs + 2 * program)
    span = tl.load(programs + 2 * program + 1)
    x = tl.multiple_of(tl.load(facts + 4 * whose).to(tl.pointer_type(dtype)), aligned)
    size = tl.load(facts + 4 * whose + 1)
    row = tl.load(facts + 4 * whose + 2)
    every = tl.load(facts + 4 * whose + 3)
    _span(x, size, span, table + row * 147, chunks, every, tiny, width)


@triton.jit
def _span(x, size, span, row, chunks, every, tiny: tl.constexpr, width: tl.constexpr):
    """Add what one span shows to its tensor's row."""
    begin = span * chunks * (4 * width)
    end = tl.minimum(begin + chunks * (4 * width), size)
    whole = (end - begin) // (4 * width)
    lane = tl.arange(0, width)
    highest = tl.zeros([width], tl.int32)
    lowest = tl.full([width], 0x7FFFFFFF, tl.int32)
    total = tl.zeros([width], tl.float32)
    squares = tl.zeros([width], tl.float32)
    for index in range(whole):
        # four loads before the first use: one at a time waits 0.9 us for each, and reads 1.2 TB/s
        at = x + begin + index * (4 * width) + lane
        a = tl.load(at)
        b = tl.load(at + width)
        c = tl.load(at + 2 * width)
        d = tl.load(at + 3 * width)
        highest, lowest, total, squares = _taken(a, highest, lowest, total, squares)
        highest, lowest, total, squares = _taken(b, highest, lowest, total, squares)
        highest, lowest, total, squares = _taken(c, highest, lowest, total, squares)
        highest, lowest, total, squares = _taken(d, highest, lowest, total, squares)
    for start in range(begin + whole * (4 * width), end, width):
        there = start + lane < end
        value = tl.load(x + start + lane, mask=there, other=0.0).to(tl.float32)
        bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        highest = tl.maximum(highest, bits)
        lowest = tl.minimum(lowest, tl.where(there, bits, 0x7FFFFFFF))
        total += value
        squares += value * value
    halves = row.to(tl.pointer_type(tl.int32)) + 14
    # the same tiles of the tensor, however it is cut into spans
    for tile in range((every - (begin // width) % every) % every, (end - begin + width - 1) // width, every):
        _count_exponents(x, end, begin + tile * width + lane, halves + 2)
    top = tl.max(highest)
    low = tl.min(lowest)
    sums = row.to(tl.pointer_type(tl.float64)) + 5
    # beyond 2^50, or with nothing above 2^-50, squares do not fit fp32; neither do what is not finite, zero or subnormal
    if (top >= 0x58800000) | (top < 0x26800000) | (low < tiny):
        _read_again(x, begin, end, row, halves, sums, tiny)
    else:
        tl.atomic_max(halves, top)
        tl.atomic_max(halves + 1, 0x7FFFFFFF - low)
        tl.atomic_add(sums, tl.sum(total).to(tl.float64))
        tl.atomic_add(sums + 1, tl.sum(squares).to(tl.float64))


@triton.jit
def _taken(loaded, highest, lowest, total, squares):
    """Take a whole tile into the four numbers of each lane."""
    value = loaded.to(tl.float32)
    bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.maximum(highest, bits), tl.minimum(lowest, bits), total + value, squares + value * value


@triton.jit
def _count_exponents(x, end, at, bins):
    """Add the finite non-zero elements of a tile by floor(log2 |x|)."""
    value = tl.load(x + at, mask=at < end, other=0.0).to(tl.float32)
    bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    # of a subnormal, whose exponent field is 0, the bits as a whole number have the exponent
    small = (bits.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    index = tl.where(bits < 0x00800000, small, (bits >> 23) + 22)
    counted = (bits > 0) & (bits < 0x7F800000)
    counts = tl.histogram(tl.where(counted, index, 511), 512)
    lane = tl.arange(0, 512)
    tl.atomic_add(bins + lane, counts, mask=(lane < 277) & (counts > 0))


@triton.jit
def _read_again(x, begin, end, row, halves, sums, tiny: tl.constexpr):
    """Count what is zero, subnormal or not finite, and take extremes and sums over the rest."""
    lane = tl.arange(0, PIECE)
    highest = tl.zeros([PIECE], tl.int32)
    lowest = tl.full([PIECE], 0x7FFFFFFF, tl.int32)
    total = tl.zeros([PIECE], tl.float64)
    squares = tl.zeros([PIECE], tl.float64)
    zero = tl.zeros([PIECE], tl.int32)
    subnormal = tl.zeros([PIECE], tl.int32)
    nan = tl.zeros([PIECE], tl.int32)
    positive = tl.zeros([PIECE], tl.int32)
    negative = tl.zeros([PIECE], tl.int32)
    for start in range(begin, end, PIECE):
        at = start + lane
        there = at < end
        value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        signed = value.to(tl.int32, bitcast=True)
        bits = signed & 0x7FFFFFFF
        finite = bits < 0x7F800000
        zero += (there & (bits == 0)).to(tl.int32)
        subnormal += ((bits > 0) & (bits < tiny)).to(tl.int32)
        nan += (bits > 0x7F800000).to(tl.int32)
        positive += ((bits == 0x7F800000) & (signed > 0)).to(tl.int32)
        negative += ((bits == 0x7F800000) & (signed < 0)).to(tl.int32)
        highest = tl.maximum(highest, tl.where(finite, bits, 0))
        lowest = tl.minimum(lowest, tl.where(finite & (bits > 0), bits, 0x7FFFFFFF))
        wide = tl.where(finite, value, 0.0).to(tl.float64)
        total += wide
        squares += wide * wide
    tl.atomic_max(halves, tl.max(highest))
    tl.atomic_max(halves + 1, 0x7FFFFFFF - tl.min(lowest))
    tl.atomic_add(sums, tl.sum(total))
    tl.atomic_add(sums + 1, tl.sum(squares))
    tl.atomic_add(row, tl.sum(zero).to(tl.int64))
    tl.atomic_add(row + 1, tl.sum(subnormal).to(tl.int64))
    tl.atomic_add(row + 2, tl.sum(nan).to(tl.int64))
    tl.atomic_add(row + 3, tl.sum(positive).to(tl.int64))
    tl.atomic_add(row + 4, tl.sum(negative).to(tl.int64))
