import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from service import __version__
from service.config import load

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STAGES = {"daemon": "daemon-build", "stand-ins": "stand-ins-build"}

Instruction = tuple[str, str]


def stages() -> dict[str, list[Instruction]]:
    """Return the instructions of each stage, by its name."""
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    found: dict[str, list[Instruction]] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line:
            word, rest = line.split(maxsplit=1)
            if word == "FROM":
                found[rest.split(" AS ")[1]] = []
            found[next(reversed(found))].append((word, rest))
    return found


def arguments(stage: str, word: str) -> list[str]:
    """Return what stands after each such instruction of a stage."""
    return [rest for found, rest in stages()[stage] if found == word]


def copied(stage: str) -> dict[str, str]:
    """Return what a stage copies from the checkout: source -> destination."""
    pairs: dict[str, str] = {}
    for rest in arguments(stage, "COPY"):
        *sources, destination = rest.split()
        if not sources[0].startswith("--from="):
            pairs |= dict.fromkeys(sources, destination)
    return pairs


def run(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a directory without this checkout on its path."""
    return subprocess.run(
        [sys.executable, *command], cwd=directory, env={}, capture_output=True, text=True, check=False
    )


def lay_out(stage: str, directory: Path) -> None:
    """Copy into a directory what the stage copies into the image's /app."""
    for source, destination in copied(stage).items():
        target = directory / destination.lstrip("/")
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, target)


def test_hadolint_is_content() -> None:
    """The Dockerfile follows the rules of hadolint, all of them."""
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout) == (0, "")
    assert "hadolint ignore" not in TEXT


def test_a_build_without_a_target_makes_the_daemon() -> None:
    """The daemon's stage is the last one."""
    assert list(stages())[-1] == "daemon"


@pytest.mark.parametrize("stage", STAGES)
def test_nobody_is_root(stage: str) -> None:
    """The user is a number, so that an orchestrator can see that it is not root, and owns what it writes to."""
    [user] = arguments(stage, "USER")
    number, group = user.split(":")
    directory = {"daemon": "/var/lib/millrace", "stand-ins": "/var/lib/stand-ins"}[stage]

    assert int(number) > 0
    assert f"install -d -o {number} -g {group} {directory}" in arguments(stage, "RUN")
    order = [word for word, _ in stages()[stage]]
    assert max(index for index, word in enumerate(order) if word == "RUN") < order.index("USER")


@pytest.mark.parametrize("stage", STAGES)
def test_programs_are_started_without_a_shell(stage: str) -> None:
    """The entrypoint is in exec form, so that SIGTERM reaches it, and there is no CMD that could add to it."""
    [entrypoint] = arguments(stage, "ENTRYPOINT")

    assert json.loads(entrypoint) == ["python", "-m", {"daemon": "service", "stand-ins": "local"}[stage]]
    assert not arguments(stage, "CMD")
    assert arguments(stage, "STOPSIGNAL") == ["SIGTERM"]


def test_the_health_check_is_the_daemons_own_command() -> None:
    """It runs `python -m service health`, in exec form too."""
    [check] = arguments("daemon", "HEALTHCHECK")

    assert json.loads(check.partition(" CMD ")[2]) == ["python", "-m", "service", "health"]


def test_the_environment_of_the_image_is_good() -> None:
    """What the image sets are settings of the daemon: reachable from outside, the journal on the volume."""
    environment = dict(pair.split("=", 1) for rest in arguments("daemon", "ENV") for pair in shlex.split(rest))
    settings = load(environment | {"MILLRACE_STREAM": "s", "MILLRACE_SOURCE": "stdin"})

    assert settings.http_host == "0.0.0.0"
    assert arguments("daemon", "VOLUME") == [str(settings.journal)]
    assert arguments("daemon", "EXPOSE") == [str(settings.http_port)]


def test_only_the_daemon_gets_into_its_image() -> None:
    """The image holds service/, the codec, and the pinned packages; pip may install nothing else and build nothing."""
    assert copied("daemon-build") == {
        "requirements/daemon.txt": "/tmp/requirements.txt",
        "service/": "service/",
        "processor/__init__.py": "processor/",
        "processor/wire.py": "processor/",
    }
    assert copied("daemon") == {}
    for build in STAGES.values():
        [install] = [rest for rest in arguments(build, "RUN") if "pip" in rest]
        assert {"--no-cache-dir", "--only-binary=:all:", "--require-hashes"} <= set(install.split())


def test_what_is_copied_is_enough_for_the_daemon(tmp_path: Path) -> None:
    """The daemon starts from the copied files alone."""
    lay_out("daemon-build", tmp_path)
    result = run(tmp_path, "-m", "service", "--version")

    assert (result.returncode, result.stdout) == (0, f"Millrace {__version__}\n"), result.stderr


def test_what_is_copied_is_enough_for_the_stand_ins(tmp_path: Path) -> None:
    """X, every part of AWS and the Lambda's handler start from the copied files alone, and the template is there."""
    lay_out("stand-ins-build", tmp_path)
    stand_ins = "local.x_api.server, local.aws, local.kinesis.server, local.table, local.event_source, local.worker"
    code = f"import {stand_ins}, local.template, processor.handler; print(local.template.load().function('s').handler)"
    result = run(tmp_path, "-c", code)

    assert (result.returncode, result.stdout) == (0, "processor.handler.handle\n"), result.stderr


def test_the_build_context_holds_what_is_copied_and_no_more() -> None:
    """.dockerignore begins by leaving out everything, and lets through just the sources of the COPY instructions."""
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    sources = {source.rstrip("/") for build in STAGES.values() for source in copied(build)}
    allowed = {pattern[1:] for pattern in patterns if pattern.startswith("!")}

    assert patterns[0] == "*"
    assert allowed == {source for source in sources if source.split("/")[0] != "processor"} | {"processor"}


@pytest.mark.parametrize("stage", STAGES)
def test_the_labels_tell_the_truth(stage: str) -> None:
    """The licence is the project's; the version is told by the program alone, so that there is no copy of it."""
    labels = dict(pair.split("=", 1) for rest in arguments(stage, "LABEL") for pair in shlex.split(rest))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert "org.opencontainers.image.version" not in labels
    assert labels["org.opencontainers.image.licenses"] == project["license"]


def test_every_base_is_the_same_and_needs_no_frontend() -> None:
    """There is one base image, and the builder's own syntax is enough: nothing else is pulled."""
    bases = re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE)

    assert [base for base in bases if base != "base"] == ["python:3.13-slim-trixie"]
    assert not re.match(r"# *syntax=", TEXT)
