"""
What can never be delivered is kept here: JSON lines in a file beside the journal, with the reason.

    {"time": "2026-11-23T14:00:00.000Z", "reason": "no_id", "attempts": 0, "message": "", "line": "..."}

`line` is the text of the line; bytes that are no UTF-8 stand in `base64` instead. The file is bounded: at
`FILE_BYTES` it becomes `dead-letters.1.jsonl`, in place of the one before. A disk that does not take it costs the
bytes, never the daemon: the counters have counted the post already. One that hangs is not even asked.
"""

import base64
import errno
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from os import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import structlog

from service.core.limits import MIB
from service.core.records import DropReason

FILE_NAME = "dead-letters.jsonl"
FILE_BYTES = 64 * MIB

log = structlog.get_logger()


class DeadLetters:
    """
    The file, opened at the first need.

    Args:
        directory: where it lies; None keeps nothing.
        clock: the time of day, in seconds since 1970.
        hangs: whether the disk does not answer; whoever asked it would wait as long.
    """

    def __init__(
        self, directory: Path | None, clock: Callable[[], float], hangs: Callable[[], bool] = lambda: False
    ) -> None:
        self._path = directory / FILE_NAME if directory else None
        self._clock = clock
        self._hangs = hangs

    def read(self, reasons: Collection[str] = ()) -> Iterator[bytes]:
        """
        Give the lines that are kept, oldest first; with `reasons`, only those that were kept for one of them.

        Raises OSError.
        """
        if self._path is None:
            return
        for path in (self._path.with_suffix(".1.jsonl"), self._path):
            if path.exists():
                with path.open("rb") as file:
                    for text in file:
                        try:
                            letter = orjson.loads(text)
                        except orjson.JSONDecodeError:
                            log.warning("dead_letter_torn", path=str(path), bytes=len(text))
                            continue
                        if not reasons or letter["reason"] in reasons:
                            yield letter["line"].encode() if "line" in letter else base64.b64decode(letter["base64"])

    def add(self, line: bytes, reason: DropReason, attempts: int = 0, message: str = "") -> None:
        """Keep one line. Trouble with the disk is logged and otherwise swallowed."""
        if self._path is None:
            return
        time = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        letter: dict[str, Any] = {"time": time, "reason": reason.value, "attempts": attempts, "message": message}
        try:
            letter["line"] = line.decode()
        except UnicodeDecodeError:
            letter["base64"] = base64.b64encode(line).decode()
        try:
            if self._hangs():
                raise TimeoutError(errno.ETIMEDOUT, "the disk does not answer")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > FILE_BYTES:
                self._path.replace(self._path.with_suffix(".1.jsonl"))
            with self._path.open("a+b") as file:
                # A disk that was full may have taken half a letter; this one must not become its other half.
                if file.tell() and not _ends_a_line(file):
                    file.write(b"\n")
                file.write(orjson.dumps(letter, option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            log.warning(
                "dead_letter_lost",
                reason=reason.value,
                path=str(self._path),
                error=error.strerror,
                way_out="make room on the disk, or point MILLRACE_JOURNAL to a directory that can be written",
            )


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, SEEK_END)
    return file.read(1) == b"\n"
