import base64
import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.core.records import DropReason
from service.dead_letters import FILE_BYTES, FILE_NAME, DeadLetters

# 2023-11-14T22:13:20Z
NOW = 1_700_000_000.25


def letters(directory: Path | None) -> DeadLetters:
    """Make the file of a directory, at a time of day that stands still."""
    return DeadLetters(directory, lambda: NOW)


def read(directory: Path, name: str = FILE_NAME) -> list[dict[str, object]]:
    """Read a file of letters."""
    return [json.loads(line) for line in (directory / name).read_bytes().splitlines()]


def test_a_letter_says_what_when_and_why(tmp_path: Path) -> None:
    """Each is a line of JSON with the text of the line as it came."""
    letters(tmp_path).add('日本語 \\ "\u2028'.encode(), DropReason.REFUSED, 3, "ValidationException: not valid")
    assert read(tmp_path) == [
        {
            "time": "2023-11-14T22:13:20.250Z",
            "reason": "refused",
            "attempts": 3,
            "message": "ValidationException: not valid",
            "line": '日本語 \\ "\u2028',
        }
    ]


def test_bytes_that_are_no_text_are_kept_too(tmp_path: Path) -> None:
    """They stand in base64, every byte of them."""
    line = bytes(range(256))
    letters(tmp_path).add(line, DropReason.NOT_JSON)
    (letter,) = read(tmp_path)
    assert "line" not in letter
    assert base64.b64decode(str(letter["base64"])) == line


def test_letters_are_appended_over_restarts(tmp_path: Path) -> None:
    """An earlier run's letters stay; the directory is made at the first need."""
    directory = tmp_path / "some" / "journal"
    for text in (b"1", b"2"):
        letters(directory).add(text, DropReason.NO_ID)
    assert [letter["line"] for letter in read(directory)] == ["1", "2"]


def test_a_directory_is_not_made_before_it_is_needed(tmp_path: Path) -> None:
    """A run without trouble leaves no trace."""
    letters(tmp_path / "journal")
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_is_put_aside_once(tmp_path: Path) -> None:
    """Over its size it takes the place of the one before, so the disk is bounded by two of them."""
    for text in (b"first", b"second"):
        with (tmp_path / FILE_NAME).open("wb") as file:
            file.write(text)
            file.truncate(FILE_BYTES + 1)
        letters(tmp_path).add(b"line", DropReason.NO_ID)
        aside = tmp_path / "dead-letters.1.jsonl"
        with aside.open("rb") as file:
            assert file.read(len(text)) == text
        assert len(read(tmp_path)) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_directory_nothing_is_kept() -> None:
    """MILLRACE_JOURNAL=off means no file, and no error."""
    with capture_logs() as logs:
        letters(None).add(b"line", DropReason.NO_ID)
    assert logs == []


def test_a_directory_that_cannot_be_made_costs_a_log_line(tmp_path: Path) -> None:
    """The letter is lost, the daemon is not; the log names the place and the way out."""
    (tmp_path / "journal").write_text("a file in the way")
    with capture_logs() as logs:
        letters(tmp_path / "journal").add(b"line", DropReason.NO_ID)
    (line,) = logs
    assert (line["event"], line["log_level"], line["reason"]) == ("dead_letter_lost", "warning", "no_id")
    assert line["path"] == str(tmp_path / "journal" / FILE_NAME)
    assert "MILLRACE_JOURNAL" in line["way_out"]


def test_a_full_disk_costs_a_log_line(tmp_path: Path) -> None:
    """A write that fails half-way is the same; the post itself is not repeated in the log."""
    # Linux's own full disk: every write to it fails for want of room.
    (tmp_path / FILE_NAME).symlink_to("/dev/full")
    with capture_logs() as logs:
        letters(tmp_path).add(b"the text of a post", DropReason.NO_ID)
    (line,) = logs
    assert line["error"] == "No space left on device"
    assert "the text of a post" not in str(line)


def test_a_disk_that_hangs_is_not_asked(tmp_path: Path) -> None:
    """It would hold the daemon; the letter costs a log line, and the next one is kept as soon as the disk answers."""
    answers = [True, False]
    kept = DeadLetters(tmp_path, lambda: NOW, lambda: answers.pop(0))
    with capture_logs() as logs:
        kept.add(b"lost", DropReason.DISK_FAILED)
        kept.add(b"kept", DropReason.DISK_FAILED)
    assert [(line["event"], line["error"]) for line in logs] == [("dead_letter_lost", "the disk does not answer")]
    assert list(kept.read()) == [b"kept"]


def test_the_lines_can_be_read_back(tmp_path: Path) -> None:
    """Oldest first, over both files, byte for byte as they came."""
    lines = [b"oldest", '日本語 \\ "\u2028'.encode(), bytes(range(256))]
    letters(tmp_path).add(lines[0], DropReason.NO_ID)
    (tmp_path / FILE_NAME).rename(tmp_path / "dead-letters.1.jsonl")
    for line in lines[1:]:
        letters(tmp_path).add(line, DropReason.NOT_JSON)
    assert lines == list(letters(tmp_path).read())


def test_only_some_reasons_can_be_asked_for(tmp_path: Path) -> None:
    """One or several; none means all."""
    for reason in (DropReason.NO_ID, DropReason.REFUSED, DropReason.NO_ID, DropReason.SHUTDOWN):
        letters(tmp_path).add(reason.value.encode(), reason)
    assert list(letters(tmp_path).read(["no_id"])) == [b"no_id", b"no_id"]
    assert list(letters(tmp_path).read(["shutdown", "refused"])) == [b"refused", b"shutdown"]
    assert len(list(letters(tmp_path).read())) == 4
    assert list(letters(tmp_path).read(["key_too_long"])) == []


@pytest.mark.parametrize("directory", [None, Path("nowhere")])
def test_where_nothing_was_kept_there_is_nothing_to_read(tmp_path: Path, directory: Path | None) -> None:
    """Neither without a directory nor before the first letter; reading makes no directory."""
    assert list(letters(directory and tmp_path / directory).read()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_raises(tmp_path: Path) -> None:
    """To read nothing in silence would look as if there was nothing."""
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(OSError, match=FILE_NAME):
        list(letters(tmp_path).read())


def test_half_a_letter_harms_no_other(tmp_path: Path) -> None:
    """What a full disk cut off spoils neither the next letter nor the reading of all others."""
    kept = letters(tmp_path)
    kept.add(b"one", DropReason.REFUSED)
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"time": "2023-11-')
    kept.add(b"two", DropReason.REFUSED)
    with capture_logs() as events:
        assert list(kept.read()) == [b"one", b"two"]
    assert [event["event"] for event in events] == ["dead_letter_torn"]
