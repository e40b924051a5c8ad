import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.rows import Contents, DamagedError, Row, Stored, count


@given(st.lists(st.tuples(st.binary(max_size=50), st.booleans())))
def test_a_row_comes_back(posts: list[tuple[bytes, bool]]) -> None:
    """With the lines that are not confirmed, all places and all flags."""
    lines = [line for line, _ in posts]
    flags = bytes(done for _, done in posts)
    number, lengths, joined = Row(7, lines, flags).encode()
    left = [b"" if done else line for line, done in posts]
    assert Row(7, left, flags) == Stored.decode(number, lengths, joined, flags).row()


def test_a_row_without_flags() -> None:
    """None of its posts is confirmed; the file has no flags for it."""
    assert Row(1, [b"a", b"bc"], b"") == Stored.decode(*Row(1, [b"a", b"bc"], b"").encode(), None).row()


@pytest.mark.parametrize(
    ("kept", "lines", "flags"),
    [(8, b"ab", None), (8, b"abcd", None), (8, b"abc", b"\0"), (8, b"abc", b"\0\0\0"), (7, b"abc", None)],
)
def test_a_row_that_contradicts_itself_is_damage(kept: int, lines: bytes, flags: bytes | None) -> None:
    """It has other bytes than its lengths say, or flags for other posts, or a length that is cut."""
    number, lengths, _ = Row(4, [b"a", b"bc"], b"").encode()
    with pytest.raises(DamagedError, match=r"chunk 4 has \d bytes"):
        Stored.decode(number, lengths[:kept], lines, flags)


def test_what_a_file_holds() -> None:
    """Confirmed posts do not count, their bytes do; the next number is beyond the last row."""
    assert Contents(0, 0, 0, 0) == count([])
    assert Contents(4, 30, 2, 10) == count([(2, 8, 10, None), (9, 12, 20, b"\0\1\0")])
