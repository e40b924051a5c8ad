import pytest

from local.posts import Post
from local.x_api.endpoints import ENDPOINTS, Endpoint, Subscription, partition_of


def post(number: int) -> Post:
    """Make a post with this id."""
    return Post(str(number), "author", b"{}", 0, None)


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if one.partitions])
def test_each_post_is_in_exactly_one_partition(endpoint: Endpoint) -> None:
    """Partitions are disjoint and together complete, and none is empty."""
    parts = [Subscription(endpoint, partition) for partition in range(1, endpoint.partitions + 1)]
    takers = [[part.partition for part in parts if part.wants(post(n), endpoint.lang)] for n in range(2000)]
    assert {len(found) for found in takers} == {1}
    assert {found[0] for found in takers} == set(range(1, endpoint.partitions + 1))


def test_a_post_stays_in_its_partition() -> None:
    """It depends on the id only."""
    assert len({partition_of("1234567", 20) for _ in range(10)}) == 1


def test_a_language_keeps_the_others_out() -> None:
    """Only Japanese posts in the Japanese firehose."""
    japanese = next(one for one in ENDPOINTS if one.lang == "ja")
    wanted = Subscription(japanese, partition_of("7", 2))
    assert (wanted.wants(post(7), "ja"), wanted.wants(post(7), "en")) == (True, False)
