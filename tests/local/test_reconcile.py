"""Small ledgers side by side, and the ledgers of the real stand-ins."""

import base64
import json
import time
from collections.abc import Sequence
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from local.kinesis.limits import Entry
from local.kinesis.server import LocalKinesis
from local.reconcile import (
    Reconciliation,
    SentPost,
    ShardRecords,
    fetch_sent,
    fetch_shards,
    fetch_table_ids,
    read_letters,
    read_quarantine,
    reconcile,
)
from local.x_api.ledger import UNSENT, WRITTEN
from local.x_api.server import XApi
from processor.wire import Aggregate
from service.core.records import DropReason
from service.dead_letters import DeadLetters

# Three authors in turn: post 0, 3, 6, ... are of author 0.
IDS = [str(number) for number in range(12)]


def line(post_id: str) -> bytes:
    """A post as X writes it."""
    return json.dumps({"data": {"id": post_id, "text": f"吾輩は{post_id}"}}, ensure_ascii=False).encode()


def sent(ids: Sequence[str] = IDS, state: str = "written") -> list[SentPost]:
    """Rows of X's ledger."""
    return [SentPost(post_id, str(int(post_id) % 3), md5(line(post_id)).hexdigest(), state) for post_id in ids]


def raw(*ids: int) -> list[bytes]:
    """A Kinesis record for each post."""
    return [line(str(post_id)) for post_id in ids]


def shard(records: Sequence[bytes], shard_id: str = "0", parents: tuple[str, ...] = ()) -> ShardRecords:
    """One shard."""
    return ShardRecords(shard_id, parents, records)


def compare(
    *shards: ShardRecords,
    rows: Sequence[SentPost] | None = None,
    table: Sequence[str] = IDS,
    put_aside: dict[str, str] | None = None,
) -> Reconciliation:
    """Reconcile; unless it is said otherwise all posts were written by X and are in the table."""
    return reconcile(sent() if rows is None else rows, shards, table, put_aside or {})


class TestWell:
    def test_all_there(self) -> None:
        """Posts that are everywhere, in order, are all well, raw or aggregated."""
        aggregate = Aggregate()
        for post_id in IDS[4:]:
            aggregate.add(b"key", line(post_id))
        result = compare(shard([*raw(0, 1, 2, 3), aggregate.seal()]))
        assert result == Reconciliation(sent=12, missed=0, in_kinesis=12, in_table=12)
        assert result.ok
        assert result.lost == 0

    def test_order_between_keys_is_nobodys(self) -> None:
        """Posts of different keys may pass each other."""
        assert compare(shard(raw(2, 1, 0, 5, 3, 4, 6, 7, 8, 9, 10, 11))).ok

    def test_repeats_are_counted(self) -> None:
        """Copies after the first are repeats, wherever they are, and no fault."""
        result = compare(shard(raw(0, 1, 2, 0, 1, *range(3, 12), 0)))
        assert result.repeated == 3
        assert result.ok

    def test_no_posts_at_all(self) -> None:
        """Of nothing, nothing is lost."""
        assert reconcile([], [], [], {}).ok


class TestFault:
    def test_lost_before_kinesis(self) -> None:
        """A post that X wrote and Kinesis does not have is lost."""
        result = compare(shard(raw(*range(11))), table=IDS[:11])
        assert result.lost_before_kinesis == ("11",)
        assert result.lost == 1
        assert not result.ok

    def test_lost_before_the_table(self) -> None:
        """A post that Kinesis has and the table has not is lost."""
        result = compare(shard(raw(*range(12))), table=IDS[1:])
        assert result.lost_before_table == ("0",)
        assert not result.ok

    def test_out_of_order(self) -> None:
        """A post behind a later one of its key is out of order, once for each such post."""
        result = compare(shard(raw(3, 6, 0, 1, 2, 4, 5, 7, 8, 9, 10, 11)))
        assert result.out_of_order == ("0",)
        assert not result.ok

    def test_only_first_copies_have_an_order(self) -> None:
        """A late repeat is no disorder, and a first copy behind a repeat of a later post is."""
        assert compare(shard(raw(0, 3, 0, 3, *(n for n in range(12) if n not in {0, 3})))).ok
        assert compare(shard(raw(*(n for n in range(12) if n != 6), 9, 6))).out_of_order == ("6",)

    def test_changed(self) -> None:
        """A post with other bytes than X wrote is changed, even if it says the same."""
        other = json.dumps(json.loads(line("5"))).encode()
        result = compare(shard([*raw(0, 1, 2, 3, 4), other, *raw(6, 7, 8, 9, 10, 11)]))
        assert result.changed == ("5",)
        assert not result.ok

    @pytest.mark.parametrize("stranger", [b'{"data": {"id": "99"}}', b"[]", b'{"data": {"id": 5}}', b"\xff", b""])
    def test_never_sent(self, stranger: bytes) -> None:
        """What X never wrote has no place in Kinesis."""
        result = compare(shard([*raw(*range(12)), stranger]))
        assert len(result.unexpected) == 1
        assert not result.ok

    def test_an_item_never_sent(self) -> None:
        """What X never wrote has no place in the table."""
        result = compare(shard(raw(*range(12))), table=[*IDS, "99"])
        assert result.unexpected == ("99",)
        assert not result.ok

    def test_a_damaged_aggregate(self) -> None:
        """The posts before a cut are there, the one that was cut is lost."""
        aggregate = Aggregate()
        aggregate.add(b"key", line("10"))
        aggregate.add(b"key", line("11"))
        result = compare(shard([*raw(*range(10)), aggregate.seal()[:-20]]), table=IDS[:11])
        assert result.lost_before_kinesis == ("11",)
        assert not result.unexpected


