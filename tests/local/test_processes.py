"""Real child processes, with small modules written for each test."""

import asyncio
import os
import re
from pathlib import Path

import pytest

from local.processes import Process, ProcessError
from tests.elastic_loop import elastic_time

READY = "print('ready at http://127.0.0.1:1', flush=True)\n"
WAITS = "import signal\nsignal.pause()\n"


def child(directory: Path, code: str) -> Process:
    """Return a process of this code."""
    (directory / "small_child.py").write_text(code)
    return Process("child", ["small_child"], os.environ | {"PYTHONPATH": str(directory)}, directory)


@pytest.mark.parametrize(
    ("code", "words"),
    [("raise SystemExit('no luck')", "child: no luck"), ("", "child: it said nothing: see .*child.log")],
)
async def test_a_child_that_ends_before_it_is_ready(tmp_path: Path, code: str, words: str) -> None:
    """Its last words are the reason."""
    with pytest.raises(ProcessError, match=f"^{words}$"):
        await child(tmp_path, code).start()


async def test_a_child_that_ends_by_itself(tmp_path: Path) -> None:
    """It is noticed, with its own last words and not those of another child of its name before it."""
    first = child(tmp_path, f"import sys\nprint('of the first', file=sys.stderr)\n{READY}{WAITS}")
    assert await first.start() == "http://127.0.0.1:1"
    first.check()
    assert await first.kill() == -9
    with pytest.raises(ProcessError, match="child ended with exit code -9: of the first"):
        first.check()
    second = child(tmp_path, READY + WAITS)
    await second.start()
    await second.kill()
    with pytest.raises(ProcessError, match="child ended with exit code -9: it said nothing"):
        second.check()


@elastic_time
async def test_a_child_that_is_never_ready_is_killed(tmp_path: Path) -> None:
    """The message says how long it was waited for, and where to look."""
    silent = child(tmp_path, WAITS)
    with pytest.raises(ProcessError, match=re.escape(f"child was not ready after 30 s: see {silent.log}")):
        await silent.start()
    assert silent.returncode is not None


@elastic_time
async def test_a_child_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """SIGTERM, patience, SIGKILL."""
    deaf = child(tmp_path, f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{READY}{WAITS}")
    assert await deaf.stop() == 0, "there is nothing to end yet"
    await deaf.start(ready=False)
    while not deaf.said():
        await asyncio.sleep(0.1)
    assert await deaf.stop() == -9
