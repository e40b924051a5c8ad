import asyncio
import hashlib
import hmac
import json
import re
import socket
import ssl
import struct
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Self

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioCredentialResolver,
    AioEnvProvider,
    AioRefreshableCredentials,
)
from aiobotocore.session import AioSession
from aiohttp import web
from botocore.configprovider import ConstantProvider

from bench.tls import make_certificate
from service import __version__
from service.core.in_flight import LARGEST_WINDOW
from service.core.records import (
    FailureKind,
    KinesisRecord,
    RecordResult,
    RequestFailure,
    SealReason,
    Shard,
    StreamFacts,
)
from service.kinesis import Kinesis, KinesisError

_LOADER = AioSession().get_component("data_loader")  # shared, because reading botocore's models takes half a second

REGION = "eu-west-1"
ARN = "arn:aws:kinesis:eu-central-1:123456789012:stream/tweets"
KEY_ID, SECRET, TOKEN = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "FwoGZXIvYXdzEBYaDH" * 8


@dataclass(frozen=True)
class Reply:
    """What the server answers; `cut` closes the connection before the body is complete."""

    body: object = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass(frozen=True)
class Drop:
    """The server reads the request and then ends the connection, politely or with a reset."""

    reset: bool = False


class Silence:
    """The server reads the request and never answers."""


@dataclass(frozen=True)
class Seen:
    """A request as it came over the wire."""

    method: str
    url: str
    headers: dict[str, str]
    raw: bytes

    @property
    def operation(self) -> str:
        return self.headers["x-amz-target"].partition(".")[2]

    @property
    def document(self) -> Any:
        return json.loads(self.raw)


class Server:
    """Records every request and does what it is told, one told thing after the other, the last one for ever."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.arrived = asyncio.Event()
        self._told: list[Reply | Drop | Silence] = []
        self._closing = asyncio.Event()
        self.url = ""

    def tell(self, *told: Reply | Drop | Silence) -> None:
        self._told = list(told)

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Self]:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        yield self
        self._closing.set()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.method, str(request.url), headers, await request.read()))
        self.arrived.set()
        told = self._told.pop(0) if len(self._told) > 1 else self._told[0]
        transport = request.transport
        assert transport is not None
        if isinstance(told, Silence):
            await self._closing.wait()
        if not isinstance(told, Reply):
            if isinstance(told, Drop) and told.reset:
                # No lingering: the kernel sends a reset instead of an orderly end.
                transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            transport.abort()
            return web.Response()
        body = told.body if isinstance(told.body, bytes) else json.dumps(told.body).encode()
        if told.cut:
            response = web.StreamResponse(status=told.status, headers={"Content-Length": str(len(body) + 1)})
            await response.prepare(request)
            await response.write(body)
            transport.close()
            return response
        return web.Response(status=told.status, headers=told.headers, body=body)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Start the server on a free port."""
    async with Server().running() as made:
        yield made


@pytest.fixture
def session_at(tmp_path: Path) -> Callable[..., AioSession]:
    """Give a session whose only configuration is a file of its own, as a user of AWS_CONFIG_FILE has it."""

    def make(endpoint: str = "", *, region: str | None = REGION, token: str | None = None) -> AioSession:
        config = tmp_path / "config"
        service = f"services = here\n[services here]\nkinesis =\n  endpoint_url = {endpoint}\n" if endpoint else ""
        config.write_text(f"[default]\n{service}", encoding="utf-8")
        session = AioSession(profile="default")
        session.register_component("data_loader", _LOADER)
        session.set_config_variable("config_file", str(config))
        session.set_config_variable("credentials_file", str(tmp_path / "none"))
        session.get_component("config_store").set_config_provider("region", ConstantProvider(region))
        session.set_credentials(KEY_ID, SECRET, token)
        return session

    return make


@pytest.fixture
async def kinesis(server: Server, session_at: Callable[..., AioSession]) -> AsyncIterator[Kinesis]:
    """Open the stream `tweets` at the server."""
    async with Kinesis("tweets", session=session_at(server.url), read_timeout=5) as made:
        yield made


