import base64
import io
import json
import subprocess
import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.failures import Quarantine
from processor.handler import RESERVE_SECONDS, Processor
from processor.items import Item, Shape
from processor.table import TableError, TableWriter
from processor.wire import compress
from tests.processor.aws_by_moto import Aws
from tests.processor.fake_dynamodb import (
    HALF,
    LOST,
    NONE,
    STORED,
    TABLE,
    THROTTLED,
    UNREACHABLE,
    Clock,
    FakeDynamo,
    Inline,
)
from tests.processor.fake_surroundings import Context, Shelf, aggregate, post

ROOT = Path(__file__).resolve().parents[2]
BATCH = json.loads((Path(__file__).parent / "events" / "batch.json").read_text())
STREAM = "arn:aws:kinesis:eu-central-1:123456789012:stream/posts"


class House:
    """A processor with all that is around it."""

    def __init__(
        self,
        table: FakeDynamo | None = None,
        shelf: Shelf | None = None,
        clock: Clock | None = None,
        pool: Executor | None = None,
        *,
        with_metrics: bool = True,
    ) -> None:
        self.clock = clock or Clock()
        self.table = table or FakeDynamo()
        self.shelf = shelf or Shelf()
        self._output = io.StringIO()
        pool = pool or Inline()
        writer = TableWriter(TABLE, lambda: self.table, pool, clock=self.clock, sleep=self.clock.sleep, chance=max)
        self.processor = Processor(
            Shape(),
            writer,
            Quarantine(self.shelf),
            pool,
            function_name="stack-DDBEventProcessor",
            with_metrics=with_metrics,
            clock=self.clock,
            now=lambda: 1_795_165_206.5,
            output=self._output,
        )

    def process(self, *records: dict[str, Any], seconds: float = 60) -> str | None:
        """Run one invocation; return the sequence number that it reports, if any."""
        response = self.processor.process({"Records": list(records)}, Context(seconds))
        assert list(response) == ["batchItemFailures"]
        assert len(response["batchItemFailures"]) <= 1
        for failure in response["batchItemFailures"]:
            number: str = failure["itemIdentifier"]
            return number
        return None

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._output.getvalue().splitlines()]

    @property
    def messages(self) -> dict[str, str]:
        return {key: str(item["Message"]) for key, item in self.table.items.items()}


def record(sequence_number: int, data: bytes | str) -> dict[str, Any]:
    """A Kinesis record as Lambda sends it; text stands for its base64 as it is."""
    return {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": "lane-0",
            "sequenceNumber": str(sequence_number),
            "data": data if isinstance(data, str) else base64.b64encode(data).decode(),
            "approximateArrivalTimestamp": 1_795_165_200.5,
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": f"shardId-000000000000:{sequence_number}",
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": "arn:aws:iam::123456789012:role/processor",
        "awsRegion": "eu-central-1",
        "eventSourceARN": STREAM,
    }


def counts(line: dict[str, Any]) -> tuple[int, ...]:
    """Posts, written, duplicates, quarantined, unwritten of a log line."""
    return tuple(line[name] for name in ("Posts", "Written", "Duplicates", "Quarantined", "Unwritten"))


class TestTheWholeWay:
    def test_an_event_of_lambda_ends_in_table_and_quarantine(self) -> None:
        """Raw and aggregated posts are items, the newer version of one wins, and what is broken is kept aside."""
        house = House()

        assert house.process(*BATCH["Records"]) is None

        assert house.messages == {
            "2123700000000000001": "おはよう、世界",
            "2123700000000000002": "水車小屋の朝 & 川の音",
            "2123700000000000003": "小麦を二袋",
            "2123700000000000004": "Second thoughts <3 😀",
            "2123700000000000005": "lost",
        }
        assert {document["reason"] for document in house.shelf.objects.values()} == {
            "not JSON: Expecting value at character 0",
            "damaged aggregate: the digest does not fit the content; 1 records in it looked whole",
        }
        assert counts(house.log[0]) == (8, 5, 1, 2, 0)

    def test_an_empty_batch_is_a_success(self) -> None:
        """A batch without records reports nothing."""
        house = House()

        assert house.process() is None
        assert counts(house.log[0]) == (0, 0, 0, 0, 0)

    def test_threads_change_nothing(self) -> None:
        """With calls in parallel the result is the same as one by one."""
        records = [record(n, aggregate(*(post(25 * n + m) for m in range(25)))) for n in range(40)]
        with ThreadPoolExecutor(8) as pool:
            house = House(FakeDynamo([THROTTLED, HALF, NONE] * 5), pool=pool)
            assert house.process(*records) is None

        assert len(house.table.items) == 1_000


