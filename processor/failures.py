"""
The quarantine: what can never be stored is kept with its reason, and the shard goes on. The console takes it from here.

One failed record is one JSON object, in a bucket or in a directory, under a key that is a pure function of the
record. A batch that Lambda sends again overwrites what it wrote before.

    <place>/<stream>/<shard id>/<sequence number>-<position>.json  one user record of a Kinesis record
    <place>/<stream>/<shard id>/<sequence number>.json             a Kinesis record that could not be taken apart

    reason                       why, in words
    eventSourceARN, eventID      the stream; shard id and sequence number
    sequenceNumber, position     where the record stood
    partitionKey                 its own, or its container's where it has none
    approximateArrivalTimestamp  epoch seconds
    data                         the bytes, base64

The names are those of Lambda's Kinesis event. The payload is nowhere else: not in a log, not in a metric.
"""

import json
import os
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

from processor.table import PARALLEL_CALLS
from processor.wire import UserRecord

# Seconds. S3 answers in a tenth of this; a call must end well before the function's own time-out.
CONNECT_SECONDS = 1
READ_SECONDS = 2


class Source(NamedTuple):
    """
    A record and where it came from.

    Attributes:
        event_record: the Kinesis record as Lambda gave it.
        position: the place of the user record in it, from 0 on; None for the Kinesis record as a whole.
        user_record: the bytes and their keys.
    """

    event_record: Mapping[str, Any]
    position: int | None
    user_record: UserRecord

    @property
    def sequence_number(self) -> str:
        """Of the Kinesis record, a decimal number."""
        number: str = self.event_record["kinesis"]["sequenceNumber"]
        return number


class Store(Protocol):
    """A place that takes objects by key."""

    def put(self, key: str, body: bytes) -> None:
        """Store or overwrite; when it returns, the object is complete."""


class Directory:
    """A directory on this machine; raises OSError. A reader never sees half a file: it is renamed when it is whole."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, body: bytes) -> None:
        """Write the file."""
        path = self._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with unfinished.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def keys(self) -> list[str]:
        """List the files below, but for those that are not whole yet."""
        if not self._root.is_dir():
            raise FileNotFoundError(f"there is no directory {self._root}")
        files = (path for path in self._root.rglob("*") if path.is_file() and path.suffix != ".tmp")
        return [path.relative_to(self._root).as_posix() for path in files]

    def get(self, key: str) -> bytes:
        """Read the file."""
        return (self._root / key).read_bytes()

    def remove(self, key: str) -> None:
        """Delete the file."""
        (self._root / key).unlink()


class Bucket:
    """A bucket of S3, below a prefix; raises what boto3 raises. Most functions see no failure, and make no client."""

    def __init__(self, name: str, prefix: str, connect: Callable[[], Any]) -> None:
        self._name = name
        self._prefix = prefix
        self._connect = connect
        self._connected: Any = None
        self._lock = Lock()

    def put(self, key: str, body: bytes) -> None:
        """Upload."""
        self._client.put_object(Bucket=self._name, Key=self._prefix + key, Body=body, ContentType="application/json")

    def keys(self) -> list[str]:
        """List the objects below the prefix."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=self._prefix)
        return [entry["Key"].removeprefix(self._prefix) for page in pages for entry in page.get("Contents", ())]

    def get(self, key: str) -> bytes:
        """Download."""
        body: bytes = self._client.get_object(Bucket=self._name, Key=self._prefix + key)["Body"].read()
        return body

    def remove(self, key: str) -> None:
        """Delete."""
        self._client.delete_object(Bucket=self._name, Key=self._prefix + key)

    @property
    def _client(self) -> Any:
        # Making a client is not safe in two threads at once; using it is.
        with self._lock:
            self._connected = self._connected or self._connect()
        return self._connected


def connect_bucket(**location: Any) -> Any:
    """Return a client of S3; `location` is for boto3.client and goes before its own variables."""
    import boto3  # noqa: PLC0415 - a quarter of a second that a healthy start does not need
    from botocore.config import Config  # noqa: PLC0415 - as above

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=PARALLEL_CALLS,
        retries={"mode": "standard", "total_max_attempts": 2},
    )
    return boto3.client("s3", config=config, **location)


def store_at(place: str, connect: Callable[[], Any] = connect_bucket) -> Directory | Bucket:
    """Return what a setting names: `s3://bucket/prefix`, for which `connect` makes a client, or else a directory."""
    if not place.startswith("s3://"):
        return Directory(Path(place))
    name, _, prefix = place.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    return Bucket(name, f"{prefix}/" if prefix else "", connect)


class Quarantine:
    """Keeps failed records in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keep(self, source: Source, reason: str) -> str | None:
        """Store the record with the reason. Return None, or in one line why that failed."""
        try:
            self._store.put(_key(source), _document(source, reason))
        except Exception as error:  # a store may fail in its library's way; the record is then tried again
            return " ".join(f"{type(error).__name__}: {error}".split())
        return None


def _key(source: Source) -> str:
    stream = source.event_record["eventSourceARN"].rpartition("/")[2]
    shard_id, _, sequence_number = source.event_record["eventID"].partition(":")
    suffix = "" if source.position is None else f"-{source.position}"
    return f"{stream}/{shard_id}/{sequence_number}{suffix}.json"


def _document(source: Source, reason: str) -> bytes:
    kinesis = source.event_record["kinesis"]
    own_key = source.user_record.partition_key
    document = {
        "reason": reason,
        "eventSourceARN": source.event_record["eventSourceARN"],
        "eventID": source.event_record["eventID"],
        "sequenceNumber": source.sequence_number,
        "position": source.position,
        "partitionKey": kinesis["partitionKey"] if own_key is None else own_key,
        "approximateArrivalTimestamp": kinesis["approximateArrivalTimestamp"],
        "data": b64encode(source.user_record.data).decode(),
    }
    return json.dumps(document).encode()
