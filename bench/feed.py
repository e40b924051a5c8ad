"""
Gives a peer its posts through a pipe, as fast as it reads or at a steady rate.

The first post goes ahead alone, and the rest wait until it has arrived: then the peer stands. When nothing more arrives
the pipe is closed. The peer's CPU is read at these two moments, so that neither its start nor its end is in the figure;
the price is that the last posts wait for company as long as the peer lets them. What arrives is seen by the size of the
stub's spool file.
"""

import fcntl
import itertools
import os
import subprocess
import time
from array import array
from pathlib import Path
from typing import IO, NamedTuple

_READY_SECONDS = 60.0
_RUN_SECONDS = 240.0
# How often a paced feed writes.
_TICK_SECONDS = 0.005
# Longer than any peer lets posts wait; async-kinesis' half a second is the most.
_IDLE_SECONDS = 1.5
# The most that Linux lets an unprivileged process ask for.
_PIPE_BYTES = 1 << 20


class RunError(Exception):
    """A run failed; the text is one line."""


class Fed(NamedTuple):
    """
    What was seen while feeding.

    Attributes:
        start: seconds of CPU that the peer had taken when the first post had arrived.
        end: the same when nothing more arrived.
        arrived: bytes of the spool file then; if it grows further, `end` was read too early.
        due: for each post when it was due, in seconds of the monotonic clock and 0 for the first; empty without a rate.
    """

    start: float
    end: float
    arrived: int
    due: "array[float]"


def feed(child: subprocess.Popen[bytes], path: Path, count: int, rate: float, spool: Path) -> Fed:
    """
    Write all posts and close the pipe.

    Args:
        child: whose standard input is a pipe.
        path: of the posts.
        count: how many these are.
        rate: posts a second; 0 for as fast as they are read.
        spool: of the stub; it grows when a post arrives.

    Raises: RunError, if the first post does not arrive; BrokenPipeError, if the peer ends before the posts do.
    """
    assert child.stdin is not None
    with path.open("rb") as posts, child.stdin as pipe:
        first = posts.readline()
        pipe.write(first)
        _await_first(child, spool)
        start = cpu_of(child)
        due = array("d")
        if rate:
            due = _pace(posts, pipe, count, rate)
        else:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            sent = len(first)
            while moved := os.splice(posts.fileno(), pipe.fileno(), _PIPE_BYTES, offset_src=sent):
                sent += moved
        arrived = _await_idle(child, spool)
        return Fed(start, cpu_of(child), arrived, due)


def cpu_of(process: subprocess.Popen[bytes]) -> float:
    """What a process has taken so far, in seconds of CPU. On Linux the clock of a process is named by its id."""
    return time.clock_gettime(~process.pid << 3 | 2)


def _pace(posts: IO[bytes], pipe: IO[bytes], count: int, rate: float) -> "array[float]":
    """A post that is written late, because the pipe was full, was still due when it was due."""
    tick = max(_TICK_SECONDS, 1 / rate)
    times = array("d", [0.0])
    start = time.monotonic() + tick
    for number in itertools.count():
        due = start + number * tick
        wanted = min(count - 1, int((number + 1) * tick * rate + 1e-6)) + 1 - len(times)
        time.sleep(max(0.0, due - time.monotonic()))
        view = memoryview(b"".join(itertools.islice(posts, wanted)))
        while view:
            view = view[pipe.write(view) :]
        times.extend([due] * wanted)
        if len(times) >= count:
            break
    return times


def _await_first(child: subprocess.Popen[bytes], spool: Path) -> None:
    patience = time.monotonic() + _READY_SECONDS
    while not spool.stat().st_size:
        if _has_ended(child) or time.monotonic() > patience:
            child.kill()
            raise RunError("the first post did not arrive")
        time.sleep(0.005)


def _await_idle(child: subprocess.Popen[bytes], spool: Path) -> int:
    patience = time.monotonic() + _RUN_SECONDS
    size, since = 0, time.monotonic()
    while time.monotonic() - since < _IDLE_SECONDS:
        if spool.stat().st_size != size:
            size, since = spool.stat().st_size, time.monotonic()
        if _has_ended(child) or time.monotonic() > patience:
            child.kill()
            raise RunError(f"it ended before its input, or took more than {_RUN_SECONDS:g} s")
        time.sleep(0.05)
    return size


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    # Only looked at, not reaped: what it cost is still to be asked.
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
