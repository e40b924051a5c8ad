"""What stands around the function in tests: Lambda's context, and a place for the quarantine."""

import base64
import json
from collections.abc import Callable
from typing import Any


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
