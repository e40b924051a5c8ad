import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import md5
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from tweepy import StreamRule
from tweepy.asynchronous import AsyncStreamingClient

from bench.tls import make_certificate
from local.posts import Generated
from local.processes import Process
from local.x_api.server import XApi, main
from local.x_api.settings import Settings

HOST = "api.twitter.com"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the files of a certificate for X's host, signed by itself, and of its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), HOST)


class ToLoopback(AbstractResolver):
    """Finds every host at one port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host="127.0.0.1", port=self._port, family=socket.AF_INET, proto=0, flags=0)
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Collector(AsyncStreamingClient):  # type: ignore[misc]  # tweepy has no types
    """What a user of tweepy writes: a subclass that keeps what comes."""

    def __init__(self, wanted: int) -> None:
        super().__init__("t")
        self.responses: list[Any] = []
        self.errors: list[Any] = []
        self.failure: Exception | None = None
        self.complete = asyncio.Event()
        self._wanted = wanted

    async def on_response(self, response: Any) -> None:
        self.responses.append(response)
        if len(self.responses) == self._wanted:
            self.complete.set()

    async def on_errors(self, errors: list[Any]) -> None:
        self.errors += errors

    async def on_exception(self, exception: Exception) -> None:
        # tweepy's stream is dead then; the test must not wait for more.
        self.failure = exception
        self.complete.set()


@asynccontextmanager
async def serving_tweepy(
    certificate: tuple[Path, Path], settings: Settings, wanted: int
) -> AsyncIterator[tuple[XApi, Collector]]:
    """Serve HTTPS, and yield a tweepy client for which X's host is this server."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    trust = ssl.create_default_context(cafile=str(certificate[0]))
    async with XApi(Generated(1), settings, tls=tls) as api:
        connector = aiohttp.TCPConnector(resolver=ToLoopback(int(api.url.rpartition(":")[2])), ssl=trust)
        client = Collector(wanted)
        async with aiohttp.ClientSession(connector=connector) as session:
            client.session = session
            yield api, client


async def test_unmodified_tweepy_receives_the_posts(certificate: tuple[Path, Path]) -> None:
    """Every post arrives once, in order, as tweepy's own objects, over TLS and gzip."""
    async with serving_tweepy(certificate, Settings(rate=0, limit=300), wanted=300) as (api, client):
        await client.add_rules(StreamRule(value="millrace", tag="all"))
        client.filter(tweet_fields=["author_id", "created_at", "lang"], expansions=["author_id"])
        await client.complete.wait()
        assert client.failure is None
        client.disconnect()
        rows = list(api.ledger.rows())
        assert [str(response.data.id) for response in client.responses] == [row.id for row in rows]
        assert all("millrace" in response.data.text for response in client.responses)
        assert {response.matching_rules[0].tag for response in client.responses} == {"all"}
        assert {row.state for row in rows} == {"written"}
        assert all(error["type"].endswith("/resource-not-found") for error in client.errors)


async def test_unmodified_tweepy_survives_a_drop(certificate: tuple[Path, Path]) -> None:
    """After an end without the last chunk it connects again and the stream goes on."""
    async with serving_tweepy(certificate, Settings(rate=1000, limit=None), wanted=200) as (api, client):
        await client.add_rules(StreamRule(value="millrace"))
        client.filter()
        await api.feed.until(lambda: api.ledger.counts["written"] >= 50)
        api.faults.inject("fin")
        await client.complete.wait()
        assert client.failure is None
        assert [record.ending for record in api.ledger.connections] == ["fin", "open"]
        client.disconnect()
        await api.feed.until(lambda: not api.feed.streams)


