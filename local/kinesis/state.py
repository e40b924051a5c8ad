"""
The streams of the local Kinesis on disk, so that a killed process comes back with all that it has answered for.

What changes is handed to the operating system before its request is answered, but not forced onto the disk: it outlives
the process, not the machine. The file is bounded as memory is: a record goes when it is no longer kept there.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from local.kinesis.shards import Record
from local.kinesis.stream import Snapshot, Stream

_SCHEMA = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS streams (name TEXT PRIMARY KEY, snapshot BLOB);
CREATE TABLE IF NOT EXISTS records (stream TEXT, position INTEGER, record BLOB, PRIMARY KEY (stream, position));
"""


class StateError(Exception):
    """The directory cannot be used; the text is one line with the way out."""


class State:
    """The streams in a directory. All methods raise StateError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with self._told():
            directory.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(directory / "streams.sqlite", timeout=0)
            self._database.executescript(_SCHEMA)

    def load(self) -> Iterator[tuple[Snapshot, list[Record]]]:
        """Yield each stream with its records, oldest first."""
        with self._told():
            for name, snapshot in self._database.execute("SELECT name, snapshot FROM streams").fetchall():
                rows = self._database.execute("SELECT record FROM records WHERE stream = ? ORDER BY position", (name,))
                records = [msgspec.msgpack.decode(row[0], type=Record) for row in rows]
                yield msgspec.msgpack.decode(snapshot, type=Snapshot), records

    def save(self, stream: Stream, records: Sequence[Record]) -> None:
        """Keep a stream as it is now, with new records of it, and let go of those that it does not keep."""
        encode = msgspec.msgpack.encode
        first_kept = stream.oldest.position if stream.oldest else stream.map.position + 1
        rows = [(stream.name, record.position, encode(record)) for record in records]
        with self._told(), self._database:
            self._database.execute("REPLACE INTO streams VALUES (?, ?)", (stream.name, encode(stream.snapshot())))
            self._database.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)
            self._database.execute("DELETE FROM records WHERE stream = ? AND position < ?", (stream.name, first_kept))

    def forget(self, name: str) -> None:
        """Let go of a stream and its records."""
        with self._told(), self._database:
            self._database.execute("DELETE FROM streams WHERE name = ?", (name,))
            self._database.execute("DELETE FROM records WHERE stream = ?", (name,))

    def close(self) -> None:
        """Let go of the directory."""
        with self._told():
            self._database.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, sqlite3.Error) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise StateError(f"{self._directory} is in use by another process; give another --state") from error
            way_out = "make room there, move it away, or give another --state"
            raise StateError(f"cannot use {self._directory}: {error}; {way_out}") from error
