import json
import re
from random import Random
from typing import Any

import pytest

from local.post_shapes import CREATED_SLOT, ID_SLOT, Composer


@pytest.fixture(scope="module")
def composed() -> list[tuple[dict[str, Any], str]]:
    """Return posts enough for every variety."""
    composer = Composer(Random(5), 200)
    return [composer.compose() for _ in range(1500)]


def test_every_text_holds_the_word_that_matches_all(composed: list[tuple[dict[str, Any], str]]) -> None:
    """The rule `millrace` is one that matches every invented post."""
    assert all(re.search(r"\bmillrace\b", body["data"]["text"]) for body, _ in composed)


def test_line_says_nothing_that_the_body_does_not(composed: list[tuple[dict[str, Any], str]]) -> None:
    """What a line shows is what the rules see; a line of default fields shows less."""
    for body, text in composed:
        line = json.loads(text)
        assert body["data"] | line["data"] == body["data"]
        if line.keys() == {"data"}:
            assert {"id", "text", "edit_history_tweet_ids"} == line["data"].keys()


def test_slots_stand_in_the_post_only(composed: list[tuple[dict[str, Any], str]]) -> None:
    """Id and time of the moment have a place; nothing else looks like one."""
    for body, text in composed:
        assert ID_SLOT == body["data"]["id"] == body["data"]["edit_history_tweet_ids"][-1]
        assert body["data"]["created_at"] == CREATED_SLOT
        assert re.search(r"[{][a-z_]+[}]", text.replace(ID_SLOT, "").replace(CREATED_SLOT, "")) is None


@pytest.mark.parametrize(
    "pattern",
    [
        "[\u3040-\u30ff]",
        "[\uac00-\ud7a3]",
        "[\u0600-\u06ff]",
        "[\u0e00-\u0e7f]",
        "[\u0900-\u097f]",
        "[\u0400-\u04ff]",
        "[áéíóúüñç]",
        "[\U0001f300-\U0001faff]",
        "\u2028",
        "\u0085",
        r"(?<!\\)\\u0000",
        r"\\uD83[CD]\\uD[C-F]",
        r"&amp;",
        r"\\n",
        r'\\"',
        r'"geo":\{\}|"attachments":\{\}',
        '"note_tweet"',
        '"type":"retweeted"',
        '"type":"quoted"',
        '"type":"replied_to"',
        '"places"',
        '"variants"',
        '"errors":',
        "https://api.twitter.com/2/problems/resource-not-found",
        "https://api.x.com/2/problems/resource-not-found",
        '"cashtags"',
    ],
)
def test_varieties_of_recorded_streams_are_there(composed: list[tuple[dict[str, Any], str]], pattern: str) -> None:
    """Each script, shape and trap turns up in some lines, none in all."""
    with_it = sum(re.search(pattern, text) is not None for _, text in composed)
    assert 0 < with_it < len(composed)


def test_keys_are_in_any_order(composed: list[tuple[dict[str, Any], str]]) -> None:
    """Whoever relies on an order fails here as with X."""
    assert {"data", "includes"} <= {next(iter(json.loads(text))) for _, text in composed}
    assert len({next(iter(json.loads(text)["data"])) for _, text in composed}) > 5


def test_entities_point_at_their_texts(composed: list[tuple[dict[str, Any], str]]) -> None:
    """Positions count characters of the text."""
    for body, _ in composed:
        text = body["data"]["text"]
        for entity in body["data"].get("entities", {}).get("hashtags", []):
            assert f"#{entity['tag']}" == text[entity["start"] : entity["end"]]
        for entity in body["data"].get("entities", {}).get("mentions", []):
            assert f"@{entity['username']}" == text[entity["start"] : entity["end"]]
