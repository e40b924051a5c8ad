"""
docs/design.md names what is there: each file, and each class, method, function or constant.

A file stands in code by its path from the root, with what is in it behind a colon: `service/sender.py: Sender.run`.
What stands without its file, such as `Producer.offer` or `TARGET_BYTES`, is looked for in the whole project.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from service.config import Settings
from service.core.lane import MOVES
from tests.docs.documents import ROOT

DESIGN = ROOT / "docs/design.md"
TEXT = DESIGN.read_text(encoding="utf-8")
MAP = TEXT.partition("## The map")[2].partition("```\n")[2].partition("```")[0]
# Folders of which the map has every module.
MAPPED = ("service", "service/core", "processor", "local", "deploy")
CODE = ("service", "processor", "local", "bench", "deploy", "tests")
_PATH = re.compile(r"[\w.-]+(/[\w.-]+)+/?|[\w-]+\.(py|md|toml|yaml|yml|sh)")
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_CONSTANT = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return what a module defines: names of its own, and those of its classes as Class.name."""
    return frozenset(_defined(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def _defined(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
            if prefix:
                yield from (prefix + name for name in _attributes(node))
        elif isinstance(node, ast.ClassDef):
            yield prefix + node.name
            yield from _defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (prefix + name.id for name in ast.walk(target) if isinstance(name, ast.Name))


def _attributes(method: ast.AST) -> Iterator[str]:
    """Name what a method sets on `self`."""
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


@cache
def all_names() -> frozenset[str]:
    """Return what all modules define, and the settings by their variables."""
    modules = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    settings = {field.upper() for field in Settings.__slots__}
    return frozenset(settings.union(*map(names_in, modules)))


def faults(text: str) -> list[str]:
    """Return the code in a text that names what is not there."""
    found = []
    for span in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        code = " ".join(span.split())
        path, colon, names = code.partition(": ")
        if colon and path.endswith(".py"):
            known = names_in(ROOT / path) if (ROOT / path).is_file() else frozenset()
            found += [f"{path}: {name}" for name in names.split(", ") if name not in known]
        elif _PATH.fullmatch(code):
            found += [] if (ROOT / code).exists() else [code]
        elif _CONSTANT.fullmatch(code) or (_NAME.fullmatch(code) and re.match(r"[A-Z]\w*\.", code)):
            found += [] if code in all_names() else [code]
    return found


def paths_of_the_map() -> list[str]:
    """Return every file and folder that the map shows, by its path."""
    above: list[str] = []
    paths = []
    for line in filter(None, MAP.splitlines()):
        if not re.match(r"( {2})*[\w.]", line):
            continue  # the description goes on
        name = re.match(r" *((?:[\w.-]+/?)(?:, [\w.-]+)*)(?: {2,}|$)", line)
        if name is None:
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        above[depth:] = [name[1]]
        paths += ["".join([*above[:depth], each]) for each in name[1].split(", ")]
    return paths


def test_every_name_is_there() -> None:
    """Files, classes, methods, functions, constants: each as it is written."""
    assert faults(TEXT) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("`service/senders.py`", "service/senders.py"),
        ("`sender.py`", "sender.py"),
        ("`service/sender.py: Sender.runs`", "service/sender.py: Sender.runs"),
        ("`service/sender.py: Sender, run`", "service/sender.py: run"),
        ("`Producer.offers`", "Producer.offers"),
        ("`TARGET_KILOS`", "TARGET_KILOS"),
    ],
)
def test_a_name_that_is_not_there_is_found(text: str, fault: str) -> None:
    """The check can fail, and lets through what is there beside it."""
    good = "`service/sender.py: Sender.run`, `service/core/lane.py: MOVES, Lane.head`, `Producer.wants_shards`"

    assert faults(f"{good} and {text}, `LINGER_SECONDS` of `posts`") == [fault]


def test_the_map_shows_what_is_there_and_all_of_it() -> None:
    """Each line names a file or a folder; no module of the mapped folders is left out."""
    shown = paths_of_the_map()
    modules = [path for folder in MAPPED for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]

    assert [path for path in shown if not (ROOT / path).exists()] == []
    assert {path.relative_to(ROOT).as_posix() for path in modules} <= set(shown)


def test_the_files_that_know_several_are_drawn_as_they_are() -> None:
    """What stands behind the arrow is what the file imports of its own package, beside the core."""
    drawn = dict(re.findall(r"^((?:service|processor)/\w+) -> ([\w, ]+(?:\n +[\w, ]+)*)$", TEXT, re.MULTILINE))
    wrong = []
    for module in (
        "service/__main__",
        "service/app",
        "service/check",
        "service/config",
        "service/source",
        "processor/handler",
    ):
        package = module.partition("/")[0]
        nodes = ast.walk(ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8")))
        names = [
            f"{node.module}.{name.name}" for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names
        ]
        imported = {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
        if imported - {"core", "__version__"} != set(re.split(r",\s+", drawn[module])):
            wrong.append(module)

    assert wrong == []


def test_the_states_of_a_lane_are_those_of_the_code() -> None:
    """The table is that of service/core/lane.py, row by row."""
    rows = re.findall(r"^\| (\S[^|]*) \| (\S[^|]*) \| (\S[^|]*) \|", TEXT.partition("### A lane")[2], re.MULTILINE)
    told = rows[1 : 1 + len(MOVES)]

    assert told == [(state.value, event.value, after.value) for (state, event), after in MOVES.items()]
