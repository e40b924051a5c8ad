"""boto3, one PutRecord for each post: what the project's first version did."""

import boto3

from bench.peers import STREAM
from bench.peers.reading import posts


def main() -> None:
    """Carry all posts."""
    client = boto3.client("kinesis")
    for post in posts():
        client.put_record(StreamName=STREAM, Data=post.data, PartitionKey=post.key)


if __name__ == "__main__":
    main()
