"""
The daemon on the whole road: posts from the X stand-in, over HTTP, into the stub. Two uses of it.

* `measure`: as fast as it goes, what the road costs beside plain lines on standard input.
* `outage`: Kinesis goes away for a time while X does not stop. X cannot be held back, as a pipe can.
"""

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.feed import RunError, cpu_of
from bench.findings import Findings
from bench.measure import ROOT, Load, Result, Stub, Usage, Workshop
from bench.roster import Peer

_READY_SECONDS = 60.0
_STOP_SECONDS = 60.0
# How long all is well around an outage.
_BEFORE_SECONDS = _AFTER_SECONDS = 3.0


class Road:
    """
    A daemon that reads from an X stand-in.

    Attributes:
        x_url: of the stand-in.
        start: seconds of CPU that the daemon had taken when it said that it had started.
    """

    def __init__(self, workshop: Workshop, peer: Peer, stub_url: str, x_arguments: list[str]) -> None:
        self._workshop = workshop
        self._name = f"{peer.name} on X"
        command = [sys.executable, "-m", "local.x_api.server", "--port", "0", *x_arguments]
        with workshop.log_of("x").open("wb") as log:
            self._x = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._x.stdout is not None
        self.x_url = self._x.stdout.readline().split(" ")[-1].strip()
        settings = {"SOURCE": "sample", "X_URL": self.x_url, "BEARER_TOKEN": "bench", "LOG_FORMAT": "json"}
        environment = workshop.environment(peer, stub_url)
        environment |= {f"MILLRACE_{name}": value for name, value in settings.items()}
        self._daemon = workshop.start([sys.executable, "-m", "service"], environment, self._name, subprocess.DEVNULL)
        self._port = 0
        self.start = 0.0

    def await_ready(self) -> None:
        """Wait until the daemon has said where its metrics are."""
        patience = time.monotonic() + _READY_SECONDS
        while not self._port:
            for line in self._workshop.log_of(self._name).read_text(errors="replace").splitlines():
                entry = json.loads(line) if line.startswith("{") else {}
                self._port = entry.get("http_port", self._port)
            if time.monotonic() > patience:
                raise RunError(f"{self._name} did not start: see {self._workshop.log_of(self._name)}")
            time.sleep(0.05)
        self.start = self.cpu()

    def cpu(self) -> float:
        """Seconds of CPU that the daemon has taken so far."""
        return cpu_of(self._daemon)

    def metrics(self) -> dict[str, float]:
        """What the daemon counts; series with labels are added up."""
        found: dict[str, float] = {}
        for line in _get(f"http://127.0.0.1:{self._port}/metrics").splitlines():
            if not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                name = series.partition("{")[0].removeprefix("millrace_")
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def stop_posts(self) -> None:
        """Let no more posts come."""
        _get(f"{self.x_url}/admin/stop", "POST")

    def stop(self) -> Usage:
        """End the daemon as an operator would, and return what it cost."""
        self._daemon.send_signal(signal.SIGTERM)
        return self._workshop.wait(self._daemon, self._name, _STOP_SECONDS)

    def close(self) -> None:
        """End whatever still runs."""
        for process in (self._daemon, self._x):
            process.kill()
            process.communicate()


@dataclass(frozen=True)
class Outage:
    """
    How an outage went.

    Attributes:
        rate: posts a second, before, during and after.
        seconds: for which nothing listened where Kinesis had been.
        waiting: posts that waited when it came back.
        journal: bytes that the journal took at most.
        peak: bytes of memory at most, of the whole run.
        caught_up: seconds from its return until no more posts waited than at any time.
        findings: of the check.
    """

    rate: float
    seconds: float
    waiting: int
    journal: int
    peak: int
    caught_up: float
    findings: Findings


@contextmanager
def _road(workshop: Workshop, peer: Peer, stub: Stub, x_arguments: list[str]) -> Iterator[Road]:
    workshop.forget_journal()
    road = Road(workshop, peer, stub.url, x_arguments)
    try:
        road.await_ready()
        yield road
    finally:
        road.close()


def measure(workshop: Workshop, peer: Peer, load: Load) -> Result:
    """Carry a file of posts along the whole road, as often as everything is measured; return the cheapest run."""
    return min((_carry(workshop, peer, load) for _ in range(workshop.rounds)), key=lambda result: result.cpu)


def _carry(workshop: Workshop, peer: Peer, load: Load) -> Result:
    arguments = ["--rate", "0", "--limit", str(load.count), "--posts", str(load.posts)]
    with workshop.stub(load) as stub, _road(workshop, peer, stub, arguments) as road:
        _until(road, lambda seen: seen["posts_delivered_total"] >= load.count)
        end = road.cpu()
        usage = road.stop()
        counted = stub.stop()
        findings = workshop.check(load, ["--posts", str(load.posts)], [stub.spool])
    if faults := findings.faults():
        raise RunError(f"{peer.name} on X: of {findings.sent:,} posts {', '.join(faults)}")
    return Result.of(load, road.start, end, usage, counted, findings)


def outage(workshop: Workshop, peer: Peer, seconds: float, rate: float, delay: float) -> Outage:
    """
    Take Kinesis away, while posts come at a steady rate.

    Args:
        workshop: where.
        peer: Millrace in one of its ways.
        seconds: for which it is away.
        rate: posts a second.
        delay: of Kinesis' answers, in seconds.
    """
    # Not the posts that the stand-in invents: its busiest author alone writes more than a shard takes.
    posts = workshop.posts(60_000)
    load = Load(posts, 1, delay=delay)
    arguments = ["--rate", str(rate), "--posts", str(posts)]
    with workshop.stub(load) as before, _road(workshop, peer, before, arguments) as road:
        _until(road, lambda seen: seen["posts_delivered_total"] >= rate * _BEFORE_SECONDS)
        before.stop()
        journal = _watch_journal(road, seconds)
        with workshop.stub(load, port=urlsplit(before.url).port or 0) as after:
            back = time.monotonic()
            waiting = _waiting(road.metrics())
            # A second's worth waits at any time: linger, requests under way, the X stand-in's steps.
            caught_up = _until(road, lambda seen: _waiting(seen) < rate, seconds * 4 + 60) - back
            time.sleep(_AFTER_SECONDS)
            road.stop_posts()
            _until(road, lambda seen: _waiting(seen) == 0)
            usage = road.stop()
            after.stop()
            findings = workshop.check(load, ["--ledger", road.x_url], [before.spool, after.spool])
    return Outage(rate, seconds, waiting, journal, usage.peak, caught_up, findings)


def _watch_journal(road: Road, seconds: float) -> int:
    end = time.monotonic() + seconds
    largest = 0.0
    while time.monotonic() < end:
        largest = max(largest, road.metrics().get("journal_bytes", 0.0))
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
    return int(largest)


def _waiting(seen: Mapping[str, float]) -> int:
    gone = sum(seen[f"posts_{name}_total"] for name in ("delivered", "dropped", "duplicate"))
    return int(seen["posts_received_total"] + seen["posts_recovered_total"] - gone)


def _until(road: Road, condition: Callable[[Mapping[str, float]], bool], seconds: float = 120.0) -> float:
    """Ask the daemon four times a second until a condition holds; return when that was."""
    patience = time.monotonic() + seconds
    while not condition(road.metrics()):
        if time.monotonic() > patience:
            raise RunError(f"the daemon was not where it should be after {seconds:g} s: {road.metrics()}")
        time.sleep(0.25)
    return time.monotonic()


def _get(url: str, method: str = "GET") -> str:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        connection.request(method, parts.path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()
