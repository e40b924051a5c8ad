"""The benchmark's parts: what it says about a peer must be true, or the table is worth nothing."""

import asyncio
import json
import ssl
import time
from array import array
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import md5
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from bench import plot, tables
from bench.check import Request, Sent, check, read_posts, read_spool
from bench.findings import Findings
from bench.measure import Load, Result, Workshop
from bench.peers.reading import Batcher, Post, read_post
from bench.posts import write, write_recorded
from bench.processor import EVENT_BYTES, event_of
from bench.road import Outage
from bench.roster import AGGREGATED, ENVIRONMENTS, PEERS, Peer, is_missing
from bench.scenarios import Axis, Point, Row
from bench.stub import SPOOL_HEADER, STREAM, Stub, serve, shard_id
from bench.tables import Figures
from bench.tls import make_certificate
from processor.wire import Aggregate, decode
from service.core.limits import HASH_KEYS
from service.core.shard_map import hash_key


@asynccontextmanager
async def stub(shards: int, kept: list[bytes], **options: Any) -> AsyncIterator[tuple[Stub, Any]]:
    """Serve a stub whose spool is a list, and give it with a client of botocore's that validates every answer."""
    answers = Stub(shards, lambda pieces: kept.append(b"".join(pieces)))
    server = await serve(answers, **options)
    tls = options.get("tls")
    config = AioConfig(retries={"max_attempts": 0})
    url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    session = AioSession()
    session.set_credentials("bench", "bench")
    async with session.create_client(
        "kinesis", region_name="us-east-1", endpoint_url=url, config=config, verify=False if tls else None
    ) as client:
        yield answers, client
    server.close()


def line(number: int, author: str = "1") -> bytes:
    """Write a small post."""
    return b'{"data":{"id":"%d","author_id":"%s"}}' % (number, author.encode())


def sent(lines: Sequence[bytes]) -> list[Sent]:
    """Tell the check that these were sent."""
    return [Sent(read_post(one).key, md5(one, usedforsecurity=False).digest()) for one in lines]


def raw(lines: Sequence[bytes], at: float = 0.0) -> Request:
    """Put each post into a record of its own, under its own key."""
    return Request(at, [(one, read_post(one).key, None) for one in lines])


def result(cpu: float = 10.0, *, count: int = 100, **found: Any) -> Result:
    """Make up a run."""
    findings = Findings(count, records=10, units=20, stored=count * 1100, **found)
    return Result(count, cpu, 0.5, 50_000.0, 100 << 20, count * 1500, 2, findings)


