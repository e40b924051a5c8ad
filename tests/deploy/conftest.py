from collections.abc import Iterator

import pytest

from tests.deploy.emulator import LocalSession, moto


@pytest.fixture
def session() -> Iterator[LocalSession]:
    """An empty AWS."""
    with moto() as session:
        yield session
