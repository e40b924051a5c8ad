import pytest

from local.__main__ import main


@pytest.mark.parametrize("arguments", [[], ["kinesis"], ["demo", "20"]])
def test_what_there_is_not_gets_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the commands that there are, and exit code 2."""
    assert main(arguments) == 2
    assert "python -m local demo " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["x", "aws"])
def test_the_rest_of_the_line_is_the_commands_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has a help of its own."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"usage: python -m local {command} " in capsys.readouterr().out