class TestStub:
    async def test_gives_each_record_the_shard_that_kinesis_would_choose(self) -> None:
        """MD5 of the partition key, or the explicit hash key; sequence numbers rise within a request and after it."""
        records: list[dict[str, Any]] = [{"Data": b"x", "PartitionKey": f"key {number}"} for number in range(50)]
        records += [{"Data": b"x", "PartitionKey": "a", "ExplicitHashKey": str(HASH_KEYS - 1)}]
        async with stub(7, []) as (_, client):
            answer = await client.put_records(StreamName=STREAM, Records=records)
            single = await client.put_record(StreamName=STREAM, Data=b"x", PartitionKey="key 3")

        wanted = [shard_id(hash_key(f"key {number}".encode()) * 7 // HASH_KEYS) for number in range(50)]
        assert [*wanted, shard_id(6)] == [record["ShardId"] for record in answer["Records"]]
        assert wanted[3] == single["ShardId"]
        numbers = [record["SequenceNumber"] for record in answer["Records"]] + [single["SequenceNumber"]]
        assert {56} == {len(number) for number in numbers}
        assert sorted(numbers) == numbers

    async def test_lists_shards_in_pages(self) -> None:
        """A page has a token for the next; together they cover all hash keys once."""
        async with stub(5, []) as (_, client):
            first = await client.list_shards(StreamName=STREAM, MaxResults=3, ShardFilter={"Type": "AT_LATEST"})
            second = await client.list_shards(NextToken=first["NextToken"])
            with pytest.raises(client.exceptions.InvalidArgumentException):
                await client.list_shards(NextToken=first["NextToken"], StreamName=STREAM)

        assert "NextToken" not in second
        ranges = [shard["HashKeyRange"] for shard in [*first["Shards"], *second["Shards"]]]
        firsts = [int(one["StartingHashKey"]) for one in ranges]
        assert [*firsts[1:], HASH_KEYS] == [int(one["EndingHashKey"]) + 1 for one in ranges]
        assert firsts[0] == 0

    async def test_describes_the_stream(self) -> None:
        """Both calls name the stream as active; the long one has the shards."""
        async with stub(5, []) as (_, client):
            summary = (await client.describe_stream_summary(StreamName=STREAM))["StreamDescriptionSummary"]
            whole = (await client.describe_stream(StreamName=STREAM))["StreamDescription"]

        assert (
            summary["OpenShardCount"],
            summary["StreamStatus"],
            summary["MaxRecordSizeInKiB"],
        ) == (5, "ACTIVE", 1024)
        assert len(whole["Shards"]) == 5

    async def test_refuses_more_than_500_records(self) -> None:
        """A peer that breaks this limit must not look fast."""
        kept: list[bytes] = []
        async with stub(1, kept) as (answers, client):
            with pytest.raises(client.exceptions.InvalidArgumentException):
                await client.put_records(StreamName=STREAM, Records=[{"Data": b"", "PartitionKey": "a"}] * 501)

        assert (answers.requests, kept) == (0, [])

    async def test_keeps_what_arrives_for_the_check(self, tmp_path: Path) -> None:
        """The spool has each request in order, with its time and its records as Kinesis would store them."""
        kept: list[bytes] = []
        before = time.monotonic()
        async with stub(2, kept) as (answers, client):
            await client.put_records(StreamName=STREAM, Records=[{"Data": b"\xff" * 200_000, "PartitionKey": "ä"}] * 3)
            await client.put_record(StreamName=STREAM, Data=b"1", PartitionKey="b", ExplicitHashKey="7")
        (tmp_path / "spool").write_bytes(b"".join(kept))
        requests = list(read_spool(tmp_path / "spool"))

        assert [request.records for request in requests] == [[(b"\xff" * 200_000, "ä", None)] * 3, [(b"1", "b", "7")]]
        assert before <= requests[0].arrived_at <= requests[1].arrived_at <= time.monotonic()
        statistics = answers.statistics()
        assert statistics["requests"] == 2
        assert statistics["received"] > sum(map(len, kept)) - 2 * SPOOL_HEADER.size
        assert before <= statistics["first"] <= statistics["last"]

    async def test_speaks_tls_and_delays_answers(self, tmp_path: Path) -> None:
        """The certificate serves 127.0.0.1, and an answer comes no earlier than its delay."""
        certificate, key = make_certificate(tmp_path)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, key)
        async with stub(1, [], tls=tls, delay=0.02) as (answers, client):
            await client.put_record(StreamName=STREAM, Data=b"1", PartitionKey="b")
            port = int(client.meta.endpoint_url.rpartition(":")[2])
            trusting = ssl.create_default_context(cafile=certificate)
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
            writer.close()
            await writer.wait_closed()

        assert answers.last - answers.first >= 0.02


class TestCheck:
    def test_finds_nothing_wrong_where_all_arrived(self) -> None:
        """Raw and aggregated posts count alike; units and sizes are those that Kinesis bills."""
        lines = [line(number, "1") for number in range(4)]
        container = Aggregate()
        for one in lines[1:]:
            container.add(b"1", one)
        request = Request(0.0, [(lines[0], "1", None), (container.seal(), "lane", str(hash_key(b"1")))])
        found = check(sent(lines), [request], 8)

        assert found.faults() == []
        assert (found.records, found.units, found.out_of_order, found.wrong_shard) == (2, 2, 0, 0)
        assert len(lines[0]) + 1 + len(request.records[1][0]) + 4 == found.stored

    def test_finds_lost_repeated_and_unknown_posts(self) -> None:
        """A changed post is unknown, and the one that it was is lost."""
        lines = [line(number) for number in range(5)]
        found = check(sent(lines), [raw(lines[:3]), raw([lines[2], line(9)])], 1)

        assert (found.lost, found.repeated, found.unknown) == (2, 1, 1)
        assert found.faults() == ["2 lost", "1 repeated", "1 unknown"]

    def test_judges_the_order_of_each_key_by_first_copies(self) -> None:
        """Late is what comes behind a later one of its key; another key does not matter, nor does a repeat."""
        a, b = [line(number, "1") for number in range(3)], [line(9, "2")]
        found = check(sent([*a, *b]), [raw([*b, a[1]]), raw([a[0], a[2], a[1]])], 1)

        assert (found.out_of_order, found.repeated) == (1, 1)

    def test_finds_posts_on_the_shard_of_another_key(self) -> None:
        """Consumers of the format drop such a post, even if it arrived."""
        one = line(1, "1")
        elsewhere = str((hash_key(b"1") + HASH_KEYS // 2) % HASH_KEYS)
        found = check(sent([one]), [Request(0.0, [(one, "any", elsewhere)])], 2)

        assert found.wrong_shard == 1

    def test_finds_damaged_containers_and_broken_limits(self) -> None:
        """A container whose digest does not fit, a record over 1 MiB and a request over 10 MiB have no figures."""
        container = Aggregate()
        container.add(b"1", line(1))
        damaged = container.seal()[:-1] + b"?"
        large: list[tuple[bytes, str, str | None]] = [(b"x" * (1 << 20), "a", None)] * 11
        found = check(sent([line(1)]), [Request(0.0, [(damaged, "a", None)]), Request(0.0, large)], 1)

        assert (found.damaged, found.over_limit) == (1, 12)

    def test_reads_lines_that_came_as_the_inside_of_a_string(self) -> None:
        """What Fluent Bit sends is unescaped, down to the byte."""
        one = '{"data":{"id":"1","text":"é \\u0000 \\" 🌊"}}'.encode()
        escaped = b'{\\"data\\":{\\"id\\":\\"1\\",\\"text\\":\\"\\u00e9 \\\\u0000 \\\\\\" \\ud83c\\udf0a\\"}}\n'
        found = check(sent([one]), [Request(0.0, [(escaped, "any", None)])], 1, escaped=True)

        assert found.faults() == []

    def test_counts_latency_from_when_a_post_was_due(self) -> None:
        """To its first answer, the stub's delay included; posts that were due at 0 do not count."""
        lines = [line(number) for number in range(101)]
        times = array("d", [0.0, *(100 + number for number in range(100))])
        requests = [raw(lines[:1], 5.0), *(raw([one], 100 + 1.01 * number) for number, one in enumerate(lines[1:]))]
        found = check(sent(lines), [*requests, raw(lines[1:2], 900.0)], 1, times=times, delay=0.5)

        assert found.latency == {"50": 990.0, "95": 1440.0, "99": 1480.0, "100": 1490.0}


class TestPosts:
    def test_are_1_1_kb_on_average_and_no_two_alike(self, tmp_path: Path) -> None:
        """Each has an id and an author, the busiest authors write most, and a second file has the same bytes."""
        write(tmp_path / "a", 20_000)
        write(tmp_path / "b", 20_000)
        lines = (tmp_path / "a").read_bytes().splitlines()
        authors = Counter(post.key for post in read_posts(tmp_path / "a"))

        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        assert len(set(lines)) == 20_000
        assert 1050 < sum(map(len, lines)) / len(lines) < 1150
        assert len(authors) > 8_000
        assert 15 < authors.most_common(1)[0][1] < 60

    def test_can_have_one_author_and_one_size(self, tmp_path: Path) -> None:
        """What the axes of growth ask for."""
        write(tmp_path / "posts", 50, authors=1, alike=True, size=900_000)
        lines = (tmp_path / "posts").read_bytes().splitlines()

        assert {900_000} == set(map(len, lines))
        assert len({read_post(one).key for one in lines}) == 1

    def test_of_an_archive_come_again_with_fresh_ids(self, tmp_path: Path) -> None:
        """Byte for byte the first time, never twice the same line, and as many as were asked for."""
        archive = tmp_path / "archive"
        archive.write_bytes(b"\r\n".join([line(1), line(2), line(1), line(3)]))
        write_recorded(tmp_path / "many", archive, 9)
        write_recorded(tmp_path / "once", archive, 9, once=True)
        many = (tmp_path / "many").read_bytes().splitlines()

        assert [line(1), line(2), line(3)] == many[:3]
        assert len(set(many)) == 9
        assert [line(1), line(2), line(3)] == (tmp_path / "once").read_bytes().splitlines()

    def test_have_the_key_that_keeps_them_in_order(self) -> None:
        """The author, or the id where X hides the author."""
        assert read_post(line(1, "7")).key == "7"
        assert read_post(b'{"data":{"id":"1"}}').key == "1"


class TestEvent:
    @pytest.mark.parametrize(("given", "held"), [(1, 1), (100, 100), (8_000, 4_000)])
    def test_is_as_full_as_lambda_makes_it(self, given: int, held: int) -> None:
        """All posts, in their order, as long as they fit into 6 MB."""
        lines = [b'{"data":{"id":"%d","text":"%s"}}' % (number, b"x" * 1_000) for number in range(given)]
        event = event_of(lines)
        containers = [b64decode(record["kinesis"]["data"]) for record in event["Records"]]
        found = [post.data for container in containers for post in decode(container).records]

        assert found == lines[: len(found)]
        assert len(found) >= held
        assert len(json.dumps(event)) <= EVENT_BYTES


class TestBatcher:
    def test_hands_out_full_batches_at_once_and_the_rest_in_time(self) -> None:
        """Nothing is held back longer than the linger, and nothing at the end."""
        posts = [Post("k", b"%d" % number) for number in range(7)]
        patient, hasty = Batcher(3, 60.0), Batcher(3, 0.0)

        assert [posts[:3], posts[3:6]] == patient.ready(posts)
        timeout = patient.timeout()
        assert timeout is not None
        assert 0 < timeout <= 60
        assert [posts[6:]] == patient.ready([], ended=True)
        assert patient.timeout() is None
        assert [posts[:3], posts[3:6], posts[6:]] == hasty.ready(posts)
        assert hasty.ready([]) == []


class TestTables:
    def test_show_figures_notes_and_aims(self) -> None:
        """A peer without figures says why, and an aim that was missed says so."""
        ours = Row("Millrace, aggregated", result(11.0), result(15.0), result(11.0, latency={"50": 60.0, "99": 139.0}))
        rows = [ours, Row("slow", result(110.0, out_of_order=3)), Row("gone", note="not on this machine")]
        gone = Outage(5000, 60, 200_000, 1 << 30, 250 << 20, 30.0, Findings(600_000))
        axis = Axis("shards", [Point("1", result(10.0)), Point("512", result(13.0))])
        figures = Figures(rows, axes=[axis], outage=gone)

        assert "| slow | 50,000 | **110.0** | 10.0 |" in tables.cost(rows)
        assert "not on this machine" in tables.cost(rows)
        assert "3 of 100 late" in tables.delivery(rows)
        assert "| 512 | 50,000 | **13.0** |" in tables.growth([axis])
        assert "| peak memory | **250 MiB** |" in tables.outage(gone)
        aims = tables.aims(figures).splitlines()
        assert "| CPU a post, aggregated, journal off | 12 µs | 11.0 µs | yes |" in aims
        assert "| TLS adds | 3 µs | 4.0 µs | **no** |" in aims
        assert "| CPU a post, not aggregated | 25 µs | not measured |  |" in aims
        assert "| cost over all shards: most over least | 1.2 times | 1.3 times | **no** |" in aims

    def test_compare_compression_by_the_shards_that_it_saves(self) -> None:
        """A post of 1,100 bytes at 5,000 a second needs more than five shards, by its bytes."""
        assert "| plain | 1,100 | 10.0 | 200,000 | 5.2 |" in tables.compression([Point("plain", result())])

    def test_the_picture_is_well_formed(self) -> None:
        """It names every peer with figures, and has a panel for each axis."""
        axis = Axis("shards", [Point("1", result(10.0)), Point("512", result(13.0))])
        picture = plot.draw([Row("a & b", result()), Row("c", tls=result(2000.0)), Row("gone")], [axis])
        texts = [element.text for element in ET.fromstring(picture).iter() if element.text]

        assert {"a & b", "c (TLS)", "2,000.0", "CPU µs a post, by shards"} <= set(texts)
        assert "gone" not in texts


class TestRoster:
    def test_every_peer_can_be_started(self) -> None:
        """A peer is Millrace, a program, or a module that is there with an environment that is described."""
        modules = {path.stem for path in (Path(__file__).parents[2] / "bench" / "peers").glob("*.py")}

        for peer in PEERS:
            assert peer.is_millrace or peer.program or {peer.module} <= modules
            assert not peer.module or peer.environment in ENVIRONMENTS

    def test_a_program_that_is_not_installed_takes_no_part(self) -> None:
        """It is named as missing, not left out in silence."""
        assert is_missing(Peer("other", 1, program="no-such-program"))
        assert not is_missing(AGGREGATED)


@pytest.mark.integration
def test_a_run_of_the_real_daemon(tmp_path: Path) -> None:
    """From file to figures: the daemon carries 300 posts, all are found, and CPU, rate and memory are plausible."""
    workshop = Workshop(tmp_path, tmp_path, make_certificate(tmp_path), rounds=1)
    run = workshop.measure(AGGREGATED, Load(workshop.posts(300), 300, shards=4, tls=True, rate=3000, delay=0.01))

    assert (run.findings.sent, run.findings.lost) == (300, 0)
    assert run.findings.records < 100
    assert 1 < run.cpu < 5000
    assert 0 < run.start < 20
    assert 100 < run.rate < 3500
    # No upper bound: a child's peak begins at that of its parent, which is all of the tests here.
    assert run.peak > 20 << 20
    assert 10 < run.findings.latency["50"] < 2000
