"""
The values that travel: a post becomes part of a Kinesis record, records become a request, each ends in an outcome.

All of them are plain data. Only a record changes while it waits: its attempts, and what is known of them.
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Self

import msgspec

# What msgspec raises where bytes are not the JSON that is wanted.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Post(msgspec.Struct, gc=False):
    """
    One post as it came.

    Attributes:
        line: the line of the stream without its CR LF; it is the payload, byte for byte.
        id: what the source calls it; for X a snowflake, so it also says when the post was written.
        key: the partition key, in UTF-8; posts with the same key keep their order.
        received_at: the caller's clock when the line arrived, in seconds.
        position: its place in the journal, rising; -1 if it is not there.
    """

    line: bytes
    id: str
    key: bytes
    received_at: float
    position: int = -1


class DropReason(Enum):
    """
    Why a post was not delivered. Each is a label of `millrace_posts_dropped_total`.

    Attributes:
        of_line: it is the trouble of one line, which is no post, and not the daemon's.
    """

    NOT_JSON = "not_json", True
    NO_ID = "no_id", True
    X_ERROR = "x_error", True  # a line of X that holds only errors: a message, not a post
    LINE_TOO_LONG = "line_too_long", True
    LINE_CUT = "line_cut", True  # the connection ended in the middle of it
    NO_KEY = "no_key", True  # nothing, or no text and no number, where PARTITION_KEY points
    KEY_TOO_LONG = "key_too_long", True
    POST_TOO_LARGE = "post_too_large", False  # larger than the stream takes
    MEMORY_FULL = "memory_full", False  # and there is no journal
    JOURNAL_FULL = "journal_full", False  # JOURNAL_LIMIT
    DISK_FAILED = "disk_failed", False  # full, or not writable
    SHUTDOWN = "shutdown", False  # the drain limit passed and nothing on disk keeps it
    REFUSED = "refused", False  # Kinesis will never take it

    _value_: str
    of_line: bool

    def __new__(cls, label: str, of_line: bool) -> Self:
        """Give the label as the value."""
        reason = object.__new__(cls)
        reason._value_ = label
        reason.of_line = of_line
        return reason


class Rejected(NamedTuple):
    """A line that goes no further, with the reason, and its place in the journal if it came from there."""

    line: bytes
    reason: DropReason
    position: int = -1


class SealReason(Enum):
    """Why an aggregate was closed. Each is a label of `millrace_flushes_total`."""

    SIZE = "size"
    LINGER = "linger"
    DRAIN = "drain"
    SINGLE = "single"  # aggregation is off: every post is a record


class KinesisRecord(msgspec.Struct, eq=False):
    """
    What PutRecords takes, and the posts inside it.

    Attributes:
        partition_key: for Kinesis; for an aggregate the lane's name.
        explicit_hash_key: where in the stream it belongs, as a decimal number; empty if the partition key decides.
        data: the bytes to store. An ambiguous failure sends the same bytes again.
        posts: the posts inside, oldest first.
        sealed: why it was closed.
        attempts: how often it was sent.
        perhaps_stored: an attempt ended without an answer, so Kinesis may hold it already.
        generation: the number of the shard map that it was made under.
        alone: it shared a request that Kinesis refused for good, and goes alone to find the culprit.
        astray: how often it was stored outside the range of its shard.
        size: its share of Kinesis' limits, in bytes: data plus partition key.
    """

    partition_key: str
    explicit_hash_key: str
    data: bytes
    posts: Sequence[Post]
    sealed: SealReason
    generation: int = 0
    attempts: int = 0
    perhaps_stored: bool = False
    alone: bool = False
    astray: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        """Work out the size, which is asked for several times a request."""
        self.size = len(self.data) + len(self.partition_key.encode())


class PutRequest(msgspec.Struct, eq=False):
    """One PutRecords call: at most one record of each lane. `size` is that of its records together, in bytes."""

    number: int
    records: list[KinesisRecord]
    size: int = 0


class RecordResult(NamedTuple):
    """Kinesis' answer for one record: a shard and a sequence number, or an error code."""

    shard_id: str | None = None
    sequence_number: str | None = None
    error_code: str | None = None


class FailureKind(Enum):
    """What a request that got no per-record answer means for its records."""

    NOT_STORED = "not_stored"  # surely not stored, worth sending again: throttled as a whole, nothing listened
    UNKNOWN = "unknown"  # perhaps stored: time-out, connection lost, 5xx
    DENIED = "denied"  # credentials, permissions, stream or key missing: an operator can heal it, so it waits
    REFUSED = "refused"  # the request is not valid and never will be


class RequestFailure(NamedTuple):
    """A whole request that failed. `message` is one line for an operator and holds no secret."""

    kind: FailureKind
    code: str
    message: str


class Outcome(NamedTuple):
    """
    The end of some posts.

    Attributes:
        posts: the posts that have ended, oldest first.
        reason: why they were dropped; None for delivered.
        attempts: how often their record was sent.
        repeated: the answer to an earlier attempt was lost, so that Kinesis may hold them twice.
        message: of a drop: what Kinesis said, or which limit was reached.
    """

    posts: Sequence[Post]
    reason: DropReason | None = None
    attempts: int = 1
    repeated: bool = False
    message: str = ""


class Shard(NamedTuple):
    """An open shard and the hash keys that it takes, both ends included."""

    shard_id: str
    first: int
    last: int


class StreamFacts(NamedTuple):
    """
    What DescribeStreamSummary says.

    Attributes:
        name: of the stream.
        status: ACTIVE or UPDATING when records may be put.
        mode: PROVISIONED or ON_DEMAND.
        record_bytes: the largest record (data plus key) that this stream takes.
        ignores_keys: the stream spreads records by itself (record distribution AUTO), so that order is its own.
    """

    name: str
    status: str
    mode: str
    record_bytes: int
    ignores_keys: bool