class TestReport:
    def test_only_the_lowest_sequence_number_is_reported(self) -> None:
        """Of several records that could not be stored, the lowest is named once; numbers are compared as numbers."""
        house = House(FakeDynamo([NONE] * 10_000))

        assert house.process(record(1000, post(1)), record(998, post(2)), record(999, post(3))) == "998"

    def test_a_record_is_reported_for_any_of_its_posts(self) -> None:
        """One post of an aggregate that could not be stored brings the whole record back."""
        table = FakeDynamo([HALF, *[NONE] * 10_000])
        house = House(table)

        assert house.process(record(5, post(0)), record(6, aggregate(post(1), post(2), post(3)))) == "5"
        assert set(table.items) == {"1", "3"}
        assert counts(house.log[0]) == (4, 2, 0, 0, 2)

    def test_an_older_version_is_not_done_while_the_newer_is_not_stored(self) -> None:
        """A record whose post was to be overwritten comes again together with the one that overwrites it."""
        house = House(FakeDynamo([NONE] * 10_000))

        assert house.process(record(1, post(7, "old")), record(2, post(7, "new"))) == "1"
        assert counts(house.log[0]) == (2, 0, 0, 0, 2)

    def test_the_next_invocation_finishes_the_work(self) -> None:
        """After a report, Lambda's replay from there on stores what was missing, the newest version last."""
        table = FakeDynamo([NONE] * 10)
        house = House(table)
        records = [record(1, post(7, "old")), record(2, post(7, "new"))]

        assert house.process(*records, seconds=6) == "1"
        assert house.process(*records) is None
        assert house.messages == {"7": "new"}

    @pytest.mark.parametrize(("seconds", "left"), [(60, RESERVE_SECONDS), (6, 3), (0, 0)])
    def test_an_invocation_ends_in_time(self, seconds: float, left: float) -> None:
        """A table that is throttled for ever leaves the reserve to log and answer, or half of a short time."""
        clock = Clock()
        house = House(FakeDynamo([NONE] * 10_000), clock=clock)

        assert house.process(record(1, post(1)), seconds=seconds) == "1"
        assert clock.now - 1_000 <= seconds - left

    def test_a_table_that_does_not_exist_fails_the_invocation(self) -> None:
        """What only an operator can heal is an error of the function, so that its alarm goes off."""
        house = House(FakeDynamo(["AccessDeniedException"]))

        with pytest.raises(TableError, match="no permission"):
            house.process(record(1, post(1)))


class TestDeleted:
    def test_a_replay_does_not_bring_a_deleted_post_back(self) -> None:
        """What has a tombstone is not in the table after the invocation, and counts as done."""
        house = House()
        records = [record(1, aggregate(post(1), post(2))), record(2, post(1, "once more"))]
        house.process(*records)
        house.table.bury("1")

        assert house.process(*records) is None
        assert set(house.table.items) == {"2"}
        assert counts(house.log[1]) == (3, 1, 1, 0, 0)
        assert house.log[1]["Deleted"] == 1

    def test_what_could_not_be_looked_for_comes_again(self) -> None:
        """An item that was put, but not held against the tombstones in time, is reported."""
        house = House(FakeDynamo(look_faults=[NONE] * 10_000))
        house.table.bury("1")

        assert house.process(record(1, post(1)), record(2, post(2))) == "1"
        assert house.log[0]["TableFault"] == "UnprocessedKeys"

    def test_what_could_not_be_taken_out_comes_again(self) -> None:
        """A deleted post that is in the table again, and cannot be deleted in time, is reported until it is gone."""
        house = House(FakeDynamo([STORED, *[NONE] * 10_000]))
        house.table.bury("1")

        assert house.process(record(1, post(1)), record(2, post(2))) == "1"
        healed = FakeDynamo()
        healed.everything.update(house.table.everything)
        assert House(healed).process(record(1, post(1)), record(2, post(2))) is None
        assert set(healed.items) == {"2"}


