import asyncio
import os
import socket
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError

from local.kinesis.faults import DropAnswer, FailRecords, RequestError, SlowAnswer, ThrottleShard
from local.kinesis.server import LocalKinesis, main
from local.kinesis.state import StateError
from local.processes import Process
from tests.still_clock import StillClock

THROTTLED = "ProvisionedThroughputExceededException"
FIRST = "shardId-000000000000"
MIB = 1 << 20
# One for all clients: a session reads the service model from disk once.
SESSION = get_session()
# The client's HTTP library warns of bodies above 1 MiB, which are meant here.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@asynccontextmanager
async def connect(
    url: str, *, identity: str = "test", secret: str = "test", region: str = "us-east-1", read_timeout: float = 20
) -> AsyncIterator[Any]:
    """Open a client without retries and without checks of its own."""
    config = AioConfig(retries={"total_max_attempts": 1}, parameter_validation=False, read_timeout=read_timeout)
    async with SESSION.create_client(
        "kinesis",
        region_name=region,
        endpoint_url=url,
        aws_access_key_id=identity,
        aws_secret_access_key=secret,
        config=config,
    ) as client:
        yield client


@pytest.fixture
def clock() -> StillClock:
    """Return the clock of the server, which begins at the time of day."""
    return StillClock(time.time())


@pytest.fixture
async def kinesis(clock: StillClock) -> AsyncIterator[LocalKinesis]:
    """Run a server with a stream of four shards."""
    async with LocalKinesis({"posts": 4}, clock=clock) as server:
        yield server


@pytest.fixture
async def client(kinesis: LocalKinesis) -> AsyncIterator[Any]:
    """Connect to it."""
    async with connect(kinesis.url) as opened:
        yield opened


def entries(count: int, size: int = 10, **members: str) -> list[dict[str, Any]]:
    """Return records of a size in bytes, key included."""
    return [{"Data": bytes(size - 4), "PartitionKey": f"{number:04d}", **members} for number in range(count)]


async def put(client: Any, records: list[dict[str, Any]]) -> list[str | None]:
    """Put records; return their error codes."""
    reply = await client.put_records(StreamName="posts", Records=records)
    codes = [record.get("ErrorCode") for record in reply["Records"]]
    assert reply["FailedRecordCount"] == sum(code is not None for code in codes)
    return codes


async def read(client: Any, shard: str = FIRST) -> list[Any]:
    """Read a shard from its beginning to its end."""
    reply = await client.get_shard_iterator(StreamName="posts", ShardId=shard, ShardIteratorType="TRIM_HORIZON")
    reply = await client.get_records(ShardIterator=reply["ShardIterator"])
    assert reply["MillisBehindLatest"] == 0
    return list(reply["Records"])


async def refusal(call: Any) -> tuple[str, int]:
    """Return code and status with which a call is refused."""
    with pytest.raises(ClientError) as caught:
        await call
    error: Any = caught.value.response
    return error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]


def stored(kinesis: LocalKinesis) -> list[bytes]:
    """Return the data of all stored records in the order in which they came."""
    records = [record for shard in kinesis.stream("posts").map.shards for record in shard.records]
    return [record.data for record in sorted(records, key=lambda record: record.position)]


