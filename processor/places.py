"""Where failures lie, for the console: a bucket of S3 or a directory, with the objects that failures.py describes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from processor.failures import bucket_of


class Place(Protocol):
    """Objects by key."""

    def keys(self) -> list[str]:
        """Return the keys of all objects."""

    def get(self, key: str) -> bytes:
        """Return an object."""

    def remove(self, key: str) -> None:
        """Take an object away."""


class FailureDirectory:
    """A directory on this machine; raises OSError."""

    def __init__(self, root: Path) -> None:
        self._root = root

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


class FailureBucket:
    """A bucket of S3, below a prefix; raises what boto3 raises."""

    def __init__(self, name: str, prefix: str, client: Any) -> None:
        self._name = name
        self._prefix = prefix
        self._client = client

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


def place_at(place: str, connect: Callable[[], Any]) -> Place:
    """Return the place that is named: `s3://bucket/prefix`, for which `connect` makes a client, or else a directory."""
    bucket = bucket_of(place)
    return FailureBucket(*bucket, connect()) if bucket else FailureDirectory(Path(place))