class TestPoison:
    @pytest.mark.parametrize("position", range(4))
    @pytest.mark.parametrize(
        "poison",
        [
            b"",
            b"no json",
            b"\xff",
            b"{}",
            aggregate(b"no json"),
            aggregate(b"no json")[:-18],
            b"MZS2 of a newer version",
            "no base64!",
            "あ",
            post(8, "x" * 500_000),
        ],
        ids=[
            "empty",
            "text",
            "bytes",
            "no-id",
            "in-aggregate",
            "cut-aggregate",
            "newer-frame",
            "not-base64",
            "not-ascii",
            "too-large",
        ],
    )
    def test_a_bad_record_never_stops_the_shard(self, poison: bytes | str, position: int) -> None:
        """Wherever in the batch it stands, a bad record is kept aside and all others are stored."""
        records = [record(number, post(number)) for number in range(3)]
        records.insert(position, record(100, poison))
        house = House()

        assert house.process(*records) is None
        assert set(house.table.items) == {"0", "1", "2"}
        assert len(house.shelf.objects) == 1
        assert counts(house.log[0]) == (4, 3, 0, 1, 0)

    def test_what_the_table_refuses_is_kept_aside(self) -> None:
        """An item that DynamoDB will never take goes to quarantine with its words; its neighbours are stored."""
        house = House(FakeDynamo(invalid=lambda item: item["Id"] == "1"))

        assert house.process(record(5, aggregate(post(0), post(1), post(2)))) is None
        assert set(house.table.items) == {"0", "2"}
        ((key, document),) = house.shelf.objects.items()
        assert key == "posts/shardId-000000000000/5-1.json"
        assert document["reason"].startswith("ValidationException: ")
        assert base64.b64decode(document["data"]) == post(1)

    def test_a_refused_version_does_not_take_the_older_one_with_it(self) -> None:
        """Where the newest version of a post is refused, the one before it is stored."""
        house = House(FakeDynamo(invalid=lambda item: item["Message"] == "bad"))
        texts = ["first", "good", "bad", "bad"]

        assert house.process(*(record(n, post(7, text)) for n, text in enumerate(texts))) is None
        assert house.messages == {"7": "good"}
        assert counts(house.log[0]) == (4, 1, 1, 2, 0)

    def test_a_record_that_cannot_be_kept_aside_is_reported(self) -> None:
        """When the quarantine fails, its records come again, and the log says why it failed."""
        house = House(shelf=Shelf(broken=lambda key: key.endswith("/3-0.json")))

        assert house.process(record(1, b"bad"), record(2, post(2)), record(3, b"bad"), record(4, b"bad")) == "3"
        assert set(house.table.items) == {"2"}
        assert house.log[0]["QuarantineFault"] == "OSError: the shelf is full"
        assert counts(house.log[0]) == (4, 1, 0, 2, 1)

    def test_what_is_refused_at_the_last_moment_is_still_kept_aside(self) -> None:
        """A part of the reserve is for the quarantine of what the table refused when the time was up."""
        clock = Clock()
        seconds = 60 - RESERVE_SECONDS + 0.5
        house = House(FakeDynamo(invalid=lambda _: True, clock=clock, seconds=seconds), clock=clock)

        assert house.process(record(1, post(1)), seconds=60) is None
        assert house.shelf.payloads == {post(1)}

    def test_a_cut_aggregate_loses_no_whole_post(self) -> None:
        """Wherever it is cut, the posts before the cut are stored, and the container is kept aside with its reason."""
        posts = [post(number) for number in range(3)]
        container = aggregate(*posts)
        for length in range(len(container) - 120, len(container)):
            data = container[:length]
            house = House()

            assert house.process(record(1, data)) is None
            assert set(house.table.items) == {str(number) for number, line in enumerate(posts) if line in data}
            documents = [document for document in house.shelf.objects.values() if document["position"] is None]
            assert [base64.b64decode(document["data"]) for document in documents] == [data]
            assert "the digest does not fit the content" in documents[0]["reason"]

    def test_the_quarantine_keeps_to_the_time_too(self) -> None:
        """With no time left nothing is begun, and the record is reported."""
        house = House()

        assert house.process(record(1, b"bad"), seconds=0) == "1"
        assert not house.shelf.objects


