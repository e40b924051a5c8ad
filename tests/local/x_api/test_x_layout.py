from itertools import pairwise
from random import Random

import pytest

from local.x_api.layout import Layout, chunks

LINES = ['{"text":"M\u00fchle \\n \u2028"}'.encode(), b"{}"]


@pytest.mark.parametrize("layout", [layout for layout in Layout if layout not in {Layout.BARE_LF, Layout.GLUED}])
def test_joined_again_the_lines_are_the_same(layout: Layout) -> None:
    """A layout moves borders, and changes no byte."""
    assert b"".join(chunks(LINES, layout, Random(1))) == b"".join(line + b"\r\n" for line in LINES)


def test_bare_lf_has_no_cr() -> None:
    """Not even at the end."""
    assert chunks(LINES, Layout.BARE_LF, Random(1)) == [b"".join(line + b"\n" for line in LINES)]


def test_glued_has_an_empty_line_behind_each() -> None:
    """A keep-alive is in the chunk of the line before it."""
    assert chunks(LINES, Layout.GLUED, Random(1)) == [line + b"\r\n\r\n" for line in LINES]


@pytest.mark.parametrize(
    ("layout", "borders"),
    [
        (Layout.BATCH, []),
        (Layout.LINE, []),
        (Layout.CRLF, [len(LINES[0]) + 1]),
        (Layout.UTF8, [LINES[0].index(b"\xc3") + 1]),
        (Layout.ESCAPE, [LINES[0].index(b"\\") + 1]),
        (Layout.BYTES, list(range(1, len(LINES[0]) + 2))),
    ],
)
def test_borders_are_where_the_layout_says(layout: Layout, borders: list[int]) -> None:
    """Inside CR LF, inside a character, behind a backslash, everywhere."""
    whole = LINES[0] + b"\r\n"
    assert chunks(LINES[:1], layout, Random(1)) == [whole[start:end] for start, end in pairwise([0, *borders, None])]


def test_places_of_chance_follow_the_seed() -> None:
    """The same seed cuts at the same places."""
    cut = [chunks(LINES * 20, Layout.SPLIT, Random(seed)) for seed in (1, 1, 2)]
    assert cut[0] == cut[1] != cut[2]
