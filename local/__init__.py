"""Stand-ins for the outside world: X, Kinesis, the event source mapping. For the demo, the tests and compose."""

from typing import Any

# What all that stands for AWS agrees on. The keys open nothing.
REGION = "us-east-1"
ACCOUNT = "000000000000"
ACCESS_KEY = SECRET_KEY = "test"  # noqa: S105 - opens nothing
# For a client of boto3 or aiobotocore.
CLIENT: dict[str, Any] = {"region_name": REGION, "aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