class TestRoundTrip:
    async def test_bytes_and_keys_come_back_as_they_were(self, client: Any) -> None:
        """All bytes, the empty record, a key in Japanese: put, placed, read."""
        offered = {
            "all bytes": bytes(range(256)),
            "empty": b"",
            "鍵と値": "日本語の投稿 🎌\r\n".encode(),
            "k" * 256: b"long key",
            "large": bytes(MIB // 2),
        }
        records = [{"Data": data, "PartitionKey": key} for key, data in offered.items()]
        reply = await client.put_records(StreamName="posts", Records=records)
        assert reply["FailedRecordCount"] == 0
        shards = (await client.list_shards(StreamName="posts"))["Shards"]
        read_back = {
            (shard["ShardId"], r["PartitionKey"]): r for shard in shards for r in await read(client, shard["ShardId"])
        }
        assert len(read_back) == len(offered)
        for result, (key, data) in zip(reply["Records"], offered.items(), strict=True):
            record = read_back[result["ShardId"], key]
            assert (record["Data"], record["SequenceNumber"]) == (data, result["SequenceNumber"])

    async def test_a_single_record(self, client: Any) -> None:
        """PutRecord places a record by its explicit hash key."""
        reply = await client.put_record(StreamName="posts", Data=b"one", PartitionKey="k", ExplicitHashKey="0")
        assert reply["ShardId"] == FIRST
        assert [record["Data"] for record in await read(client)] == [b"one"]

    async def test_a_reader_follows_a_reshard(self, kinesis: LocalKinesis, client: Any) -> None:
        """A closed shard ends, its children name it, and they hold what came later."""
        await client.put_record(StreamName="posts", Data=b"before", PartitionKey="k", ExplicitHashKey="5")
        await client.split_shard(StreamName="posts", ShardToSplit=FIRST, NewStartingHashKey="1000")
        await client.put_record(StreamName="posts", Data=b"after", PartitionKey="k", ExplicitHashKey="5")
        summary = await client.describe_stream_summary(StreamName="posts")
        assert summary["StreamDescriptionSummary"]["StreamStatus"] == "UPDATING"
        found = []
        for shard in (await client.list_shards(StreamName="posts"))["Shards"]:
            start = await client.get_shard_iterator(
                StreamName="posts", ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
            )
            reply = await client.get_records(ShardIterator=start["ShardIterator"])
            found += [(record["Data"], shard.get("ParentShardId")) for record in reply["Records"]]
            assert ("NextShardIterator" in reply) is (shard["ShardId"] != FIRST)
        assert found == [(b"before", None), (b"after", FIRST)]
        open_shards = await client.list_shards(StreamName="posts", ShardFilter={"Type": "AT_LATEST"})
        assert len(open_shards["Shards"]) == 5

    async def test_changes_have_the_shape_of_the_service(self, client: Any) -> None:
        """A real client can read the answers, and a second change has to wait for the first."""
        summary = (await client.describe_stream_summary(StreamName="posts"))["StreamDescriptionSummary"]
        arn = summary["StreamARN"]
        reply = await client.update_shard_count(StreamARN=arn, TargetShardCount=8, ScalingType="UNIFORM_SCALING")
        assert (reply["CurrentShardCount"], reply["TargetShardCount"]) == (4, 8)
        call = client.merge_shards(StreamARN=arn, ShardToMerge=FIRST, AdjacentShardToMerge="shardId-000000000001")
        assert await refusal(call) == ("ResourceInUseException", 400)


class TestLimits:
    @pytest.mark.parametrize(
        ("records", "code"),
        [
            ([], "ValidationException"),
            (entries(501), "ValidationException"),
            (entries(1, MIB + 1), "InvalidArgumentException"),
            (entries(1, ExplicitHashKey=str(2**128)), "InvalidArgumentException"),
        ],
    )
    async def test_a_request_beyond_a_limit_is_refused_whole(
        self, kinesis: LocalKinesis, client: Any, records: list[dict[str, Any]], code: str
    ) -> None:
        """The code is the service's, nothing is stored, and the refusal is counted."""
        assert await refusal(client.put_records(StreamName="posts", Records=records)) == (code, 400)
        assert stored(kinesis) == []
        assert kinesis.account.refused == {code: 1}

    async def test_ten_mebibytes_pass_in_one_request(self, kinesis: LocalKinesis, client: Any) -> None:
        """A full request is taken apart by the shards, not refused."""
        codes = await put(client, entries(10, MIB))
        assert set(codes) == {None, THROTTLED}
        assert len(stored(kinesis)) == codes.count(None)

    async def test_a_body_that_no_request_can_need_is_refused(self, kinesis: LocalKinesis) -> None:
        """Above 32 MiB nothing is read; the answer is 413, as in the service."""
        async with aiohttp.ClientSession() as session, session.post(kinesis.url, data=bytes(33 * MIB)) as response:
            assert response.status == 413
        assert kinesis.account.refused == {"RequestEntityTooLarge": 1}

    async def test_a_shard_takes_a_thousand_records_a_second(
        self, kinesis: LocalKinesis, client: Any, clock: StillClock
    ) -> None:
        """Of 1,200 at once 1,000 are taken; a second later there is room again."""
        codes = [code for _ in range(3) for code in await put(client, entries(400, ExplicitHashKey="0"))]
        assert codes == [None] * 1000 + [THROTTLED] * 200
        assert len(stored(kinesis)) == 1000
        clock.now += 1
        assert await put(client, entries(500, ExplicitHashKey="0")) == [None] * 500

    async def test_an_unknown_stream(self, client: Any) -> None:
        """The error is the one a producer must tell from all others."""
        call = client.put_records(StreamName="unknown", Records=entries(1))
        assert await refusal(call) == ("ResourceNotFoundException", 400)

    async def test_memory_is_bounded(self) -> None:
        """The oldest records go."""
        async with LocalKinesis({"posts": 1}, memory_limit=10_000) as kinesis, connect(kinesis.url) as client:
            await put(client, entries(28, 1000))
            assert len(stored(kinesis)) == 10
            assert kinesis.stream("posts").map.shards[0].trimmed == 18


class TestFaults:
    @pytest.mark.parametrize(
        ("code", "status"),
        [
            ("ExpiredTokenException", 400),
            ("InternalFailure", 500),
            ("ServiceUnavailable", 503),
        ],
    )
    async def test_whole_requests_fail_for_a_while(
        self, kinesis: LocalKinesis, client: Any, code: str, status: int
    ) -> None:
        """Two requests are refused with code and status, the third is done."""
        kinesis.stream("posts").faults.add(RequestError(code=code, requests=2), time.time())
        for _ in range(2):
            assert await refusal(client.put_records(StreamName="posts", Records=entries(1))) == (code, status)
        assert stored(kinesis) == []
        assert await put(client, entries(1)) == [None]
        assert kinesis.account.refused == {code: 2}

    async def test_a_throttled_shard(self, kinesis: LocalKinesis, client: Any, clock: StillClock) -> None:
        """For five seconds one shard takes nothing and the others everything."""
        kinesis.stream("posts").faults.add(ThrottleShard(shard=0, seconds=5), clock.now)
        records = entries(2, ExplicitHashKey="0") + entries(1, ExplicitHashKey=str(2**128 - 1))
        assert await put(client, records) == [THROTTLED, THROTTLED, None]
        clock.now += 5
        assert await put(client, records) == [None] * 3

    async def test_single_records_fail(self, kinesis: LocalKinesis, client: Any) -> None:
        """Every third record fails, the others are stored."""
        kinesis.stream("posts").faults.add(FailRecords(every=3), time.time())
        assert await put(client, entries(6)) == [None, None, "InternalFailure"] * 2
        assert len(stored(kinesis)) == 4

    async def test_an_answer_that_never_comes(self, kinesis: LocalKinesis, client: Any) -> None:
        """The records are stored and the connection breaks; sent again, they are there twice."""
        kinesis.stream("posts").faults.add(DropAnswer(requests=1), time.time())
        with pytest.raises(BotoCoreError):
            await put(client, entries(2))
        assert await put(client, entries(2)) == [None, None]
        assert len(stored(kinesis)) == 4

    async def test_an_answer_that_comes_too_late(self, kinesis: LocalKinesis) -> None:
        """A client that gives up has its records stored all the same."""
        kinesis.stream("posts").faults.add(SlowAnswer(milliseconds=500, requests=1), time.time())
        async with connect(kinesis.url, read_timeout=0.2) as impatient:
            with pytest.raises(ReadTimeoutError):
                await put(impatient, entries(2))
            assert len(stored(kinesis)) == 2
            assert await put(impatient, entries(1)) == [None]


class TestSignature:
    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"secret": "wrong"}, "InvalidSignatureException"),
            ({"identity": "unknown"}, "UnrecognizedClientException"),
            ({"region": "eu-west-1"}, "InvalidSignatureException"),
        ],
    )
    async def test_who_may_not_sign_is_refused(self, kinesis: LocalKinesis, change: dict[str, str], code: str) -> None:
        """A wrong secret, an unknown key and another region get the service's codes."""
        async with connect(kinesis.url, **change) as stranger:  # type: ignore[arg-type]  # all values are strings
            assert await refusal(stranger.put_records(StreamName="posts", Records=entries(1))) == (code, 400)

    async def test_an_unsigned_request_is_answered_in_the_manner_of_the_service(self, kinesis: LocalKinesis) -> None:
        """Body, header, type and request id are those of JSON 1.1."""
        headers = {"X-Amz-Target": "Kinesis_20131202.ListShards", "Content-Type": "application/x-amz-json-1.1"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(kinesis.url, data=b"{}", headers=headers) as response,
        ):
            assert response.status == 400
            assert response.content_type == "application/x-amz-json-1.1"
            assert response.headers["x-amzn-ErrorType"] == "MissingAuthenticationTokenException"
            assert len(response.headers["x-amzn-RequestId"]) == 36
            assert await response.json(content_type=None) == {
                "__type": "MissingAuthenticationTokenException",
                "message": "Missing Authentication Token",
            }


