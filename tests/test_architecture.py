"""
The import rules of docs/design.md, the mirror of tests, and what no file may contain.

Imports are read from the source with `ast`, so that those inside functions and under TYPE_CHECKING count too. An
import is known by its full name: `from aiohttp import web` is `aiohttp.web`.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What git does not carry is no part of the project.
IGNORED = [".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines())]


def find(folder: Path) -> Iterator[Path]:
    """Give the files of a folder and of those in it; an environment of tens of thousands of files is not entered."""
    for path in folder.iterdir():
        if not any(fnmatch(path.name, name) for name in IGNORED):
            yield from find(path) if path.is_dir() else [path]


FILES = sorted(find(ROOT))
MODULES = [
    path.relative_to(ROOT).as_posix()
    for path in FILES
    if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in {"service", "processor", "local"}
]

# What brings in a clock, chance, the network, the system or another thread of control.
IMPURE = {
    *("asyncio", "concurrent", "contextvars", "logging", "multiprocessing", "os", "pathlib", "secrets", "select"),
    *("selectors", "signal", "socket", "ssl", "subprocess", "threading", "time", "urllib", "uuid"),
}
# In service/, each of these libraries has its files.
OWNERS = {
    "aiobotocore": {"kinesis.py"},
    "aiohttp.web": {"admin.py"},
    "boto3": set[str](),
    "botocore": {"kinesis.py"},
    "opentelemetry": {"traces.py"},
    "prometheus_client": {"admin.py", "metrics.py"},
    "sqlite3": {"journal_file.py"},
    "tweepy": {"rules.py", "stream.py"},
}
# They start processes and put them together: the pipeline's test runs them as such.
PIPELINE = "tests/integration/test_pipeline.py"
TESTED_ELSEWHERE = {
    "local/pipeline.py": PIPELINE,
    "processor/__main__.py": "tests/processor/test_console.py",
}


def imports(source: str) -> Iterator[str]:
    """Name what a source text imports; a relative import keeps its dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Name) and node.id == "__import__":
            yield node.id


