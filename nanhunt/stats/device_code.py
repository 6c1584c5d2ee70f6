"""What the statistics' programs do on a CUDA device, in Triton's Python; `triton_kernel` says how and why.

A row of the table is 150 words of 8 bytes: zeros, subnormals, NaN, +inf, -inf; sum and sum of squares as float64, as the
first pass took them; the same as the second pass did; then in halves of a word the bits of the largest magnitude and
0x7FFFFFFF less those of the smallest non-zero one, of the first pass and of the second, and 277 counts of exponents. Zeros are the neutral
element of each, so that programs add in any order.
"""

import triton
import triton.language as tl

__all__ = ["first_of_many", "first_of_one", "second_of_many", "second_of_one"]


@triton.jit(do_not_specialize=["size", "row"])
def first_of_one(x, size, table, row, tiny: tl.constexpr, width: tl.constexpr, tiles: tl.constexpr):
    """Take extremes, zeros and sums of one tensor."""
    _first(x, size, tl.program_id(0).to(tl.int64), table + row * 150, tiny, width, tiles)


@triton.jit(do_not_specialize=["size", "row", "every", "parts"])
def second_of_one(x, size, table, row, every, parts, tiny: tl.constexpr, width: tl.constexpr):
    """Count exponents of one tensor, and what the first pass has told to be there."""
    _second(x, size, tl.program_id(0).to(tl.int64), table + row * 150, every, parts, tiny, width)


@triton.jit
def first_of_many(facts, programs, table, dtype: tl.constexpr, aligned: tl.constexpr, tiny: tl.constexpr, width: tl.constexpr, tiles: tl.constexpr):  # fmt: skip
    """The same of many: `facts` has (address, elements, row, sparseness, parts) of each, `programs` (tensor, span)."""
    whose = tl.load(programs + 2 * tl.program_id(0))
    span = tl.load(programs + 2 * tl.program_id(0) + 1)
    x = tl.multiple_of(tl.load(facts + 5 * whose).to(tl.pointer_type(dtype)), aligned)
    row = tl.load(facts + 5 * whose + 2)
    _first(x, tl.load(facts + 5 * whose + 1), span, table + row * 150, tiny, width, tiles)


@triton.jit
def second_of_many(facts, programs, table, dtype: tl.constexpr, aligned: tl.constexpr, tiny: tl.constexpr, width: tl.constexpr):  # fmt: skip
    """The same of many, after `first_of_many`; `programs` has (tensor, part)."""
    whose = tl.load(programs + 2 * tl.program_id(0))
    part = tl.load(programs + 2 * tl.program_id(0) + 1)
    x = tl.multiple_of(tl.load(facts + 5 * whose).to(tl.pointer_type(dtype)), aligned)
    row = tl.load(facts + 5 * whose + 2)
    every = tl.load(facts + 5 * whose + 3)
    parts = tl.load(facts + 5 * whose + 4)
    _second(x, tl.load(facts + 5 * whose + 1), part, table + row * 150, every, parts, tiny, width)


@triton.jit
def _first(x, size, span, row, tiny: tl.constexpr, width: tl.constexpr, tiles: tl.constexpr):
    """Add the extremes, zeros and sums of one span, and fp16's subnormals: registers are what bounds its speed."""
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
    zeros = tl.sum(zero)
    if zeros > 0:
        tl.atomic_add(row, zeros.to(tl.int64))
    if tiny > 0x00800000:
        tl.atomic_add(row + 1, tl.sum(subnormal).to(tl.int64))
    sums = row.to(tl.pointer_type(tl.float64)) + 5
    halves = row.to(tl.pointer_type(tl.int32)) + 18
    tl.atomic_max(halves, tl.max(highest))
    tl.atomic_max(halves + 1, tl.where(least == -1, 0, 0x7FFFFFFE - least))
    tl.atomic_add(sums, tl.sum(total).to(tl.float64))
    tl.atomic_add(sums + 1, tl.sum(squares).to(tl.float64))


@triton.jit
def _second(x, size, part, row, every, parts, tiny: tl.constexpr, width: tl.constexpr):
    """Count exponents of this part's tiles; read its share of the tensor again where extremes say that it must be."""
    halves = row.to(tl.pointer_type(tl.int32)) + 18
    lane = tl.arange(0, width)
    size = size.to(tl.int64)
    # of a sampled tensor whole tiles alone, as `sampling.place_of` has them
    groups = tl.where(every > 1, size // width // every, (size + width - 1) // width)
    stride = every * 618 // 1000 | 1
    for group in range(part, groups, parts):
        _count_exponents(x, size, (group * every + group * stride % every) * width + lane, halves + 4)
    top = tl.load(halves)
    low = 0x7FFFFFFF - tl.load(halves + 1)
    # beyond 2^50, or with nothing above 2^-50, squares do not fit fp32; nor does what is not finite, or subnormal in fp32
    if (top >= 0x58800000) | ((top < 0x26800000) & (top > 0)) | (low < 0x00800000):
        share = ((size + parts - 1) // parts + 511) // 512 * 512
        begin = part * share
        _read_again(x, begin, tl.minimum(begin + share, size), row, halves + 2, tiny)


@triton.jit
def _count_exponents(x, size, at, bins):
    """Add the finite non-zero elements of a tile by floor(log2 |x|)."""
    value = tl.load(x + at, mask=at < size, other=0.0).to(tl.float32)
    bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    # of a subnormal, whose exponent field is 0, the bits as a whole number have the exponent
    small = (bits.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    index = tl.where(bits < 0x00800000, small, (bits >> 23) + 22)
    counted = (bits > 0) & (bits < 0x7F800000)
    counts = tl.histogram(tl.where(counted, index, 511), 512)
    lane = tl.arange(0, 512)
    tl.atomic_add(bins + lane, counts, mask=(lane < 277) & (counts > 0))


@triton.jit
def _read_again(x, begin, end, row, halves, tiny: tl.constexpr):
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
    sums = row.to(tl.pointer_type(tl.float64)) + 7
    tl.atomic_max(halves, tl.max(highest))
    tl.atomic_max(halves + 1, 0x7FFFFFFF - tl.min(lowest))
    tl.atomic_add(sums, tl.sum(total))
    tl.atomic_add(sums + 1, tl.sum(squares))
    if tiny == 0x00800000:  # fp16's were counted
        tl.atomic_add(row + 1, tl.sum(subnormal.to(tl.int64)))
    tl.atomic_add(row + 2, tl.sum(nan.to(tl.int64)))
    tl.atomic_add(row + 3, tl.sum(positive.to(tl.int64)))
    tl.atomic_add(row + 4, tl.sum(negative.to(tl.int64)))
