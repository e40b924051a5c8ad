"""
The streams of X that are one long response, and what a request asks of one of them.

From X's OpenAPI description 2.167: only the volume streams have partitions, and all but the 1 % sample can be asked
for a past range of time. How X divides posts over partitions is not documented; here a checksum of the id does it, so
that partitions are disjoint, stable and together complete.
"""

import zlib
from typing import NamedTuple

from local.posts import Post
from local.x_api.fields import Wanted


class Endpoint(NamedTuple):
    """
    One stream.

    Attributes:
        name: what the Connections API calls it.
        path: of the request.
        partitions: how many there are; 0 if it has none.
        recovers: whether it takes start_time and end_time.
        lang: the only language of its posts; "" for all.
    """

    name: str
    path: str
    partitions: int = 0
    recovers: bool = True
    lang: str = ""


FILTERED = Endpoint("filtered_stream", "/2/tweets/search/stream")
SAMPLE = Endpoint("sample_stream", "/2/tweets/sample/stream", recovers=False)
ENDPOINTS = (
    FILTERED,
    SAMPLE,
    Endpoint("sample10_stream", "/2/tweets/sample10/stream", 2),
    Endpoint("firehose_stream", "/2/tweets/firehose/stream", 20),
    Endpoint("firehose_stream_lang_en", "/2/tweets/firehose/stream/lang/en", 8, lang="en"),
    Endpoint("firehose_stream_lang_ja", "/2/tweets/firehose/stream/lang/ja", 2, lang="ja"),
    Endpoint("firehose_stream_lang_ko", "/2/tweets/firehose/stream/lang/ko", 2, lang="ko"),
    Endpoint("firehose_stream_lang_pt", "/2/tweets/firehose/stream/lang/pt", 2, lang="pt"),
)


class Subscription(NamedTuple):
    """
    What one connection wants.

    Attributes:
        endpoint: the stream.
        partition: its part, 1 to `endpoint.partitions`; 0 for all of it.
        backfill_minutes: so much of the past first.
        fields: what of a post it wants to see.
        start, end: only this range, in seconds since 1970, and then the end; None for the live stream.
    """

    endpoint: Endpoint
    partition: int = 0
    backfill_minutes: int = 0
    fields: Wanted = Wanted()
    start: float | None = None
    end: float | None = None

    @property
    def is_live(self) -> bool:
        """Whether it gets posts as they fall due."""
        return self.start is None

    def wants(self, post: Post, lang: str) -> bool:
        """Say whether a post of this language belongs to it; the rules are another question."""
        endpoint = self.endpoint
        if endpoint.lang and lang != endpoint.lang:
            return False
        return not self.partition or partition_of(post.id, endpoint.partitions) == self.partition


def partition_of(post_id: str, partitions: int) -> int:
    """Return the partition, from 1 on, that a post is in."""
    return zlib.crc32(post_id.encode()) % partitions + 1
