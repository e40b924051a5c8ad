from service.core.records import KinesisRecord, SealReason


def test_size_counts_the_bytes_of_data_and_key() -> None:
    """Kinesis counts a partition key by its bytes in UTF-8, not by its characters."""
    record = KinesisRecord("日本", "0", b"12345", [], SealReason.SINGLE)
    assert record.size == 5 + 6
