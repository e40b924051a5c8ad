"""
The numbers that Kinesis and X set, each with its source. Nothing here is a wish of ours.

Sources: the Kinesis Data Streams API reference and quotas page (PutRecords, PutRecordsRequestEntry, ListShards),
the service model shipped with botocore 1.43.117, and the X API v2 documentation.
"""

KIB = 1024
MIB = 1024 * KIB

# PutRecords: "up to 500 records"; "up to 10 MiB for the entire request, including partition keys" (5 MiB until 2025).
RECORDS_PER_REQUEST = 500
REQUEST_BYTES = 10 * MIB

# A record: data before base64 plus partition key. The stream's own maximum; this is what a stream has until
# UpdateMaxRecordSize raises it (DescribeStreamSummary: MaxRecordSizeInKiB, at most 10,240).
DEFAULT_RECORD_BYTES = 1 * MIB
LARGEST_RECORD_BYTES = 10 * MIB

# Each shard, in every capacity mode.
SHARD_RECORDS_PER_SECOND = 1000
SHARD_BYTES_PER_SECOND = 1 * MIB

# PutRecordsRequestEntry.PartitionKey: 1 to 256 Unicode characters.
PARTITION_KEY_CHARACTERS = 256
PARTITION_KEY_BYTES = 4 * PARTITION_KEY_CHARACTERS

# The partition key's MD5, as a number, is the hash key: 0 to 2^128 - 1.
HASH_KEYS = 1 << 128

# Billing: a PUT payload unit is 25 KB of a record (25,600 bytes), begun ones count whole.
PAYLOAD_UNIT_BYTES = 25 * KIB
# Billing of on-demand streams: ingested bytes, each record rounded up to 1 KB (Kinesis Data Streams pricing page).
ON_DEMAND_UNIT_BYTES = KIB

# X closes a line with CR LF and states no length. Long posts with expansions reach 300 KB and articles more
# (measured sizes: 75 to 300 KB for a post of 25,000 characters), so this is a bound on harm, not an expectation.
LINE_BYTES = 4 * MIB