async def test_rules_calls_of_unmodified_tweepy(certificate: tuple[Path, Path]) -> None:
    """add_rules, get_rules and delete_rules work, dry run, duplicates and errors included."""
    async with serving_tweepy(certificate, Settings(limit=0), wanted=1) as (api, client):
        assert (await client.get_rules()).data is None
        dry = await client.add_rules(StreamRule(value="water"), dry_run="true")
        assert (dry.meta["summary"]["created"], len(api.rules)) == (1, 0)
        added = await client.add_rules([StreamRule(value="water", tag="wet"), StreamRule(value="--b")])
        assert [(rule.value, rule.tag) for rule in added.data] == [("water", "wet")]
        assert [error["title"] for error in added.errors] == ["UnprocessableEntity"]
        again = await client.add_rules(StreamRule(value="water"))
        assert (again.errors[0]["title"], again.errors[0]["id"]) == ("DuplicateRule", added.data[0].id)
        listed = await client.get_rules(ids=[added.data[0].id])
        assert [rule.value for rule in listed.data] == ["water"]
        deleted = await client.delete_rules(added.data[0].id)
        assert deleted.meta["summary"] == {"deleted": 1, "not_deleted": 0}
        assert len(api.rules) == 0


async def test_rules_endpoints_over_http() -> None:
    """Paging, counts, delete by value and delete_all are there, which tweepy does not know."""
    path = "/2/tweets/search/stream/rules"
    headers = {"authorization": "Bearer t"}
    async with XApi(Generated(1)) as api, aiohttp.ClientSession(api.url, headers=headers) as http:

        async def ask(method: str, path: str, **request: Any) -> tuple[int, Any]:
            async with http.request(method, path, **request) as response:
                return response.status, await response.json()

        add = {"add": [{"value": value} for value in ("a", "b", "c")]}
        assert (await ask("POST", path, json=add))[0] == 201
        _, page = await ask("GET", path, params={"max_results": "2"})
        _, rest = await ask("GET", path, params={"pagination_token": page["meta"]["next_token"]})
        assert [rule["value"] for rule in page["data"] + rest["data"]] == ["a", "b", "c"]
        assert (await ask("GET", f"{path}/counts"))[1]["data"]["project_rules_count"] == "3"
        status, body = await ask("POST", path, json={"delete": {"values": ["b"]}})
        assert (status, body["meta"]["summary"]["deleted"]) == (200, 1)
        _, body = await ask("POST", path, params={"delete_all": "true"})
        assert body["meta"]["summary"]["deleted"] == 2
        assert (await ask("GET", path, params={"max_results": "0"}))[0] == 400
        assert (await ask("POST", path, data=b"{"))[0] == 400
        assert (await ask("POST", path))[0] == 400


def test_port_in_use_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and the way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error == f"local.x_api.server: port {port} on 127.0.0.1 is in use: choose another with --port\n"


@pytest.mark.parametrize("option", ["--posts", "--tls-cert"])
def test_unreadable_file_is_one_clear_line(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and the reason."""
    assert main(["--port", "0", option, str(tmp_path / "missing")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("local.x_api.server: ")
    assert error.count("\n") == 1


def test_archive_that_holds_no_posts_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and the line of the file."""
    archive = tmp_path / "posts.jsonl"
    archive.write_text("nonsense\n")
    assert main(["--port", "0", "--posts", str(archive)]) == 1
    assert f"{archive}, line 1: not a post" in capsys.readouterr().err


@pytest.mark.integration
async def test_program_replays_an_archive_and_ends_with_sigterm(tmp_path: Path) -> None:
    """It says where it listens, sends the recorded lines untouched, and exits 0."""
    archive = tmp_path / "posts.jsonl"
    lines = [json.dumps({"data": {"id": str(number), "text": "水車 \u2028"}}).encode() for number in range(5)]
    archive.write_bytes(b"\n".join(lines))
    options = ["--port", "0", "--rate", "0", "--match", "all", "--limit", "5", "--token", "t", "--posts"]
    program = Process("x", ["local.x_api.server", *options, str(archive)], os.environ, tmp_path)
    async with aiohttp.ClientSession(await program.start(), headers={"authorization": "Bearer t"}) as http:
        async with http.post("/2/tweets/search/stream/rules", json={"add": [{"value": "water"}]}) as added:
            assert added.status == 201
        async with http.get("/2/tweets/search/stream") as stream:
            assert [await stream.content.readuntil(b"\r\n") for _ in lines] == [line + b"\r\n" for line in lines]
            async with http.get("/admin/ledger") as answer:
                posts = (await answer.json())["posts"]
            assert [post["md5"] for post in posts] == [md5(line).hexdigest() for line in lines]
            assert await program.stop() == 0
