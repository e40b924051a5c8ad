"""How posts lie in the journal's file: by the row, with the flags of those that are confirmed beside it."""

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

_LENGTH_BYTES = array("I").itemsize


class DamagedError(Exception):
    """The file is no journal, or holds what nobody wrote."""


class Row(NamedTuple):
    """A chunk on its way to or from the disk; `flags` is empty if none of its posts is confirmed."""

    number: int
    lines: list[bytes]
    flags: bytes

    def encode(self) -> tuple[int, bytes, bytes]:
        """Give number, lengths and lines as they lie in the file; confirmed posts have no bytes any more."""
        lines = without(self.lines, self.flags) if self.flags else self.lines
        return self.number, array("I", map(len, lines)).tobytes(), b"".join(lines)


class Stored(NamedTuple):
    """A row as it lies in the file."""

    number: int
    ends: list[int]
    lines: bytes
    flags: bytes

    @classmethod
    def decode(cls, number: int, lengths: bytes, lines: bytes, flags: bytes | None) -> "Stored":
        """Read what `Row.encode` gave; raises DamagedError."""
        if len(lengths) % _LENGTH_BYTES:
            raise DamagedError(f"chunk {number} has {len(lengths)} bytes of lengths")
        ends, flags = [0, *accumulate(array("I", lengths))], flags or b""
        if ends[-1] != len(lines) or len(flags) not in {0, len(ends) - 1}:
            raise DamagedError(f"chunk {number} has {len(lines)} bytes instead of {ends[-1]}")
        return cls(number, ends, lines, flags)

    def row(self) -> Row:
        """Split it into lines. In the loop's thread: lines of another thread's arena would tear holes in its memory."""
        return Row(self.number, [self.lines[start:end] for start, end in pairwise(self.ends)], self.flags)


class Batch(NamedTuple):
    """One transaction: rows to insert, numbers to delete, flags to note, rows to write anew without what is done."""

    rows: list[Row]
    deletes: list[int]
    done: list[tuple[int, bytes]]
    sweeps: list[tuple[int, bytes]]


class Contents(NamedTuple):
    """What an earlier run left: posts that are not confirmed, bytes of all rows, the first row, and the next number."""

    posts: int
    bytes: int
    first: int
    next: int


def count(rows: Iterable[tuple[int, int, int, bytes | None]]) -> Contents:
    """Sum up rows in their order: number, bytes of the lengths, bytes of the lines, and flags."""
    posts = size = 0
    first, last = 0, -1
    for number, length_bytes, row_bytes, flags in rows:
        first = first if posts else number
        last = number
        posts += length_bytes // _LENGTH_BYTES - (flags or b"").count(1)
        size += row_bytes
    return Contents(posts, size, first, last + 1)


def without(lines: Sequence[bytes], flags: bytes | bytearray) -> list[bytes]:
    """Leave the place of a confirmed post, and not its bytes."""
    return [b"" if flag else line for line, flag in zip(lines, flags, strict=True)]
