import base64
from pathlib import Path

import pytest

from processor.failures import Bucket, Directory, Quarantine, Source, store_at
from processor.wire import UserRecord
from tests.processor.aws_by_moto import Aws
from tests.processor.fake_surroundings import Shelf

SEQUENCE_NUMBER = "49590338271490256608559692538361571095921575989136588898"
EVENT_RECORD = {
    "kinesis": {
        "kinesisSchemaVersion": "1.0",
        "partitionKey": "lane-0",
        "sequenceNumber": SEQUENCE_NUMBER,
        "data": "cm90dGVu",
        "approximateArrivalTimestamp": 1_795_165_200.512,
    },
    "eventSource": "aws:kinesis",
    "eventID": f"shardId-000000000003:{SEQUENCE_NUMBER}",
    "eventSourceARN": "arn:aws:kinesis:eu-central-1:123456789012:stream/posts",
}
KEY = f"posts/shardId-000000000003/{SEQUENCE_NUMBER}"


class Full:
    """A store that takes nothing."""

    def put(self, key: str, body: bytes) -> None:
        raise OSError(28, "No space left\non device", key)


def source(position: int | None = None, data: bytes = b"rotten", key: str | None = None) -> Source:
    """A record, or a part of it, that went bad."""
    return Source(EVENT_RECORD, position, UserRecord(data, key))


def test_all_that_is_known_of_a_record_is_kept() -> None:
    """The object holds the bytes, the reason and where the record stood."""
    shelf = Shelf()

    assert Quarantine(shelf).keep(source(2, "腐った".encode(), "43"), "not JSON") is None

    ((key, document),) = shelf.objects.items()
    assert key == f"{KEY}-2.json"
    assert base64.b64decode(document.pop("data")) == "腐った".encode()
    assert document == {
        "reason": "not JSON",
        "eventSourceARN": EVENT_RECORD["eventSourceARN"],
        "eventID": EVENT_RECORD["eventID"],
        "sequenceNumber": SEQUENCE_NUMBER,
        "position": 2,
        "partitionKey": "43",
        "approximateArrivalTimestamp": 1_795_165_200.512,
    }


def test_a_raw_record_has_its_container_s_key() -> None:
    """A record that was not inside an aggregate is kept under the partition key that Kinesis knows."""
    shelf = Shelf()
    Quarantine(shelf).keep(source(0), "not JSON")

    assert shelf.objects[f"{KEY}-0.json"]["partitionKey"] == "lane-0"


def test_a_replay_overwrites_what_it_wrote_before() -> None:
    """The key follows from the record alone; each record of a container, and the container, has its own."""
    shelf = Shelf()
    quarantine = Quarantine(shelf)
    for _ in range(2):
        for position in (0, 1, None):
            quarantine.keep(source(position), "not JSON")

    assert set(shelf.objects) == {f"{KEY}-0.json", f"{KEY}-1.json", f"{KEY}.json"}


def test_a_store_that_fails_is_told_in_one_line() -> None:
    """The caller learns that the record was not kept, and why."""
    trouble = Quarantine(Full()).keep(source(), "not JSON")

    assert trouble is not None
    assert trouble.startswith("OSError: ")
    assert "No space left on device" in trouble


def test_a_directory_holds_whole_files_only(tmp_path: Path) -> None:
    """A file appears under its name when it is complete, a second one takes its place, and nothing else is left."""
    store = Directory(tmp_path / "quarantine")
    for body in (b"old", b"new"):
        store.put("posts/shardId-0/1.json", body)

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / "quarantine/posts/shardId-0/1.json"]
    assert files[0].read_bytes() == b"new"


def test_a_place_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    """A directory that cannot be made is told, not raised."""
    (tmp_path / "quarantine").write_text("a file stands here")

    trouble = Quarantine(store_at(str(tmp_path / "quarantine"))).keep(source(), "not JSON")

    assert trouble is not None
    assert str(tmp_path) in trouble


def look_at(place: Directory | Bucket) -> None:
    """Hold a place with two objects to what it promises."""
    assert sorted(place.keys()) == ["a/1.json", "b/2.json"]
    assert place.get("b/2.json") == b"two"
    place.remove("b/2.json")
    assert place.keys() == ["a/1.json"]


def test_a_directory_gives_back_what_it_keeps(tmp_path: Path) -> None:
    """Files are listed, read and removed by the keys that they were put under; unfinished ones are not there."""
    place = store_at(str(tmp_path / "place"))
    for key, body in (("a/1.json", b"one"), ("b/2.json", b"two")):
        place.put(key, body)
    (tmp_path / "place" / "a" / "3.json.17.tmp").write_bytes(b"thr")

    look_at(place)


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Nothing to list is another thing than nowhere to look."""
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        store_at(str(tmp_path / "nowhere")).keys()


def test_a_bucket_gives_back_what_it_keeps_below_its_prefix(aws: Aws) -> None:
    """Through one client objects are put, listed, read and removed; those beside the prefix are not there."""
    aws.s3.create_bucket(Bucket="stack-failures")
    clients = [aws.s3]
    place = store_at("s3://stack-failures/x", clients.pop)
    whole = store_at("s3://stack-failures", lambda: aws.s3)
    for key, body in (("a/1.json", b"one"), ("b/2.json", b"two")):
        place.put(key, body)
    whole.put("y/3.json", b"three")

    look_at(place)
    assert sorted(whole.keys()) == ["x/a/1.json", "y/3.json"]


def test_a_bucket_that_is_not_there_is_told(aws: Aws) -> None:
    """The quarantine says so as it says any other failure."""
    trouble = Quarantine(store_at("s3://elsewhere", lambda: aws.s3)).keep(source(), "not JSON")

    assert "NoSuchBucket" in (trouble or "")


@pytest.mark.parametrize(
    ("place", "name", "prefix"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket/quarantine", "bucket", "quarantine/"),
        ("s3://bucket/a/b/", "bucket", "a/b/"),
    ],
)
def test_the_setting_names_a_bucket(place: str, name: str, prefix: str) -> None:
    """With s3:// the first part is the bucket and the rest a folder in it."""
    store = store_at(place)

    assert isinstance(store, Bucket)
    assert (store._name, store._prefix) == (name, prefix)
