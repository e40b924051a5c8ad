"""
Who may enter: token, rate limits, parameters, rules, usage and connection slots, checked in X's order.

Rules it obeys:

* Three refusals share status 429: too many requests (with a reset header), too many connections, and the usage cap.
* Every stream request counts against the limit of connects, refused ones included. Whether X counts those is not
  known; counting them is the harder school for a client.
* A slot belongs to a token and an endpoint. After an end that X cannot see the slot stays taken for a while: a ghost.
  What the operating system closes for a killed client looks like an orderly close, so every end by the client
  leaves one.
* Access is that of pay-per-use: no backfill and no recovery. The status X has for asking is not known; here it is 400.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aiohttp import web
from multidict import MultiMapping

from local.x_api.answers import REFUSALS, Refusal
from local.x_api.faults import Faults
from local.x_api.ledger import ConnectionRecord
from local.x_api.rulebook import Answer, invalid_request
from local.x_api.settings import Settings
from local.x_api.stream import Ending

# Requests in a window, from X's rate limits page; for connections it names deleting only. Streams have a limit of their
# own: `Settings.connects`.
LIMITS = {"GET rules": 450, "POST rules": 100, "usage": 50, "connections": 25}
_GHOSTLY = {Ending.CLIENT, Ending.RESET, Ending.FIN, Ending.FIN_MID_LINE}

# What X 2.167 knows, without what an app's own token may not ask for.
_NAMES = {
    "tweet.fields": "article attachments author_id card_uri community_id context_annotations conversation_id "
    "created_at display_text_range edit_controls edit_history_tweet_ids entities geo id in_reply_to_user_id lang "
    "matched_media_notes media_metadata note_request_suggestions note_tweet paid_partnership possibly_sensitive "
    "public_metrics referenced_tweets reply_settings scopes source suggested_source_links "
    "suggested_source_links_with_counts text withheld",
    "expansions": "article.cover_media article.media_entities attachments.media_keys attachments.media_source_tweet "
    "attachments.poll_ids author_id edit_history_tweet_ids entities.mentions.username "
    "entities.note.mentions.username geo.place_id in_reply_to_user_id referenced_tweets.id "
    "referenced_tweets.id.attachments.media_keys referenced_tweets.id.author_id",
    "media.fields": "alt_text duration_ms height media_key preview_image_url public_metrics type url variants width",
    "user.fields": "affiliation connection_status created_at description entities id is_identity_verified location "
    "most_recent_tweet_id name parody pinned_tweet_id profile_banner_url profile_image_url protected "
    "public_metrics subscription subscription_type url username verified verified_followers_count verified_type "
    "withheld",
    "place.fields": "contained_within country country_code full_name geo id name place_type",
    "poll.fields": "duration_minutes end_datetime id options voting_status",
}
_ALLOWED = {parameter: set(names.split()) for parameter, names in _NAMES.items()}


class Window:
    """A rate limit: so many requests until the window closes, then anew."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit, self._seconds = limit, seconds
        self._used, self._closes = 0, 0.0

    def take(self) -> bool:
        """Count a request and say whether it is within the limit."""
        now = time.time()
        if now >= self._closes:
            self._used, self._closes = 0, now + self._seconds
        self._used += 1
        return self._used <= self.limit

    def headers(self) -> dict[str, str]:
        """Return what X tells about it; the reset is in seconds since 1970."""
        return {
            "x-rate-limit-limit": str(self.limit),
            "x-rate-limit-remaining": str(max(0, self.limit - self._used)),
            "x-rate-limit-reset": str(math.ceil(self._closes)),
        }


class Entry(NamedTuple):
    """A request that may go on: its token, and the headers of its rate limit."""

    token: str
    headers: dict[str, str]


class RefusedError(Exception):
    """A request that X refuses, or leaves without an answer; `reason` is a name of `REFUSALS` or of a fault."""

    def __init__(self, reason: str, refusal: Refusal | Answer | None, headers: dict[str, str]) -> None:
        super().__init__(reason)
        self.reason, self.refusal, self.headers = reason, refusal, headers


