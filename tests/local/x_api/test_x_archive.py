from local.posts import Post
from local.x_api.archive import KEPT_SECONDS, Archive, Kept


def kept(at: float) -> Kept:
    """Make a post that fell due at a moment."""
    return Kept(at, Post(str(int(at)), "author", b"x" * 10, 0, None), b"")


def test_a_range_comes_back_oldest_first() -> None:
    """Both of its ends included."""
    archive = Archive()
    for at in range(10):
        archive.keep(kept(at))
    assert [one.at for one in archive.between(3, 6)] == [3, 4, 5, 6]


def test_it_forgets_after_a_day() -> None:
    """X does not reach further back either."""
    archive = Archive()
    for at in (0, 1, KEPT_SECONDS + 1):
        archive.keep(kept(at))
    assert [one.at for one in archive.between(0, 1e9)] == [1, KEPT_SECONDS + 1]


def test_it_forgets_what_does_not_fit() -> None:
    """The oldest go first."""
    archive = Archive(limit=35)
    for at in range(10):
        archive.keep(kept(at))
    assert [one.at for one in archive.between(0, 10)] == [7, 8, 9]
