"""The daemon's table of X's streams beside the one that the stand-in of X was given on its own."""

from local.x_api.endpoints import ENDPOINTS
from service.core.sources import SOURCES


def test_the_streams_are_those_of_x() -> None:
    """Names, paths and numbers of partitions were written down twice from X's description, and agree."""
    theirs = {(endpoint.name, endpoint.path, endpoint.partitions) for endpoint in ENDPOINTS}
    assert {(source.endpoint, source.path, source.partitions) for source in SOURCES.values()} == theirs


def test_partitions_share_the_connects_of_their_app() -> None:
    """X counts an app's connects over all its partitions; only the 10 % sample may make more than 50."""
    assert {name: source.connects for name, source in SOURCES.items() if source.connects != 50} == {"sample10": 100}
