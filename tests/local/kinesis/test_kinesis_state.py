from pathlib import Path

import pytest

from local.kinesis.account import Account
from local.kinesis.limits import Entry
from local.kinesis.shards import Record
from local.kinesis.state import State, StateError
from local.kinesis.stream import Snapshot, Stream

NOW = 1_800_000_000.0


class House:
    """An account whose streams are kept in a directory, as the server wires them."""

    def __init__(self, directory: Path, memory_limit: int = 1 << 20) -> None:
        self.account = Account(memory_limit=memory_limit, settle_seconds=0.0)
        self.state = State(directory)
        self.account.keep, self.account.forget = self.state.save, self.state.forget
        for snapshot, records in self.state.load():
            self.account.restore(snapshot, records, NOW)

    def create(self, name: str = "posts") -> Stream:
        stream = self.account.create(name, 1, NOW)
        self.account.changed(stream, NOW)
        return stream

    def put(self, stream: Stream, now: float, size: int = 1000) -> None:
        (record,) = stream.put([Entry(bytes(size - 1), "k")], now)
        assert isinstance(record, Record)
        self.account.changed(stream, now, [record])

    def holds(self) -> dict[str, tuple[Snapshot, list[Record]]]:
        streams = self.account.streams.values()
        return {
            stream.name: (stream.snapshot(), [record for shard in stream.map.shards for record in shard.records])
            for stream in streams
        }


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    """Streams, settings, shards, counts and records, of each stream its own; numbers go on behind them."""
    first = House(tmp_path)
    posts, other = first.create(), first.create("other")
    for second in range(5):
        first.put(posts, NOW + second)
        first.put(other, NOW + second)
    posts.scale(2, NOW + 5)
    first.account.changed(posts, NOW + 5)
    first.put(posts, NOW + 6)
    other.set_mode("ON_DEMAND", NOW + 7)
    other.set_max_record_size(2048, NOW + 7)
    first.account.changed(other, NOW + 7)
    first.state.close()
    second_run = House(tmp_path)
    assert second_run.holds() == first.holds()
    again = second_run.account.streams["posts"].put([Entry(b"", "k")], NOW + 10)
    assert again == posts.put([Entry(b"", "k")], NOW + 10)
    second_run.state.close()


def test_a_deleted_stream_is_gone_with_its_records(tmp_path: Path) -> None:
    """Also if the process ends before the stream does; a new one can have its name."""
    first = House(tmp_path)
    stream = first.create()
    first.put(stream, NOW)
    stream.delete(NOW)
    first.account.changed(stream, NOW)
    first.state.close()
    again = House(tmp_path)
    assert (again.holds(), list(again.state.load())) == ({}, [])
    new = again.create()
    again.put(new, NOW)
    kept = again.holds()
    again.state.close()
    last = House(tmp_path)
    assert last.holds() == kept
    last.state.close()


def test_the_file_is_bounded_as_memory_is(tmp_path: Path) -> None:
    """What is no longer kept in memory goes, and its room is used again."""
    house = House(tmp_path, memory_limit=10_000)
    stream = house.create()
    for second in range(1000):
        house.put(stream, NOW + second)
    kept = house.holds()
    house.state.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 100_000
    again = House(tmp_path, memory_limit=10_000)
    assert again.holds() == kept
    assert again.account.streams["posts"].map.shards[0].trimmed == 990
    again.state.close()


def test_a_directory_has_one_user(tmp_path: Path) -> None:
    """A second process is told so, and has it once the first has let go."""
    first = State(tmp_path)
    with pytest.raises(StateError, match=f"{tmp_path} is in use by another process; give another --state"):
        State(tmp_path)
    first.close()
    State(tmp_path).close()


def test_damage_is_not_passed_over(tmp_path: Path) -> None:
    """The message names the directory and the way out."""
    (tmp_path / "streams.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StateError, match=f"cannot use {tmp_path}: file is not a database; .* move it away"):
        State(tmp_path)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """It is told as other trouble is."""
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="File exists"):
        State(tmp_path / "file")
