"""Millrace: carries posts from the X API v2 streams into Amazon Kinesis Data Streams."""

__version__ = "0.1.0"
