"""What a test of the shell changes for the whole process, and what puts it back."""

import logging
import os
import sys
from collections.abc import Iterator

import pytest
import structlog
from structlog._config import BoundLoggerLazyProxy


@pytest.fixture
def own_aws() -> Iterator[None]:
    """Let botocore find the credentials of the stand-in, and nothing of this machine's own."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Leave the process's logging as it was found, loggers that keep what a daemon set up for them included."""
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    for module in list(sys.modules.values()):
        if isinstance(logger := vars(module).get("log"), BoundLoggerLazyProxy):
            vars(logger).pop("bind", None)
