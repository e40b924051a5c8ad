import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.core.gaps import Gap, Kept
from service.state import FILE_NAME, StateFile

KEPT = Kept(
    source="firehose 3",
    saved_at=1000.5,
    heard_at=999.0,
    rate=12.5,
    spare=3.25,
    gaps=[Gap(900.0, "cut", 10.0, 930.0, 2, 1, 250), Gap(990.0, "stall", 12.5)],
    backfill_refused_at=5.0,
    connection="ab-12",
    month="2026-11",
    posts=123_456,
)


async def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """All of it, in a directory that is made if need be; and nothing else stays there."""
    directory = tmp_path / "journal"
    await StateFile(directory).save(Kept())
    await StateFile(directory).save(KEPT)
    assert StateFile(directory).load() == KEPT
    assert [path.name for path in directory.iterdir()] == [FILE_NAME]


def test_nothing_is_there_at_first(tmp_path: Path) -> None:
    """A new directory, or none, is as new."""
    assert StateFile(tmp_path / "nowhere").load() == Kept()
    assert list(tmp_path.iterdir()) == []


async def test_without_a_journal_nothing_is_kept() -> None:
    """MILLRACE_JOURNAL=off."""
    file = StateFile(None)
    await file.save(KEPT)
    assert file.load() == Kept()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"gaps": 1}', b'{"source": "\xff"}'])
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: bytes) -> None:
    """The daemon begins anew, says so, and the file stays for a look."""
    (tmp_path / FILE_NAME).write_bytes(content)
    with capture_logs() as logs:
        assert StateFile(tmp_path).load() == Kept()
    assert [entry["event"] for entry in logs] == ["source_state_damaged"]
    assert Path(logs[0]["set_aside"]).read_bytes() == content
    assert StateFile(tmp_path).load() == Kept()


def test_a_later_version_is_understood(tmp_path: Path) -> None:
    """What it does not know is left out, what is not there has its default."""
    (tmp_path / FILE_NAME).write_bytes(b'{"source": "sample", "new": [1]}')
    assert StateFile(tmp_path).load() == Kept(source="sample")


async def test_a_crash_leaves_the_old_file(tmp_path: Path) -> None:
    """What was half written lies under another name."""
    await StateFile(tmp_path).save(KEPT)
    (tmp_path / "source.new.json").write_bytes(b'{"sour')
    assert StateFile(tmp_path).load() == KEPT
    await StateFile(tmp_path).save(Kept(source="sample"))
    assert StateFile(tmp_path).load().source == "sample"


async def test_a_disk_that_fails_is_told_once(tmp_path: Path) -> None:
    """The daemon goes on, and writes again as soon as it can."""
    (tmp_path / "file").write_bytes(b"")
    file = StateFile(tmp_path / "file")
    with capture_logs() as logs:
        await file.save(KEPT)
        await file.save(KEPT)
        (tmp_path / "file").unlink()
        await file.save(KEPT)
    assert [entry["event"] for entry in logs] == ["source_state_not_kept"]
    assert "MILLRACE_JOURNAL" in logs[0]["way_out"]
    assert file.load() == KEPT


async def test_savings_at_once(tmp_path: Path) -> None:
    """One after the other: the last one stands."""
    file = StateFile(tmp_path)
    await asyncio.gather(*(file.save(Kept(source=str(number))) for number in range(20)))
    assert file.load().source == "19"
