"""
The compose file as a newcomer starts it: posts flow, and stopping or killing the daemon loses none.

Its name is the last of this folder: at its end no posts come any more, and what looks at the metrics must be before it.
"""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from local.pipeline import CREDENTIALS, STREAM, TOKEN
from tests.container.stack import ROOT, SERVICES, Stack, docker, inspect, moment, wait_for
from tests.docs.documents import commands, words

pytestmark = [pytest.mark.integration, pytest.mark.container, pytest.mark.timeout(400)]

FIRST_POST_SECONDS = 30
STREAMING_SECONDS = 3
IDLE_MIB = 80
# What was read longer ago than this is on disk: the promise of service/journal.py.
JOURNAL_SECONDS = 0.1
SHARDS = 4


def test_posts_reach_the_table(stack: Stack, tell: Callable[[str], None]) -> None:
    """Within 30 s of `up` there are posts in the table, and they become more."""
    tell(f"the first post was in the table {stack.seconds_to_first_post:.1f} s after `up`")
    before = len(stack.ids())

    assert stack.seconds_to_first_post < FIRST_POST_SECONDS
    wait_for("more posts are in the table", lambda: len(stack.ids()) > before)


def test_the_table_can_be_looked_into_as_the_readme_says(stack: Stack) -> None:
    """Its command, with this stack's port in place of the usual one, shows posts."""
    [(variables, parts)] = [
        (variables, parts)
        for variables, parts in map(words, commands(ROOT / "README.md"))
        if "AWS_ENDPOINT_URL" in variables
    ]
    assert variables["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4566"
    variables["AWS_ENDPOINT_URL"] = stack.url("aws", 4566)
    shown = subprocess.run(
        [sys.executable, *parts[1:]], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )

    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.count("\n") >= 5


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_healthy_and_bounded(stack: Stack, service: str) -> None:
    """Each is healthy and runs as the compose file says: read-only root, no rights, not root, memory limited."""
    facts = inspect(stack.container(service))
    host = facts["HostConfig"]

    assert facts["State"]["Health"]["Status"] == "healthy"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["Memory"] > 0
    assert facts["Config"]["User"].split(":")[0] not in {"", "0", "root"}
    assert {port["HostIp"] for ports in facts["NetworkSettings"]["Ports"].values() for port in ports or []} == {
        "127.0.0.1"
    }


def test_the_live_page_is_in_the_image(stack: Stack) -> None:
    """The daemon's address shows its page, with its script."""
    url = stack.url("millrace", 8080)
    with (
        urllib.request.urlopen(url, timeout=10) as page,
        urllib.request.urlopen(f"{url}/page.js", timeout=10) as script,
    ):
        assert "<title>Millrace</title>" in page.read().decode()
        assert script.status == 200


def test_the_real_compose_file_passes_the_check(stack: Stack, tmp_path: Path) -> None:
    """With .env made from its example, docker-compose.real.yml is whole; here X and AWS are those of this stack."""
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    blanks = {"MILLRACE_BEARER_TOKEN": TOKEN, "MILLRACE_STREAM": STREAM, **CREDENTIALS}
    for name, value in blanks.items():
        example = example.replace(f"\n{name}=\n", f"\n{name}={value}\n")
    addresses = "MILLRACE_X_URL=http://x:8900\nAWS_ENDPOINT_URL_KINESIS=http://aws:4567\n"
    (tmp_path / ".env").write_text(example + addresses, encoding="utf-8")
    (tmp_path / "network.yml").write_text(f"networks: {{default: {{name: {stack.network}, external: true}}}}\n")
    files = ("-f", str(ROOT / "docker-compose.real.yml"), "-f", str(tmp_path / "network.yml"))
    project = ("compose", "--project-name", f"{stack.project}-real", "--project-directory", str(tmp_path), *files)
    try:
        checked = docker(*project, "run", "--rm", "--no-TTY", "millrace", "check")
        printed = docker(*project, "run", "--rm", "--no-TTY", "millrace", "config")
    finally:
        docker(*project, "down", "--volumes")

    assert STREAM in checked
    assert "coffee beans" in printed
    assert TOKEN not in checked + printed


def test_it_streams_soon_after_its_start(stack: Stack, tell: Callable[[str], None]) -> None:
    """A restarted container is connected to X within 3 s. The best of three, as the machine may have more to do."""
    seconds = min(_seconds_to_connect(stack) for _ in range(3))
    tell(f"the daemon is connected {seconds:.2f} s after the start of its container")

    assert seconds < STREAMING_SECONDS


def _seconds_to_connect(stack: Stack) -> float:
    stack.compose("restart", "millrace")
    started = moment(stack.state("millrace")["StartedAt"])

    def connects() -> list[float]:
        lines = [line for line in stack.log("millrace") if line["event"] == "stream_connected"]
        return [after for line in lines if (after := (moment(line["timestamp"]) - started).total_seconds()) > 0]

    wait_for("it is connected", lambda: connects() != [])
    return connects()[0]


def test_kill_9_and_restart_lose_nothing(stack: Stack) -> None:
    """What was read 100 ms before a kill is in the journal's volume, and in Kinesis after the restart."""
    for shard in range(SHARDS):
        stack.kinesis("/admin/faults", {"kind": "throttle_shard", "shard": shard, "seconds": 10})
    wait_for("posts wait", lambda: stack.metrics()["posts_buffered"] > 20)
    connection = stack.x("/admin/stats")["connections"]
    read = int(stack.metrics()["posts_received_total"])
    time.sleep(JOURNAL_SECONDS)
    docker("kill", "--signal", "KILL", stack.container("millrace"))
    wait_for("it has ended", lambda: not stack.state("millrace")["Running"])
    assert stack.state("millrace")["ExitCode"] == 137
    stack.start("millrace")
    recovered = stack.metrics()["posts_recovered_total"]
    wait_for("all are delivered", lambda: stack.metrics()["posts_delivered_total"] > recovered)
    ledger = stack.x("/admin/ledger")["posts"]
    promised = [post["id"] for post in ledger if post["connection"] == connection][:read]
    wait_for("the promised are in the table", lambda: not set(promised) - set(stack.ids()), 60)

    assert recovered > 20
    assert len(promised) == read


def test_sigterm_drains_and_loses_nothing(stack: Stack, tell: Callable[[str], None]) -> None:
    """`docker compose stop` ends it with code 0 within its grace period, nothing is lost, and idle it is small."""
    connection = stack.x("/admin/stats")["connections"]
    stack.compose("stop", "millrace")
    state = stack.state("millrace")
    last = stack.log("millrace")[-1]
    assert (state["ExitCode"], state["OOMKilled"], last["event"]) == (0, False, "stopped")
    stack.start("millrace")
    stack.settle()
    result = stack.reconcile()
    memory = float(stack.memory("millrace").removesuffix("MiB"))
    tell(f"{result.in_table:,} posts are in the table; the idle daemon's container takes {memory:.0f} MiB")

    ledger = stack.x("/admin/ledger")["posts"]
    read = [post["id"] for post in ledger if post["connection"] == connection][: last["received"]]
    later = [post["id"] for post in ledger if post["connection"] > connection]
    assert len(read) == last["received"]
    # Behind those that it had read is what was on the wire when it let go of its connection.
    assert not set(result.lost_before_kinesis) & {*read, *later}
    assert not result.lost_before_table
    assert result.in_table > 500
    assert not result.out_of_order
    assert not result.changed
    assert not result.unexpected
    assert memory < IDLE_MIB
