"""
What a restart must not forget about the source, in one small file beside the journal.

It is written anew as a whole, to another name, and put in place by a rename: a crash leaves the old one or the new
one. A disk that does not take it costs memory of the past, never the daemon. With MILLRACE_JOURNAL=off nothing is
kept: each run begins with all the connects that X allows, and does not know of the gap before it.
"""

import asyncio
import os
from pathlib import Path

import msgspec
import structlog

from service.core.gaps import Kept
from service.core.records import UNREADABLE

FILE_NAME = "source.json"
# A disk that takes longer must not keep the daemon from connecting, or from ending.
PATIENCE_SECONDS = 2.0
DAMAGED = (*UNREADABLE, OSError)

log = structlog.get_logger()


class StateFile:
    """
    The file.

    Arguments:
        directory: where it lies; None keeps nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._path = directory / FILE_NAME if directory else None
        self._pending: bytes | None = None
        self._writing: asyncio.Task[None] | None = None
        self._failed = False

    def read(self) -> Kept:
        """Read it. What is not there is as new; raises one of `DAMAGED`."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Kept) if self._path else Kept()
        except FileNotFoundError:
            return Kept()

    def load(self) -> Kept:
        """Read it. What is damaged is as new, too; the file is renamed, not deleted."""
        try:
            return self.read()
        except DAMAGED as error:
            assert self._path is not None
            aside = self._path.with_suffix(".damaged.json")
            log.warning("source_state_damaged", path=str(self._path), error=str(error), set_aside=str(aside))
            try:
                self._path.replace(aside)
            except OSError as trouble:
                log.warning("source_state_not_kept", path=str(self._path), error=trouble.strerror)
            return Kept()

    async def save(self, kept: Kept) -> None:
        """Write it, in a thread; what `kept` says later does not matter. A disk that hangs is not waited for."""
        if self._path is None:
            return
        self._pending = msgspec.json.encode(kept)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_pending(self._path))
        await asyncio.wait([self._writing], timeout=PATIENCE_SECONDS)

    async def _write_pending(self, path: Path) -> None:
        while self._pending is not None:
            data, self._pending = self._pending, None
            await asyncio.to_thread(self._write, path, data)

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".new.json")
            with new.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as error:
            if not self._failed:
                log.warning(
                    "source_state_not_kept",
                    path=str(path),
                    error=error.strerror,
                    way_out="make room on the disk, or point MILLRACE_JOURNAL to a directory that can be written",
                )
            self._failed = True
        else:
            self._failed = False
