"""What the statistics' programs do on a CUDA device, in Triton's Python; `triton_kernel` says how and why.

A row of the table is 148 words of 8 bytes: zeros, subnormals, NaN, +inf, -inf; sum and sum of squares as float64; then in
halves of a word the bits of the largest magnitude, 0x7FFFFFFF less those of the smallest non-zero one, and 277 counts of
exponents. Zeros are the neutral element of each, so that programs add in any order.
"""

import triton
import triton.language as tl

__all__ = ["measure_many", "measure_one", "peaks_of_many"]


@triton.jit(do_not_specialize=["size", "row", "every"])
def measure_one(x, table, size, row, every, tiny: tl.constexpr, width: tl.constexpr, tiles: tl.constexpr):
    """Add one span of one tensor."""
    _measure(x, size, tl.program_id(0).to(tl.int64), table + row * 148, every, tiny, width, tiles)


@triton.jit
def measure_many(facts, programs, table, dtype: tl.constexpr, aligned: tl.constexpr, tiny: tl.constexpr, width: tl.constexpr, tiles: tl.constexpr):  # fmt: skip
    """The same of many: `facts` has (address, elements, row, sparseness) of each, `programs` (tensor, span)."""
    whose = tl.load(programs + 2 * tl.program_id(0))
    span = tl.load(programs + 2 * tl.program_id(0) + 1)
    x = tl.multiple_of(tl.load(facts + 4 * whose).to(tl.pointer_type(dtype)), aligned)
    row = tl.load(facts + 4 * whose + 2)
    every = tl.load(facts + 4 * whose + 3)
    _measure(x, tl.load(facts + 4 * whose + 1), span, table + row * 148, every, tiny, width, tiles)