class TestReshard:
    def test_parent_before_child(self) -> None:
        """What the parent holds comes before what the child holds, in whatever order they are listed."""
        child = shard(raw(6, 7, 8, 9, 10, 11), "1", ("0",))
        assert compare(child, shard(raw(0, 1, 2, 3, 4, 5))).ok
        mixed = compare(shard(raw(0, 1, 2, 6, 4, 5)), shard(raw(3, 7, 8, 9, 10, 11), "1", ("0",)))
        assert mixed.out_of_order == ("3",)

    def test_split_and_merge(self) -> None:
        """A key may go from a shard to its child and on to the shard that this is merged into."""
        result = compare(
            shard(raw(6, 7, 8, 9, 10, 11), "3", ("1", "2")),
            shard(raw(4, 5), "2", ("0",)),
            shard(raw(3), "1", ("0",)),
            shard(raw(0, 1, 2), "0"),
        )
        assert result.ok

    def test_a_copy_in_parent_and_child(self) -> None:
        """A post whose answer was lost at a reshard is in both; the parent's copy is the first."""
        result = compare(shard(raw(*range(6))), shard(raw(3, 4, 5, *range(6, 12)), "1", ("0",)))
        assert result.repeated == 3
        assert result.ok

    def test_a_key_on_strange_shards(self) -> None:
        """Two shards that do not descend from each other keep no order for a key that is on both."""
        result = compare(shard(raw(0, 1, 2, 4, 5)), shard(raw(3, *range(6, 12)), "1"))
        assert set(result.out_of_order) >= {"3"}
        assert not result.ok


class TestSent:
    def test_missed(self) -> None:
        """A post that X had while nobody was connected is missed, not lost."""
        rows = [*sent(IDS[:11]), *sent(IDS[11:], "unsent")]
        result = compare(shard(raw(*range(11))), rows=rows, table=IDS[:11])
        assert (result.sent, result.missed) == (11, 1)
        assert result.ok

    def test_the_last_write_to_a_broken_connection(self) -> None:
        """A post that X calls discarded may arrive all the same; then it counts as sent, and must reach the table."""
        rows = [*sent(IDS[:10]), *sent(IDS[10:], "discarded")]
        assert compare(shard(raw(*range(11))), rows=rows, table=IDS[:11]).ok
        lost = compare(shard(raw(*range(11))), rows=rows, table=IDS[:10])
        assert lost.lost_before_table == ("10",)
        assert (lost.sent, lost.missed) == (11, 1)

    def test_sent_again(self) -> None:
        """A post that X sends again is one post, in the place where it was written first."""
        rows = [*sent(["0", "3"], "unsent"), *sent(["6"]), *sent(["0", "3"]), *sent(["6", "0"])]
        result = compare(shard(raw(6, 0, 3, 6)), rows=rows, table=["0", "3", "6"])
        assert result == Reconciliation(sent=3, missed=0, in_kinesis=3, in_table=3, repeated=1)


class TestPutAside:
    def test_a_known_reason_is_no_loss(self) -> None:
        """A post that was put aside is counted by its reason, whether it came as far as Kinesis or not."""
        aside = {md5(line(post_id)).hexdigest(): reason for post_id, reason in (("3", "bad"), ("11", "too large"))}
        result = compare(shard(raw(*range(11))), table=[n for n in IDS if n not in {"3", "11"}], put_aside=aside)
        assert result.put_aside == {"bad": 1, "too large": 1}
        assert result.ok
        assert result.sent == 12

    def test_what_is_no_post(self) -> None:
        """A record that X never sent is accounted for when it was put aside for what it is."""
        result = compare(shard([*raw(*range(12)), b"poison"]), put_aside={md5(b"poison").hexdigest(): "not JSON"})
        assert result.put_aside == {"not JSON": 1}
        assert result.ok

    def test_the_quarantine_of_the_processor(self, tmp_path: Path) -> None:
        """The reasons are read from the files that the processor leaves."""
        folder = tmp_path / "posts" / "shardId-000000000000"
        folder.mkdir(parents=True)
        document = {"reason": "no id", "data": base64.b64encode(line("3")).decode()}
        (folder / "1-0.json").write_text(json.dumps(document))
        assert read_quarantine(tmp_path) == [(line("3"), "no id")]
        assert read_quarantine(tmp_path / "none") == []