class TestLog:
    def test_one_line_is_log_and_metrics(self) -> None:
        """The line is CloudWatch's embedded metric format, and each metric that it declares has a number."""
        house = House(FakeDynamo([HALF]))
        house.process(*BATCH["Records"])

        (line,) = house.log
        (metrics,) = line["_aws"]["CloudWatchMetrics"]
        assert line["_aws"]["Timestamp"] == 1_795_165_206_500
        assert metrics["Namespace"] == "Millrace"
        assert metrics["Dimensions"] == [["FunctionName"]]
        assert line["FunctionName"] == "stack-DDBEventProcessor"
        assert {metric["Name"]: line[metric["Name"]] for metric in metrics["Metrics"]} == {
            "Records": 5,
            "Posts": 8,
            "Written": 5,
            "Duplicates": 1,
            "Deleted": 0,
            "Quarantined": 2,
            "Unwritten": 0,
            "Retried": 3,
            "WriteUnits": 5,
            "Milliseconds": 50.0,
            "PostToKinesisMilliseconds": 2_250.0,
            "KinesisToTableMilliseconds": 5_988.0,
        }
        assert line["RequestId"] == "request-1"
        assert "RetryFrom" not in line

    def test_without_metrics_the_line_is_the_same_but_for_them(self) -> None:
        """Who does not want to pay for CloudWatch's metrics still has the numbers."""
        with_metrics, without = House(), House(with_metrics=False)
        for house in (with_metrics, without):
            house.process(*BATCH["Records"])

        assert without.log == [
            {name: value for name, value in line.items() if name != "_aws"} for line in with_metrics.log
        ]

    def test_a_failure_says_where_it_goes_on(self) -> None:
        """The reported sequence number stands in the line, and what the table had against it."""
        house = House(FakeDynamo([THROTTLED] * 10_000))
        house.process(record(17, post(1)))

        assert house.log[0]["RetryFrom"] == "17"
        assert house.log[0]["TableFault"] == THROTTLED

    def test_no_payload_reaches_the_log(self) -> None:
        """Neither stored posts nor quarantined ones leave a word in the line."""
        house = House(FakeDynamo(invalid=lambda item: item["Id"] == "3"), Shelf(broken=lambda _: True))
        secrets = [b"secret", post(1, "secret"), b'{"data":{"id":"secret"}}', post(3, "secret"), b'{"secret']
        house.process(*(record(n, data) for n, data in enumerate(secrets)))

        assert "secret" not in json.dumps(house.log)


# A post is an id and a text; a text that ends so is refused by the table, or broken beforehand.
TEXTS = st.sampled_from(["a", "b", "refused", "broken"])
ENTRIES = st.lists(st.tuples(st.integers(0, 30), TEXTS), max_size=6)
# How the posts of a record travel: as a container, compressed, damaged in its digest, or each of them raw.
RECORDS = st.tuples(st.sampled_from(["container", "compressed", "damaged", "raw"]), ENTRIES)
FAULTS = st.lists(
    st.sampled_from([STORED, HALF, NONE, LOST, UNREACHABLE, THROTTLED, "InternalServerError"]), max_size=12
)


def line_of(post_id: int, text: str) -> bytes:
    """The post as a line, or something that was one."""
    line = post(post_id, text)
    return line[:-1] if text == "broken" else line


def travelling(how: str, entries: list[tuple[int, str]]) -> list[bytes]:
    """The records in which these posts travel."""
    lines = [line_of(*entry) for entry in entries]
    container = aggregate(*lines)
    return {
        "container": [container],
        "compressed": [compress(container)],
        "damaged": [container[:-1] + bytes([container[-1] ^ 1])],
        "raw": lines,
    }[how]


def refused(item: Item) -> bool:
    """Whether the table will never take the item."""
    return item["Message"] == "refused"