class Gate:
    """
    Checks requests.

    Args:
        settings: of the stand-in.
        faults: refusals that were asked for.
        connections: returns every connection there ever was.
    """

    def __init__(
        self, settings: Settings, faults: Faults, connections: Callable[[], Sequence[ConnectionRecord]]
    ) -> None:
        self._settings = settings
        self._faults = faults
        self._connections = connections
        self._windows: dict[tuple[str, str], Window] = {}
        # Number of a connection -> the moment (time.time()) at which its slot is free.
        self._ghosts: dict[int, float] = {}

    def enter(self, request: web.Request, what: str) -> Entry:
        """
        Check token and rate limit of a request, and the faults that wait for it.

        Args:
            request: to check.
            what: "streams", or one of `LIMITS`.

        Raises:
            RefusedError: with X's answer.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        allowed = self._settings.tokens
        if scheme.lower() != "bearer" or not token or (allowed and token not in allowed):
            raise refused("unauthorized", {})
        limit = self._settings.connects if what == "streams" else LIMITS[what]
        window = self._windows.setdefault((token, what), Window(limit, self._settings.window_seconds))
        within = window.take()
        headers = window.headers()
        if not within:
            raise refused("rate_limit", headers)
        endpoint = {"streams": "stream", "GET rules": "rules", "POST rules": "rules"}.get(what)
        fault = self._faults.refusal(endpoint) if endpoint else None
        if fault == "rate_limit":
            headers["x-rate-limit-remaining"] = "0"
        if fault:
            raise refused(fault, headers)
        return Entry(token, headers)

    def admit(self, entry: Entry, endpoint: str, query: MultiMapping[str], *, used: int, has_rules: bool) -> None:
        """
        Check what only streams need.

        Args:
            entry: what `enter` returned.
            endpoint: the name that the Connections API has for the stream.
            query: parameters of the request.
            used: posts delivered so far.
            has_rules: whether there is anything to match.

        Raises:
            RefusedError: with X's answer.
        """
        problem = _query_problem(query)
        if problem:
            raise RefusedError("invalid_request", problem, entry.headers)
        if self._settings.usage_cap is not None and used >= self._settings.usage_cap:
            raise refused("usage_cap", entry.headers)
        if not has_rules:
            raise refused("no_rules", entry.headers)
        taken = [one for one in self._connections() if one.token == entry.token and one.endpoint == endpoint]
        if sum(self.is_active(one) for one in taken) >= self._settings.connections:
            raise refused("too_many_connections", entry.headers)

    def is_active(self, connection: ConnectionRecord) -> bool:
        """Say whether X believes a connection to be open: it is, or its ghost is."""
        return connection.ending == "open" or time.time() < self._ghosts.get(connection.number, 0.0)

    def ended(self, connection: ConnectionRecord) -> None:
        """Leave a ghost where X could not see the end."""
        if connection.ending in _GHOSTLY:
            self._ghosts[connection.number] = time.time() + self._settings.ghost_seconds

    def lay_ghost(self, connection: ConnectionRecord) -> None:
        """Free the slot of a connection that has ended."""
        self._ghosts.pop(connection.number, None)


def refused(reason: str, headers: dict[str, str]) -> RefusedError:
    """Return the error for a refusal by name; for a fault that is no answer it has none."""
    return RefusedError(reason, REFUSALS.get(reason), headers)


def _query_problem(query: MultiMapping[str]) -> Answer | None:
    """Return X's answer to a parameter that it does not know or does not take, if there is one."""
    for name, value in query.items():
        if name == "backfill_minutes":
            if not (value.isdecimal() and int(value) <= 5):
                return invalid_request(
                    name, value, f"The `{name}` query parameter value [{value}] is not between 0 and 5"
                )
            if int(value):
                return invalid_request(name, value, f"The `{name}` query parameter needs Enterprise access")
        elif name in {"start_time", "end_time"}:
            return invalid_request(name, value, f"The `{name}` query parameter needs Enterprise access")
        elif name not in _ALLOWED:
            names = ",".join([*_ALLOWED, "backfill_minutes", "start_time", "end_time"])
            return invalid_request(name, value, f"The query parameter [{name}] is not one of [{names}]")
        else:
            for one in value.split(","):
                if one not in _ALLOWED[name]:
                    names = ",".join(sorted(_ALLOWED[name]))
                    return invalid_request(
                        name, value, f"The `{name}` query parameter value [{one}] is not one of [{names}]"
                    )
    return None
