"""What a Parquet file's footer says of its size: rows, values and bytes, read by hand.

pyarrow tells as much, but by way of each column's statistics, and ends the process where a damaged one lies about its type
(pyarrow 26). So the footer is read here: it is Thrift's compact protocol, of which a few numbers are wanted and all else is
passed over. Field numbers are those of parquet.thrift: FileMetaData 3 and 4; RowGroup 1 and 3; ColumnChunk 3; ColumnMetaData 5
and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["GroupSize", "footer_sizes"]

_DEEPEST = 16
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSize:
    """One row group: its rows, the values of its longest column, the bytes of all columns when decompressed."""

    rows: int
    values: int
    size: int


def footer_sizes(path: Path) -> tuple[int, list[GroupSize]]:
    """Return the file's rows and its row groups. Raises ValueError where the footer cannot be read."""
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        footer = file.read(length)
    try:
        found = _Compact(footer).struct()
        return int(found[3]), [_group(group) for group in found.get(4, [])]
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("its footer cannot be read") from error


def _group(group: dict[int, Any]) -> GroupSize:
    columns = [column[3] for column in group[1] if 3 in column]
    return GroupSize(
        rows=int(group[3]),
        values=max((int(column[5]) for column in columns), default=0),
        size=sum(int(column[6]) for column in columns),
    )


class _Compact:
    """Thrift's compact protocol over some bytes; texts are passed over, and IndexError is the end of the bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the values of a struct's fields by number."""
        if depth > _DEEPEST:
            raise IndexError
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            return [(self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1)) for _ in range(count)]
        if kind in (_TRUE, _FALSE, _BYTE):  # inside a list a boolean takes a byte
            return self._byte()
        if kind in (_BINARY, _DOUBLE):
            length = self._varint() if kind == _BINARY else 8  # before the place is read: it moves it
            self._at += length
            return None
        return self._zigzag()

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128 or shift > 63:
                return value

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
