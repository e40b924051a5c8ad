import json

import pytest

from processor.items import Item
from processor.screen import fit, line_of

POST: Item = {
    "Id": "17",
    "Timestamp": "2026-11-23T14:20:00.250Z",
    "Username": "miller",
    "Message": "今日は\n良い天気",
    "RuleTags": ["a", "b"],
    "ExpiresAt": 1_798_000_000,
}


def test_a_program_gets_all_of_an_item() -> None:
    """Without a terminal an item is one line of JSON, with every attribute, in its own script."""
    line = line_of(POST, None)

    assert json.loads(line) == POST
    assert "今日は" in line
    assert "\n" not in line


def test_a_person_gets_time_name_and_message() -> None:
    """On a terminal an item is one line, however many its message has."""
    assert line_of(POST, 80) == "2026-11-23 14:20:00  @miller  今日は 良い天気"


def test_what_has_no_name_shows_its_id() -> None:
    """A record that is no post has no Username, and a post may have an empty one."""
    for record in ({**POST, "Username": ""}, {name: value for name, value in POST.items() if name != "Username"}):
        assert line_of(record, 80) == "2026-11-23 14:20:00  17  今日は 良い天気"


def test_a_tombstone_shows_what_was_deleted_and_when() -> None:
    """Whoever asks for one by its key sees it."""
    assert line_of({"Id": "deleted#17", "DeletedAt": "2026-11-23T14:20:00.250Z"}, 80) == (
        "2026-11-23 14:20:00  deleted#17  "
    )


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("hello", 6, "hello"),
        ("hello", 5, "hell…"),
        ("水車水車", 9, "水車水車"),
        ("水車水車", 8, "水車水…"),
        ("cafe\u0301", 5, "cafe\u0301"),
        ("a\x1b[31mb\u202ec", 20, "a [31mb c"),
        ("", 1, ""),
    ],
)
def test_a_line_is_never_wider_than_its_terminal(text: str, columns: int, shown: str) -> None:
    """East Asian characters take two columns, an accent none, and nothing that a terminal obeys is left."""
    assert fit(text, columns) == shown