class TestState:
    async def test_a_restart_loses_nothing(self, tmp_path: Path) -> None:
        """Streams, records, shards and iterators outlive the server; numbers go on where they were."""
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(LocalKinesis({"posts": 2}, state=tmp_path, settle_seconds=0))
            client = await stack.enter_async_context(connect(first.url))
            before = await client.put_record(StreamName="posts", Data=b"1", PartitionKey="k", ExplicitHashKey="0")
            await client.update_shard_count(StreamName="posts", TargetShardCount=4, ScalingType="UNIFORM_SCALING")
            await client.create_stream(StreamName="new", ShardCount=3, MaxRecordSizeInKiB=2048)
            for _ in range(2):
                await client.create_stream(StreamName="brief", ShardCount=1)
                await client.put_record(StreamName="brief", Data=b"1", PartitionKey="k")
                await client.delete_stream(StreamName="brief")
            reply = await client.get_shard_iterator(StreamName="posts", ShardId=FIRST, ShardIteratorType="TRIM_HORIZON")
        async with AsyncExitStack() as stack:
            second = await stack.enter_async_context(LocalKinesis({"posts": 9}, state=tmp_path))
            client = await stack.enter_async_context(connect(second.url))
            reply = await client.get_records(ShardIterator=reply["ShardIterator"])
            assert [record["SequenceNumber"] for record in reply["Records"]] == [before["SequenceNumber"]]
            assert "NextShardIterator" not in reply
            after = await client.put_record(StreamName="posts", Data=b"2", PartitionKey="k", ExplicitHashKey="0")
            assert after["SequenceNumber"] > before["SequenceNumber"]
            assert len(second.stream("posts").map.open) == 4
            summary = (await client.describe_stream_summary(StreamName="new"))["StreamDescriptionSummary"]
            assert summary["MaxRecordSizeInKiB"] == 2048
            assert (await client.list_streams())["StreamNames"] == ["new", "posts"]

    async def test_a_directory_in_use_is_refused(self, tmp_path: Path) -> None:
        """Two servers cannot share their state."""
        async with LocalKinesis({"posts": 1}, state=tmp_path):
            with pytest.raises(StateError):
                await LocalKinesis({"posts": 1}, state=tmp_path).__aenter__()


