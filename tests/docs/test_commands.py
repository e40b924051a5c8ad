"""
Every command in a document names what is there.

Those of the daemon and the console are run in tests/integration/test_documents.py, those of Docker in tests/container/;
`aws` is held against the service models that the AWS CLI is made of.
"""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import botocore.session
import pytest
import yaml
from botocore import xform_name

from local.template import load as load_template
from service.config import load
from tests.docs.documents import DOCUMENTS, ROOT, blocks, commands, words

COMMANDS = [
    pytest.param(command, id=f"{path.name}: {command}"[:100]) for path in DOCUMENTS for command in commands(path)
]
BLOCKS = [pytest.param(block, id=f"{path.name}: {block[:40]}") for path in DOCUMENTS for block in blocks(path)]
# What the AWS CLI adds to the services: the options that it knows.
CUSTOM = {
    "s3 cp": {"--recursive"},
    "s3 ls": {"--recursive"},
    "s3 rm": {"--recursive"},
    "cloudformation deploy": {
        *("--stack-name", "--template-file", "--capabilities", "--parameter-overrides", "--s3-bucket", "--tags"),
    },
}
GLOBAL = {"--query", "--output", "--region", "--profile", "--cli-input-json", "--no-cli-pager"}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_bash(block: str) -> None:
    """Bash can read it."""
    result = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_what_is_there(command: str) -> None:
    """Target, module, service of a compose file, operation of AWS, setting: each exists, by its kind."""
    environment, parts = words(command)
    for name in environment:
        _known_variable(name)
    program = parts[0].removeprefix(".venv/bin/")
    if program.startswith(".ci/"):
        assert os.access(ROOT / program, os.X_OK)
        return
    checks = {"make": _make, "python": _python, "docker": _docker, "aws": _aws, "export": _export}
    checks.get(program, _files)(parts[1:])


@cache
def _targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def _known_variable(name: str) -> None:
    if name.startswith("MILLRACE_"):
        documented = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
        assert f"`{name.removesuffix('_FILE')}`" in documented, name
    elif name.endswith("_PORT"):
        assert f"${{{name}:-" in (ROOT / "docker-compose.yml").read_text(encoding="utf-8"), name
    elif not name.startswith("AWS_"):
        read = [path.read_text(encoding="utf-8") for path in [ROOT / "Makefile", *ROOT.glob("local/*.py")]]
        assert name == "KEY" or any(name in text for text in read), name


def _export(arguments: list[str]) -> None:
    for argument in arguments:
        name, _, value = argument.partition("=")
        _known_variable(name)
        if name == "MILLRACE_RULES":
            load({"MILLRACE_STREAM": "s", "MILLRACE_BEARER_TOKEN": "t", name: value})


def _make(arguments: list[str]) -> None:
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        if is_variable:
            assert name in (ROOT / "Makefile").read_text(encoding="utf-8")
            if name == "PARAMETERS":
                _parameters(argument.removeprefix("PARAMETERS=").split())
        else:
            assert argument in _targets()


def _python(arguments: list[str]) -> None:
    assert arguments[0] == "-m"
    module, *rest = arguments[1:]
    if module == "pytest":
        _files(rest)
        _asks_for_marks(rest)
    if module == "pytest" or module.startswith("json."):
        return
    assert (ROOT / module.replace(".", "/")).is_dir() or (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    if module in {"service", "processor", "bench"}:
        shown = _help(module, *(word for word in rest[:1] if module == "service" and not word.startswith("-")))
        for option in (word for word in rest if word.startswith("--")):
            assert option in shown


@cache
def _help(*program: str) -> str:
    shown = subprocess.run(
        [sys.executable, "-m", *program, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def _asks_for_marks(arguments: list[str]) -> None:
    """Some tests are run only where their mark is asked for: without it nothing would be shown."""
    for path in (ROOT / argument for argument in arguments if argument.endswith(".py")):
        marks = set(re.findall(r"mark\.(long|browser|container)\b", path.read_text(encoding="utf-8")))
        assert marks <= set(arguments), path.name


def _docker(arguments: list[str]) -> None:
    if arguments[0] in {"build", "inspect", "push"}:
        return
    assert arguments[0] == "compose"
    file, rest = "docker-compose.yml", arguments[1:]
    if rest[0] == "-f":
        file, rest = rest[1], rest[2:]
    verb, *rest = rest
    services = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["services"]
    known = {"--build", "--rm", "--detach", "-d", "-v", "--pull"}
    assert verb in {"up", "down", "run", "ps", "logs", "stop", "start", "build", "config", "exec"}
    assert {word for word in rest if word.startswith("-")} <= known
    named = [word for word in rest if not word.startswith("-")]
    assert not named or named[0] in services


@cache
def _model(service: str) -> dict[str, set[str]]:
    model = botocore.session.Session().get_service_model(service)
    return {
        xform_name(name, "-"): {
            f"--{xform_name(member, '-')}" for member in getattr(model.operation_model(name).input_shape, "members", ())
        }
        for name in model.operation_names
    }


def _aws(arguments: list[str]) -> None:
    service, operation, *rest = arguments
    options = {word.partition("=")[0] for word in rest if word.startswith("--")}
    known = CUSTOM.get(f"{service} {operation}") or _model(service)[operation]
    assert options <= known | GLOBAL
    if operation == "deploy":
        _parameters([word for word in rest[rest.index("--parameter-overrides") + 1 :] if "=" in word])


def _parameters(given: list[str]) -> None:
    assert {parameter.partition("=")[0] for parameter in given} <= set(load_template().document["Parameters"])


def _files(arguments: list[str]) -> None:
    named = [word for word in arguments if "/" in word and " " not in word and re.fullmatch(r"[\w./-]+", word)]
    for name in named:
        assert Path(ROOT / name).exists(), name
