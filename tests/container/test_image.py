"""What is in the daemon's image, and what it may do."""

import json
import subprocess
from collections.abc import Callable

import pytest

from service import __version__
from tests.container.stack import ROOT, docker, inspect

pytestmark = [
    pytest.mark.integration,
    pytest.mark.container,
    pytest.mark.usefixtures("images"),
    pytest.mark.timeout(400),
]

IMAGE = "millrace"
LIMIT_BYTES = 200_000_000
# As docker-compose.yml runs it.
HARDENED = (
    "run",
    "--rm",
    "--network",
    "none",
    "--read-only",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
)


def shell(command: str) -> str:
    """Run a shell command in a container, hardened as the daemon is."""
    return docker(*HARDENED, "--entrypoint", "sh", IMAGE, "-c", command)


def test_it_starts_with_a_read_only_root_and_without_any_capability() -> None:
    """The daemon's commands run with nothing to write to and no rights."""
    assert docker(*HARDENED, IMAGE, "--version") == f"Millrace {__version__}"


def test_the_user_is_not_root_and_owns_only_the_journal() -> None:
    """Even with a root file system that can be written to, code and packages cannot be changed."""
    [user] = docker("run", "--rm", "--network", "none", "--entrypoint", "id", IMAGE, "-u").split()
    writable = docker(
        *("run", "--rm", "--network", "none", "--entrypoint", "sh", IMAGE, "-c"),
        "find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' 2>/dev/null; test $? -le 1",
    )

    assert user == "10001"
    assert set(writable.split()) <= {"/tmp", "/var/tmp", "/run/lock", "/var/lib/millrace"}


def test_there_is_nothing_to_build_with() -> None:
    """No compiler, no make, no uv, and no pip among its packages."""
    found = shell("for tool in cc gcc g++ c++ clang make cmake cargo rustc go uv; do command -v $tool; done; true")

    assert found == ""
    assert shell("ls /opt/venv/bin | grep -c pip || true") == "0"


def test_it_holds_only_what_the_daemon_needs() -> None:
    """Neither stand-ins nor tests nor the processor's own part are in it."""
    assert shell("ls /app").split() == ["processor", "service"]
    assert [name for name in shell("ls /app/processor").split() if name.endswith(".py")] == ["__init__.py", "wire.py"]


def test_no_secret_is_in_its_layers() -> None:
    """Neither history nor environment name a token, a key or a password."""
    told = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGE) + json.dumps(inspect(IMAGE)["Config"])

    assert not [word for word in ("token", "secret", "password", "access_key") if word in told.lower()]


def test_it_is_small(tell: Callable[[str], None]) -> None:
    """The image is below 200 MB."""
    size = inspect(IMAGE)["Size"]
    tell(f"the image has {size / 1e6:.0f} MB")

    assert size < LIMIT_BYTES


def test_what_is_left_of_botocore_is_enough() -> None:
    """All services that credentials and Kinesis need have their model; the others are not there."""
    names = ("kinesis", "sts", "sso", "sso-oidc", "signin")
    code = f"import botocore.session as s; [s.Session().get_service_model(n) for n in {names}]; print('loaded')"

    assert docker(*HARDENED, "--entrypoint", "python", IMAGE, "-c", code) == "loaded"
    assert set(shell("cd /opt/venv/lib/python*/site-packages/botocore/data && ls -d */").split()) == {
        f"{name}/" for name in names
    }


def test_the_health_check_fails_where_no_daemon_runs() -> None:
    """The image's own check is the daemon's command, and says so by its exit code."""
    config = inspect(IMAGE)["Config"]
    command = config["Healthcheck"]["Test"]
    result = subprocess.run(
        ["docker", *HARDENED, "--entrypoint", command[1], IMAGE, *command[2:]],
        capture_output=True,
        text=True,
        check=False,
    )

    assert command == ["CMD", "python", "-m", "service", "health"]
    assert result.returncode != 0
    assert config["StopSignal"] == "SIGTERM"
    assert config["Volumes"] == {"/var/lib/millrace": {}}


def test_a_wrong_setting_ends_it_with_a_line() -> None:
    """A container without settings names what it misses and exits with 2."""
    result = subprocess.run(["docker", *HARDENED, IMAGE], capture_output=True, text=True, check=False)

    assert result.returncode == 2
    assert "MILLRACE_STREAM" in result.stdout + result.stderr


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_package_has_a_wheel(machine: str) -> None:
    """Nothing has to be compiled for the image, on amd64 as on arm64."""
    # The image needs no network for it: its Python's pip is asked what it would install.
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in (17, 28, 34)]
    command = ("python", "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--target=/tmp/none")
    options = ("--only-binary=:all:", "--require-hashes", "--implementation=cp", "--python-version=3.13")
    base = next(line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("FROM "))
    docker(
        *("run", "--rm", "--network=host", "--volume", f"{ROOT / 'requirements'}:/requirements:ro", base),
        *(
            *command,
            *options,
            *platforms,
            f"--platform=manylinux2014_{machine}",
            "--requirement=/requirements/daemon.txt",
        ),
    )
