"""
Where the posts of the X stand-in come from: invented without end, or read from a recorded archive.

Rules it obeys:

* An id is a snowflake of the moment in which the post is sent: id >> 22 is that moment in milliseconds since
  2010-11-04T01:42:54.657Z. Ids only grow, also when the clock does not.
* A recorded line goes out byte for byte as it stands in its file. Only when the archive has to be repeated do fresh ids
  replace `data.id` and the same id in `data.edit_history_tweet_ids`; every other byte stays.
* Fifty thousand posts a second have to be possible on one core. Invented posts are therefore rendered once, with
  slots for the id and the time, and sending one is two replacements of bytes.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from local.post_shapes import CREATED_SLOT, ID_SLOT, Composer

# Milliseconds since 1970 at which X's snowflakes begin; recorded posts agree with it to the second.
SNOWFLAKE_EPOCH_MS = 1_288_834_974_657
# Below the milliseconds: data centre, worker and sequence at X, one running number here.
SNOWFLAKE_SHIFT = 22

# Enough texts to look like a stream, few enough to be made in a quarter of a second; enough authors to spread.
_TEMPLATES = 1024
_AUTHORS = 1000
_CREATED_SLOT = CREATED_SLOT.encode()
_DRAWN_AT_ONCE = 1024


class Post(NamedTuple):
    """
    One post, ready to be sent.

    Attributes:
        id: the value of `data.id`.
        key: `data.author_id`, or the id where the line has no author: what keeps posts in order.
        line: JSON without the CR LF.
        template: the number of the text that it shares with other posts of its source; what matches one of them
            matches all.
        body: all that X knows of the post, for the rules; None if that is what the line says.
    """

    id: str
    key: str
    line: bytes
    template: int
    body: Mapping[str, Any] | None


class Snowflakes:
    """Ids of the present moment, each larger than the one before."""

    def __init__(self) -> None:
        self._last = 0

    def take(self, now_ms: int) -> int:
        """Return the next id for this moment, in milliseconds since 1970."""
        self._last = max(self._last + 1, (now_ms - SNOWFLAKE_EPOCH_MS) << SNOWFLAKE_SHIFT)
        return self._last


def created_at(snowflake: int) -> bytes:
    """Return the moment of an id as X states it."""
    return _stated(((snowflake >> SNOWFLAKE_SHIFT) + SNOWFLAKE_EPOCH_MS) // 1000)


@lru_cache(maxsize=1)
def _stated(second: int) -> bytes:
    # X states whole seconds with a fraction of zero.
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z").encode()


class Generated:
    """
    Invented posts without end, the same texts in the same order for the same seed.

    Sizes run from 120 bytes to 75 KB with a mean of about 1.2 KB; `local.post_shapes` says what they look like.

    Args:
        seed: of the generator.
    """

    # X writes the matching rules into each line of a filtered stream.
    takes_rules = True

    def __init__(self, seed: int = 0) -> None:
        self._rng = Random(seed)
        self._ids = Snowflakes()
        self._drawn: list[int] = []
        self._templates: list[tuple[list[bytes], str | None, Mapping[str, Any]]] = []
        composer = Composer(self._rng, _AUTHORS)
        for _ in range(_TEMPLATES):
            body, text = composer.compose()
            author = body["data"]["author_id"] if "author_id" in json.loads(text)["data"] else None
            self._templates.append((text.encode().split(ID_SLOT.encode()), author, body))

    def take(self, now_ms: int) -> Post:
        """Return the next post, sent at this moment (milliseconds since 1970)."""
        if not self._drawn:
            self._drawn = self._rng.choices(range(_TEMPLATES), k=_DRAWN_AT_ONCE)
        template = self._drawn.pop()
        pieces, author, body = self._templates[template]
        number = self._ids.take(now_ms)
        post_id = str(number)
        line = post_id.encode().join(pieces).replace(_CREATED_SLOT, created_at(number))
        return Post(post_id, author or post_id, line, template, body)


class Recorded:
    """
    The lines of a recorded archive in their order, over and over.

    The file is held in memory, since its second pass must not wait for a disk.

    Args:
        path: of a file with one post a line, in UTF-8.

    Raises:
        ValueError: a line is not a post with a decimal `data.id`; the message names file and line.
        OSError: the file cannot be read.
    """

    # The bytes are somebody's evidence: nothing is written into them.
    takes_rules = False

    def __init__(self, path: Path) -> None:
        self._lines: list[tuple[bytes, str, str | None]] = []
        self._pieces: dict[int, list[bytes]] = {}
        self._ids = Snowflakes()
        self._position = 0
        for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
            line = raw.removesuffix(b"\r")
            if not line:
                continue
            try:
                data = json.loads(line)["data"]
                # A snowflake fits 63 bits: the ledger counts on it.
                if not re.fullmatch("[0-9]{1,18}|[1-8][0-9]{18}", data["id"]):
                    raise ValueError("not a snowflake")
                self._lines.append((line, data["id"], data.get("author_id")))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: not a post with a decimal data.id") from error
        if not self._lines:
            raise ValueError(f"{path}: holds no posts")

    def __len__(self) -> int:
        """Return how many posts one pass has."""
        return len(self._lines)

    def take(self, now_ms: int) -> Post:
        """Return the next post; from the second pass on with an id of this moment (milliseconds since 1970)."""
        passes, index = divmod(self._position, len(self._lines))
        self._position += 1
        line, post_id, author = self._lines[index]
        if passes:
            pieces = self._pieces.get(index)
            if pieces is None:
                pieces = self._pieces[index] = _split_at_own_id(line, post_id)
            post_id = str(self._ids.take(now_ms))
            line = post_id.encode().join(pieces)
        return Post(post_id, author or post_id, line, index, None)


def _split_at_own_id(line: bytes, post_id: str) -> list[bytes]:
    """
    Split a line where `data.id` and the same id in `data.edit_history_tweet_ids` stand.

    The id may stand in other places too (conversation, includes, texts). Which place is which is found by trial: a
    place belongs to the two fields if a change there changes one of them.
    """
    quoted = b'"' + post_id.encode() + b'"'
    cuts = [-1]
    place = line.find(quoted)
    while place >= 0:
        data = json.loads(line[:place] + b'"?"' + line[place + len(quoted) :])["data"]
        if data["id"] == "?" or "?" in data.get("edit_history_tweet_ids", ()):
            cuts.append(place)
        place = line.find(quoted, place + 1)
    size = len(post_id)
    ends = [*cuts[1:], len(line)]
    starts = [0, *(cut + 1 + size for cut in cuts[1:])]
    return [line[start : end + 1] for start, end in zip(starts, ends, strict=True)]
