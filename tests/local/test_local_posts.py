import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from local.posts import Generated, Recorded, Snowflakes

# 2022-12-21T17:31:44.000Z
NOW_MS = 1_671_643_904_000
LINES = [
    rb'{"data":{"text":"\uD83D\uDE00 \"7\"","id":"7","conversation_id":"7","author_id":"70"},"errors":[{"value":"7"}]}',
    b'{ "data": {"edit_history_tweet_ids": ["5", "8"], "text": "{id} {created_at}", "id": "8"}, "includes": {} }',
    b'{"includes":{"tweets":[{"id":"9","text":"first"}]},"data":{"id":"9","text":"\xe4\xb8\x89"}}',
]


@pytest.fixture(scope="module")
def generated() -> Generated:
    """Return a source that the tests of this file share."""
    return Generated(7)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return a file of recorded lines."""
    path = tmp_path / "posts.jsonl"
    path.write_bytes(b"\n".join(LINES) + b"\n\n")
    return path


def test_snowflake_holds_its_moment() -> None:
    """The upper bits of an id are the milliseconds since X's epoch, as in recorded posts."""
    assert (Snowflakes().take(NOW_MS) >> 22) + 1_288_834_974_657 == NOW_MS


def test_snowflakes_grow_within_a_millisecond_and_when_the_clock_goes_back() -> None:
    """Ids only grow."""
    ids = Snowflakes()
    taken = [ids.take(now) for now in (NOW_MS, NOW_MS, NOW_MS - 5000, NOW_MS + 1)]
    assert taken == sorted(set(taken))


def test_generated_posts_are_stamped_when_they_are_sent(generated: Generated) -> None:
    """Id, edit history and created_at agree with each other and with the moment of sending."""
    for number in range(2000):
        now_ms = NOW_MS + 700 * number
        post = generated.take(now_ms)
        data = json.loads(post.line)["data"]
        assert post.id == data["id"] == data["edit_history_tweet_ids"][-1]
        assert (int(post.id) >> 22) + 1_288_834_974_657 == now_ms
        if "created_at" in data:
            whole = (now_ms - 1_671_643_904_000) // 1000
            seconds = 17 * 3600 + 31 * 60 + 44 + whole
            assert data["created_at"][11:] == f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.000Z"


def test_generated_posts_are_lines(generated: Generated) -> None:
    """A line is compact JSON in one line of the wire, whatever `splitlines` would make of it."""
    for _ in range(2000):
        line = generated.take(NOW_MS).line
        assert b"\n" not in line
        assert b"\r" not in line
        assert b'": ' not in line.replace(rb"\"", b"")


def test_generated_posts_are_named_by_author_or_id(generated: Generated) -> None:
    """The key is what a consumer can read on the line."""
    for _ in range(2000):
        post = generated.take(NOW_MS)
        assert post.key == json.loads(post.line)["data"].get("author_id", post.id)


def test_generated_posts_are_the_same_for_the_same_seed(generated: Generated) -> None:
    """A run can be repeated."""
    first, second = Generated(3), Generated(3)
    lines = [first.take(NOW_MS).line for _ in range(200)]
    assert lines == [second.take(NOW_MS).line for _ in range(200)]
    assert lines != [generated.take(NOW_MS).line for _ in range(200)]


def test_generated_sizes_are_those_of_a_stream(generated: Generated) -> None:
    """Small posts are many, large ones few: a mean of 1.1 to 1.5 KB."""
    sizes = sorted(len(generated.take(NOW_MS).line) for _ in range(20_000))
    assert 1100 <= sum(sizes) / len(sizes) <= 1500
    assert sizes[len(sizes) // 4] < 400
    assert sizes[0] < 250
    assert sizes[-1] > 5000


def test_a_few_authors_write_most(generated: Generated) -> None:
    """Authors follow Zipf: the busiest writes several times as often as the tenth."""
    posts = [generated.take(NOW_MS) for _ in range(20_000)]
    counts = [count for _, count in Counter(post.key for post in posts if post.key != post.id).most_common(100)]
    assert counts[0] > 4 * counts[9] > 0


def test_recorded_lines_come_as_they_are(archive: Path) -> None:
    """The first pass changes no byte, and names posts by author or id."""
    recorded = Recorded(archive)
    posts = [recorded.take(NOW_MS) for _ in range(len(recorded))]
    assert [post.line for post in posts] == LINES
    assert [(post.id, post.key) for post in posts] == [("7", "70"), ("8", "8"), ("9", "9")]


def test_repeated_lines_get_fresh_ids_and_keep_all_other_bytes(archive: Path) -> None:
    """From the second pass on only data.id and its place in the edit history change."""
    recorded = Recorded(archive)
    posts = [recorded.take(NOW_MS) for _ in range(9)]
    for number, post in enumerate(posts[3:]):
        fresh = post.id.encode()
        original = LINES[number % 3]
        expected = [
            original.replace(b'"id":"7","conv', b'"id":"' + fresh + b'","conv'),
            original.replace(b'"8"', b'"' + fresh + b'"'),
            original.replace(b'"data":{"id":"9"', b'"data":{"id":"' + fresh + b'"'),
        ][number % 3]
        assert expected == post.line
    assert all(int(one.id) < int(other.id) for one, other in pairwise(posts[3:]))
    assert posts[3].key == "70"
    assert posts[4].id == posts[4].key


@pytest.mark.parametrize(
    "line", [b"nonsense", b"[]", b"{}", b'{"data":{"text":"no id"}}', b'{"data":{"id":"seven"}}', b'{"data":{"id":7}}']
)
def test_archive_with_a_line_that_is_no_post_is_refused(archive: Path, line: bytes) -> None:
    """The message names the file and the line."""
    archive.write_bytes(LINES[0] + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"posts\.jsonl, line 2: not a post"):
        Recorded(archive)


def test_empty_archive_is_refused(archive: Path) -> None:
    """There is nothing to repeat."""
    archive.write_bytes(b"\n")
    with pytest.raises(ValueError, match="holds no posts"):
        Recorded(archive)