def record(data: bytes = b"data", key: str = "lane-0", hash_key: str = "0") -> KinesisRecord:
    """Make a record; what is inside does not matter here."""
    return KinesisRecord(key, hash_key, data, posts=(), sealed=SealReason.SIZE)


def stored(count: int = 1) -> Reply:
    """Answer that all records are stored."""
    entries = [{"SequenceNumber": f"4960{n}", "ShardId": f"shardId-{n:012d}"} for n in range(count)]
    return Reply({"FailedRecordCount": 0, "EncryptionType": "NONE", "Records": entries})


def error(code: str, status: int = 400, message: str = "", **headers: str) -> Reply:
    """Answer as Kinesis does when it turns a request away."""
    return Reply({"__type": code, "message": message}, status, headers)


async def failure_of(kinesis: Kinesis, *records: KinesisRecord) -> RequestFailure:
    """Put the records, expect that it fails, and that it says so in one line."""
    answer = await kinesis.put(records or [record()])
    assert isinstance(answer, RequestFailure)
    assert "\n" not in answer.message
    return answer


def signature_is_right(seen: Seen, secret: str = SECRET) -> bool:
    """Compute the signature of version 4 anew from what came over the wire."""
    found = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=[^/]+/((\d{8})/([^/]+)/([^/]+)/aws4_request), "
        r"SignedHeaders=(\S+), Signature=(\w+)",
        seen.headers["authorization"],
    )
    assert found is not None
    scope, day, region, service, names, signature = found.groups()
    canonical = "\n".join(
        [
            "POST",
            "/",
            "",
            *(f"{name}:{seen.headers[name].strip()}" for name in names.split(";")),
            "",
            names,
            hashlib.sha256(seen.raw).hexdigest(),
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{secret}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    to_sign = f"AWS4-HMAC-SHA256\n{seen.headers['x-amz-date']}\n{scope}\n{digest}"
    return hmac.compare_digest(signature, hmac.new(key, to_sign.encode(), "sha256").hexdigest())


class TestPut:
    async def test_same_as_plain_client(
        self, server: Server, kinesis: Kinesis, session_at: Callable[..., AioSession]
    ) -> None:
        """The server sees, and the caller gets, what the client's own put_records gives."""
        failed = {"ErrorCode": "InternalFailure", "ErrorMessage": "Internal Service Failure"}
        good = {"SequenceNumber": "49601", "ShardId": "shardId-000000000003"}
        server.tell(Reply({"FailedRecordCount": 1, "EncryptionType": "KMS", "Records": [good, failed, good]}))
        records = [
            record(bytes(range(256)), "鍵 \"'\\\n😀", "7"),
            record(b"", "b", str(2**128 - 1)),
            record(b"c" * 70_000),
        ]
        ours = await kinesis.put(records)
        async with session_at(server.url).create_client(
            "kinesis", config=AioConfig(retries={"total_max_attempts": 1})
        ) as c:
            entries = [
                {"Data": r.data, "PartitionKey": r.partition_key, "ExplicitHashKey": r.explicit_hash_key}
                for r in records
            ]
            plain = await c.put_records(StreamName="tweets", Records=entries)
        names = ("ShardId", "SequenceNumber", "ErrorCode")
        assert [RecordResult(*(entry.get(name) for name in names)) for entry in plain["Records"]] == ours

        mine, theirs = server.seen
        assert theirs.document == mine.document
        assert (theirs.method, theirs.url) == (mine.method, mine.url)
        for name in ("x-amz-target", "content-type", "host"):
            assert theirs.headers[name] == mine.headers[name]
        assert mine.headers["content-length"] == str(len(mine.raw))
        assert "transfer-encoding" not in mine.headers
        assert f"millrace/{__version__}" in mine.headers["user-agent"]
        assert signature_is_right(mine)
        assert signature_is_right(theirs)  # the check itself is right

    async def test_no_hash_key(self, kinesis: Kinesis) -> None:
        """A record without an explicit hash key is sent without one, so that its partition key decides."""
        document = json.loads(kinesis.body([record(b"\x00", "key", "")]))
        assert document["Records"] == [{"Data": "AA==", "PartitionKey": "key"}]

    async def test_stream_by_arn(self, server: Server, session_at: Callable[..., AioSession]) -> None:
        """A stream given by its ARN is named by it, and the request is signed for the region in it."""
        server.tell(stored())
        async with Kinesis(ARN, region=REGION, session=session_at(server.url)) as kinesis:
            assert isinstance(await kinesis.put([record()]), list)
        (seen,) = server.seen
        assert seen.document["StreamARN"] == ARN
        assert "StreamName" not in seen.document
        assert "/eu-central-1/kinesis/" in seen.headers["authorization"]
        assert signature_is_right(seen)

    async def test_session_token(self, server: Server, session_at: Callable[..., AioSession]) -> None:
        """The token of temporary credentials is sent, and signed."""
        server.tell(stored())
        async with Kinesis("tweets", session=session_at(server.url, token=TOKEN)) as kinesis:
            await kinesis.put([record()])
        (seen,) = server.seen
        assert seen.headers["x-amz-security-token"] == TOKEN
        assert "x-amz-security-token" in seen.headers["authorization"]
        assert signature_is_right(seen)

    async def test_region_of_environment(self, server: Server, session_at: Callable[..., AioSession]) -> None:
        """AWS_REGION, handed in, goes before what botocore itself would take."""
        server.tell(stored())
        session = session_at(server.url)
        async with Kinesis("tweets", region="ap-northeast-1", session=session) as kinesis:
            await kinesis.put([record()])
        assert "/ap-northeast-1/kinesis/" in server.seen[0].headers["authorization"]
        assert session.instance_variables()["region"] == "ap-northeast-1", "for those who hand out credentials"

    async def test_largest_request(self, server: Server, kinesis: Kinesis) -> None:
        """A request of nearly 10 MiB arrives whole, and its body is signed."""
        server.tell(stored(10))
        records = [record(bytes([n]) * 1_040_000, f"lane-{n}") for n in range(10)]
        results = await kinesis.put(records)
        assert isinstance(results, list)
        assert [b64decode(entry["Data"]) for entry in server.seen[0].document["Records"]] == [r.data for r in records]
        assert signature_is_right(server.seen[0])

    async def test_requests_side_by_side(self, server: Server, kinesis: Kinesis) -> None:
        """Requests in flight at the same time do not disturb each other's signatures."""
        server.tell(stored())
        await asyncio.gather(*(kinesis.put([record(bytes([n]) * 1000)]) for n in range(20)))
        assert {bytes([n]) * 1000 for n in range(20)} == {
            b64decode(s.document["Records"][0]["Data"]) for s in server.seen
        }
        assert all(signature_is_right(seen) for seen in server.seen)

    async def test_cancel(self, server: Server, kinesis: Kinesis) -> None:
        """A put that is cancelled ends as cancelled, and the next one works."""
        server.tell(Silence(), stored())
        task = asyncio.create_task(kinesis.put([record()]))
        await asyncio.wait_for(server.arrived.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance(await kinesis.put([record()]), list)


class Vault:
    """Hands out a new key each time it is asked, each valid for less time than botocore likes; or fails, or hangs."""

    METHOD = "vault"
    CANONICAL_NAME = None

    def __init__(self) -> None:
        self.asked = 0
        self.is_open = True
        self.is_silent = False

    async def load(self) -> Any:
        return AioRefreshableCredentials.create_from_metadata(await self._fetch(), self._fetch, self.METHOD)

    async def _fetch(self) -> dict[str, str]:
        self.asked += 1
        if self.is_silent:
            await asyncio.Event().wait()
        if not self.is_open:
            raise RuntimeError(f"the vault\nis closed; {KEY_ID} {SECRET} {TOKEN}")
        expiry = datetime.now(UTC) + timedelta(seconds=60)
        return {
            "access_key": f"AKID{self.asked}",
            "secret_key": f"secret{self.asked}",
            "token": f"token{self.asked}",
            "expiry_time": expiry.isoformat(),
        }


class TestCredentials:
    async def test_refreshed(self, server: Server, session_at: Callable[..., AioSession]) -> None:
        """Credentials near their end are renewed by their provider between two requests."""
        server.tell(stored())
        session = session_at(server.url)
        vault = Vault()
        session._credentials = None
        session.register_component("credential_provider", AioCredentialResolver([vault]))
        async with Kinesis("tweets", session=session) as kinesis:
            assert isinstance(await kinesis.put([record()]), list)
            assert isinstance(await kinesis.put([record()]), list)
        first, second = server.seen
        assert first.headers["x-amz-security-token"] != second.headers["x-amz-security-token"]
        for seen in server.seen:
            number = seen.headers["x-amz-security-token"].removeprefix("token")
            assert signature_is_right(seen, f"secret{number}")

    async def test_provider_fails(self, server: Server, session_at: Callable[..., AioSession]) -> None:
        """A provider that raises, whatever it raises, makes the request wait, unsent, and its secrets stay in."""
        session = session_at(server.url)
        session._credentials = None
        vault = Vault()
        session.register_component("credential_provider", AioCredentialResolver([vault]))
        async with Kinesis("tweets", session=session) as kinesis:
            vault.is_open = False
            failure = await failure_of(kinesis)
        assert failure.kind is FailureKind.DENIED
        assert "the vault is closed" in failure.message
        assert not any(secret in failure.message for secret in (KEY_ID, SECRET, TOKEN))
        assert not server.seen

    async def test_provider_hangs(self, server: Server, session_at: Callable[..., AioSession]) -> None:
        """A provider that never answers holds no request for ever, and the line says where to look."""
        session = session_at(server.url)
        session._credentials = None
        vault = Vault()
        session.register_component("credential_provider", AioCredentialResolver([vault]))
        async with Kinesis("tweets", session=session, request_timeout=0.05) as kinesis:
            vault.is_silent = True
            async with asyncio.timeout(5):
                failure = await failure_of(kinesis)
        assert failure[:2] == (FailureKind.DENIED, "TimeoutError")
        assert failure.message.startswith("No AWS credentials in time")
        assert not server.seen


class TestErrorAnswers:
    async def test_no_hidden_retry(self, server: Server, kinesis: Kinesis) -> None:
        """An error becomes a failure that names the stream and its region, after one request and no more."""
        told = {
            "ProvisionedThroughputExceededException": (400, FailureKind.NOT_STORED),
            "InternalFailure": (500, FailureKind.UNKNOWN),
            "AccessDeniedException": (400, FailureKind.DENIED),
            "ValidationException": (400, FailureKind.REFUSED),
        }
        for count, (code, (status, kind)) in enumerate(told.items(), 1):
            server.tell(error(code, status))
            failure = await failure_of(kinesis)
            assert failure[:2] == (kind, code)
            assert kind is FailureKind.UNKNOWN or "stream tweets in eu-west-1" in failure.message
            assert len(server.seen) == count

    async def test_headers(self, server: Server, kinesis: Kinesis) -> None:
        """They are found in any case: the code beside an empty body, and the time that a refused signature missed."""
        date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
        server.tell(Reply(b"{}", 400, {"X-Amzn-ErrorType": "InvalidSignatureException", "Date": date}))
        assert re.search(r"this machine is (3599|3600|3601) s behind", (await failure_of(kinesis)).message)

    async def test_page(self, server: Server, kinesis: Kinesis) -> None:
        """A page in place of an answer leaves the records unknown and names the host."""
        server.tell(Reply(b"<html>welcome</html>", 200, {"Content-Type": "text/html"}))
        failure = await failure_of(kinesis)
        assert failure.kind is FailureKind.UNKNOWN
        assert failure.message.startswith("127.0.0.1:")


def closed_port() -> int:
    """Find a port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class TestOnTheWay:
    @pytest.mark.parametrize("told", [Drop(), Drop(reset=True), Reply(b'{"Records":[', cut=True)])
    async def test_connection_lost(self, server: Server, kinesis: Kinesis, told: Reply | Drop) -> None:
        """A connection that ends after the request was sent leaves it unknown, and the request is not repeated."""
        server.tell(told)
        assert (await failure_of(kinesis)).kind is FailureKind.UNKNOWN
        assert len(server.seen) == 1

    async def test_no_answer(self, server: Server, session_at: Callable[..., AioSession]) -> None:
        """An answer that does not come in time leaves the records unknown."""
        server.tell(Silence())
        async with Kinesis("tweets", session=session_at(server.url), read_timeout=0.05) as kinesis:
            failure = await failure_of(kinesis)
        assert failure[:2] == (FailureKind.UNKNOWN, "ReadTimeoutError")
        assert failure.message.endswith(
            ": it took too long; check AWS_REGION, AWS_ENDPOINT_URL_KINESIS and the network"
        )
        assert len(server.seen) == 1

    async def test_a_full_window(self, server: Server, kinesis: Kinesis) -> None:
        """As many requests as may be under way are sent at once: none waits for a connection."""
        server.tell(Silence())
        requests = [asyncio.create_task(kinesis.put([record()])) for _ in range(LARGEST_WINDOW)]
        async with asyncio.timeout(5):
            while len(server.seen) < LARGEST_WINDOW:
                server.arrived.clear()
                await server.arrived.wait()
        for request in requests:
            request.cancel()

    async def test_peer_stops_reading(self, session_at: Callable[..., AioSession]) -> None:
        """A peer that takes a part of the request and no more does not hold it for ever."""
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            session = session_at(f"http://127.0.0.1:{deaf.getsockname()[1]}")
            async with Kinesis("tweets", session=session, request_timeout=0.3) as kinesis:
                failure = await failure_of(kinesis, *[record(b"x" * 1_000_000)] * 10)
        assert failure.kind is FailureKind.UNKNOWN
        assert "0.3 s" in failure.message

    async def test_nobody_listens(self, session_at: Callable[..., AioSession]) -> None:
        """A connection that is refused stores nothing, and the line names the host and what to check."""
        port = closed_port()
        async with Kinesis("tweets", session=session_at(f"http://127.0.0.1:{port}")) as kinesis:
            failure = await failure_of(kinesis)
        assert failure.kind is FailureKind.NOT_STORED
        reason = f"no connection to 127.0.0.1:{port} (Connection refused)"
        assert failure.message.startswith(f"Kinesis cannot be reached: {reason}; check AWS_REGION, AWS_ENDPOINT_URL_KI")

    async def test_no_connection_in_time(self, session_at: Callable[..., AioSession]) -> None:
        """A connection that is not made in time stores nothing."""
        with socket.socket() as busy, socket.socket() as first, socket.socket() as second:
            busy.bind(("127.0.0.1", 0))
            busy.listen(0)
            # Nobody accepts, so these two fill the queue, and the kernel lets the next one wait.
            for other in (first, second):
                other.setblocking(False)
                with suppress(BlockingIOError):
                    other.connect(busy.getsockname())
            session = session_at(f"http://127.0.0.1:{busy.getsockname()[1]}")
            async with Kinesis("tweets", session=session, connect_timeout=0.1) as kinesis:
                failure = await failure_of(kinesis)
        assert failure[:2] == (FailureKind.NOT_STORED, "ConnectTimeoutError")


class TestShards:
    async def test_pages(self, server: Server, kinesis: Kinesis) -> None:
        """All pages are fetched, later ones by the token alone."""
        middle = 2**127

        def shard(number: int, first: int, last: int) -> dict[str, Any]:
            keys = {"StartingHashKey": str(first), "EndingHashKey": str(last)}
            numbers = {"StartingSequenceNumber": "4960"}
            return {"ShardId": f"shardId-{number:012d}", "HashKeyRange": keys, "SequenceNumberRange": numbers}

        server.tell(
            Reply({"Shards": [shard(3, 0, middle - 1)], "NextToken": "more"}),
            Reply({"Shards": [shard(4, middle, 2**128 - 1)], "NextToken": None}),
        )
        assert [
            Shard("shardId-000000000003", 0, middle - 1),
            Shard("shardId-000000000004", middle, 2**128 - 1),
        ] == await kinesis.shards()
        first, second = server.seen
        assert (first.operation, second.operation) == ("ListShards", "ListShards")
        assert first.document == {"StreamName": "tweets", "ShardFilter": {"Type": "AT_LATEST"}}
        assert second.document == {"NextToken": "more"}
        assert signature_is_right(second)

    async def test_error(self, server: Server, kinesis: Kinesis) -> None:
        """A refresh that is throttled says so."""
        server.tell(error("LimitExceededException", message="Rate exceeded"))
        with pytest.raises(KinesisError, match=r"throttles stream tweets in eu-west-1 \(LimitE.*: Rate exceeded"):
            await kinesis.shards()

    async def test_none(self, server: Server, kinesis: Kinesis) -> None:
        """A list without any shard is trouble like any other: there is no place to send to."""
        server.tell(Reply({"Shards": []}))
        with pytest.raises(KinesisError, match="stream tweets in eu-west-1 has no open shard"):
            await kinesis.shards()

    async def test_connection_lost(self, server: Server, kinesis: Kinesis) -> None:
        """A refresh whose connection breaks raises the same error, without the exceptions of the library behind it."""
        server.tell(Drop())
        with pytest.raises(KinesisError) as caught:
            await kinesis.shards()
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


class TestFacts:
    SUMMARY = {  # noqa: RUF012 - only read
        "StreamName": "tweets",
        "StreamARN": ARN,
        "StreamStatus": "ACTIVE",
        "RetentionPeriodHours": 24,
        "StreamCreationTimestamp": 1763894400.0,
        "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
        "OpenShardCount": 4,
    }

    @pytest.mark.parametrize(
        ("later", "expected"),
        [
            ({}, ("PROVISIONED", 1 << 20, False)),
            ({"RecordDistributionStrategy": "USER_PARTITION_KEY"}, ("PROVISIONED", 1 << 20, False)),
            (
                {
                    "StreamModeDetails": {"StreamMode": "ON_DEMAND"},
                    "MaxRecordSizeInKiB": 10240,
                    "RecordDistributionStrategy": "AUTO",
                },
                ("ON_DEMAND", 10 << 20, True),
            ),
        ],
    )
    async def test_summary(
        self, server: Server, kinesis: Kinesis, later: dict[str, Any], expected: tuple[str, int, bool]
    ) -> None:
        """Mode, record size and distribution are taken up; what is not spoken of is as all streams once had it."""
        server.tell(Reply({"StreamDescriptionSummary": self.SUMMARY | later}))
        assert await kinesis.facts() == StreamFacts("tweets", "ACTIVE", *expected)
        assert server.seen[0].operation == "DescribeStreamSummary"

    async def test_not_kinesis(self, server: Server, kinesis: Kinesis) -> None:
        """An endpoint that answers something else is told by the setting that names it."""
        for body in (
            b"<html>hello</html>",
            b"\xff",
            b'{"Else":' + b"[" * 100_000,
            {"StreamDescriptionSummary": {"StreamName": "tweets"}},
        ):
            server.tell(Reply(body))
            with pytest.raises(KinesisError, match="AWS_ENDPOINT_URL_KINESIS"):
                await kinesis.facts()


class TestProbe:
    @pytest.fixture(params=["amazonaws.com", "api.aws"])
    async def behind_proxy(
        self, server: Server, session_at: Callable[..., AioSession], request: pytest.FixtureRequest
    ) -> AsyncIterator[Kinesis]:
        """Talk to a host of AWS, by plain HTTP, so that the proxy (our server) sees the request itself."""
        session = session_at(f"http://kinesis.{REGION}.{request.param}")
        session.set_default_client_config(AioConfig(proxies={"http": server.url}))
        async with Kinesis("tweets", session=session) as made:
            yield made

    @pytest.mark.parametrize("code", ["DryRunOperationException", "InvalidArgumentException"])
    async def test_allowed(self, server: Server, behind_proxy: Kinesis, code: str) -> None:
        """The probe is a dry run of a record that no Kinesis can place, so that nothing is ever stored."""
        server.tell(error(code))
        assert await behind_proxy.probe()
        (seen,) = server.seen
        assert seen.url.startswith(behind_proxy.url)
        assert seen.document["DryRun"] is True
        (entry,) = seen.document["Records"]
        assert int(entry["ExplicitHashKey"]) == 2**128

    async def test_not_allowed(self, server: Server, behind_proxy: Kinesis) -> None:
        """A missing permission is told before the first post."""
        server.tell(error("AccessDeniedException", message="not authorized to perform: kinesis:PutRecords"))
        with pytest.raises(KinesisError, match="kinesis:PutRecords"):
            await behind_proxy.probe()

    async def test_custom_endpoint(self, server: Server, session_at: Callable[..., AioSession]) -> None:
        """A stand-in, which may take a dry run for a real request, is not probed; nobody is told a user of its URL."""
        session = session_at(server.url.replace("://", "://user:word@"))
        async with Kinesis("tweets", session=session) as kinesis:
            assert kinesis.url == server.url
            assert not await kinesis.probe()
        assert not server.seen


class TestStart:
    """Faults of the configuration, each in one line, before anything is sent."""

    @staticmethod
    async def fault_of(session: AioSession, stream: str = "tweets") -> str:
        with pytest.raises(KinesisError) as caught:
            async with Kinesis(stream, session=session):
                pass
        assert "\n" not in str(caught.value)
        return str(caught.value)

    async def test_no_region(self, server: Server, session_at: Callable[..., AioSession]) -> None:
        """A missing region is told by the name of its variable, with and without an endpoint of one's own."""
        for session in (session_at(region=None), session_at(server.url, region=None)):
            assert await self.fault_of(session) == "No AWS region: set AWS_REGION, or give MILLRACE_STREAM as an ARN"

    @pytest.mark.parametrize("providers", [[], [AioEnvProvider({"AWS_ACCESS_KEY_ID": KEY_ID})]])
    async def test_no_credentials(
        self, server: Server, session_at: Callable[..., AioSession], providers: list[AioEnvProvider]
    ) -> None:
        """Missing credentials, or one half of them, are told with the ways to give them."""
        session = session_at(server.url)
        session._credentials = None
        session.register_component("credential_provider", AioCredentialResolver(providers))
        fault = await self.fault_of(session)
        assert "No AWS credentials" in fault
        assert "AWS_ACCESS_KEY_ID" in fault
        assert not server.seen

    async def test_provider_fails(self, server: Server, session_at: Callable[..., AioSession]) -> None:
        """A provider that cannot do its work is told with its own reason."""
        session = session_at(server.url)
        session._credentials = None
        vault = Vault()
        vault.is_open = False
        session.register_component("credential_provider", AioCredentialResolver([vault]))
        assert "the vault is closed" in await self.fault_of(session)

    async def test_no_such_profile(self, session_at: Callable[..., AioSession]) -> None:
        """A profile that is in no file is named, with the setting."""
        session = session_at()
        session.set_config_variable("profile", "production")
        fault = await self.fault_of(session)
        assert fault.startswith("The config profile (production) could not be found: check AWS_PROFILE")

    async def test_endpoint_no_url(self, session_at: Callable[..., AioSession]) -> None:
        """An endpoint that is no URL is told by the name of its variable."""
        assert "AWS_ENDPOINT_URL_KINESIS" in await self.fault_of(session_at("localhost:4567"))


class Tunnel:
    """A proxy that notes which hosts it is asked for and connects to none."""

    def __init__(self) -> None:
        self.hosts: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.hosts.append(head.split()[1].decode())
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()


@pytest.mark.parametrize(
    ("stream", "options", "data_host", "control_host"),
    [
        ("tweets", {}, "kinesis.eu-west-1.amazonaws.com", "kinesis.eu-west-1.amazonaws.com"),
        ("tweets", {"use_fips_endpoint": True}, "kinesis-fips.eu-west-1.amazonaws.com", None),
        ("tweets", {"use_dualstack_endpoint": True}, "kinesis.eu-west-1.api.aws", None),
        (
            ARN,
            {},
            "123456789012.data-kinesis.eu-central-1.amazonaws.com",
            "123456789012.control-kinesis.eu-central-1.amazonaws.com",
        ),
    ],
)
async def test_endpoint_rules_and_proxy(
    session_at: Callable[..., AioSession],
    stream: str,
    options: dict[str, bool],
    data_host: str,
    control_host: str | None,
) -> None:
    """The host is the one of botocore's rules, asked through the proxy; a tunnel that fails stores nothing."""
    tunnel = Tunnel()
    proxy = await asyncio.start_server(tunnel.serve, "127.0.0.1", 0)
    session = session_at()
    url = f"http://me:password@127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    session.set_default_client_config(AioConfig(proxies={"https": url}, **options))
    async with proxy, Kinesis(stream, session=session) as kinesis:
        failure = await failure_of(kinesis)
        with pytest.raises(KinesisError):
            await kinesis.shards()
    assert failure.kind is FailureKind.NOT_STORED
    assert "proxy" in failure.message
    assert "password" not in failure.message
    assert tunnel.hosts == [f"{data_host}:443", f"{control_host or data_host}:443"]


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> tuple[Path, Path]:
        """Make a certificate for 127.0.0.1 that signs itself, and its key."""
        return make_certificate(tmp_path)

    @pytest.fixture
    async def tls_server(self, certificate: tuple[Path, Path]) -> AsyncIterator[Server]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*certificate)
        async with Server().running(context) as made:
            made.tell(stored(3))
            yield made

    async def test_own_authority(
        self, tls_server: Server, certificate: tuple[Path, Path], session_at: Callable[..., AioSession]
    ) -> None:
        """AWS_CA_BUNDLE decides whom to trust, and a large body passes through TLS whole."""
        session = session_at(tls_server.url)
        session.set_config_variable("ca_bundle", str(certificate[0]))
        async with Kinesis("tweets", session=session) as kinesis:
            assert isinstance(await kinesis.put([record(b"x" * 900_000)] * 3), list)
        assert signature_is_right(tls_server.seen[0])

    async def test_stranger(self, tls_server: Server, session_at: Callable[..., AioSession]) -> None:
        """A server whose certificate nobody vouches for gets no request, and the line names AWS_CA_BUNDLE."""
        async with Kinesis("tweets", session=session_at(tls_server.url)) as kinesis:
            failure = await failure_of(kinesis)
        assert failure.kind is FailureKind.DENIED
        assert "AWS_CA_BUNDLE" in failure.message
        assert not tls_server.seen

    async def test_no_bundle(self, tls_server: Server, tmp_path: Path, session_at: Callable[..., AioSession]) -> None:
        """A bundle that cannot be read is told as such."""
        (tmp_path / "empty.pem").touch()
        for name in ("missing.pem", "empty.pem"):
            session = session_at(tls_server.url)
            session.set_config_variable("ca_bundle", str(tmp_path / name))
            async with Kinesis("tweets", session=session) as kinesis:
                failure = await failure_of(kinesis)
            assert failure.kind is FailureKind.DENIED
            assert "AWS_CA_BUNDLE" in failure.message
        assert not tls_server.seen
