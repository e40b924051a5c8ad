from collections.abc import Iterator

import pytest

from local.table import dynamodb
from tests.processor.aws_by_moto import Aws


@pytest.fixture(scope="session")
def aws() -> Iterator[Aws]:
    """One AWS for all tests of a process: a server and two clients take half a second."""
    with dynamodb() as url:
        aws = Aws(url)
        yield aws
        aws.close()


@pytest.fixture
def table(aws: Aws) -> Iterator[str]:
    """The name of an empty table."""
    with aws.table() as name:
        yield name
