import pytest

from local.x_api.settings import Settings, from_arguments, parser


def test_defaults_of_the_command_line_are_those_of_the_settings() -> None:
    """A bare command line changes nothing."""
    assert from_arguments(parser().parse_args(["--port", "1"])) == Settings()


def test_every_option_reaches_the_settings() -> None:
    """Each is told apart by a value of its own."""
    line = (
        "--port 1 --rate 2 --limit 3 --match all --token a --token b --keep-alive 4 --connects 5 --enterprise "
        "--disorder 6 --duplicates 7 --speed 8 --seed 9"
    )
    assert from_arguments(parser().parse_args(line.split())) == Settings(
        rate=2,
        limit=3,
        match_all=True,
        tokens=("a", "b"),
        keep_alive=4,
        connects=5,
        enterprise=True,
        disorder=6,
        duplicates=7,
        speed=8,
        seed=9,
    )


@pytest.mark.parametrize("line", ["", "--port x", "--port 1 --match some", "--port 1 --rate -1", "--port 1 --speed 0"])
def test_wrong_command_line_ends_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As usual for a command line, with the usage."""
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(line.split())
    assert caught.value.code == 2
    assert "usage: python -m local x" in capsys.readouterr().err
