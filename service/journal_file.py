"""
The journal's file: SQLite in WAL mode, with a lock beside it.

* A file that is damaged, or no journal, is set aside, never deleted, and a new one is begun.
* UPDATE of a row writes all of it anew, so the flags of confirmed posts, `done`, are a table.
* `secure_delete` is on in some builds of SQLite and adds two thirds to the cost: it fills what is deleted with zeros.
  It is switched off, so what was deleted may be found in the file until its place is used again.
* locking_mode=EXCLUSIVE keeps WAL's index in memory: no third file, and no SIGBUS when the disk is full.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from service.core.limits import KIB, MIB
from service.core.rows import Batch, Contents, DamagedError, Row, Stored, count

FILE_NAME = "journal.db"
LOCK_NAME = "journal.lock"
# After so many writes it looks whether the file is to shrink: when this much of it is empty and little is in use, for
# VACUUM copies what is in use.
SHRINK_WRITES = 64
VACUUM_FREE_BYTES = 64 * MIB
VACUUM_USED_BYTES = 16 * MIB

# Both stand in the header of the file. The version rises with every change of the tables.
_APPLICATION_ID = 0x4D696C6C
_VERSION = 1
# Pages of 32 KiB: with 4 KiB a post costs twice as much; with 64 KiB a trickle of posts writes twice as much.
# The pointer map of auto_vacuum spares reading a chunk's pages when it is deleted.
_PAGE_BYTES = 32 * KIB
_SCHEMA = f"""
PRAGMA page_size = {_PAGE_BYTES};
PRAGMA auto_vacuum = INCREMENTAL;
BEGIN;
CREATE TABLE chunk (number INTEGER PRIMARY KEY, lengths BLOB NOT NULL, lines BLOB NOT NULL);
CREATE TABLE done (number INTEGER PRIMARY KEY, flags BLOB NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "secure_delete = OFF",
    f"cache_size = {-4 * MIB // KIB}",
    f"wal_autocheckpoint = {32 * MIB // _PAGE_BYTES}",
    f"journal_size_limit = {48 * MIB}",
)
_ROWS = (
    "SELECT number, lengths, lines, flags FROM chunk LEFT JOIN done USING (number) WHERE number >= ? ORDER BY number"
)
# This finds a damaged tree of rows, though not a damaged line. length() of a BLOB needs no look at the BLOB itself:
# 8 GiB take some seconds.
_SIZES = "SELECT number, length(lengths), length(lines), flags FROM chunk LEFT JOIN done USING (number) ORDER BY number"

log = structlog.get_logger()


class JournalError(Exception):
    """The journal cannot be used; the text is one line that names the setting and the way out."""


