"""
The events of the local Kinesis on disk, so that a killed process comes back with all that it has answered for.

A log is a directory of segments, `00000001.log` and so on. A segment is a row of frames, and its first frames are
snapshots of all streams, so that older segments can be deleted:

    +--------------+--------------+-----------------------+
    | length, 4 B  | CRC-32, 4 B  | event in MessagePack  |
    +--------------+--------------+-----------------------+

An event is handed to the operating system before its request is answered, but not forced onto the disk: it outlives the
process, not the machine. A frame that was cut by a kill can only be the last one; it is cut off when the log is read.
A segment is deleted when none of its records is kept in memory any more, so the log is bounded as memory is.
What was throttled or failed is no event: those counts come back as of the last snapshot.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from local.kinesis.account import Event, Put
from local.kinesis.stream import Snapshot

SEGMENT_BYTES = 64 << 20
_HEAD = struct.Struct("<II")


class DamagedLogError(Exception):
    """A frame cannot be read that is not the last one; the message names the file and the way out."""


class Log:
    """
    An open log. `segment_bytes` is the size at which a segment is full.

    Raises BlockingIOError if another process has the directory open, OSError if it cannot be used.
    """

    def __init__(self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Event)
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise
        self._file = -1
        self._size = 0
        # For each segment, oldest first, the last position it holds of each stream.
        self._segments: dict[Path, dict[str, int]] = {}
        self._created: dict[str, float] = {}

    def replay(self) -> Iterator[Event]:
        """Yield all events, oldest first, and make the log ready for `append`. Raises DamagedLogError."""
        paths = sorted(self._directory.glob("*.log"))
        for path in paths:
            content = path.read_bytes()
            good = 0
            self._segments[path] = {}
            for payload in _frames(content):
                event = self._decoder.decode(payload)
                self._note(path, event)
                yield event
                good += _HEAD.size + len(payload)
            if good < len(content):
                if path != paths[-1]:
                    raise DamagedLogError(f"{path} cannot be read from byte {good} on; move the directory away")
                os.truncate(path, good)
        self._open(paths[-1] if paths else self._directory / f"{1:08d}.log")

    @property
    def is_full(self) -> bool:
        """Whether the segment has reached its size, so that it is time to `roll`."""
        return self._size >= self._segment_bytes

    def append(self, event: Event) -> None:
        """Write one event; raises OSError if it cannot be written whole."""
        payload = self._encoder.encode(event)
        frame = _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
        written = 0
        while written < len(frame):
            written += os.write(self._file, frame[written:])
        self._size += written
        self._note(next(reversed(self._segments)), event)

    def roll(self, snapshots: Iterable[Snapshot], trimmed_to: dict[str, int]) -> None:
        """
        Begin a new segment with snapshots of all streams, then delete those that hold nothing that is kept.

        `trimmed_to` says for each stream up to which position nothing is kept.
        """
        newest = next(reversed(self._segments))
        os.close(self._file)
        self._open(self._directory / f"{int(newest.stem) + 1:08d}.log")
        for snapshot in snapshots:
            self.append(snapshot)
        for path in list(self._segments)[:-1]:
            last = self._segments[path]
            if any(last[stream] > position for stream, position in trimmed_to.items() if stream in last):
                break
            path.unlink()
            del self._segments[path]

    def close(self) -> None:
        """Let go of the directory."""
        if self._file >= 0:
            os.close(self._file)
        os.close(self._lock)

    def _open(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._file).st_size
        self._segments.setdefault(path, {})

    def _note(self, path: Path, event: Event) -> None:
        if isinstance(event, Put):
            self._segments[path][event.stream] = event.records[-1].position
        elif isinstance(event, Snapshot) and self._created.get(event.facts.name) != event.facts.created_at:
            # Another stream of this name: what is on disk of the old one is not waited for.
            self._created[event.facts.name] = event.facts.created_at
            for last in self._segments.values():
                last.pop(event.facts.name, None)


def _frames(content: bytes) -> Iterator[bytes]:
    start = 0
    while start + _HEAD.size <= len(content):
        length, checksum = _HEAD.unpack_from(content, start)
        payload = content[start + _HEAD.size : start + _HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield payload
        start += _HEAD.size + length
