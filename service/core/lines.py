"""
Chunks of a connection -> lines.

Only LF ends a line, and a CR before it belongs to the ending. `bytes.splitlines` is no help: it also cuts at a
lone CR, and text decoded first would be cut at U+0085 and U+2028, which are ordinary characters inside a post.

An unfinished line is kept as the pieces that it came in and joined once, when its end arrives. A line that takes
10,000 chunks is thus copied once, not 10,000 times.
"""

from service.core.limits import KIB, LINE_BYTES

# How much of an overlong line is kept, so that somebody can see what it was.
HEAD_BYTES = 64 * KIB


class LineSplitter:
    """
    Splits one connection's bytes at its line ends; `limit` is the longest line that passes, in bytes.

    Attributes:
        keep_alives: how many empty lines were seen; they are not handed out.
        overlong: of each line over the limit the first 64 KiB at most. The rest of it is skipped.

    Whoever reads these two sets them back.
    """

    def __init__(self, limit: int = LINE_BYTES) -> None:
        self.keep_alives = 0
        self.overlong: list[bytes] = []
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self._skipping = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that this chunk completes, in order, without their CR LF or LF."""
        lines = chunk.split(b"\n")
        tail = lines.pop()
        if not lines:
            self._hold(tail)
            return lines
        may_be_overlong = self._size + len(chunk) > self._limit
        if self._skipping:
            del lines[0]
            self._skipping = False
        elif self._pieces:
            lines[0] = b"".join([*self._pieces, lines[0]])
            self._pieces.clear()
            self._size = 0
        lines = [line.removesuffix(b"\r") for line in lines]
        if not all(lines):
            self.keep_alives += lines.count(b"")
            lines = [line for line in lines if line]
        if may_be_overlong:
            self.overlong += [line[:HEAD_BYTES] for line in lines if len(line) > self._limit]
            lines = [line for line in lines if len(line) <= self._limit]
        self._hold(tail)
        return lines

    def end(self) -> bytes | None:
        """Return what the connection's end cut off, or None if it ended with a line; ready for a new connection."""
        rest = b"".join(self._pieces).removesuffix(b"\r")
        if len(rest) > self._limit:
            self.overlong.append(rest[:HEAD_BYTES])
            rest = b""
        self._pieces.clear()
        self._size = 0
        self._skipping = False
        return rest or None

    def _hold(self, piece: bytes) -> None:
        if self._skipping or not piece:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        # One more byte than the limit may be the CR of the line's end.
        if self._size > self._limit + 1:
            self.overlong.append(b"".join(self._pieces)[:HEAD_BYTES])
            self._pieces.clear()
            self._size = 0
            self._skipping = True
