"""
The stand-ins and the daemon as child processes: start one, learn where it listens, end it by its pid.

Each writes to a log file of its own. A child says that it is ready with one line that holds its URL.
"""

import asyncio
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

READY_SECONDS = 30.0
STOP_SECONDS = 20.0
# With less than this on the disk a child cannot even say what is wrong.
FULL_BYTES = 1 << 20


class ProcessError(Exception):
    """A child did not start, or ended by itself. The text is one line, the child's own last words included."""


class Process:
    """
    One child.

    Args:
        name: for messages and for the name of the log file.
        arguments: of `python -m`.
        environment: all of it; nothing is inherited.
        directory: where the log file lies.
    """

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], directory: Path) -> None:
        self.name = name
        self.url = ""
        self.log = directory / f"{name}.log"
        self._arguments = arguments
        self._environment = environment
        self._log_start = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.returncode if self._process else None

    async def start(self, *, ready: bool = True) -> str:
        """
        Start it; with `ready`, wait for the line with its URL and return that.

        Raises: ProcessError, if it ends before.
        """
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *self._arguments,
                env=dict(self._environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if ready else log,
                stderr=log,
                # A Ctrl-C is for the demo, which then ends its children in the right order.
                start_new_session=True,
            )
        if not ready:
            return ""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(READY_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            # Not killed: it may have children.
            await self.stop()
            raise ProcessError(f"{self.name} was not ready after {READY_SECONDS:g} s: see {self.log}") from None
        found = re.search(rb"https?://[^\s\"]+", line)
        if not found:
            await self._process.wait()
            raise ProcessError(f"{self.name}: {self.last_words()}")
        self.url = found[0].decode()
        return self.url

    def check(self) -> None:
        """Raise ProcessError if it has ended."""
        if self.returncode is not None:
            raise ProcessError(f"{self.name} ended with exit code {self.returncode}: {self.last_words()}")

    async def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit code; who does not end is killed."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> int:
        """End it as a power cut would."""
        return await self._end(signal.SIGKILL)

    async def _end(self, number: signal.Signals) -> int:
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            process.send_signal(number)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode

    def said(self) -> list[str]:
        """The lines that it has logged; those of an earlier process with the same name are left out."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace").splitlines()

    def last_words(self) -> str:
        """The last line of its log, or why there may be none."""
        if shutil.disk_usage(self.log.parent).free < FULL_BYTES:
            return f"no room is left for {self.log.parent}: make some, or set TMPDIR to another disk"
        lines = [line for line in self.said() if line.strip()]
        return lines[-1] if lines else f"it said nothing: see {self.log}"
