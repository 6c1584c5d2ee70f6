"""Byte-level mutations: what a bad disk, a cut copy or a malicious hand makes of a file."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

__all__ = ["mutated"]

#: Bytes that mean something in one of the formats: marks, pickle's opcodes, JSON and YAML tokens, edges of numbers.
TOKENS: tuple[bytes, ...] = (
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PAR1", b"PARE", b"ARROW1", b"\xff\xff\xff\xff"),
    *(
        b"\x80\x02",
        b"\x80\x05",
        b"cbuiltins\neval\n",
        b"cos\nsystem\n",
        b"R.",
        b"\x81",
        b"b",
        b"u",
        b"s",
        b"e",
        b"t",
        b"Q",
    ),
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"X\xff\xff\xff\x7f",
        b"\x8a\xff",
        b"h\x00",
    ),
    *(
        b"{}",
        b"[]",
        b"null",
        b"true",
        b"-1",
        b"1e999",
        b"NaN",
        b'""',
        b"[[[[[[[[",
        b'{"a":{"a":{"a":',
        b"\\ud800",
        b"9" * 40,
    ),
    *(
        b"!!python/object/apply:os.system [id]",
        b"&a [*a, *a]",
        b"*a",
        b"<<: ",
        b"? ",
        b"- ",
        b": ",
        b"|\n",
        b"%YAML 9.9\n---\n",
    ),
    *(b"../../", b"\0", b"\n", b"\x1b]0;x\x07", b"\xe2\x80\xae", b"\xef\xbb\xbf", b"\xff\xfe"),
)
#: Numbers at which a length, a count or an offset tips over.
EDGES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)

_Change = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def mutated(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Return the content after one change, or after up to eight; `others` are what pieces may be taken from."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(_CHANGES)(data, rng, others)
    return bytes(data)


def _place(data: bytearray, rng: random.Random) -> int:
    """Return a position; headers and footers, which decide most, come up more often than their size would have it."""
    if not data:
        return 0
    near = min(len(data), 512)
    return rng.choice((rng.randrange(len(data)), rng.randrange(near), len(data) - 1 - rng.randrange(near)))


def _flip_bit(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set_byte(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    if data:
        data[_place(data, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _set_number(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    form = rng.choice(("<H", "<I", "<Q", ">I", ">Q"))
    size = struct.calcsize(form)
    if len(data) >= size:
        at = min(_place(data, rng), len(data) - size)
        data[at : at + size] = struct.pack(form, rng.choice(EDGES) & ((1 << 8 * size) - 1))


def _set_digits(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Give a number that is written in digits another value."""
    digits = [i for i in range(len(data)) if 48 <= data[i] < 58] if len(data) < 1 << 16 else []
    if digits:
        at = rng.choice(digits)
        data[at : at + 1] = rng.choice((b"0", b"-1", b"9999999999999999999", b"1e308", b"0.5", b"2147483648"))


def _cut_end(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    del data[_place(data, rng) :]


def _cut_out(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 8, 64, 512))]


def _repeat(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    at = _place(data, rng)
    data[at:at] = data[at : at + rng.choice((1, 4, 16, 256))] * rng.choice((1, 2, 50))


def _put_token(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    at, token = _place(data, rng), rng.choice(TOKENS)
    data[at : at + rng.choice((0, len(token)))] = token


def _splice(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Put a piece of another file, or of this one, in the place of a piece."""
    source = rng.choice(others) if others else bytes(data)
    if source:
        start, at = rng.randrange(len(source)), _place(data, rng)
        piece = source[start : start + rng.choice((1, 8, 64, 1024, len(source)))]
        data[at : at + rng.choice((0, len(piece)))] = piece


_CHANGES: tuple[_Change, ...] = (
    _flip_bit, _flip_bit, _set_byte, _set_number, _set_number, _set_digits, _cut_end, _cut_out, _repeat, _put_token, _put_token,
    _splice,
)  # fmt: skip
