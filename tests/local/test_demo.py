"""The demo without its processes; tests/integration/test_pipeline.py runs all of it."""

import io

import pytest
from rich.console import Console

from local.demo import View, main


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"SECONDS_TO_RUN": "soon"}, "demo: SECONDS_TO_RUN: 'soon' is not a number from 0 on"),
        ({"POSTS_PER_SECOND": "-1"}, "demo: POSTS_PER_SECOND: '-1' is not a number from 0 on"),
        ({"POSTS": "/nowhere"}, "demo: POSTS: there is no file /nowhere; name one with a JSON object a line"),
    ],
)
def test_a_senseless_setting_is_one_line(
    environ: dict[str, str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the setting, and nothing is started."""
    assert main(environ) == 1
    assert capsys.readouterr().out == f"{line}\n"


def test_the_picture_says_where_the_posts_are() -> None:
    """What each part has counted and how fast, the trouble, and how much of the run is over."""
    view = View({"received": 512.3, "buffered": 7.0}, {"received": 1234.0, "buffered": 7.0}, "X drops the connection")
    output = io.StringIO()
    Console(file=output, width=80).print(view.picture(0.5))
    text = output.getvalue()
    assert any(line.split()[1:5] == ["daemon", "received", "1,234", "512"] for line in text.splitlines()), text
    assert any(line.split()[1:4] == ["buffered", "7", "0"] for line in text.splitlines()), text
    assert "X drops the connection" in text
    assert "reconnecting" in text
    assert view.line().endswith("reconnects 0  <- X drops the connection")
    assert view.line().endswith("reconnects 0")
