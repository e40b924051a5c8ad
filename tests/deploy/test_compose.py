import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.pipeline import CREDENTIALS, RULES, STREAM, TABLE, TOKEN
from local.x_api.settings import parser
from service.config import ConfigError, load

ROOT = Path(__file__).parents[2]
LOCAL = "docker-compose.yml"
REAL = "docker-compose.real.yml"
FILES = {name: yaml.safe_load((ROOT / name).read_text(encoding="utf-8")) for name in (LOCAL, REAL)}
SERVICES: dict[str, dict[str, Any]] = FILES[LOCAL]["services"]
DAEMONS = [document["services"]["millrace"] for document in FILES.values()]
EVERY_SERVICE = [
    pytest.param(service, id=f"{file}:{name}")
    for file, document in FILES.items()
    for name, service in document["services"].items()
]
DAEMON = load(SERVICES["millrace"]["environment"])


def container_ports(service: dict[str, Any]) -> set[int]:
    """Return the ports that are published, as they are inside the container."""
    return {int(port.rsplit(":", 1)[1]) for port in service["ports"]}


@pytest.mark.parametrize("file", FILES)
def test_a_compose_file_fulfils_the_specification(file: str) -> None:
    """The files are valid by the schema of the Compose specification, and have no obsolete version."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "version" not in FILES[file]


@pytest.mark.parametrize("service", EVERY_SERVICE)
def test_ports_are_on_loopback_and_can_be_changed(service: dict[str, Any]) -> None:
    """
    No port is open to other machines, and a variable exchanges a busy one.

    Its name is no MILLRACE_ name: in .env it would reach the daemon, which refuses those that it does not know.
    """
    assert service["ports"]
    for port in service["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:\$\{(?!MILLRACE_)[A-Z_]+_PORT:-(\d+)\}:\1", port), port


@pytest.mark.parametrize("service", EVERY_SERVICE)
def test_a_service_is_bounded_and_holds_no_rights(service: dict[str, Any]) -> None:
    """Each has a memory limit, a read-only root, no capability, and no way to new ones."""
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("service", EVERY_SERVICE)
def test_a_service_tells_its_health(service: dict[str, Any]) -> None:
    """Each has a health check by a program of its image; the daemon's is in its image."""
    if service["image"] == "millrace":
        assert "healthcheck" not in service
        assert re.search(r"^FROM \S+ AS daemon\n(.+\n)*HEALTHCHECK ", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        return
    program = {"millrace-stand-ins": "python", "prom/prometheus:v3.5.0": "wget", "grafana/grafana:12.4.0": "wget"}[
        service["image"]
    ]
    assert service["healthcheck"]["test"][:2] == ["CMD", program]


@pytest.mark.parametrize("name", ["x", "aws"])
def test_a_health_check_of_the_stand_ins_is_python(name: str) -> None:
    """The code in their health checks compiles and asks ports that they publish."""
    _, _, option, code = SERVICES[name]["healthcheck"]["test"]
    asked = {int(port) for port in re.findall(r"\b\d{4}\b", code)}

    assert option == "-c"
    compile(code, name, "exec")
    assert asked
    assert asked <= container_ports(SERVICES[name])


def test_every_volume_is_declared() -> None:
    """What is kept lies in named volumes, so that `down -v` removes it; files of the checkout are read-only."""
    for document in FILES.values():
        for service in document["services"].values():
            for volume in service.get("volumes", []):
                source, *_, last = volume.split(":")
                if source in document["volumes"]:
                    continue
                assert (ROOT / source).exists(), volume
                assert last == "ro"


def test_the_daemon_takes_its_environment() -> None:
    """Every name is a setting and every value is good; what the demo's daemon has, it has too."""
    assert DAEMON.bearer_token is not None
    assert (DAEMON.stream, [rule.value for rule in DAEMON.rules]) == (STREAM, [RULES])
    assert DAEMON.bearer_token.reveal() == TOKEN
    environment = SERVICES["millrace"]["environment"]
    assert {name: environment[name] for name in CREDENTIALS} == CREDENTIALS


@pytest.mark.parametrize("service", DAEMONS, ids=FILES)
def test_a_drain_is_not_cut_short(service: dict[str, Any]) -> None:
    """Docker's grace period is longer than the daemon's own limit."""
    assert int(service["stop_grace_period"].removesuffix("s")) > DAEMON.shutdown_seconds


@pytest.mark.parametrize("service", DAEMONS, ids=FILES)
def test_the_daemons_port_and_journal_are_where_it_has_them(service: dict[str, Any]) -> None:
    """The published port is its default, and its volume is the journal of the image."""
    assert container_ports(service) == {DAEMON.http_port}
    assert service["volumes"] == ["journal:/var/lib/millrace"]


def test_the_daemon_waits_for_what_it_needs_and_finds_it() -> None:
    """It starts when X and AWS are healthy, and its URLs name their services and ports."""
    environment = SERVICES["millrace"]["environment"]
    arguments = parser().parse_args(SERVICES["x"]["command"][1:])

    assert environment["MILLRACE_X_URL"] == f"http://x:{arguments.port}"
    assert arguments.token == [TOKEN]
    assert environment["AWS_ENDPOINT_URL_KINESIS"] == "http://aws:4567"
    assert 4567 in container_ports(SERVICES["aws"])
    assert SERVICES["millrace"]["depends_on"] == {name: {"condition": "service_healthy"} for name in ("x", "aws")}


def test_prometheus_scrapes_the_daemon() -> None:
    """The one target is the daemon's service and port."""
    configuration = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    [job] = configuration["scrape_configs"]

    assert job["static_configs"] == [{"targets": [f"millrace:{DAEMON.http_port}"]}]


def test_the_head_of_the_file_names_what_is_there() -> None:
    """The table of addresses in the first comment has every published port with its variable, and the table's name."""
    head = (ROOT / LOCAL).read_text(encoding="utf-8").split("\nname:")[0]

    for service in SERVICES.values():
        for port in service["ports"]:
            found = re.search(r"\{(\w+):-(\d+)\}", port)
            assert found
            assert re.search(rf"^#   http://127\.0\.0\.1:{found[2]} .*\b{found[1]}\b", head, re.MULTILINE), port
    assert TABLE in head


def test_the_real_daemon_meets_no_stand_in() -> None:
    """It is a project of its own, so that it shares no journal with invented posts, and its settings are in .env."""
    [service] = FILES[REAL]["services"].values()

    assert FILES[REAL]["name"] != FILES[LOCAL]["name"]
    assert "environment" not in service
    assert service["env_file"] == [".env"]
    assert "/.env\n" in (ROOT / ".gitignore").read_text(encoding="utf-8")


def test_the_example_of_the_environment_only_needs_its_blanks_filled() -> None:
    """.env.example holds known names, tells the missing ones as the daemon does, and no secret."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    example["MILLRACE_RULES"] = example["MILLRACE_RULES"].strip("'")
    blanks = {name for name, value in example.items() if not value}

    with pytest.raises(ConfigError) as caught:
        load(example)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["MILLRACE_STREAM", "MILLRACE_BEARER_TOKEN"]
    assert blanks == {"MILLRACE_STREAM", "MILLRACE_BEARER_TOKEN", *CREDENTIALS}
    settings = load(example | {"MILLRACE_STREAM": STREAM, "MILLRACE_BEARER_TOKEN": TOKEN})
    assert [rule.value for rule in settings.rules] == ['"coffee beans" lang:en -is:retweet']
