"""
All figures of one moment, as a scrape, the live page and the lines of the log want them.

Some are counted by the metrics; `Buffer`, `Inside` and `SourceFigures` are looked up where they are known.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from service.core.figures import Seen
from service.core.lanes import ShardState
from service.core.producer import Statistics
from service.core.verdict import Check


class Buffer(NamedTuple):
    """
    What has been received and has no outcome yet.

    Attributes:
        posts: how many; `on_disk` of them only the journal has.
        bytes: what they take of memory, and `limit` what they may take.
        journal_bytes: what they take of the journal, and `journal_limit` what they may take; 0 without a journal.
    """

    posts: int = 0
    on_disk: int = 0
    bytes: int = 0
    limit: int = 0
    journal_bytes: int = 0
    journal_limit: int = 0


class Inside(NamedTuple):
    """
    How it stands with lanes, shards and readiness.

    Attributes:
        producer: what is inside.
        shards: how each is.
        checks: the conditions of the readiness.
        mode: PROVISIONED or ON_DEMAND; "" while that is not known.
    """

    producer: Statistics = Statistics(0, 0, 0, 0, 0, 0, 0)
    shards: Sequence[ShardState] = ()
    checks: Mapping[str, Check] = {}
    mode: str = ""


class SourceFigures(NamedTuple):
    """
    How it stands with X.

    Attributes:
        gap_seconds: without a connection; grows while it lasts.
        posts_missed: by estimate, in gaps that are over.
        posts_backfilled: that came after all.
        month_posts: that came this month.
        month_budget: posts a month; 0 for no limit.
        trouble: what somebody must act on: a reason and X's words; empty texts if there is nothing.
        connects_left: that may be made at once within X's limit.
        posts_missing: by estimate, in gaps that last or are being filled.
    """

    gap_seconds: float = 0.0
    posts_missed: int = 0
    posts_backfilled: int = 0
    month_posts: int = 0
    month_budget: int = 0
    trouble: tuple[str, str] = ("", "")
    connects_left: int = 0
    posts_missing: int = 0


class Look(NamedTuple):
    """
    All figures at one moment; counts are since the start.

    Attributes:
        at: seconds since 1970.
        retry_at: when the source is tried again, 0 while it is connected; `signal_at` when it last gave a sign of life,
            `received_at` when the last post came: seconds since 1970, 0 for never.
        billed_units: payload units of 25 KB; `billed_bytes` begun kilobytes.
        lag: from the writing of a post to its arrival; `delivery` from there to its confirmation, without the time that
            it may have waited on disk; `whole` is all of it.
    """

    at: float
    received: int
    recovered: int
    delivered: int
    duplicate: int
    dropped: Mapping[str, int]
    connected: bool
    retry_at: float
    signal_at: float
    received_at: float
    reconnects: int
    requests: int
    retries: int
    failed_requests: int
    order_violations: int
    billed_units: int
    billed_bytes: int
    shard_throttles: Mapping[str, int]
    shard_records: Mapping[str, int]
    shard_bytes: Mapping[str, int]
    lag: Seen
    delivery: Seen
    whole: Seen
    buffer: Buffer
    inside: Inside
    source: SourceFigures