class TestCommandLine:
    async def test_it_is_killed_and_comes_back_with_all_it_has_answered_for(self, tmp_path: Path) -> None:
        """After `kill -9` in the middle of writes, everything that was confirmed is there again."""
        confirmed: list[str] = []
        enough = asyncio.Event()

        async def write(client: Any) -> None:
            while True:
                reply = await client.put_records(StreamName="posts", Records=entries(20))
                confirmed.extend(record["SequenceNumber"] for record in reply["Records"] if "ErrorCode" not in record)
                if len(confirmed) >= 300:
                    enough.set()

        def program(port: str) -> Process:
            options = ("--port", port, "--stream", "posts", "--shards", "2", "--state", str(tmp_path))
            return Process("kinesis", ["local.kinesis.server", *options], os.environ, tmp_path)

        killed = program("0")
        url = await killed.start()
        async with connect(url) as client:
            writers = [asyncio.create_task(write(client)) for _ in range(3)]
            await asyncio.wait_for(enough.wait(), 20)
            await killed.kill()
            await asyncio.gather(*writers, return_exceptions=True)
        again = program(url.rpartition(":")[2])
        assert await again.start() == url
        found: list[str] = []
        async with aiohttp.ClientSession(url) as session:
            for shard in range(2):
                async with session.get(f"/admin/ledger?stream=posts&shard={shard}") as response:
                    found += [record["sequence_number"] for record in (await response.json())["records"]]
        assert await again.stop() == 0
        assert set(confirmed) <= set(found)

    def test_a_port_in_use_is_one_clear_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit code 1, and the line names the port and the way out."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            assert main(["--port", port, "--stream", "posts"]) == 1
        line = f"local Kinesis: port {port} on 127.0.0.1 is in use; give another --port\n"
        assert capsys.readouterr().err == line

    async def test_a_full_disk_ends_it_without_an_answer(self, tmp_path: Path) -> None:
        """What cannot be kept is not answered for; one line says why it ended."""
        limited = ("bash", "-c", 'ulimit -f 64; exec "$@"', "bash", sys.executable, "-m", "local.kinesis.server")
        arguments = ("--port", "0", "--stream", "posts", "--state", str(tmp_path))
        # Nothing else in it is to want a file, such as what measures coverage.
        environ = {"PATH": os.environ["PATH"]}
        running = await asyncio.create_subprocess_exec(*limited, *arguments, stdout=PIPE, stderr=PIPE, env=environ)
        assert running.stdout is not None
        try:
            async with connect((await running.stdout.readline()).decode().split()[-1]) as client:
                with pytest.raises(BotoCoreError):
                    await put(client, entries(1, 200_000))
            _, problem = await running.communicate()
        finally:
            if running.returncode is None:
                running.kill()
        assert running.returncode == 1
        assert problem.decode().startswith(f"local Kinesis: cannot use {tmp_path}: ")
        assert problem.decode().endswith("; make room there, move it away, or give another --state\n")

    @pytest.mark.parametrize("arguments", [("--port", "65536"), ("--port", "0", "--stream", "posts", "--shards", "0")])
    def test_a_number_out_of_range_is_one_clear_line(
        self, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit code 2, and the line names the option and the range."""
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        assert caught.value.code == 2
        assert f"{arguments[-2]}: wants a number from" in capsys.readouterr().err
