import pytest

from processor.items import Shape
from processor.settings import Settings, SettingsError


def test_two_settings_are_enough() -> None:
    """The table and the quarantine have to be named; the rest has defaults."""
    settings = Settings.from_environment({"TABLE": "t", "QUARANTINE": "s3://b/p"})

    assert settings == Settings(
        "t", "s3://b/p", Shape(ttl_days=30, time_shards=4), with_metrics=True, function_name="local"
    )


def test_all_of_them_are_read() -> None:
    """Each setting reaches its place; 0 days keep posts for ever."""
    environ = {
        "TABLE": "t",
        "QUARANTINE": "/var/quarantine",
        "TTL_DAYS": "0",
        "TIME_SHARDS": "16",
        "METRICS": "false",
        "AWS_LAMBDA_FUNCTION_NAME": "stack-DDBEventProcessor",
    }

    assert Settings.from_environment(environ) == Settings(
        "t", "/var/quarantine", Shape(0, 16), with_metrics=False, function_name="stack-DDBEventProcessor"
    )


def test_all_faults_are_told_in_one_line() -> None:
    """Every setting that is missing or wrong is named with the way out."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"QUARANTINE": "s3://", "TTL_DAYS": "-1", "TIME_SHARDS": "many", "METRICS": "no"})

    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "TABLE is missing",
        "QUARANTINE is missing",
        "TTL_DAYS is '-1'",
        "TIME_SHARDS is 'many'",
        "METRICS is 'no'",
    ):
        assert words in message


@pytest.mark.parametrize("text", ["0", "1001", "4.0", "٤", "9" * 5_000])
def test_a_number_is_whole_and_within_its_range(text: str) -> None:
    """A number of shards that no table could have is refused."""
    with pytest.raises(SettingsError, match="whole number from 1 to 1000"):
        Settings.from_environment({"TABLE": "t", "QUARANTINE": "q", "TIME_SHARDS": text})