def within(name: str, *packages: str) -> bool:
    """Tell whether a name is one of these packages, or something inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def is_standard(name: str) -> bool:
    """Tell whether a name belongs to the standard library."""
    return name.split(".", maxsplit=1)[0] in sys.stdlib_module_names


def may_import(module: str, name: str) -> bool:
    """Tell whether a file, named from the root, may import this."""
    folder, _, file = module.rpartition("/")
    if folder.partition("/")[0] == "local":
        return not name.startswith(".")
    if module == "processor/wire.py" and within(name, "compression.zstd", "backports.zstd"):
        return True  # the standard library's of Python 3.14, and the same code for older ones
    if module in {"processor/wire.py", "processor/items.py"}:
        return is_standard(name)
    # What is imported by a text at run time could be anything.
    if within(name, "__import__", "importlib"):
        return False
    if folder == "processor":
        return is_standard(name) or within(name, "processor", "boto3", "botocore")
    if folder == "service/core":
        if is_standard(name):
            return name == "random.Random" or not within(name, "random", *IMPURE)
        return within(name, "msgspec", "processor.wire", "service.core")
    if any(within(name, library) and file not in owners for library, owners in OWNERS.items()):
        return False
    if within(name, "service"):
        return file in {"app.py", "check.py", "source.py", "__main__.py"} or within(
            name, "service.core", "service.http_client", "service.readers", "service.__version__"
        )
    return not within(name, "processor", "local", "bench", "deploy", "tests") and not name.startswith(".")


def faults(module: str, source: str) -> list[str]:
    """Give the imports of a file that are against the rules."""
    return sorted({name for name in imports(source) if not may_import(module, name)})


def mirrors(module: str) -> Iterator[str]:
    """
    Give patterns for the name of a module's test file.

    It lies in the same folder under tests/ and is called `test_<module>.py`. Names of test files are unique, so some
    have the name of a package before that of the module. A `server.py` is what its package is called after.
    """
    path = Path(module)
    name = path.parent.name if path.stem == "server" else path.stem.strip("_")
    for pattern in (f"test_{name}.py", f"test_*_{name}.py"):
        yield f"tests/{path.parent.as_posix()}/{pattern}"


def has_functions(source: str) -> bool:
    """Tell whether there is anything to test: a module of constants has no functions."""
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(ast.parse(source)))


def forbidden_texts() -> list[str]:
    """Give what no file may contain, put together here so that this file does not."""
    hosts = [f"{host}.{domain}" for host in ("pypi", "pythonhosted", "anaconda", "npmjs") for domain in ("org", "com")]
    places = [f"/work{place}" for place in ("/main", "/shared", "/.")] + ["/root" + "/"]
    # Where this checkout is, and whose it is: short names, such as those in an image, say nothing about a machine.
    here = [f"{path.as_posix()}/" for path in (ROOT, Path.home()) if len(path.parts) > 2]
    return [*hosts, *places, *here]


def leaks(content: bytes) -> list[str]:
    """Give the forbidden texts of a file."""
    return [text for text in forbidden_texts() if text.encode() in content]


def read(module: str) -> str:
    """Read a file of the project."""
    return (ROOT / module).read_text(encoding="utf-8")


def test_the_files_are_found() -> None:
    """A search that finds nothing would make every rule hold."""
    assert {"service/app.py", "service/core/lane.py", "processor/wire.py", "local/reconcile.py"} <= set(MODULES)
    assert ROOT / "pyproject.toml" in FILES


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_rules(module: str) -> None:
    """Each file imports only what its place allows."""
    assert faults(module, read(module)) == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("service/core/lane.py", "import asyncio", "asyncio"),
        ("service/core/lane.py", "from time import monotonic", "time.monotonic"),
        ("service/core/lane.py", "import logging.handlers", "logging.handlers"),
        ("service/core/lane.py", "import random", "random"),
        ("service/core/lane.py", "from random import uniform", "random.uniform"),
        ("service/core/lane.py", "from os import urandom", "os.urandom"),
        ("service/core/lane.py", "import structlog", "structlog"),
        ("service/core/lane.py", "from service import config", "service.config"),
        ("service/core/lane.py", "from service.config import Settings", "service.config.Settings"),
        ("service/core/lane.py", "from processor import items", "processor.items"),
        ("service/core/lane.py", "def f():\n    import socket", "socket"),
        ("service/core/lane.py", "if TYPE_CHECKING:\n    import aiohttp", "aiohttp"),
        ("service/core/lane.py", "from . import pace", "..pace"),
        ("service/core/lane.py", "from .pace import Pace", ".pace.Pace"),
        ("service/core/lane.py", "__import__('time')", "__import__"),
        ("service/core/lane.py", "from importlib import import_module", "importlib.import_module"),
        ("service/sender.py", "from service.kinesis import Kinesis", "service.kinesis.Kinesis"),
        ("service/sender.py", "from service import metrics", "service.metrics"),
        ("service/sender.py", "import service", "service"),
        ("service/sender.py", "from processor.wire import decode", "processor.wire.decode"),
        ("service/sender.py", "import tweepy", "tweepy"),
        ("service/sender.py", "from opentelemetry import trace", "opentelemetry.trace"),
        ("service/sender.py", "from prometheus_client import Counter", "prometheus_client.Counter"),
        ("service/sender.py", "import botocore.exceptions", "botocore.exceptions"),
        ("service/stream.py", "from aiohttp import web", "aiohttp.web"),
        ("service/app.py", "import sqlite3", "sqlite3"),
        ("service/app.py", "from local import posts", "local.posts"),
        ("service/app.py", "import bench", "bench"),
        ("service/app.py", "from deploy import stack", "deploy.stack"),
        ("service/app.py", "from tests.virtual_loop import VirtualLoop", "tests.virtual_loop.VirtualLoop"),
        ("processor/handler.py", "from service.core.limits import MIB", "service.core.limits.MIB"),
        ("processor/handler.py", "import msgspec", "msgspec"),
        ("processor/handler.py", "import local.worker", "local.worker"),
        ("processor/wire.py", "import boto3", "boto3"),
        ("processor/items.py", "from processor import wire", "processor.wire"),
        ("processor/table.py", "__import__('service')", "__import__"),
        ("local/demo.py", "from .pipeline import Pipeline", ".pipeline.Pipeline"),
    ],
)
def test_a_bad_import_is_found(module: str, source: str, fault: str) -> None:
    """The check can fail: each rule catches what it is there for, beside an import that is allowed."""
    assert faults(module, f"import json\n{source}\n") == [fault]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("service/core/lane.py", "from random import Random"),
        ("service/core/lane.py", "import msgspec.json, heapq"),
        ("service/core/lane.py", "from processor import wire"),
        ("service/core/lane.py", "from service.core import pace"),
        ("service/sender.py", "from service import __version__"),
        ("service/stream.py", "import aiohttp, tweepy.asynchronous"),
        ("service/app.py", "from service import log"),
        ("processor/table.py", "from botocore.exceptions import ClientError"),
        ("local/worker.py", "import importlib, service.app"),
    ],
)
def test_a_good_import_is_let_through(module: str, source: str) -> None:
    """The rules forbid no more than they say."""
    assert faults(module, source) == []


@pytest.mark.parametrize("module", [module for module in MODULES if has_functions(read(module))])
def test_each_module_has_its_tests(module: str) -> None:
    """The tests mirror the house: whoever changes a file knows where its tests are."""
    patterns = [TESTED_ELSEWHERE[module]] if module in TESTED_ELSEWHERE else list(mirrors(module))
    assert any(list(ROOT.glob(pattern)) for pattern in patterns), f"none of {patterns}"


@pytest.mark.parametrize(
    ("module", "test"),
    [
        ("service/core/lane.py", "tests/service/core/test_lane.py"),
        ("service/core/rules.py", "tests/service/core/test_core_rules.py"),
        ("service/__main__.py", "tests/service/test_main.py"),
        ("local/kinesis/server.py", "tests/local/kinesis/test_local_kinesis.py"),
    ],
)
def test_the_mirror_of_a_module(module: str, test: str) -> None:
    """The name of a test file follows from the module's; a file elsewhere, or of another name, does not count."""
    assert any(fnmatch(test, pattern) for pattern in mirrors(module))
    assert not any(fnmatch("tests/service/test_lanes.py", pattern) for pattern in mirrors(module))


def test_names_of_test_files_are_unique() -> None:
    """Of two with the same name pytest takes none: it stops before the first test."""
    names = Counter(path.name for path in FILES if path.name.startswith("test_") and path.suffix == ".py")
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_names_a_machine_or_a_package_index() -> None:
    """What is true only here must not travel: paths of this machine, and where its packages came from."""
    assert {
        path.relative_to(ROOT).as_posix(): leaks(path.read_bytes()) for path in FILES if leaks(path.read_bytes())
    } == {}


@pytest.mark.parametrize("text", ["--index-url https://pypi" + ".org/simple", "cd /work" + "/main", f"{ROOT}/service"])
def test_a_leak_is_found(text: str) -> None:
    """The check can fail."""
    assert leaks(f"before\n{text}\nafter".encode()) != []