class JournalFile:
    """
    See the module's text. Not to be used from several threads at once.

    Arguments:
        directory: where it lies; made if it is not there. No other process may have it.
        clock: the time of day, in seconds since 1970, for the name of a damaged file.
        connect: opens the database.
    """

    def __init__(
        self,
        directory: Path,
        clock: Callable[[], float] = time.time,
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._connect = connect
        self._lock = -1
        self._database: sqlite3.Connection | None = None
        self._writes = 0

    def open(self) -> Contents:
        """Take the lock, open the file, set it aside if it is damaged; raises JournalError."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(DamagedError):
                return self._contents()
            return self._contents()
        except (OSError, sqlite3.Error) as error:
            self.close()
            if isinstance(error, BlockingIOError) or _code(error) == sqlite3.SQLITE_BUSY:
                fault = "is in use by another process; stop that one, or give each a directory of its own"
            else:
                reason = error.strerror if isinstance(error, OSError) else error
                fault = f"cannot be used: {reason}; name a directory that can be written and has room, or write off"
            raise JournalError(f"MILLRACE_JOURNAL: {self._directory} {fault}") from None

    def write(self, batch: Batch) -> Mapping[int, int]:
        """Do one transaction. Returns the new sizes of the rows that were written anew."""
        with self._checked() as database:
            database.execute("BEGIN")
            if batch.deletes:
                numbers = [(number,) for number in batch.deletes]
                database.executemany("DELETE FROM chunk WHERE number = ?", numbers)
                database.executemany("DELETE FROM done WHERE number = ?", numbers)
            sizes = {}
            for number, flags in batch.sweeps:
                found = database.execute("SELECT lengths, lines FROM chunk WHERE number = ?", (number,)).fetchone()
                # Not there if a read has set the file aside since the batch was made.
                if found is not None:
                    lengths, lines = found
                    row = Stored.decode(number, lengths, lines, flags).row().encode()
                    database.execute("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?)", row)
                    sizes[number] = len(row[2])
            done = [*batch.done, *((row.number, row.flags) for row in batch.rows if row.flags)]
            database.executemany("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?)", map(Row.encode, batch.rows))
            database.executemany("INSERT OR REPLACE INTO done VALUES (?, ?)", done)
            database.execute("COMMIT")
            self._writes += 1
            if self._writes % SHRINK_WRITES == 0:
                self._shrink(database, VACUUM_FREE_BYTES)
            return sizes

    def read(self, first: int, limit: int) -> list[Stored]:
        """Read rows from a number on, until they have `limit` bytes."""
        rows = []
        with (
            self._checked() as database,
            closing(database.execute(_ROWS, (first,))) as found,
        ):
            for number, lengths, lines, flags in found:
                rows.append(Stored.decode(number, lengths, lines, flags))
                limit -= len(lines)
                if limit <= 0:
                    break
            if not rows:
                raise DamagedError("rows are missing")
        return rows

    def close(self) -> None:
        """Leave one small file; a disk that fails now leaves a larger one, with the same posts."""
        if self._database is not None:
            self._shrink(self._database, 0)
            self._database.close()
            self._database = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _contents(self) -> Contents:
        """Open the file and look through it. A damaged one is set aside, and DamagedError raised."""
        database = None
        try:
            database = self._connect(
                self._directory / FILE_NAME, isolation_level=None, check_same_thread=False, timeout=0
            )
            # There is no text in it; a flipped bit may call bytes so.
            database.text_factory = bytes
            # Before the first look at the file, and nothing is changed before it is known to be a journal.
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            # Even a new file's tables want room for temporary data, and a read-only root has none.
            database.execute("PRAGMA temp_store = MEMORY")
            _check(database)
            for pragma in _PRAGMAS:
                database.execute(f"PRAGMA {pragma}").fetchall()
            # A batch that was made before the file was set aside may have left them: a row of that number would take
            # them for its own.
            database.execute("DELETE FROM done WHERE number NOT IN (SELECT number FROM chunk)")
            contents = count(database.execute(_SIZES))
        except (sqlite3.Error, DamagedError) as error:
            if database is not None:
                database.close()
            # The statements are right: an error in them means that tables or columns are missing.
            if _is_damage(error) or _code(error) == sqlite3.SQLITE_ERROR:
                raise self._set_aside(error) from None
            raise
        self._database = database
        return contents

    @contextmanager
    def _checked(self) -> Iterator[sqlite3.Connection]:
        """Give the database; after trouble, no transaction is open, and a damaged file is set aside."""
        if self._database is None:
            self._contents()
        database = self._database
        assert database is not None
        try:
            yield database
        except (sqlite3.Error, DamagedError) as error:
            with suppress(sqlite3.Error):
                if database.in_transaction:
                    database.execute("ROLLBACK")
            damaged = _is_damage(error)
            if damaged or database.in_transaction:
                self._database = None
                database.close()
            if damaged:
                raise self._set_aside(error) from None
            raise

    def _set_aside(self, error: Exception) -> DamagedError:
        stamp = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        names = (f"journal-damaged-{stamp}{suffix}.db" for suffix in ("", *(f"-{number}" for number in range(2, 100))))
        name = next(name for name in names if not (self._directory / name).exists())
        # The log goes first: beside a new file it would be taken for that one's.
        for part in ("-wal", ""):
            with suppress(FileNotFoundError):
                (self._directory / (FILE_NAME + part)).rename(self._directory / (name + part))
        path = str(self._directory / name)
        log.error(
            "journal_damaged",
            error=str(error),
            set_aside=path,
            way_out="that of another version can be sent by it, see docs/operations.md, To go back; from a"
            " damaged one the .recover of the sqlite3 shell may save posts",
        )
        return DamagedError(f"{error}; set aside as {path}")

    @staticmethod
    def _shrink(database: sqlite3.Connection, free_bytes: int) -> None:
        """Give back what is empty, if it is more than that. If it does not work, nothing is lost."""
        with suppress(sqlite3.Error):
            (free,) = database.execute("PRAGMA freelist_count").fetchone()
            (pages,) = database.execute("PRAGMA page_count").fetchone()
            if free * _PAGE_BYTES > free_bytes and (pages - free) * _PAGE_BYTES < VACUUM_USED_BYTES:
                database.execute("VACUUM")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _check(database: sqlite3.Connection) -> None:
    """Check that it is a journal; make it one if it is new."""
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if (tables, application, version) == (0, 0, 0):
        database.executescript(_SCHEMA)
    elif application != _APPLICATION_ID:
        raise DamagedError("it is no journal of Millrace")
    elif version != _VERSION:
        raise DamagedError(f"another version of Millrace wrote it: its form is {version}, here it is {_VERSION}")


def _code(error: Exception) -> int:
    """Give SQLite's primary error code; -1 if the error is not SQLite's own."""
    code: int = getattr(error, "sqlite_errorcode", -1)
    return code if code < 0 else code & 0xFF


def _is_damage(error: Exception) -> bool:
    return isinstance(error, DamagedError) or _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
