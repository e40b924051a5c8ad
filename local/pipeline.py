"""
The whole pipeline on this machine, as separate processes on loopback: X, the daemon, Kinesis, the Lambda, the table.

    X  ──>  daemon  ──>  Kinesis  ──>  event source mapping  ──>  Lambda  ──>  table

The demo and the integration tests drive it. Ports are chosen by the system; what it writes lies in one directory.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from hashlib import md5
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiobotocore.session import AioSession
from prometheus_client.parser import text_string_to_metric_families

from local import ACCESS_KEY, CLIENT, REGION, SECRET_KEY
from local.processes import Process, ProcessError
from local.reconcile import (
    Reconciliation,
    fetch_sent,
    fetch_shards,
    fetch_table_ids,
    post_id_of,
    read_letters,
    read_quarantine,
    reconcile,
)
from processor.wire import decode

STACK = "millrace"
STREAM = "millrace-EventStream"
TABLE = f"{STACK}-EventData"
SHARDS = 4
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": REGION}
TOKEN = "local-token"  # noqa: S105 - opens nothing
RULES = "coffee"
SETTLE_SECONDS = 60.0
TABLE_COMMAND = ("local.table", "--stack", STACK)


def kinesis_command(directory: Path, port: int = 0) -> list[str]:
    """Return the words behind `python -m` of the Kinesis that keeps its state in a directory."""
    arguments = ["local.kinesis.server", "--port", str(port), "--stream", STREAM, "--shards", str(SHARDS)]
    return [*arguments, "--state", str(directory / "kinesis")]


def mapping_command(directory: Path, kinesis: str, dynamodb: str) -> list[str]:
    """Return those of the mapping between two URLs, with its failures in a directory."""
    return [
        *("local.event_source", "--kinesis", kinesis, "--stream", STREAM, "--dynamodb", dynamodb),
        *("--failures", str(directory / "failures"), "--stack", STACK),
    ]


class Pipeline:
    """
    All of it, as an asynchronous context manager.

    Args:
        directory: for logs and state.
        rate: posts a second.
        posts: a file of recorded posts, to be sent instead of invented ones.
        limit: how many posts X has; None for no end.
        settings: further environment of the daemon.
        x_options: further words of X's command line, such as --enterprise.
        table: with the Lambda and the table; without, all ends in Kinesis.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rate: float,
        posts: Path | None = None,
        limit: int | None = None,
        settings: Mapping[str, str] | None = None,
        x_options: Sequence[str] = (),
        table: bool = True,
    ) -> None:
        self.directory = directory
        self._rate = rate
        self._posts = posts
        self._limit = limit
        self._settings = settings or {}
        self._x_options = x_options
        self._with_table = table
        self.put_in: list[bytes] = []
        self._written_before = 0  # to the daemons before this one
        self._stack = AsyncExitStack()
        # Nothing of the caller's AWS or Millrace settings may reach the children.
        self._base = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MILLRACE_", "POSTS"))
        } | {"PYTHONUNBUFFERED": "1", "NO_PROXY": "127.0.0.1", **CREDENTIALS}

    async def __aenter__(self) -> Self:
        """Start everything; raises ProcessError."""
        async with AsyncExitStack() as stack:
            self._http = await stack.enter_async_context(aiohttp.ClientSession())
            self.kinesis = self._process("kinesis", *kinesis_command(self.directory))
            x_arguments = ["--port", "0", "--rate", f"{self._rate:g}", "--keep-alive", "1", *self._x_options]
            x_arguments += ["--match", "all", "--token", TOKEN]
            if self._posts:
                x_arguments += ["--posts", str(self._posts)]
            if self._limit is not None:
                x_arguments += ["--limit", str(self._limit)]
            self.x = self._process("x", "local.x_api.server", *x_arguments)
            first = [self.kinesis, self.x]
            if self._with_table:
                self.table = self._process("table", *TABLE_COMMAND)
                first.append(self.table)
            for process in first:
                stack.push_async_callback(process.stop)
            await asyncio.gather(*(process.start() for process in first))
            if self._with_table:
                self.mapping = self._process(
                    "mapping", *mapping_command(self.directory, self.kinesis.url, self.table.url)
                )
                stack.push_async_callback(self.mapping.stop)
                await self.mapping.start()
            self.daemon = self._process("daemon", "service", environment=self.daemon_environment())
            stack.push_async_callback(self._stop_daemon)
            await self.daemon.start(ready=False)
            await self._wait_for_daemon()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything, in the opposite order."""
        await self._stack.aclose()

    def check(self) -> None:
        """Raise ProcessError if one of the processes has ended."""
        table = (self.mapping, self.table) if self._with_table else ()
        for process in (self.x, self.daemon, self.kinesis, *table):
            process.check()

    async def _stop_daemon(self) -> None:
        # Not its stop() itself: by then it may be another process than the first one.
        await self.daemon.stop()

    # What happens to it

    async def fault_at_x(self, kind: str, **parameters: Any) -> None:
        """Have X do something to the connection: see `local.x_api.faults`."""
        await self._post(f"{self.x.url}/admin/faults", {"kind": kind, **parameters})

    async def fault_at_kinesis(self, kind: str, **parameters: Any) -> None:
        """Have Kinesis fail: see `local.kinesis.faults`."""
        await self._post(f"{self.kinesis.url}/admin/faults", {"kind": kind, **parameters})

    async def put_into_kinesis(self, records: Sequence[bytes]) -> None:
        """Put records into the stream beside the daemon, as another producer would."""
        async with AioSession().create_client("kinesis", endpoint_url=self.kinesis.url, **CLIENT) as kinesis:
            for number, record in enumerate(records):
                await kinesis.put_record(StreamName=STREAM, PartitionKey=f"other-{number}", Data=record)
                self.put_in.append(record)

    async def stop_posts(self) -> None:
        """Let no more posts fall due."""
        await self._post(f"{self.x.url}/admin/stop", {})

    async def restart_kinesis(self, after: float) -> None:
        """Kill Kinesis, and start it again on the same port, with what it held, after some seconds."""
        port = int(self.kinesis.url.rpartition(":")[2])
        await self.kinesis.kill()
        await asyncio.sleep(after)
        again = self._process("kinesis", *kinesis_command(self.directory, port))
        self._stack.push_async_callback(again.stop)
        await again.start()
        self.kinesis = again

    async def restart_daemon(self) -> None:
        """Kill the daemon, and start it again."""
        await self.daemon.kill()
        self._written_before = (await self.x_stats())["written"]
        self.daemon = self._process("daemon", "service", environment=self.daemon_environment())
        await self.daemon.start(ready=False)
        await self._wait_for_daemon()

    # What can be seen of it

    async def x_stats(self) -> dict[str, Any]:
        """What X has sent."""
        return await self._get(f"{self.x.url}/admin/stats")

    async def kinesis_stats(self) -> dict[str, Any]:
        """What Kinesis took and refused."""
        return await self._get(f"{self.kinesis.url}/admin/stats")

    async def mapping_stats(self) -> dict[str, Any]:
        """What the mapping read and called."""
        return await self._get(f"{self.mapping.url}/admin/stats")

    async def metrics(self) -> dict[str, float]:
        """The daemon's metrics by name; those with labels are summed, and also there as name{value}."""
        async with self._http.get(f"{self.daemon.url}/metrics") as response:
            text = await response.text()
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("millrace_")
                found[name] = found.get(name, 0.0) + sample.value
                for label in sample.labels.values():
                    found[f"{name}{{{label}}}"] = sample.value
        return found

    async def settle(self) -> None:
        """Wait until all that X has written is delivered, and all that was delivered is in the table."""
        async with asyncio.timeout(SETTLE_SECONDS):
            while True:
                self.check()
                x, metrics = await self.x_stats(), await self.metrics()
                missing = x["written"] - self._written_before - metrics["posts_received_total"]
                if not x["queued"] and missing <= 0 and not metrics["posts_buffered"]:
                    break
                await asyncio.sleep(0.2)
        async with asyncio.timeout(SETTLE_SECONDS):
            while self._with_table and (await self.mapping_stats())["records"] < await self._records_in_kinesis():
                self.check()
                await asyncio.sleep(0.2)

    async def reconcile(self) -> Reconciliation:
        """Lay the ledgers and the table side by side; without a table, only the ledgers."""
        sent = await fetch_sent(self._http, self.x.url)
        shards = await fetch_shards(self._http, self.kinesis.url, STREAM)
        letters = read_letters(self.directory / "journal")
        if not self._with_table:
            lines = [line.data for shard in shards for data in shard.records for line in decode(data).records]
            return reconcile(sent, shards, {post_id_of(line) or "" for line in lines}, letters)
        async with AioSession().create_client("dynamodb", endpoint_url=self.table.url, **CLIENT) as dynamodb:
            ids = await fetch_table_ids(dynamodb, TABLE)
        kept = {md5(data, usedforsecurity=False).hexdigest(): reason for data, reason in self.quarantined()}
        return reconcile(sent, shards, ids, letters | kept)

    def quarantined(self) -> list[tuple[bytes, str]]:
        """What the function has put aside: each record, or line of one, with its reason."""
        return read_quarantine(self.directory / "failures" / "quarantine")

    # Its parts

    def _process(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Process:
        return Process(name, list(arguments), environment or self._base, self.directory)

    def daemon_environment(self) -> dict[str, str]:
        """All of the daemon's environment."""
        return {
            **self._base,
            "AWS_ENDPOINT_URL_KINESIS": self.kinesis.url,
            "MILLRACE_X_URL": self.x.url,
            "MILLRACE_BEARER_TOKEN": TOKEN,
            "MILLRACE_RULES": RULES,
            "MILLRACE_STREAM": STREAM,
            "MILLRACE_HTTP_PORT": "0",
            "MILLRACE_JOURNAL": str(self.directory / "journal"),
            "MILLRACE_LOG_FORMAT": "json",
            **self._settings,
        }

    async def _wait_for_daemon(self) -> None:
        """Learn the daemon's port from its log, as an operator would."""
        async with asyncio.timeout(30):
            while True:
                self.daemon.check()
                started = [line for line in self.daemon.said() if '"started"' in line]
                if started:
                    break
                await asyncio.sleep(0.05)
        port = started[-1].partition('"http_port":')[2].partition(",")[0].strip(" }")
        self.daemon.url = f"http://127.0.0.1:{port}"

    async def _records_in_kinesis(self) -> int:
        return int((await self.kinesis_stats())["streams"][STREAM]["accepted"])

    async def _get(self, url: str) -> dict[str, Any]:
        async with self._http.get(url) as response:
            found: dict[str, Any] = await response.json()
            return found

    async def _post(self, url: str, body: dict[str, Any]) -> None:
        async with self._http.post(url, json=body) as response:
            if response.status != 200:
                raise ProcessError(f"{url} refuses {body}: {await response.text()}")
