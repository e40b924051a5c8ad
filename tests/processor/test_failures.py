import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from processor.failures import Bucket, Directory, Quarantine, Source, connect_bucket, store_at
from processor.wire import UserRecord

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


class Shelf:
    """A store in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, key: str, body: bytes) -> None:
        self.objects[key] = body


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

    ((key, body),) = shelf.objects.items()
    document = json.loads(body)
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

    assert json.loads(shelf.objects[f"{KEY}-0.json"])["partitionKey"] == "lane-0"


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


@pytest.fixture(scope="module")
def location() -> Iterator[dict[str, str]]:
    """Where an S3 made by moto answers, with one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    place = {
        "region_name": "us-east-1",
        "aws_access_key_id": "local",
        "aws_secret_access_key": "local",
        "endpoint_url": f"http://{host}:{port}",
    }
    client = connect_bucket(**place)
    client.create_bucket(Bucket="stack-failures")
    client.close()
    yield place
    server.stop()


def test_a_bucket_keeps_objects_below_its_prefix(location: dict[str, str]) -> None:
    """Through boto3, one client for all, the object stands where it was wanted."""
    clients: list[Any] = []

    def connect() -> Any:
        clients.append(connect_bucket(**location))
        return clients[-1]

    quarantine = Quarantine(Bucket("stack-failures", "quarantine/", connect))
    troubles = [quarantine.keep(source(position), "not JSON") for position in (0, 1)]
    missing = Quarantine(Bucket("elsewhere", "", connect)).keep(source(), "not JSON")
    listed = clients[0].list_objects_v2(Bucket="stack-failures")["Contents"]
    for client in clients:
        client.close()

    assert troubles == [None, None]
    assert [entry["Key"] for entry in listed] == [f"quarantine/{KEY}-0.json", f"quarantine/{KEY}-1.json"]
    assert "NoSuchBucket" in (missing or "")
    assert len(clients) == 2


@pytest.mark.parametrize(
    ("place", "name", "prefix"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket/quarantine", "bucket", "quarantine/"),
        ("s3://bucket/a/b/", "bucket", "a/b/"),
    ],
)
def test_the_setting_names_a_bucket_or_a_directory(place: str, name: str, prefix: str) -> None:
    """With s3:// the first part is the bucket and the rest a folder in it; anything else is a path."""
    store = store_at(place)

    assert isinstance(store, Bucket)
    assert (store._name, store._prefix) == (name, prefix)
    assert isinstance(store_at("/var/quarantine"), Directory)
