from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from processor.failures import Bucket, Directory, connect_bucket
from processor.places import FailureBucket, FailureDirectory, Place, place_at


def look_at(place: Place) -> None:
    """Hold a place with two objects to what it promises."""
    assert sorted(place.keys()) == ["a/1.json", "b/2.json"]
    assert place.get("b/2.json") == b"two"
    place.remove("b/2.json")
    assert place.keys() == ["a/1.json"]


def test_a_directory_gives_back_what_the_quarantine_keeps(tmp_path: Path) -> None:
    """Files are listed, read and removed by the keys that they were put under; unfinished ones are not there."""
    for key, body in (("a/1.json", b"one"), ("b/2.json", b"two")):
        Directory(tmp_path / "place").put(key, body)
    (tmp_path / "place" / "a" / "3.json.17.tmp").write_bytes(b"thr")

    look_at(place_at(str(tmp_path / "place"), lambda: None))


def test_a_bucket_gives_back_what_the_quarantine_keeps() -> None:
    """Objects below the prefix are listed, read and removed; those beside it are not there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = connect_bucket(
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
        endpoint_url=f"http://{host}:{port}",
    )
    client.create_bucket(Bucket="stack-places")
    for prefix, key, body in (("x/", "a/1.json", b"one"), ("x/", "b/2.json", b"two"), ("y/", "3.json", b"three")):
        Bucket("stack-places", prefix, lambda: client).put(key, body)

    look_at(place_at("s3://stack-places/x", lambda: client))
    whole = place_at("s3://stack-places", lambda: client)
    assert sorted(whole.keys()) == ["x/a/1.json", "y/3.json"]
    client.close()
    server.stop()


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Nothing to list is another thing than nowhere to look."""
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        place_at(str(tmp_path / "nowhere"), lambda: None).keys()


@pytest.mark.parametrize(
    ("place", "kind"), [("s3://bucket", FailureBucket), ("/var/failures", FailureDirectory), (".", FailureDirectory)]
)
def test_a_name_says_what_it_is(place: str, kind: type) -> None:
    """With s3:// it is a bucket, anything else is a path."""
    assert isinstance(place_at(place, lambda: None), kind)
