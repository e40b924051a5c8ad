"""
How lines become chunks: where chunks end, and what ends a line.

A client has to read the same lines whatever the layout. The borders are where careless readers break: inside CR LF,
inside a character of several bytes, behind a backslash, in front of a keep-alive.
"""

import re
from enum import StrEnum
from random import Random

CRLF = b"\r\n"
_NOT_ASCII = re.compile(rb"[\xc0-\xff]")


class Layout(StrEnum):
    """Where chunks end. Each chunk is a write of its own."""

    BATCH = "batch"  # all that waits, up to 256 KiB, is one chunk
    LINE = "line"  # each line is one
    SPLIT = "split"  # each line is several, cut at places of chance
    BYTES = "bytes"  # each byte is one
    CRLF = "crlf"  # a border between CR and LF
    UTF8 = "utf8"  # a border inside the first character of several bytes
    ESCAPE = "escape"  # a border after the first backslash
    GLUED = "glued"  # a keep-alive in the same chunk behind each line
    BARE_LF = "bare_lf"  # as batch, but LF alone ends a line


def chunks(lines: list[bytes], layout: Layout, rng: Random) -> list[bytes]:
    """Return the chunks that carry some lines; `rng` chooses the places of `Layout.SPLIT`."""
    if layout is Layout.BATCH:
        return [CRLF.join(lines) + CRLF]
    if layout is Layout.BARE_LF:
        return [b"\n".join(lines) + b"\n"]
    return [chunk for line in lines for chunk in _cut(line, layout, rng)]


def _cut(line: bytes, layout: Layout, rng: Random) -> list[bytes]:
    whole = line + CRLF
    if layout is Layout.BYTES:
        return [whole[place : place + 1] for place in range(len(whole))]
    cuts: list[int] = []
    if layout is Layout.GLUED:
        whole += CRLF
    elif layout is Layout.CRLF:
        cuts = [len(line) + 1]
    elif layout is Layout.SPLIT:
        cuts = sorted(rng.sample(range(1, len(whole)), k=min(4, len(line))))
    elif layout is Layout.ESCAPE:
        cuts = [line.index(b"\\") + 1] if b"\\" in line else []
    elif layout is Layout.UTF8:
        found = _NOT_ASCII.search(line)
        cuts = [found.start() + 1] if found else []
    return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
