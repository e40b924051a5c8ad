"""
What of a post a request wants to see: fields and expansions, as X honours them.

Rules it obeys:

* Without any a post has id, text and edit history. Each kind of object has a few fields that always come.
* What is expanded comes too: `author_id` as an expansion brings the field and the user.
* Objects come only if an expansion asks for them; an error about a missing one as well.

It needs posts of which all is known; lines of an archive stay as they are.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from local.post_shapes import CREATED_SLOT, ID_SLOT
from local.posts import Post, created_at

_ALWAYS = {
    "tweet": {"id", "text", "edit_history_tweet_ids"},
    "user": {"id", "name", "username"},
    "media": {"media_key", "type"},
    "place": {"id", "full_name"},
}
_MISSING = "referenced_tweets.id"


class Wanted(NamedTuple):
    """The fields and expansions of one request."""

    tweet: frozenset[str] = frozenset()
    user: frozenset[str] = frozenset()
    media: frozenset[str] = frozenset()
    place: frozenset[str] = frozenset()
    expansions: frozenset[str] = frozenset()


def wanted(query: Mapping[str, str]) -> Wanted:
    """Read them from the query of a request, which has been checked."""

    def names(parameter: str) -> frozenset[str]:
        return frozenset(name for name in query.get(parameter, "").split(",") if name)

    expansions = names("expansions")
    tweet = names("tweet.fields") | {name.partition(".")[0] for name in expansions}
    return Wanted(tweet, names("user.fields"), names("media.fields"), names("place.fields"), expansions)


class View:
    """The posts of a source as a request wants to see them, rendered once for each template."""

    def __init__(self, fields: Wanted) -> None:
        self._fields = fields
        self._lines: dict[int, bytes] = {}

    def line(self, post: Post) -> bytes:
        """Return the line for a post, without its rules."""
        if post.body is None:
            return post.line
        if post.template not in self._lines:
            shown = _shown(post.body, self._fields)
            self._lines[post.template] = json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()
        line = self._lines[post.template].replace(CREATED_SLOT.encode(), created_at(int(post.id)))
        return line.replace(ID_SLOT.encode(), post.id.encode())


def _shown(body: Mapping[str, Any], fields: Wanted) -> dict[str, Any]:
    data, known = body["data"], body.get("includes", {})
    posts = [data, *(one for one in known.get("tweets", ()) if one["id"] != data["id"])]
    asked = fields.expansions
    users = {data.get(name) for name in ("author_id", "in_reply_to_user_id") if name in asked}
    if "entities.mentions.username" in asked:
        users |= {mention.get("id") for mention in (data.get("entities") or {}).get("mentions", ())}
    if "referenced_tweets.id.author_id" in asked:
        users |= {post.get("author_id") for post in posts[1:]}
    keys = _media(posts[:1]) if "attachments.media_keys" in asked else set()
    keys |= _media(posts[1:]) if "referenced_tweets.id.attachments.media_keys" in asked else set()
    places = {(data.get("geo") or {}).get("place_id")} if "geo.place_id" in asked else set()
    shown_posts = posts[:1] if "edit_history_tweet_ids" in asked else []
    shown_posts += posts[1:] if any(name.startswith(_MISSING) for name in asked) else []
    includes = {
        "users": _cut(known.get("users", ()), "user", fields.user, "id", users),
        "tweets": [_fields_of(post, "tweet", fields.tweet) for post in shown_posts],
        "media": _cut(known.get("media", ()), "media", fields.media, "media_key", keys),
        "places": _cut(known.get("places", ()), "place", fields.place, "id", places),
    }
    shown: dict[str, Any] = {"data": _fields_of(data, "tweet", fields.tweet)}
    if any(includes.values()):
        shown["includes"] = {name: objects for name, objects in includes.items() if objects}
    if "errors" in body and any(name.startswith(_MISSING) for name in asked):
        shown["errors"] = body["errors"]
    return shown


def _media(posts: Iterable[Mapping[str, Any]]) -> set[str]:
    return {key for post in posts for key in (post.get("attachments") or {}).get("media_keys", ())}


def _cut(
    objects: Iterable[Mapping[str, Any]], kind: str, fields: frozenset[str], key: str, ids: set[Any]
) -> list[dict[str, Any]]:
    return [_fields_of(one, kind, fields) for one in objects if one[key] in ids]


def _fields_of(one: Mapping[str, Any], kind: str, fields: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name in _ALWAYS[kind] or name in fields}
