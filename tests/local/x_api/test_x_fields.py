import json
from typing import Any

import pytest

from local.posts import Post
from local.x_api.fields import View, wanted

# 2022-12-21T17:31:44Z
ID = str((1_671_643_904_000 - 1_288_834_974_657) << 22)
BODY: dict[str, Any] = {
    "data": {
        "id": "{id}",
        "text": "水車",
        "edit_history_tweet_ids": ["{id}"],
        "author_id": "1",
        "created_at": "{created_at}",
        "in_reply_to_user_id": "2",
        "lang": "ja",
        "entities": {"mentions": [{"username": "c", "id": "3"}]},
        "referenced_tweets": [{"type": "replied_to", "id": "8"}],
        "attachments": {"media_keys": ["3_1"]},
        "geo": {"place_id": "p"},
    },
    "includes": {
        "users": [{"id": str(n), "name": f"n{n}", "username": f"u{n}", "verified": False} for n in range(1, 5)],
        "tweets": [{"id": "8", "text": "before", "author_id": "4", "lang": "en", "edit_history_tweet_ids": ["8"]}],
        "media": [{"media_key": "3_1", "type": "photo", "url": "https://img.example/1"}],
        "places": [{"id": "p", "full_name": "Weirford", "country": "Nowhere"}],
    },
    "errors": [{"resource_id": "9"}],
}


def shown(**query: str) -> dict[str, Any]:
    """Return what a request sees of the post."""
    names = {name.replace("_fields", ".fields"): value for name, value in query.items()}
    line = View(wanted(names)).line(Post(ID, "1", b"{}", 0, BODY))
    found: dict[str, Any] = json.loads(line)
    return found


def test_without_fields_there_are_three() -> None:
    """And nothing else, errors included."""
    assert shown() == {"data": {"id": ID, "text": "水車", "edit_history_tweet_ids": [ID]}}


def test_fields_of_a_post_are_those_asked_for() -> None:
    """With the moment that its id says."""
    data = shown(tweet_fields="created_at,lang")["data"]
    assert data.keys() == {"id", "text", "edit_history_tweet_ids", "created_at", "lang"}
    assert data["created_at"] == "2022-12-21T17:31:44.000Z"


@pytest.mark.parametrize(
    ("expansion", "kind", "ids"),
    [
        ("author_id", "users", ["1"]),
        ("in_reply_to_user_id", "users", ["2"]),
        ("entities.mentions.username", "users", ["3"]),
        ("referenced_tweets.id.author_id", "users", ["4"]),
        ("referenced_tweets.id", "tweets", ["8"]),
        ("edit_history_tweet_ids", "tweets", [ID]),
        ("attachments.media_keys", "media", ["3_1"]),
        ("geo.place_id", "places", ["p"]),
    ],
)
def test_an_expansion_brings_its_objects_and_its_field(expansion: str, kind: str, ids: list[str]) -> None:
    """Only those."""
    line = shown(expansions=expansion)
    assert [one.get("id", one.get("media_key")) for one in line["includes"][kind]] == ids
    assert expansion.partition(".")[0] in line["data"]
    assert ("errors" in line) == expansion.startswith("referenced_tweets.id")


def test_fields_of_included_objects() -> None:
    """Each kind has its own."""
    line = shown(
        expansions="author_id,attachments.media_keys,geo.place_id",
        user_fields="verified",
        media_fields="url",
        place_fields="country",
    )
    assert line["includes"]["users"] == [{"id": "1", "name": "n1", "username": "u1", "verified": False}]
    assert line["includes"]["media"][0].keys() == {"media_key", "type", "url"}
    assert line["includes"]["places"][0].keys() == {"id", "full_name", "country"}


def test_a_line_of_an_archive_stays_as_it_is() -> None:
    """Nobody knows more of it than it says."""
    assert View(wanted({})).line(Post("1", "1", b'{"data":{"id":"1"}}', 0, None)) == b'{"data":{"id":"1"}}'
