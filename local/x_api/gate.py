"""
Who may enter: token, rate limits, parameters, rules, usage and connection slots, checked in X's order.

Rules it obeys:

* Three refusals share status 429: too many requests (with a reset header), too many connections, and the usage cap.
* Every stream request counts against the limit of connects, refused ones included unless the settings say otherwise.
* A slot belongs to a token and an endpoint. After an end that X cannot see the slot stays taken for a while: a ghost.
  What the operating system closes for a killed client looks like an orderly close, so every end by the client
  leaves one.
* Backfill and recovery need Enterprise access. The status X has for asking without is not known: 400 or 403, a setting.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from aiohttp import web

from local.x_api.answers import REFUSALS, Refusal
from local.x_api.clock import Clock
from local.x_api.endings import Ending
from local.x_api.endpoints import Endpoint, Subscription
from local.x_api.faults import Faults
from local.x_api.fields import wanted
from local.x_api.ledger import ConnectionRecord
from local.x_api.rulebook import Answer, invalid_request
from local.x_api.settings import Settings

# Requests in a window, from X's rate limits page; for connections it names deleting only. Streams have a limit of their
# own: `Settings.connects`.
LIMITS = {"GET rules": 450, "POST rules": 100, "usage": 50, "connections": 25}
_GHOSTLY = {
    Ending.CLIENT,
    Ending.RESET,
    Ending.FIN,
    Ending.FIN_MID_LINE,
    Ending.FIN_MID_BLOCK,
    Ending.CUT,
}
# How far back recovery reaches, and how many may run at once.
_RECOVERY_SECONDS = 24 * 3600.0
_RECOVERIES = 2

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

    def __init__(self, limit: int, seconds: float, clock: Clock) -> None:
        self.limit, self._seconds, self._clock = limit, seconds, clock
        self._used, self._closes = 0, 0.0

    def take(self) -> bool:
        """Count a request and say whether it is within the limit."""
        now = self._clock.now()
        if now >= self._closes:
            self._used, self._closes = 0, now + self._seconds
        self._used += 1
        return self._used <= self.limit

    def give_back(self) -> None:
        """Count a request no longer."""
        self._used -= 1

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

    def __init__(
        self, reason: str, refusal: Refusal | Answer | None, headers: dict[str, str], *, hanging: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.refusal, self.headers, self.hanging = reason, refusal, headers, hanging


class Gate:
    """
    Checks requests.

    Args:
        settings: of the stand-in.
        clock: of the stand-in.
        faults: refusals that were asked for.
        connections: returns every connection there ever was.
    """

    def __init__(
        self, settings: Settings, clock: Clock, faults: Faults, connections: Callable[[], Sequence[ConnectionRecord]]
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._faults = faults
        self._connections = connections
        self._windows: dict[tuple[str, str], Window] = {}
        # Number of a connection -> the moment at which its slot is free.
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
        window = self._windows.setdefault((token, what), Window(limit, self._settings.window_seconds, self._clock))
        within = window.take()
        headers = window.headers()
        if not within:
            raise refused("rate_limit", headers)
        endpoint = {"streams": "stream", "GET rules": "rules", "POST rules": "rules"}.get(what)
        fault = self._faults.refusal(endpoint) if endpoint else None
        if fault:
            if fault.answer == "rate_limit":
                headers["x-rate-limit-remaining"] = "0"
            error = refused(fault.answer, headers)
            error.hanging = fault.hanging
            raise error
        return Entry(token, headers)

    def admit(
        self, entry: Entry, endpoint: Endpoint, query: Mapping[str, str], *, used: int, has_rules: bool
    ) -> tuple[Subscription, list[ConnectionRecord]]:
        """
        Check what only streams need.

        Args:
            entry: what `enter` returned.
            endpoint: the stream.
            query: parameters of the request.
            used: posts delivered so far.
            has_rules: whether there is anything to match.

        Returns: what the request wants, and the connections that have to make room for it.

        Raises:
            RefusedError: with X's answer.
        """
        problem = self._query_problem(endpoint, query)
        if problem:
            refusal: Answer | Refusal = problem
            if self._settings.forbids_backfill and "needs Enterprise access" in str(problem.body):
                refusal = REFUSALS["client_forbidden"]
            raise RefusedError("invalid_request", refusal, entry.headers)
        if self._settings.usage_cap is not None and used >= self._settings.usage_cap:
            raise refused("usage_cap", entry.headers)
        if not has_rules:
            raise refused("no_rules", entry.headers)
        subscription = _subscription(endpoint, query)
        same = [one for one in self._connections() if (one.token, one.endpoint) == (entry.token, endpoint.name)]
        taken = [
            one
            for one in same
            if (one.partition, one.recovers) == (subscription.partition, not subscription.is_live)
            and self.is_active(one)
        ]
        room = self._settings.connections if subscription.is_live else _RECOVERIES
        if len(taken) < room:
            return subscription, []
        if self._settings.replaces:
            return subscription, taken[: len(taken) - room + 1]
        raise refused("too_many_connections", entry.headers)

    def give_back(self, token: str) -> None:
        """Forget a stream request that was refused, where refused ones do not count."""
        window = self._windows.get((token, "streams"))
        if window and not self._settings.counts_refused:
            window.give_back()

    def is_active(self, connection: ConnectionRecord) -> bool:
        """Say whether X believes a connection to be open: it is, or its ghost is."""
        return connection.ending == "open" or self._clock.now() < self._ghosts.get(connection.number, 0.0)

    def ended(self, connection: ConnectionRecord) -> None:
        """Leave a ghost where X could not see the end."""
        if connection.ending in _GHOSTLY:
            self._ghosts[connection.number] = self._clock.now() + self._settings.ghost_seconds

    def lay_ghost(self, connection: ConnectionRecord) -> None:
        """Free the slot of a connection that has ended."""
        self._ghosts.pop(connection.number, None)

    def _query_problem(self, endpoint: Endpoint, query: Mapping[str, str]) -> Answer | None:
        """Return X's answer to a parameter that it does not know or does not take, if there is one."""
        known = [*_ALLOWED, "backfill_minutes", *(["start_time", "end_time"] if endpoint.recovers else [])]
        known += ["partition"] if endpoint.partitions else []
        for name, value in query.items():
            if name not in known:
                return invalid_request(name, value, f"The query parameter [{name}] is not one of [{','.join(known)}]")
            wrong = f"The `{name}` query parameter value [{value}] is not"
            if name == "backfill_minutes":
                if not (value.isdecimal() and int(value) <= 5):
                    return invalid_request(name, value, f"{wrong} between 0 and 5")
                if int(value) and not self._settings.enterprise:
                    return invalid_request(name, value, f"The `{name}` query parameter needs Enterprise access")
            elif name in {"start_time", "end_time"}:
                if _moment(value) is None:
                    return invalid_request(name, value, f"{wrong} a time in the form YYYY-MM-DDTHH:mm:ssZ")
                if not self._settings.enterprise:
                    return invalid_request(name, value, f"The `{name}` query parameter needs Enterprise access")
            elif name != "partition":
                for one in value.split(","):
                    if one not in _ALLOWED[name]:
                        names = ",".join(sorted(_ALLOWED[name]))
                        message = f"The `{name}` query parameter value [{one}] is not one of [{names}]"
                        return invalid_request(name, value, message)
        return _partition_problem(endpoint, query.get("partition", "")) or self._range_problem(query)

    def _range_problem(self, query: Mapping[str, str]) -> Answer | None:
        start, end = (_moment(query[name]) if name in query else None for name in ("start_time", "end_time"))
        if start is None and end is None:
            return None
        if start is None or end is None or start >= end or start < self._clock.now() - _RECOVERY_SECONDS:
            message = "`start_time` and `end_time` must be a range within the last 24 hours"
            return invalid_request("start_time", query.get("start_time", ""), message)
        return None


def refused(reason: str, headers: dict[str, str]) -> RefusedError:
    """Return the error for a refusal by name; for a fault that is no answer it has none."""
    return RefusedError(reason, REFUSALS.get(reason), headers)


def _partition_problem(endpoint: Endpoint, value: str) -> Answer | None:
    if not endpoint.partitions or (value.isdecimal() and 1 <= int(value) <= endpoint.partitions):
        return None
    message = f"The `partition` query parameter value [{value}] is not between 1 and {endpoint.partitions}"
    return invalid_request("partition", value, message)


def _moment(text: str) -> float | None:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _subscription(endpoint: Endpoint, query: Mapping[str, str]) -> Subscription:
    start, end = (_moment(query[name]) if name in query else None for name in ("start_time", "end_time"))
    partition, minutes = int(query.get("partition", "0")), int(query.get("backfill_minutes", "0"))
    return Subscription(endpoint, partition, minutes, wanted(query), start, end)
