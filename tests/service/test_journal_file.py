"""The journal's file on a real disk, without the journal."""

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from service.core.limits import KIB, MIB
from service.core.rows import Batch, Contents, DamagedError, Row
from service.journal_file import FILE_NAME, LOCK_NAME, SHRINK_WRITES, JournalError, JournalFile

# 2026-11-23T14:00:00Z
NOON = 1795442400.0
NEW = Contents(0, 0, 0, 0)


@contextmanager
def opened(directory: Path) -> Iterator[JournalFile]:
    """Open the file, and close it at the end."""
    with closing(JournalFile(directory, lambda: NOON)) as file:
        file.open()
        yield file


def insert(*rows: Row) -> Batch:
    """Make a transaction that only inserts."""
    return Batch(list(rows), [], [], [])


def delete(*numbers: int) -> Batch:
    """Make a transaction that only deletes."""
    return Batch([], list(numbers), [], [])


def reopened(directory: Path) -> tuple[Contents, list[Row]]:
    """Tell what the next run finds."""
    with closing(JournalFile(directory)) as file:
        contents = file.open()
        return contents, [stored.row() for stored in file.read(0, MIB)] if contents.posts else []


class TestRows:
    def test_what_is_written_comes_back(self, tmp_path: Path) -> None:
        """Rows keep number, lines and flags; a confirmed post keeps its place and loses its bytes."""
        with opened(tmp_path / "new" / "journal") as file:
            assert file.write(insert(Row(3, [b"a", b"", b"ccc"], b""), Row(5, [b"d", b"e"], b"\1\0"))) == {}
            assert [stored.row() for stored in file.read(4, MIB)] == [Row(5, [b"", b"e"], b"\1\0")]
        contents, rows = reopened(tmp_path / "new" / "journal")
        assert contents == Contents(posts=4, bytes=5, first=3, next=6)
        assert rows == [Row(3, [b"a", b"", b"ccc"], b""), Row(5, [b"", b"e"], b"\1\0")]

    def test_flags_are_noted_and_rows_deleted(self, tmp_path: Path) -> None:
        """A deleted row leaves no flags behind, which a later row of its number could take for its own."""
        with opened(tmp_path) as file:
            file.write(insert(Row(0, [b"a", b"b"], b""), Row(1, [b"c"], b"")))
            file.write(Batch([], [1], [(0, b"\0\1"), (1, b"\1")], []))
            file.write(delete(1))
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
            assert database.execute("SELECT number, flags FROM done").fetchall() == [(0, b"\0\1")]
        assert reopened(tmp_path)[1] == [Row(0, [b"a", b"b"], b"\0\1")]

    def test_flags_without_a_row_mark_no_later_one(self, tmp_path: Path) -> None:
        """They come into a new file that replaced a damaged one; the next run counts its rows from 0 again."""
        with opened(tmp_path) as file:
            file.write(Batch([], [], [(0, b"\1")], []))
        with opened(tmp_path) as file:
            file.write(insert(Row(0, [b"a"], b"")))
        assert reopened(tmp_path) == (Contents(1, 1, 0, 1), [Row(0, [b"a"], b"")])

    def test_a_row_is_written_anew_without_what_is_done(self, tmp_path: Path) -> None:
        """Its new size is told."""
        with opened(tmp_path) as file:
            file.write(insert(Row(0, [b"aa", b"bbb"], b"")))
            assert file.write(Batch([], [], [(0, b"\1\0")], [(0, b"\1\0")])) == {0: 3}
        assert reopened(tmp_path) == (Contents(1, 3, 0, 1), [Row(0, [b"", b"bbb"], b"\1\0")])

    def test_a_row_that_is_gone_is_not_written_anew(self, tmp_path: Path) -> None:
        """A read has set the file aside as damaged since the transaction was made: the rest of it is done."""
        with opened(tmp_path) as file:
            assert file.write(Batch([Row(7, [b"a"], b"")], [], [], [(0, b"\1\0")])) == {}
        assert reopened(tmp_path)[1] == [Row(7, [b"a"], b"")]

    def test_a_read_stops_at_its_limit(self, tmp_path: Path) -> None:
        """It gives at least one row, and no more than the row that reaches the limit."""
        with opened(tmp_path) as file:
            file.write(insert(*(Row(number, [b"x" * 10], b"") for number in range(5))))
            assert [len(file.read(0, limit)) for limit in (1, 10, 11, 1000)] == [1, 1, 2, 5]

    def test_rows_that_must_be_there_and_are_not_are_damage(self, tmp_path: Path) -> None:
        """Nobody asks for rows that were never written."""
        with opened(tmp_path) as file, pytest.raises(DamagedError, match="rows are missing; set aside as"):
            file.read(0, MIB)

    @pytest.mark.parametrize("fails_at", [["COMMIT"], ["COMMIT", "ROLLBACK"]])
    def test_a_failed_transaction_leaves_nothing(self, tmp_path: Path, fails_at: list[str]) -> None:
        """It is taken back, if need be by opening the file anew, and the file can be used on."""

        class Failing(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                if sql in fails_at:
                    fails_at.remove(sql)
                    raise sqlite3.OperationalError("disk I/O error")
                return super().execute(sql, *parameters)

        with closing(JournalFile(tmp_path, connect=partial(sqlite3.connect, factory=Failing))) as file:
            file.open()
            with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
                file.write(insert(Row(0, [b"a"], b"")))
            file.write(insert(Row(2, [b"c"], b"")))
        assert reopened(tmp_path)[1] == [Row(2, [b"c"], b"")]


class TestKill:
    def test_a_kill_at_any_statement_leaves_all_of_a_write_or_nothing(self, tmp_path: Path) -> None:
        """What lies on the disk before each statement is what a `kill -9` at that moment leaves to the next run."""
        directory = tmp_path / "journal"
        before = [Row(0, [b"a"], b""), Row(1, [b"b", b"c"], b""), Row(2, [b"d", b"e"], b"")]
        with opened(directory) as file:
            file.write(insert(*before))
        copies: list[Path] = []

        class Watched(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                copies.append(Path(shutil.copytree(directory, tmp_path / str(len(copies)))))
                return super().execute(sql, *parameters)

            def executemany(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                copies.append(Path(shutil.copytree(directory, tmp_path / str(len(copies)))))
                return super().executemany(sql, *parameters)

        # More than SQLite's cache has room for, so that the log has a part of it before the end.
        large = Row(3, [b"x" * 6 * MIB], b"")
        with closing(JournalFile(directory, connect=partial(sqlite3.connect, factory=Watched))) as file:
            file.open()
            opening = len(copies)
            file.write(Batch([large], [0], [(1, b"\0\1"), (2, b"\1\0")], [(2, b"\1\0")]))
        after = [Row(1, [b"b", b"c"], b"\0\1"), Row(2, [b"", b"e"], b"\1\0"), large]
        logs = [sum(log.stat().st_size for log in copy.glob("*-wal")) for copy in copies]
        found = [reopened(copy)[1] for copy in copies]
        changed = found.index(after)
        assert found == [before] * changed + [after] * (len(found) - changed)
        assert changed - opening > 6
        assert logs[changed - 1] > MIB


class TestSize:
    def test_the_file_shrinks_while_it_is_in_use(self, tmp_path: Path) -> None:
        """When a large backlog has gone, its room goes back to the disk after some writes."""
        with opened(tmp_path) as file:
            for number in range(80):
                file.write(insert(Row(number, [b"x" * MIB], b"")))
            file.write(delete(*range(80)))
            for number in range(SHRINK_WRITES):
                file.write(insert(Row(100 + number, [b"x"], b"")))
            assert (tmp_path / FILE_NAME).stat().st_size < MIB

    def test_a_close_leaves_a_small_file(self, tmp_path: Path) -> None:
        """After a clean end with nothing left there is one small file, without a WAL."""
        with opened(tmp_path) as file:
            file.write(insert(Row(0, [b"x" * 3 * MIB], b"")))
            file.write(delete(0))
        assert not (tmp_path / f"{FILE_NAME}-wal").exists()
        assert (tmp_path / FILE_NAME).stat().st_size <= 256 * KIB


class TestOpening:
    def test_a_second_process_is_refused(self, tmp_path: Path) -> None:
        """While one has the file, another is refused with one line that names the setting."""
        with (
            opened(tmp_path),
            pytest.raises(JournalError, match=r"^MILLRACE_JOURNAL: .* in use by another process; [^\n]*$"),
        ):
            JournalFile(tmp_path).open()
        with opened(tmp_path):
            pass

    def test_another_program_in_the_file_is_told_of(self, tmp_path: Path) -> None:
        """A file that another program has locked is not taken for a damaged one."""
        with opened(tmp_path):
            pass
        with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(JournalError, match="in use by another process"):
                JournalFile(tmp_path).open()

    def test_who_has_no_lock_sets_nothing_aside(self, tmp_path: Path) -> None:
        """A damaged file is left to the process that has the lock."""
        garbage(tmp_path / FILE_NAME)
        lock = os.open(tmp_path / LOCK_NAME, os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(JournalError, match="in use by another process"):
            JournalFile(tmp_path).open()
        os.close(lock)
        assert (tmp_path / FILE_NAME).read_bytes().startswith(b"no database")

    def test_a_directory_that_cannot_be_is_refused(self, tmp_path: Path) -> None:
        """A path through a file is refused with one line that names the setting and the way out."""
        (tmp_path / "file").touch()
        with pytest.raises(JournalError, match=r"^MILLRACE_JOURNAL: .*/file/sub cannot be used: Not a directory; "):
            JournalFile(tmp_path / "file" / "sub").open()

    def test_a_file_that_cannot_be_opened_is_refused(self, tmp_path: Path) -> None:
        """What SQLite cannot open, and is no damage, is refused and left alone."""
        (tmp_path / FILE_NAME).mkdir()
        with pytest.raises(JournalError, match=r"^MILLRACE_JOURNAL: .* cannot be used: unable to open database file; "):
            JournalFile(tmp_path).open()
        assert (tmp_path / FILE_NAME).is_dir()


def cut(path: Path) -> None:
    """Take away the second half."""
    os.truncate(path, path.stat().st_size // 2)


def cut_short(path: Path) -> None:
    """Leave less than the header."""
    os.truncate(path, 50)


def garbage(path: Path) -> None:
    """Write what is no database."""
    path.write_bytes(b"no database" * 5000)


def garbage_inside(path: Path) -> None:
    """Keep the first page only."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(1 << 15)
        file.write(b"\xff" * (size - (1 << 15)))


def change(*statements: str) -> Callable[[Path], None]:
    """Run SQL in the file."""

    def apply(path: Path) -> None:
        database = sqlite3.connect(path, isolation_level=None)
        for statement in statements:
            database.execute(statement)
        database.close()

    return apply


def foreign(path: Path) -> None:
    """Put another program's database there."""
    path.unlink()
    change("CREATE TABLE cats (name TEXT)")(path)


class TestDamage:
    @pytest.mark.parametrize(
        "damage",
        [
            cut,
            cut_short,
            garbage,
            garbage_inside,
            foreign,
            change("PRAGMA user_version = 2"),
            change("DROP TABLE done"),
            change("ALTER TABLE chunk RENAME lines TO posts"),
        ],
        ids=["cut", "cut_short", "garbage", "garbage_inside", "foreign", "newer", "no_table", "no_column"],
    )
    def test_a_damaged_file_is_set_aside(self, tmp_path: Path, damage: Callable[[Path], None]) -> None:
        """What is no journal is kept under a name with the time, the log says so, and a new file is begun."""
        with opened(tmp_path) as file:
            file.write(insert(Row(0, [b"x" * MIB], b"")))
        damage(tmp_path / FILE_NAME)
        before = (tmp_path / FILE_NAME).read_bytes()
        with structlog.testing.capture_logs() as logs, closing(JournalFile(tmp_path, lambda: NOON)) as file:
            assert file.open() == NEW
            file.write(insert(Row(0, [b"x"], b"")))
        aside = tmp_path / "journal-damaged-20261123T140000Z.db"
        assert [(entry["event"], entry["set_aside"]) for entry in logs] == [("journal_damaged", str(aside))]
        if damage is not garbage_inside:
            assert before == aside.read_bytes()
        assert len(before) == aside.stat().st_size
        assert reopened(tmp_path)[1] == [Row(0, [b"x"], b"")]

    def test_the_file_of_another_version_is_called_so(self, tmp_path: Path) -> None:
        """Whoever goes back to an older version reads that the newer one can still send what is in the file."""
        with opened(tmp_path):
            pass
        change("PRAGMA user_version = 2")(tmp_path / FILE_NAME)
        with structlog.testing.capture_logs() as logs, opened(tmp_path):
            pass
        assert "another version of Millrace wrote it: its form is 2, here it is 1" in logs[0]["error"]
        assert "To go back" in logs[0]["way_out"]

    def test_two_damaged_files_of_one_second_are_both_kept(self, tmp_path: Path) -> None:
        """A file that was set aside is never overwritten."""
        for text in (b"first" * 999, b"second" * 999):
            (tmp_path / FILE_NAME).write_bytes(text)
            with opened(tmp_path):
                pass
        names = ("journal-damaged-20261123T140000Z.db", "journal-damaged-20261123T140000Z-2.db")
        assert [(tmp_path / name).read_bytes()[:6] for name in names] == [b"firstf", b"second"]

    def test_a_torn_wal_costs_its_end_only(self, tmp_path: Path) -> None:
        """Garbage at the end of the WAL, as a crash may leave it, does not touch what was written before."""
        with opened(tmp_path) as file:
            file.write(insert(Row(0, [b"a"], b"")))
            directory = Path(shutil.copytree(tmp_path, tmp_path / "copy"))
        with (directory / f"{FILE_NAME}-wal").open("ab") as wal:
            wal.write(b"\xff" * 40_000)
        assert reopened(directory)[1] == [Row(0, [b"a"], b"")]

    def test_bytes_that_are_called_text_are_read_all_the_same(self, tmp_path: Path) -> None:
        """It takes one flipped bit in the head of a row, and the bytes are still right."""
        row = Row(0, [b"x" * 200, b"y"], b"\0\1")
        with opened(tmp_path) as file:
            file.write(insert(row))
        change(
            "UPDATE chunk SET lengths = CAST(lengths AS TEXT), lines = CAST(lines AS TEXT)",
            "UPDATE done SET flags = CAST(flags AS TEXT)",
        )(tmp_path / FILE_NAME)
        assert reopened(tmp_path)[1] == [Row(0, [b"x" * 200, b""], b"\0\1")]

    def test_damage_that_shows_later_begins_a_new_file(self, tmp_path: Path) -> None:
        """The call that finds it fails, and the next one works on a new file under the same lock."""
        with opened(tmp_path) as file:
            file.write(insert(Row(0, [b"a"], b"")))
        change("UPDATE chunk SET lines = 'short'")(tmp_path / FILE_NAME)
        with opened(tmp_path) as file:
            with structlog.testing.capture_logs() as logs, pytest.raises(DamagedError, match="instead of 1; set aside"):
                file.read(0, MIB)
            file.write(insert(Row(1, [b"b"], b"")))
            with pytest.raises(JournalError, match="in use"):
                JournalFile(tmp_path).open()
        assert [entry["event"] for entry in logs] == ["journal_damaged"]
        assert reopened(tmp_path)[1] == [Row(1, [b"b"], b"")]
