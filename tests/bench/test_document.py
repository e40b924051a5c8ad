"""What the benchmarks write into docs/performance.md."""

from bench.document import WIDTH, _wrap


def test_prose_is_wrapped_and_tables_are_not() -> None:
    """Words stay whole; a heading and the rows of a table are left as they are."""
    prose = " ".join(["aiobotocore", "3.10.0,", "async-kinesis", "3.0.1;"] * 20)
    lines = _wrap(prose).splitlines()

    assert " ".join(lines) == prose
    assert max(map(len, lines)) <= WIDTH
    assert [_wrap(part) for part in ("| a |" * 50, "### " + "b " * 80)] == ["| a |" * 50, "### " + "b " * 80]
