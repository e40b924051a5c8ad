"""What stands around the function in tests: posts, Lambda's context, and a place for the quarantine."""

import base64
import json
from collections.abc import Callable
from typing import Any

from processor.wire import Aggregate


def post(post_id: int, text: str = "hello") -> bytes:
    """A line of the stream."""
    return json.dumps({"data": {"id": str(post_id), "text": text}}).encode()


def aggregate(*lines: bytes) -> bytes:
    """A container of these lines."""
    container = Aggregate()
    for line in lines:
        container.add(b"author", line)
    return container.seal()


class Context:
    """Lambda's context with so many seconds left."""

    aws_request_id = "request-1"

    def __init__(self, seconds: float = 60) -> None:
        self._seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self._seconds * 1000)


class Shelf:
    """A quarantine's store in memory, which fails for the keys that `broken` names."""

    def __init__(self, broken: Callable[[str], bool] = lambda _: False) -> None:
        self.objects: dict[str, Any] = {}
        self._broken = broken

    def put(self, key: str, body: bytes) -> None:
        if self._broken(key):
            raise OSError("the shelf is full")
        self.objects[key] = json.loads(body)

    @property
    def payloads(self) -> set[bytes]:
        return {base64.b64decode(document["data"]) for document in self.objects.values()}
