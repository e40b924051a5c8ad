from typing import Any

import pytest
from botocore.exceptions import ClientError, NoRegionError

from processor.settings import SettingsError
from processor.stack import settings_of

VARIABLES = {"TABLE": "mill-EventData", "TIME_SHARDS": "8"}


class Lambda:
    """The one operation, for one function."""

    def get_function_configuration(self, *, FunctionName: str) -> Any:  # noqa: N803 - the API's own name
        if FunctionName != "mill-DDBEventProcessor":
            raise ClientError({"Error": {"Code": "ResourceNotFoundException", "Message": "no\nfunction"}}, "Get")
        return {"Environment": {"Variables": VARIABLES}}

    def close(self) -> None:
        pass


def test_settings_are_those_of_the_function() -> None:
    """Whatever the stack has told its function, the console is told too."""
    asked: list[dict[str, str]] = []

    def connect(**location: str) -> Lambda:
        asked.append(location)
        return Lambda()

    assert settings_of("mill", {"region_name": "eu-west-1"}, connect) == VARIABLES
    assert asked == [{"region_name": "eu-west-1"}]


def test_a_stack_that_is_not_there_is_one_line() -> None:
    """The line names the stack, what was asked for, and what to check."""
    with pytest.raises(SettingsError, match=r"^stack other: other-DDBEventProcessor cannot be asked; [^\n]*AWS_REGION"):
        settings_of("other", {}, lambda **_: Lambda())


def test_a_missing_region_is_one_line() -> None:
    """What boto3 finds out by itself is told in the same way."""

    def connect(**_: str) -> Any:
        raise NoRegionError

    with pytest.raises(SettingsError, match="You must specify a region"):
        settings_of("mill", {}, connect)
