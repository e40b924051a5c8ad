"""
What became of every post of the X stand-in: the truth against which a client is measured.

One row for each post and connection, in the order of sending. A row is in one of four states:

* queued: waits for its connection;
* written: the whole line and its CR LF were taken by the operating system, and no reset destroyed them there. A client
  that reads until the end of its connection has it, unless it ended the connection itself: its ending says so;
* discarded: its connection ended first. Parts of the last write, even whole lines, may have left all the same;
* unsent: it fell due while nobody was connected, while its connection had gone empty, or over the delivery cap. X never
  repeats but in a backfill, and then in a row of its own.

Rows cost about 40 bytes, so that a benchmark can run for minutes.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import md5
from typing import Any, NamedTuple

QUEUED, WRITTEN, DISCARDED, UNSENT = range(4)
STATES = ("queued", "written", "discarded", "unsent")


class Row(NamedTuple):
    """
    One post on one connection.

    Attributes:
        id: the post's.
        key: its author, or its id where the line has no author.
        md5: of the line without CR LF, in hexadecimal.
        state: one of `STATES`.
        connection: the number of the connection; 0 if there was none.
    """

    id: str
    key: str
    md5: str
    state: str
    connection: int


@dataclass
class ConnectionRecord:
    """
    One accepted stream connection; times are seconds since 1970.

    Attributes:
        partition: of a volume stream; 0 for all of it.
        recovers: it was asked for a past range, and for nothing live.
        backfill_minutes: what it asked for.
        ending: "open", or how it ended: an `Ending` of `local.x_api.endings`.
        written: how many posts.
        discarded: how many posts.
    """

    number: int
    uuid: str
    endpoint: str
    token: str
    client_ip: str
    connected_at: float
    partition: int = 0
    recovers: bool = False
    backfill_minutes: int = 0
    disconnected_at: float | None = None
    ending: str = "open"
    written: int = 0
    discarded: int = 0

    def as_object(self) -> dict[str, Any]:
        """Return it for JSON, without the token."""
        return {name: value for name, value in asdict(self).items() if name != "token"}


class Ledger:
    """Rows and connections, kept until the end."""

    def __init__(self) -> None:
        self._ids = array("Q")
        self._keys: list[str | None] = []
        self._digests = bytearray()
        self._states = bytearray()
        self._connections = array("L")
        self.connections: list[ConnectionRecord] = []
        self._counts = [0] * len(STATES)

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self._states)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows are in each state."""
        return dict(zip(STATES, self._counts, strict=True))

    def add(self, post_id: str, key: str, line: bytes, connection: int, state: int = QUEUED) -> int:
        """Enter a post and return the number of its row."""
        self._ids.append(int(post_id))
        # Keys are shared with their source; a key that repeats the id is not worth an object.
        self._keys.append(None if key == post_id else key)
        self._digests += md5(line, usedforsecurity=False).digest()
        self._states.append(state)
        self._connections.append(connection)
        self._counts[state] += 1
        return len(self._states) - 1

    def settle(self, rows: Iterable[int], state: int) -> None:
        """Move rows of one connection from queued to their end: WRITTEN or DISCARDED."""
        number = 0
        last = 0
        for last in rows:
            self._states[last] = state
            number += 1
        if not number:
            return
        self._counts[QUEUED] -= number
        self._counts[state] += number
        record = self.connections[self._connections[last] - 1]
        if state == WRITTEN:
            record.written += number
        else:
            record.discarded += number

    def withdraw(self, rows: Sequence[int]) -> None:
        """Move rows of one connection from written to discarded: a reset has destroyed them on the way."""
        if not rows:
            return
        for row in rows:
            self._states[row] = DISCARDED
        self._counts[WRITTEN] -= len(rows)
        self._counts[DISCARDED] += len(rows)
        record = self.connections[self._connections[rows[-1]] - 1]
        record.written -= len(rows)
        record.discarded += len(rows)

    def rows(self) -> Iterator[Row]:
        """Yield the rows there are."""
        for index in range(len(self)):
            post_id = str(self._ids[index])
            digest = self._digests[16 * index : 16 * index + 16].hex()
            state = STATES[self._states[index]]
            yield Row(post_id, self._keys[index] or post_id, digest, state, self._connections[index])
