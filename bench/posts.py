"""
The posts that all peers carry: written to a file once, so that each run reads the same bytes.

    python -m bench.posts FILE COUNT [--authors N] [--alike] [--size BYTES] [--archive FILE [--once]]

Rules:

* The texts are those of the X stand-in (`local.post_shapes`). Each post has an author, because the author is the key
  that keeps posts in order, and an id of its own, so that no two lines are alike.
* Posts over 3 KB are left out; then the mean is 1.1 KB. Larger ones have a table of their own: how cost grows.
* How often authors write follows Zipf's law, shifted (Mandelbrot) so that the busiest of 100,000 writes one post in
  700. Without the shift it would be one in 12, and a benchmark of one shard. X lets an account write 2,400 posts a
  day: of 6,000 posts a second that is one in 200,000.
"""

import argparse
import sys
import time
from itertools import accumulate
from itertools import count as count_from
from pathlib import Path
from random import Random

from local.post_shapes import CREATED_SLOT, ID_SLOT, Composer
from local.posts import Recorded

AUTHORS = 100_000
_SHIFT = 100
_LARGEST_BYTES = 3_000
_TEXTS = 1_024
_FIRST_ID = 2_000_000_000_000_000_000
_FIRST_AUTHOR = 1_000_000_000_000_000_000
# Any pause between two posts; an id must only be larger than the one before.
_ID_STEP = 4_194_303
_AUTHOR_SLOT = "{author}"
_DRAWN_AT_ONCE = 10_000


def write(path: Path, count: int, *, authors: int = AUTHORS, alike: bool = False, size: int | None = None) -> None:
    """
    Write invented posts, the same for the same arguments.

    Args:
        path: of the file; one post a line.
        count: how many.
        authors: how many accounts write.
        alike: each author writes as often as any other.
        size: of each line in bytes, at least 300; without it the sizes are those of a stream, 1.1 KB on average.
    """
    rng = Random(0)
    texts = _texts(rng) if size is None else [_text_of(size)]
    weights = None if alike else list(accumulate(1 / (rank + _SHIFT) for rank in range(1, authors + 1)))
    number = 0
    with path.open("wb") as file:
        while number < count:
            drawn = min(_DRAWN_AT_ONCE, count - number)
            for text, author in zip(
                rng.choices(texts, k=drawn), rng.choices(range(authors), cum_weights=weights, k=drawn), strict=True
            ):
                post_id = str(_FIRST_ID + number * _ID_STEP).encode()
                line = text.replace(ID_SLOT.encode(), post_id)
                file.write(line.replace(_AUTHOR_SLOT.encode(), str(_FIRST_AUTHOR + author).encode()) + b"\n")
                number += 1


def write_recorded(path: Path, archive: Path, count: int, *, once: bool = False) -> None:
    """
    Write the posts of a recorded archive; raises what `local.posts.Recorded` raises.

    Lines that the archive holds twice are written once, because the check tells lines apart by their bytes.

    Args:
        path: of the file.
        archive: one post a line.
        count: how many; from the second pass on they have ids of this moment.
        once: end after the first pass, if it is shorter.
    """
    recorded = Recorded(archive)
    seen: set[bytes] = set()
    written = 0
    with path.open("wb") as file:
        for number in count_from(0):
            if written == count or (once and number == len(recorded)):
                break
            line = recorded.take(int(time.time() * 1000)).line
            if number < len(recorded):
                if line in seen:
                    continue
                seen.add(line)
            file.write(line + b"\n")
            written += 1


def _texts(rng: Random) -> list[bytes]:
    composer = Composer(rng, 1_000)
    texts: list[bytes] = []
    while len(texts) < _TEXTS:
        whole, text = composer.compose()
        author = whole["data"]["author_id"]
        if f'"author_id":"{author}"' not in text:
            # A line of default fields hides its author.
            text = text.replace('"data":{', f'"data":{{"author_id":"{author}",', 1)
        text = text.replace(f'"{author}"', f'"{_AUTHOR_SLOT}"').replace(CREATED_SLOT, "2026-01-01T00:00:00.000Z")
        if len(text.encode()) <= _LARGEST_BYTES:
            texts.append(text.encode())
    return texts


def _text_of(size: int) -> bytes:
    head, tail = f'{{"data":{{"id":"{ID_SLOT}","author_id":"{_AUTHOR_SLOT}","text":"', '"}}'
    fixed = len(head) - len(ID_SLOT) - len(_AUTHOR_SLOT) + len(str(_FIRST_ID)) + len(str(_FIRST_AUTHOR)) + len(tail)
    return (head + ("the old wheel turns past the weir " * (size // 34 + 1))[: size - fixed] + tail).encode()


def main() -> int:
    """Write one file."""
    parser = argparse.ArgumentParser(prog="python -m bench.posts", description="Write a file of posts.")
    parser.add_argument("path", type=Path, metavar="FILE")
    parser.add_argument("count", type=int, metavar="COUNT")
    parser.add_argument("--authors", type=int, default=AUTHORS)
    parser.add_argument("--alike", action="store_true", help="each author writes as often as any other")
    parser.add_argument("--size", type=int, metavar="BYTES", help="of each line")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="recorded posts to write instead")
    parser.add_argument("--once", action="store_true", help="no more than the archive has")
    options = parser.parse_args()
    if options.archive:
        write_recorded(options.path, options.archive, options.count, once=options.once)
    else:
        write(options.path, options.count, authors=options.authors, alike=options.alike, size=options.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
