"""boto3, batches of 500, one after the other; what fails is sent again before anything else."""

from typing import TYPE_CHECKING

import boto3

from bench.peers import STREAM
from bench.peers.reading import batches

if TYPE_CHECKING:
    from mypy_boto3_kinesis.type_defs import PutRecordsRequestEntryTypeDef


def main() -> None:
    """Carry all posts."""
    client = boto3.client("kinesis")
    for batch in batches(500, 0.1):
        records: list[PutRecordsRequestEntryTypeDef] = [{"Data": post.data, "PartitionKey": post.key} for post in batch]
        while records:
            answers = client.put_records(StreamName=STREAM, Records=records)["Records"]
            records = [record for record, answer in zip(records, answers, strict=True) if "ErrorCode" in answer]


if __name__ == "__main__":
    main()