@settings(deadline=None)
@given(
    batch=st.lists(RECORDS, max_size=8),
    faults=FAULTS,
    look_faults=FAULTS,
    forever=st.booleans(),
    broken=st.sets(st.integers(0, 7)),
    buried=st.tuples(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30))),
    seconds=st.sampled_from([0, 0.2, 6, 60]),
)
def test_any_batch_under_any_failures_ends_as_the_model_says(
    batch: list[tuple[str, list[tuple[int, str]]]],
    faults: list[str],
    look_faults: list[str],
    forever: bool,
    broken: set[int],
    buried: tuple[set[int], set[int]],
    seconds: float,
) -> None:
    """
    What is not reported is done: its good posts are in the table, or newer versions, or deleted; bad ones kept aside.

    Posts are deleted before it and in the middle of it. Replayed from the reported number on until nothing is
    reported, the table is that of a simple model: of each id the last version that the table takes, but for those
    that were deleted.
    """
    table = FakeDynamo([*faults, *[NONE] * (10_000 if forever else 0)], look_faults=look_faults, invalid=refused)
    before, between = buried
    table.bury(*map(str, before))
    table.before_look = lambda: table.bury(*map(str, between))
    house = House(table, Shelf(broken=lambda key: int(key.split("/")[2].split("-")[0].split(".")[0]) in broken))
    stream: list[tuple[list[tuple[int, str]], bytes]] = []
    for how, entries in batch:
        groups = [[entry] for entry in entries] if how == "raw" else [entries]
        stream += zip(groups, travelling(how, entries), strict=True)
    records = [record(number, data) for number, (_, data) in enumerate(stream)]
    damaged = [data for how, entries in batch if how == "damaged" for data in travelling(how, entries)]

    reported = house.process(*records, seconds=seconds)

    line = house.log[0]
    assert line["Posts"] == sum(len(entries) for entries, _ in stream) + len(damaged)
    assert line["Posts"] == sum(counts(line)[1:]) + line["Deleted"]
    done = len(records) if reported is None else int(reported)
    assert (reported is None) == (line["Unwritten"] == 0)
    for number, (entries, data) in enumerate(stream[:done]):
        assert data not in damaged or data in house.shelf.payloads
        for post_id, text in entries:
            newer = [text for entries, _ in stream[number:] for key, text in entries if key == post_id]
            kept_aside = line_of(post_id, text) in house.shelf.payloads
            in_table = house.messages.get(str(post_id)) in newer or post_id in before | between
            assert {"broken": kept_aside, "refused": kept_aside or in_table}.get(text, in_table)

    healed = House(FakeDynamo(invalid=refused))
    healed.table.everything.update(table.everything)
    healed.table.bury(*map(str, between))
    assert healed.process(*records[done:]) is None
    model = {
        str(key): text
        for entries, _ in stream
        for key, text in entries
        if text not in {"refused", "broken"} and key not in before | between
    }
    assert healed.messages == model


# What Lambda's runtime does: import the handler, call it with the event, print what it returned.
RUNTIME = """
import json, sys
from processor.handler import handle

class Context:
    aws_request_id = "request-1"
    def get_remaining_time_in_millis(self):
        return 60_000

event = json.load(sys.stdin)
handle(event, Context())
print(json.dumps(handle(event, Context())))
"""


def run_as_lambda(**environ: str) -> subprocess.CompletedProcess[str]:
    """Run the function in a process of its own, with no more environment than it is given."""
    return subprocess.run(
        [sys.executable, "-c", RUNTIME],
        input=json.dumps(BATCH),
        env={"PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true", **environ},
        capture_output=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )


class TestAsAProcess:
    def test_the_function_finds_all_it_needs_in_its_environment(self, aws: Aws, table: str, tmp_path: Path) -> None:
        """With botocore's variables and our own it stores the event in a real table, twice with one result."""
        name = "stack-DDBEventProcessor"
        run = run_as_lambda(TABLE=table, QUARANTINE=str(tmp_path), AWS_LAMBDA_FUNCTION_NAME=name, **aws.environ)
        stored = {item["Message"] for item in aws.items(table).values()}

        assert run.stderr == ""
        *log, response = map(json.loads, run.stdout.splitlines())
        assert response == {"batchItemFailures": []}
        assert [counts(line) for line in log] == [(8, 5, 1, 2, 0)] * 2
        assert {line["FunctionName"] for line in log} == {name}
        assert stored == {"おはよう、世界", "水車小屋の朝 & 川の音", "小麦を二袋", "Second thoughts <3 😀", "lost"}
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2

    def test_a_missing_setting_is_the_last_line_of_its_error(self) -> None:
        """Without its settings the function fails with a line that names them."""
        run = run_as_lambda()

        assert run.returncode != 0
        assert "SettingsError: TABLE is missing" in run.stderr.splitlines()[-1]
