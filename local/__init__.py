"""Stand-ins for the outside world: X, Kinesis, the event source mapping. For the demo, the tests and compose."""

# What all that stands for AWS agrees on. The keys open nothing.
REGION = "us-east-1"
ACCOUNT = "000000000000"
ACCESS_KEY = SECRET_KEY = "test"  # noqa: S105 - opens nothing