@triton.jit
def peaks_of_many(facts, programs, peaks, dtype: tl.constexpr, aligned: tl.constexpr, width: tl.constexpr, tiles: tl.constexpr):  # fmt: skip
    """Take the largest bits of each tensor's magnitudes: those of a NaN are above infinity's."""
    whose = tl.load(programs + 2 * tl.program_id(0))
    begin = tl.load(programs + 2 * tl.program_id(0) + 1) * (width * tiles)
    x = tl.multiple_of(tl.load(facts + 4 * whose).to(tl.pointer_type(dtype)), aligned) + begin
    left = tl.load(facts + 4 * whose + 1) - begin
    lane = tl.arange(0, width)
    highest = tl.zeros([width], tl.int32)
    if left >= width * tiles:
        for index in tl.static_range(tiles):
            value = tl.load(x + index * width + lane).to(tl.float32)
            highest = tl.maximum(highest, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    else:
        for start in range(0, left.to(tl.int32), width):
            value = tl.load(x + start + lane, mask=start + lane < left, other=0.0).to(tl.float32)
            highest = tl.maximum(highest, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    tl.atomic_max(peaks + tl.load(facts + 4 * whose + 2), tl.max(highest))


@triton.jit
def _measure(x, size, span, row, every, tiny: tl.constexpr, width: tl.constexpr, tiles: tl.constexpr):
    """Add extremes, zeros, sums and exponents of one span; read it again where extremes say that there is more to tell."""
    begin = span * (width * tiles)
    lane = tl.arange(0, width)
    base = x + begin
    highest = tl.zeros([width], tl.int32)
    # of the bits less one, as a whole number without a sign: a zero becomes the largest of all
    lowest = tl.full([width], -1, tl.int32).to(tl.uint32, bitcast=True)
    zero = tl.zeros([width], tl.int32)
    subnormal = tl.zeros([width], tl.int32)
    total = tl.zeros([width], tl.float32)
    squares = tl.zeros([width], tl.float32)
    if begin + width * tiles <= size:
        for index in tl.static_range(tiles):
            value = tl.load(base + index * width + lane).to(tl.float32)
            bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
            highest = tl.maximum(highest, bits)
            lowest = tl.minimum(lowest, (bits - 1).to(tl.uint32, bitcast=True))
            zero += (bits == 0).to(tl.int32)
            if tiny > 0x00800000:
                subnormal += ((bits > 0) & (bits < tiny)).to(tl.int32)
            total += value
            squares += value * value
    else:
        left = (size - begin).to(tl.int32)
        for start in range(0, left, width):
            there = start + lane < left
            value = tl.load(base + start + lane, mask=there, other=0.0).to(tl.float32)
            bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
            highest = tl.maximum(highest, bits)
            lowest = tl.minimum(lowest, (bits - 1).to(tl.uint32, bitcast=True))
            zero += (there & (bits == 0)).to(tl.int32)
            if tiny > 0x00800000:
                subnormal += ((bits > 0) & (bits < tiny)).to(tl.int32)
            total += value
            squares += value * value
    least = tl.min(lowest).to(tl.int32, bitcast=True)
    top = tl.max(highest)
    low = tl.where(least == -1, 0x7FFFFFFF, least + 1)
    zeros = tl.sum(zero)
    if zeros > 0:
        tl.atomic_add(row, zeros.to(tl.int64))
    if tiny > 0x00800000:
        small = tl.sum(subnormal)
        if small > 0:
            tl.atomic_add(row + 1, small.to(tl.int64))
    sums = row.to(tl.pointer_type(tl.float64)) + 5
    halves = row.to(tl.pointer_type(tl.int32)) + 14
    # beyond 2^50, or with nothing above 2^-56, sums of squares do not fit fp32; nor does what is not finite, or subnormal
    if (top >= 0x58800000) | ((top < 0x23800000) & (top > 0)) | (low < 0x00800000):
        _read_again(x, begin, tl.minimum(begin + width * tiles, size.to(tl.int64)), row, tiny)
    else:
        tl.atomic_max(halves, top)
        tl.atomic_max(halves + 1, 0x7FFFFFFF - low)
        tl.atomic_add(sums, tl.sum(total).to(tl.float64))
        tl.atomic_add(sums + 1, tl.sum(squares).to(tl.float64))
    _count_exponents(x, size.to(tl.int64), begin // 1024, (width * tiles) // 1024, halves + 2, every)


@triton.jit
def _count_exponents(x, size, first, count: tl.constexpr, bins, every):
    """Count exponents of those of the span's tiles that are looked at, as `sampling.place_of` has them."""
    lane = tl.arange(0, 1024)
    # of a sampled tensor whole tiles alone
    groups = tl.where(every > 1, size // 1024 // every, (size + 1023) // 1024)
    stride = every * 618 // 1000 | 1
    for group in range(first // every, tl.minimum((first + count - 1) // every + 1, groups)):
        tile = group * every + group * stride % every
        if (tile >= first) & (tile < first + count):
            at = tile * 1024 + lane
            value = tl.load(x + at, mask=at < size, other=0.0).to(tl.float32)
            bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
            # of a subnormal, whose exponent field is 0, the bits as a whole number have the exponent
            small = (bits.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
            index = tl.where(bits < 0x00800000, small, (bits >> 23) + 22)
            counted = (bits > 0) & (bits < 0x7F800000)
            counts = tl.histogram(tl.where(counted, index, 511), 512)
            bin = tl.arange(0, 512)
            tl.atomic_add(bins + bin, counts, mask=(bin < 277) & (counts > 0))


@triton.jit
def _read_again(x, begin, end, row, tiny: tl.constexpr):
    """Count what is subnormal or not finite, and take extremes and sums over the rest, sums in fp64."""
    lane = tl.arange(0, 512)
    highest = tl.zeros([512], tl.int32)
    lowest = tl.full([512], 0x7FFFFFFF, tl.int32)
    total = tl.zeros([512], tl.float64)
    squares = tl.zeros([512], tl.float64)
    subnormal = tl.zeros([512], tl.int32)
    nan = tl.zeros([512], tl.int32)
    positive = tl.zeros([512], tl.int32)
    negative = tl.zeros([512], tl.int32)
    for start in range(begin, end, 512):
        at = start + lane
        there = at < end
        value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        signed = value.to(tl.int32, bitcast=True)
        bits = signed & 0x7FFFFFFF
        finite = bits < 0x7F800000
        subnormal += ((bits > 0) & (bits < tiny)).to(tl.int32)
        nan += (bits > 0x7F800000).to(tl.int32)
        positive += ((bits == 0x7F800000) & (signed > 0)).to(tl.int32)
        negative += ((bits == 0x7F800000) & (signed < 0)).to(tl.int32)
        highest = tl.maximum(highest, tl.where(finite, bits, 0))
        lowest = tl.minimum(lowest, tl.where(finite & (bits > 0), bits, 0x7FFFFFFF))
        wide = tl.where(finite, value, 0.0).to(tl.float64)
        total += wide
        squares += wide * wide
    sums = row.to(tl.pointer_type(tl.float64)) + 5
    halves = row.to(tl.pointer_type(tl.int32)) + 14
    tl.atomic_max(halves, tl.max(highest))
    tl.atomic_max(halves + 1, 0x7FFFFFFF - tl.min(lowest))
    tl.atomic_add(sums, tl.sum(total))
    tl.atomic_add(sums + 1, tl.sum(squares))
    if tiny == 0x00800000:  # fp16's were counted
        tl.atomic_add(row + 1, tl.sum(subnormal).to(tl.int64))
    tl.atomic_add(row + 2, tl.sum(nan).to(tl.int64))
    tl.atomic_add(row + 3, tl.sum(positive).to(tl.int64))
    tl.atomic_add(row + 4, tl.sum(negative).to(tl.int64))