def test_summary() -> None:
    """The summary has a line for each number, and names the first posts of each fault."""
    result = compare(shard(raw(*range(5))), table=IDS[1:4], put_aside={md5(line("11")).hexdigest(): "no id"}).summary()
    assert result.splitlines() == [
        "sent                 12, and 0 missed while X had nobody to send to",
        "in Kinesis            5",
        "in the table          3",
        "put aside             1, no id 1",
        "lost                  8",
        "repeated              0",
        "out of order          0",
        "lost before Kinesis: 5, 6, 7, 8, 9 and 1 more",
        "lost before the table: 0, 4",
    ]


def test_a_copy_on_the_wrong_shard_says_nothing_about_order() -> None:
    """A record that was sent while its shard was split has copies on both children."""
    one, two = (SentPost(post_id, "1", md5(line(post_id)).hexdigest()) for post_id in ("1", "4"))
    middle = 1 << 127  # the MD5 of the key lies above it
    left = ShardRecords("1", ("0",), raw(1), 0, middle - 1)
    right = ShardRecords("2", ("0",), raw(1, 4), middle)
    result = compare(ShardRecords("0", (), []), left, right, rows=[one, two], table=["1", "4"])
    assert result.ok
    assert result.repeated == 1


class TestFetch:
    async def test_sent(self) -> None:
        """The ledger of the X stand-in comes with each post's state."""
        async with XApi() as x, ClientSession() as http:
            x.ledger.add("7", "1", line("7"), 0, WRITTEN)
            x.ledger.add("8", "2", line("8"), 0, UNSENT)
            assert await fetch_sent(http, x.url) == [
                SentPost("7", "1", md5(line("7")).hexdigest(), "written"),
                SentPost("8", "2", md5(line("8")).hexdigest(), "unsent"),
            ]

    async def test_shards(self) -> None:
        """The ledger of the local Kinesis comes whole, page by page, with the history of its shards."""
        async with LocalKinesis({"posts": 1}, settle_seconds=0.0) as kinesis, ClientSession() as http:
            stream = kinesis.stream("posts")
            lines = [line(str(number)) for number in range(1200)]
            now = time.time()
            for number in range(0, 1200, 400):
                stream.put([Entry(data, "key") for data in lines[number : number + 400]], now + number)
            stream.split("shardId-000000000000", 1 << 127, now)
            stream.put([Entry(b"last", "key", "0")], now)
            assert await fetch_shards(http, kinesis.url, "posts") == [
                ShardRecords("0", (), lines),
                ShardRecords("1", ("0",), [b"last"], 0, (1 << 127) - 1),
                ShardRecords("2", ("0",), [], 1 << 127),
            ]

    async def test_trimmed(self) -> None:
        """A Kinesis that has let go of records cannot be compared with anything, and says so."""
        async with LocalKinesis({"posts": 1}, memory_limit=1000) as kinesis, ClientSession() as http:
            kinesis.stream("posts").put([Entry(b"x" * 400, "key") for _ in range(4)], time.time())
            with pytest.raises(ValueError, match="--memory-limit"):
                await fetch_shards(http, kinesis.url, "posts")

    async def test_table(self) -> None:
        """The ids of a table come from all its pages."""

        class Pages:
            async def scan(self, **request: Any) -> dict[str, Any]:
                assert request["TableName"] == "it-EventData"
                if "ExclusiveStartKey" in request:
                    return {"Items": [{"Id": {"S": "2"}}]}
                return {"Items": [{"Id": {"S": "1"}}], "LastEvaluatedKey": {"Id": {"S": "1"}}}

        assert await fetch_table_ids(Pages(), "it-EventData") == ["1", "2"]


def test_dead_letters_are_read_by_the_digest_of_their_line(tmp_path: Path) -> None:
    """Text and bytes that are none, of the file and of the one before it."""
    letters = DeadLetters(tmp_path, lambda: 0.0)
    letters.add(b"older", DropReason.NO_ID)
    (tmp_path / "dead-letters.jsonl").rename(tmp_path / "dead-letters.1.jsonl")
    letters.add(b"\xff", DropReason.NOT_JSON)
    assert read_letters(tmp_path) == {md5(b"older").hexdigest(): "no_id", md5(b"\xff").hexdigest(): "not_json"}
    assert read_letters(tmp_path / "nothing") == {}
