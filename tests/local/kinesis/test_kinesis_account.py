import pytest

from local.kinesis.account import Account
from local.kinesis.errors import KinesisError
from local.kinesis.limits import Entry
from local.kinesis.stream import Stream

NOW = 1_800_000_000.0
ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/posts"


def new_account(memory_limit: int = 1 << 30) -> Account:
    """Return an account without streams."""
    return Account(memory_limit=memory_limit, settle_seconds=0.0)


def put(stream: Stream, count: int, now: float) -> None:
    """Store records of 10 bytes."""
    stream.put([Entry(b"d" * 6, f"{number:04d}") for number in range(count)], now)


def refused(code: str) -> pytest.RaisesExc[KinesisError]:
    """Expect a refusal with this code."""
    return pytest.RaisesExc(KinesisError, match=f"^{code}: ")


class TestFinding:
    @pytest.mark.parametrize(("name", "arn"), [("posts", None), (None, ARN), ("posts", ARN)])
    def test_by_name_by_arn_and_by_both(self, name: str | None, arn: str | None) -> None:
        """All three lead to the stream; its ARN has region and account."""
        account = new_account()
        account.create("other", 1, NOW)
        stream = account.create("posts", 1, NOW)
        assert account.find(name, arn) is stream

    @pytest.mark.parametrize(
        ("name", "arn", "code"),
        [
            (None, None, "InvalidArgumentException"),
            ("other", None, "ResourceNotFoundException"),
            (None, ARN.replace("us-east-1", "eu-west-1"), "ResourceNotFoundException"),
            (None, ARN.replace(":000000000000:", ":111111111111:"), "ResourceNotFoundException"),
            ("posts", ARN.replace("/posts", "/other"), "ResourceNotFoundException"),
        ],
    )
    def test_what_is_not_there(self, name: str | None, arn: str | None, code: str) -> None:
        """Another name, region or account is another stream."""
        account = new_account()
        account.create("posts", 1, NOW)
        with refused(code):
            account.find(name, arn)


class TestCallRates:
    def test_describing_twenty_times_a_second(self) -> None:
        """The twenty-first DescribeStreamSummary within a second is refused."""
        account = new_account()
        for _ in range(20):
            account.count_call("DescribeStreamSummary", "posts", NOW)
        with refused("LimitExceededException"):
            account.count_call("DescribeStreamSummary", "other", NOW)
        account.count_call("DescribeStreamSummary", "posts", NOW + 0.06)

    def test_listing_shards_is_counted_for_each_stream(self) -> None:
        """1,000 calls a second on one stream leave another one alone."""
        account = new_account()
        for _ in range(1000):
            account.count_call("ListShards", "posts", NOW)
        with refused("LimitExceededException"):
            account.count_call("ListShards", "posts", NOW)
        account.count_call("ListShards", "other", NOW)

    def test_writes_have_no_such_limit(self) -> None:
        """Only shards limit writes."""
        account = new_account()
        for _ in range(5000):
            account.count_call("PutRecords", "posts", NOW)


class TestMemory:
    def test_the_oldest_records_of_all_streams_go_first(self) -> None:
        """Above the limit it is age that counts, whichever stream holds the record."""
        account = new_account(memory_limit=100)
        one, two = account.create("one", 1, NOW), account.create("two", 1, NOW)
        for second in range(10):
            put(one if second % 2 else two, 2, NOW + second)
        account.tidy(NOW + 10)
        assert one.stored_bytes + two.stored_bytes == 100
        assert [record.arrival - NOW for record in one.map.shards[0].records] == [5, 5, 7, 7, 9, 9]
        assert [record.arrival - NOW for record in two.map.shards[0].records] == [6, 6, 8, 8]

    def test_age_trims_all_streams(self) -> None:
        """A stream nobody writes to forgets as well."""
        account = new_account()
        put(account.create("one", 1, NOW), 3, NOW)
        account.tidy(NOW + 86_401)
        assert account.streams["one"].stored_bytes == 0
