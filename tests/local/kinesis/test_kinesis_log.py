from collections.abc import Callable
from pathlib import Path

import pytest

from local.kinesis.account import Account, Event, Put
from local.kinesis.limits import Entry
from local.kinesis.log import DamagedLogError, Log
from local.kinesis.shards import Record
from local.kinesis.stream import Stream

NOW = 1_800_000_000.0


class Recorder:
    """An account whose events go to a log, as the server wires them."""

    def __init__(self, directory: Path, *, segment_bytes: int = 1 << 20, memory_limit: int = 1 << 20) -> None:
        self.account = Account(region="us-east-1", keys={}, memory_limit=memory_limit, settle_seconds=0.0)
        self.log = Log(directory, segment_bytes=segment_bytes)
        for event in self.log.replay():
            self.account.apply(event)
        self.account.keep = self.keep

    def keep(self, event: Event) -> None:
        self.log.append(event)
        if self.log.is_full:
            snapshots = [stream.snapshot(event.at) for stream in self.account.streams.values()]
            self.log.roll(snapshots, self.account.trimmed_to())

    def create(self, name: str, now: float = NOW) -> Stream:
        stream = self.account.create(name, 1, now)
        self.account.happened(stream.snapshot(now))
        return stream

    def put(self, name: str, now: float, size: int = 1000) -> None:
        (record,) = self.account.streams[name].put([Entry(bytes(size - 1), "k")], now)
        assert isinstance(record, Record)
        self.account.happened(Put(name, [record]))

    def positions(self, name: str = "posts") -> list[int]:
        return [record.position for record in self.account.streams[name].map.shards[0].records]


def segments(directory: Path) -> list[Path]:
    """Return the files of a log, oldest first."""
    return sorted(directory.glob("*.log"))


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    """A log read again holds streams and records, and goes on behind them."""
    first = Recorder(tmp_path)
    first.create("posts")
    for second in range(5):
        first.put("posts", NOW + second)
    first.log.close()
    second_run = Recorder(tmp_path)
    assert second_run.positions() == first.positions()
    second_run.put("posts", NOW + 10)
    second_run.log.close()
    third_run = Recorder(tmp_path)
    assert third_run.positions() == second_run.positions()
    assert len(third_run.positions()) == 6
    third_run.log.close()


@pytest.mark.parametrize(
    "cut",
    [
        lambda content: content[:-1],
        lambda content: content[:-1000],
        lambda content: content[:-1001] + b"\xff" + content[-1000:],
        lambda content: content + b"\x00\x01\x02",
        lambda content: content + b"\xff\xff\xff\xff" * 4,
    ],
)
def test_a_half_written_tail_is_cut_off(tmp_path: Path, cut: Callable[[bytes], bytes]) -> None:
    """What was whole stays, the rest is cut away, and the log can be written to again."""
    first = Recorder(tmp_path)
    first.create("posts")
    for second in range(3):
        first.put("posts", NOW + second)
    first.log.close()
    (path,) = segments(tmp_path)
    path.write_bytes(cut(path.read_bytes()))
    second_run = Recorder(tmp_path)
    assert first.positions()[: len(second_run.positions())] == second_run.positions()
    assert len(second_run.positions()) >= 2
    second_run.put("posts", NOW + 10)
    second_run.log.close()
    third_run = Recorder(tmp_path)
    assert third_run.positions() == second_run.positions()
    third_run.log.close()


def test_damage_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    """A segment that is followed by another must be whole; the message names the file."""
    first = Recorder(tmp_path, segment_bytes=5000)
    first.create("posts")
    for second in range(20):
        first.put("posts", NOW + second)
    first.log.close()
    path = segments(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedLogError, match=path.name):
        Recorder(tmp_path)


def test_the_log_is_bounded_as_memory_is(tmp_path: Path) -> None:
    """Segments go when nothing of them is kept, and what is kept always comes back."""
    recorder = Recorder(tmp_path, segment_bytes=5000, memory_limit=10_000)
    recorder.create("posts")
    for second in range(100):
        recorder.put("posts", NOW + second)
    assert sum(path.stat().st_size for path in segments(tmp_path)) < 10_000 + 3 * 6000
    assert int(segments(tmp_path)[0].stem) > 10
    recorder.log.close()
    again = Recorder(tmp_path, segment_bytes=5000, memory_limit=10_000)
    assert again.positions() == recorder.positions()
    assert len(again.positions()) == 10
    shard, shard_again = recorder.account.streams["posts"].map.shards[0], again.account.streams["posts"].map.shards[0]
    assert shard_again.facts == shard.facts
    assert shard_again.facts.trimmed_unread == 90
    again.log.close()


def test_a_deleted_stream_does_not_hold_segments(tmp_path: Path) -> None:
    """Neither does an old stream whose name has a new one."""
    recorder = Recorder(tmp_path, segment_bytes=5000, memory_limit=10_000)
    recorder.create("posts")
    recorder.create("gone")
    for second in range(5):
        recorder.put("posts", NOW + second)
        recorder.put("gone", NOW + second)
    for name in ("posts", "gone"):
        recorder.account.streams[name].settle("DELETING", NOW + 5.5)
        recorder.account.happened(recorder.account.streams[name].snapshot(NOW + 5))
    recorder.account.tidy(NOW + 6)
    recorder.create("posts", NOW + 6)
    for second in range(6, 40):
        recorder.put("posts", NOW + second)
    assert int(segments(tmp_path)[0].stem) > 2
    recorder.log.close()
    again = Recorder(tmp_path, memory_limit=10_000)
    assert again.positions() == recorder.positions()
    assert list(again.account.streams) == ["posts"]
    again.log.close()


def test_a_directory_has_one_user(tmp_path: Path) -> None:
    """A second log on the same directory is refused while the first is open."""
    first = Log(tmp_path)
    with pytest.raises(BlockingIOError):
        Log(tmp_path)
    first.close()
    Log(tmp_path).close()
