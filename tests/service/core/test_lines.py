from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.core.limits import LINE_BYTES
from service.core.lines import HEAD_BYTES, LineSplitter


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut data at these places; empty chunks are possible."""
    borders = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in pairwise([0, *borders, len(data)])]


def test_many_lines_in_one_chunk() -> None:
    """Lines lose their CR LF, or a bare LF, and keep their order."""
    assert LineSplitter().feed(b'{"a":1}\r\n{"b":2}\n{}\r\n') == [b'{"a":1}', b'{"b":2}', b"{}"]


@given(st.lists(st.sampled_from([b"", b"{}", b'{"text":"x"}', b"a\rb", "é😀\u2028\u0085".encode()])), st.data())
def test_chunk_borders_do_not_matter(lines: list[bytes], data: st.DataObject) -> None:
    """Wherever the bytes are cut, inside CR LF or inside a character, the lines are the same."""
    stream = b"".join(line + data.draw(st.sampled_from([b"\r\n", b"\n"])) for line in lines)
    places = data.draw(st.lists(st.integers(0, 1000)))
    splitter = LineSplitter()
    got = [line for chunk in cut(stream, places) for line in splitter.feed(chunk)]
    assert [line for line in lines if line] == got
    assert lines.count(b"") == splitter.keep_alives
    assert splitter.end() is None


def test_only_line_feed_ends_a_line() -> None:
    """What other rules call a line end, U+2028, U+0085, vertical tab, form feed, a lone CR, is text."""
    line = "a\u2028b\u0085c\vd\fe\rf\x1cg".encode()
    assert [line] == LineSplitter().feed(line + b"\r\n")


def test_keep_alives_are_counted_not_handed_out() -> None:
    """Empty lines prove only that the connection lives."""
    splitter = LineSplitter()
    assert splitter.feed(b"\r\n{}\r\n\r\n\n") == [b"{}"]
    assert splitter.feed(b"\r") == []
    assert splitter.feed(b"\n") == []
    assert splitter.keep_alives == 4


def test_a_line_of_exactly_the_limit_passes() -> None:
    """The limit counts the line without its ending, in one chunk or in several."""
    for chunks in ([b"x" * 10 + b"\r\n"], [b"x" * 10 + b"\r", b"\n"], [b"x" * 10, b"\r\n"], [b"x"] * 10 + [b"\n"]):
        splitter = LineSplitter(limit=10)
        assert [line for chunk in chunks for line in splitter.feed(chunk)] == [b"x" * 10]
        assert splitter.overlong == []


def test_an_overlong_line_is_skipped_and_reported_once() -> None:
    """A line over the limit never stops the lines after it, however it is cut into chunks."""
    stream = b"before\r\n" + b"x" * 11 + b"\r\nafter\r\n"
    for size in range(1, len(stream) + 1):
        splitter = LineSplitter(limit=10)
        chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert [line for chunk in chunks for line in splitter.feed(chunk)] == [b"before", b"after"]
        assert len(splitter.overlong) == 1
        assert splitter.overlong[0].startswith(b"x" * 10)


def test_of_an_overlong_line_only_the_head_is_kept() -> None:
    """A line that never ends costs 64 KiB once it is over the limit."""
    splitter = LineSplitter()
    for _ in range(3 * LINE_BYTES // 65_536):
        assert splitter.feed(b"y" * 65_536) == []
    assert splitter.overlong == [b"y" * HEAD_BYTES]
    assert splitter.end() is None
    assert splitter.feed(b"{}\r\n") == [b"{}"]


def test_the_cut_rest_of_a_connection() -> None:
    """What the end of the connection cut off comes out of end(), and does not reach the next connection."""
    splitter = LineSplitter()
    assert splitter.feed(b'{}\r\n{"da') == [b"{}"]
    splitter.feed(b'ta"')
    assert splitter.end() == b'{"data"'
    assert splitter.feed(b"{}\r\n") == [b"{}"]
    assert splitter.end() is None


def test_half_a_keep_alive_is_no_cut_line() -> None:
    """A connection that ends inside a keep-alive has cut nothing."""
    splitter = LineSplitter()
    splitter.feed(b"{}\r\n\r")
    assert splitter.end() is None


def test_a_long_line_in_many_chunks_is_not_copied_for_each() -> None:
    """200,000 chunks of one line are joined once; copying the rest at each chunk would not end within the time-out."""
    splitter = LineSplitter(limit=1 << 30)
    for _ in range(200_000):
        splitter.feed(b"z" * 64)
    assert splitter.feed(b"\r\n") == [b"z" * 64 * 200_000]


def test_a_cut_rest_that_is_too_long() -> None:
    """One byte over the limit could have been the CR of a good line, until the connection ends with it."""
    splitter = LineSplitter(limit=10)
    assert splitter.feed(b"x" * 11) == []
    assert splitter.overlong == []
    assert splitter.end() is None
    assert splitter.overlong == [b"x" * 11]
