"""docs/performance.md, in which each benchmark has a place of its own between two lines."""

import os
import platform
import textwrap
from datetime import UTC, datetime
from pathlib import Path

PATH = Path(__file__).parent.parent / "docs" / "performance.md"
# tests/docs/test_width.py
WIDTH = 120


def head(command: str) -> str:
    """Return the sentence above the figures of a run that begins now: when, by which command, and on what machine."""
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with `{command}`: {len(os.sched_getaffinity(0))} cores,"
        f" {platform.system()} on {platform.machine()}, {platform.python_implementation()}"
        f" {platform.python_version()}; load before the run {os.getloadavg()[0]:.1f}."
    )


def write(maker: str, text: str) -> None:
    """Put the figures into the place of the command that made them; ValueError if that is not there."""
    content = PATH.read_text(encoding="utf-8")
    begin, end = (f"<!-- made by {maker}: {which} -->" for which in ("begin", "end"))
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{PATH.name} has lost the two lines between which the figures of {maker} go")
    parts = "\n\n".join(map(_wrap, text.strip().split("\n\n")))
    PATH.write_text(f"{before}{begin}\n\n{parts}\n\n{end}{after}", encoding="utf-8")


def _wrap(part: str) -> str:
    """Keep prose within the width of the documents; a table and a heading stay as they are."""
    if part.startswith(("#", "|")):
        return part
    return textwrap.fill(part, WIDTH, break_long_words=False, break_on_hyphens=False)
