from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """The daemon logs from info on. Left alone structlog writes all, and the debug lines name every post."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))
    yield
    structlog.reset_defaults()
