import pytest

from processor.reader import location_of
from processor.settings import SettingsError
from processor.stack import settings_of
from tests.processor.aws_by_moto import Aws


def test_settings_are_those_of_the_function(aws: Aws) -> None:
    """Whatever the stack has told its function, the console is told too."""
    variables = {"TABLE": "mill-EventData", "TIME_SHARDS": "8"}
    aws.make_function("mill-DDBEventProcessor", variables)

    assert settings_of("mill", location_of(aws.environ, "lambda")) == variables


@pytest.mark.parametrize(
    ("changes", "words"), [({}, "Function not found"), ({"AWS_REGION": "no region"}, "Provided region_name")]
)
def test_a_stack_that_cannot_be_asked_is_one_line(aws: Aws, changes: dict[str, str], words: str) -> None:
    """The line names the stack, what was asked for, what to check, and why; boto3's own findings are told like that."""
    line = rf"^stack other: \S+ cannot be asked; check name, AWS_REGION and credentials \([^\n]*{words}"
    with pytest.raises(SettingsError, match=line):
        settings_of("other", location_of(aws.environ | changes, "lambda"))
