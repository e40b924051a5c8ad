"""
X's streams: the numbers and names that X gives to each. Source: X's OpenAPI description 2.167 and its rate limits page.

Each is one long answer of JSON lines, and takes the same fields and expansions.
"""

from typing import NamedTuple


class Source(NamedTuple):
    """
    One kind of stream.

    Attributes:
        path: of its URL.
        endpoint: what the Connections API calls it.
        partitions: X deals it out to so many connections; 0 if it is not to be divided.
        connects: how often an app may connect to it in 15 minutes, with all its partitions.
    """

    path: str
    endpoint: str
    partitions: int = 0
    connects: int = 50


SOURCES = {
    "filtered": Source("/2/tweets/search/stream", "filtered_stream"),
    "sample": Source("/2/tweets/sample/stream", "sample_stream"),
    "sample10": Source("/2/tweets/sample10/stream", "sample10_stream", 2, 100),
    "firehose": Source("/2/tweets/firehose/stream", "firehose_stream", 20),
    "firehose_en": Source("/2/tweets/firehose/stream/lang/en", "firehose_stream_lang_en", 8),
    "firehose_ja": Source("/2/tweets/firehose/stream/lang/ja", "firehose_stream_lang_ja", 2),
    "firehose_ko": Source("/2/tweets/firehose/stream/lang/ko", "firehose_stream_lang_ko", 2),
    "firehose_pt": Source("/2/tweets/firehose/stream/lang/pt", "firehose_stream_lang_pt", 2),
}
