"""
The compose file, brought up as a project of its own, with what a test does to it and sees of it.

Grafana is left out: its image cannot be had where there is no registry. What it would show is asked of Prometheus.
"""

import asyncio
import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiobotocore.session import AioSession
from prometheus_client.parser import text_string_to_metric_families

from local import CLIENT
from local.pipeline import STREAM, TABLE
from local.reconcile import Reconciliation, fetch_sent, fetch_shards, fetch_table_ids, reconcile

ROOT = Path(__file__).parents[2]
FILES = ("-f", "docker-compose.yml", "-f", "tests/container/compose.ci.yml")
SERVICES = ("x", "aws", "millrace", "prometheus")
READY_SECONDS = 90
SETTLE_SECONDS = 60


def run(*command: str, timeout: float = 300) -> str:
    """Run a program and return its standard output; a code that is not 0 is an AssertionError with all it said."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    if result.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def docker(*arguments: str) -> str:
    """Run docker."""
    return run("docker", *arguments, timeout=300).strip()


def inspect(name: str) -> dict[str, Any]:
    """Return what the engine knows of a container or an image."""
    found: dict[str, Any] = json.loads(docker("inspect", name))[0]
    return found


def wait_for(what: str, condition: Callable[[], bool], seconds: float = SETTLE_SECONDS) -> None:
    """Wait until a condition holds; AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s still not: {what}"
        time.sleep(0.2)


def moment(text: str) -> datetime:
    """Return a time of the engine's or the log's, which may have more digits than Python takes."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{seconds}.{fraction[:6]:0<6}").replace(tzinfo=UTC)


class Stack:
    """`up` builds the images and starts the services; `down` ends all and shows that nothing is left."""

    def __init__(self, project: str) -> None:
        self.project = project
        self.network = f"{project}_default"
        self.seconds_to_first_post = 0.0

    def compose(self, *arguments: str) -> str:
        """Run docker compose on the project."""
        return docker("compose", "--project-name", self.project, "--progress", "plain", *FILES, *arguments)

    def build(self) -> None:
        """Build the images of the daemon and the stand-ins."""
        self.compose("build", "x", "millrace")

    def up(self) -> None:
        """Start all, and return when all are healthy; if they do not become so, the error holds their logs."""
        started = time.monotonic()
        try:
            self.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout", str(READY_SECONDS), *SERVICES)
            wait_for("a post is in the table", lambda: self.ids() != [])
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs', '--tail', '20')}") from None
        self.seconds_to_first_post = time.monotonic() - started

    def down(self) -> None:
        """End all."""
        self.compose("down", "--volumes", "--timeout", "15")
        label = f"label=com.docker.compose.project={self.project}"
        for kind in (["ps", "--all"], ["volume", "ls"], ["network", "ls"]):
            assert docker(*kind, "--quiet", "--filter", label) == "", kind

    def container(self, service: str) -> str:
        """Return the id of a service's container, running or not."""
        return self.compose("ps", "--all", "--quiet", service)

    def state(self, service: str) -> dict[str, Any]:
        """Return the state of its container, as the engine tells it."""
        found: dict[str, Any] = inspect(self.container(service))["State"]
        return found

    def url(self, service: str, port: int) -> str:
        """Return where a port of a service is published."""
        return f"http://{self.compose('port', service, str(port))}"

    def start(self, service: str) -> None:
        """Start a service's container again and wait until it is healthy."""
        self.compose("start", service)
        wait_for(f"{service} is healthy", lambda: self.state(service)["Health"]["Status"] == "healthy")

    def log(self, service: str) -> list[dict[str, Any]]:
        """Return the lines of a service that are JSON, of all its runs."""
        lines = docker("logs", self.container(service)).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def memory(self, service: str) -> str:
        """Return what its container takes of its memory limit, as `docker stats` writes it."""
        return docker("stats", "--no-stream", "--format", "{{.MemUsage}}", self.container(service)).split(" /")[0]

    # What can be seen

    def x(self, path: str, body: Any = None) -> Any:
        """Ask X's admin side."""
        return fetch(f"{self.url('x', 8900)}{path}", body)

    def kinesis(self, path: str, body: Any = None) -> Any:
        """Ask Kinesis' admin side."""
        return fetch(f"{self.url('aws', 4567)}{path}", body)

    def records(self) -> int:
        """Count the records that Kinesis has taken."""
        return int(self.kinesis("/admin/stats")["streams"][STREAM]["accepted"])

    def metrics(self) -> dict[str, float]:
        """Return the daemon's metrics by name; series of one name are summed."""
        with urllib.request.urlopen(f"{self.url('millrace', 8080)}/metrics", timeout=10) as response:
            text = response.read().decode()
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("millrace_")
                found[name] = found.get(name, 0.0) + sample.value
        return found

    def prometheus(self, path: str, **query: str) -> Any:
        """Ask Prometheus' API; AssertionError if it has no answer."""
        answer = fetch(f"{self.url('prometheus', 9090)}/api/v1/{path}?{urllib.parse.urlencode(query)}")
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the vector that an expression gives now."""
        found: list[dict[str, Any]] = self.prometheus("query", query=expression)["result"]
        return found

    def settle(self) -> None:
        """Let no more posts fall due, and wait until all that were written are in the table."""
        self.x("/admin/stop", {})
        wait_for("X has written all", lambda: not self.x("/admin/stats")["queued"])
        written = self.x("/admin/ledger")["connections"][-1]["written"]
        wait_for("all posts have come", lambda: self.metrics()["posts_received_total"] >= written)
        wait_for("all posts are delivered", lambda: not self.metrics()["posts_buffered"])
        mapping = self.url("aws", 4568)
        wait_for("all records are done", lambda: fetch(f"{mapping}/admin/stats")["records"] >= self.records())

    def reconcile(self) -> Reconciliation:
        """Lay the ledgers and the table side by side."""
        return asyncio.run(_reconcile(self.url("x", 8900), self.url("aws", 4567), self.url("aws", 4566)))

    def ids(self) -> list[str]:
        """Return the ids of all posts in the table."""
        return asyncio.run(_table_ids(self.url("aws", 4566)))


def fetch(url: str, body: Any = None) -> Any:
    """Get a document of JSON, or post one."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())


async def _table_ids(url: str) -> list[str]:
    async with AioSession().create_client("dynamodb", endpoint_url=url, **CLIENT) as dynamodb:
        return await fetch_table_ids(dynamodb, TABLE)


async def _reconcile(x: str, kinesis: str, table: str) -> Reconciliation:
    async with aiohttp.ClientSession() as http:
        sent = await fetch_sent(http, x)
        shards = await fetch_shards(http, kinesis, STREAM)
    return reconcile(sent, shards, await _table_ids(table), {})
