"""docs/operations.md has an entry for whatever the daemon may say that an operator has to understand."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.config import markdown
from service.core.reconnect import Reason
from service.core.records import DropReason

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
# Lines of the daemon's ordinary day, which explain themselves.
ORDINARY = {"started", "stopped", "draining", "progress", "request_done", "shards_listed"}


def events(source: str) -> Iterator[str]:
    """Give the names of the lines that a file may log: `log.warning("name", ...)`, or `write("name", ...)`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and _is_log(node.func):
            first = node.args[0]
            choices = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
            for choice in choices:
                assert isinstance(choice, ast.Constant), "the name of a line of log is written out"
                yield str(choice.value)


def _is_log(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id == "write"
    if not isinstance(function, ast.Attribute) or function.attr == "is_enabled_for":
        return False
    return isinstance(function.value, ast.Name) and function.value.id == "log"


EVENTS = sorted({name for path in (ROOT / "service").rglob("*.py") for name in events(path.read_text("utf-8"))})


def test_the_lines_are_found() -> None:
    """A search that finds nothing would make the page complete."""
    assert {"stream_disconnected", "ghost_not_ended", "journal_failed", "put_failed"} <= set(EVENTS)
    assert set(EVENTS) >= ORDINARY


@pytest.mark.parametrize("event", [event for event in EVENTS if event not in ORDINARY])
def test_a_line_of_the_log_is_explained(event: str) -> None:
    """By its name."""
    assert f"`{event}`" in PAGE


def lines_about_kinesis() -> Iterator[str]:
    """Give the longest piece of each line that says what a failure of Kinesis means, without what is filled in."""
    for name in ("kinesis.py", "core/answers.py"):
        for node in ast.walk(ast.parse((ROOT / "service" / name).read_text("utf-8"))):
            if isinstance(node, ast.Tuple) and ast.unparse(node.elts[0]).startswith("FailureKind."):
                line = node.elts[1]
                pieces = [part.value for part in ast.walk(line) if isinstance(part, ast.Constant)]
                yield max((str(piece) for piece in pieces), key=len).strip(" :;()")


@pytest.mark.parametrize("line", sorted(set(lines_about_kinesis())))
def test_a_failure_of_kinesis_is_explained(line: str) -> None:
    """By what its line says in every case."""
    assert line in PAGE


@pytest.mark.parametrize("reason", [*Reason, *DropReason])
def test_a_reason_is_explained(reason: Reason | DropReason) -> None:
    """Why there is no connection, and why a post was dropped."""
    assert f"`{reason.value}`" in PAGE


def test_the_settings_that_it_names_exist() -> None:
    """What an operator is told to set can be set."""
    named = set(re.findall(r"MILLRACE_[A-Z_]+", PAGE))
    assert len(named) > 10
    assert named - set(re.findall(r"MILLRACE_[A-Z_]+", markdown())) == set()
