import os
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.container.stack import Stack, docker


@pytest.fixture(scope="session")
def images() -> Stack:
    """The images, built from the checkout. Without an engine this fails: these tests are never skipped."""
    docker("info")
    stack = Stack(f"millrace-test-{os.getpid()}")
    stack.build()
    return stack


@pytest.fixture(scope="session")
def stack(images: Stack) -> Iterator[Stack]:
    """All services, healthy; at the end nothing of them is left."""
    try:
        images.up()
        yield images
    finally:
        images.down()


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Write a figure to the terminal, also where the test passes."""

    def write(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"{text}\n")

    return write
