"""
X's Connections API: which connection is ours, and its end, when X still counts one that we have lost.

An app has few slots for connections, often one. After an end that X did not see (the machine was cut off, the process
was killed) the slot stays taken for seconds or minutes: a ghost. Only the ghost of this very daemon is ever ended:

* While a connection stands, X is asked for those that are active on this stream. Exactly one that began at the moment
  of our 200, by X's own clock, is ours; its id is kept, over restarts too. If two began then, neither is known.
* When X refuses a connect for want of a slot, that id and no other is deleted.

tweepy does not know this API. An access level that may not use it gets a refusal; then it is not asked again in this
run, and a ghost is waited out.
"""

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

import aiohttp
import msgspec
import structlog

from service.core.reconnect import refusal
from service.core.records import UNREADABLE
from service.http_client import plain, session

PATH = "/2/connections"
# X tells the beginning of a connection, and its own time in an answer, in whole seconds.
TOLERANCE_SECONDS = 2.0
# So long after the 200, so that X's list knows of it.
SETTLE_SECONDS = 5.0
ANSWER_SECONDS = 10.0

log = structlog.get_logger()

_T = TypeVar("_T", bound=msgspec.Struct)


class _Connection(msgspec.Struct):
    id: str = ""
    connected_at: str = ""
    endpoint_name: str = ""


class _Active(msgspec.Struct):
    data: list[_Connection] = []


class _Kills(msgspec.Struct):
    successful_kills: int = 0


class _Killed(msgspec.Struct):
    data: _Kills = msgspec.field(default_factory=_Kills)


class Connections:
    """
    The connections of one kind of stream.

    Arguments:
        url: base URL of the X API.
        endpoint: what X calls the stream, such as filtered_stream.
        own: the id of our last connection; "" if it is not known.
        settle_seconds: how long after the beginning of a connection X is asked for it.

    Attributes:
        own: the same, as it changes.
    """

    def __init__(self, url: str, endpoint: str, own: str = "", *, settle_seconds: float = SETTLE_SECONDS) -> None:
        self.own = own
        self._url = url.rstrip("/") + PATH
        self._endpoint = endpoint
        self._settle_seconds = settle_seconds
        self._usable = True

    async def learn(self, connected_at: float, token: str) -> None:
        """Find out which of X's connections began then, in seconds since 1970 by X's clock, and is ours."""
        # An older one does not matter any more: there is room beside it.
        self.own = ""
        await asyncio.sleep(self._settle_seconds)
        query = {
            "status": "active",
            "endpoints": self._endpoint,
            "max_results": "100",
            "connection.fields": "connected_at,endpoint_name,id",
        }
        active = await self._ask(_Active, "GET", token, params=query)
        ids = [one.id for one in active.data if one.id and self._began(one, connected_at)]
        if len(ids) == 1:
            self.own = ids[0]

    async def free(self, token: str) -> bool:
        """End the connection that we had, if its id is known and X believes it to be open. Whether X did so."""
        own, self.own = self.own, ""
        if not own:
            return False
        killed = await self._ask(_Killed, "DELETE", token, json={"uuids": [own]})
        ended = killed.data.successful_kills > 0
        log.info("ghost_ended" if ended else "ghost_not_ended", connection=own)
        return ended

    def _began(self, connection: _Connection, moment: float) -> bool:
        if connection.endpoint_name not in {"", self._endpoint}:
            return False
        try:
            began = datetime.fromisoformat(connection.connected_at).timestamp()
        except ValueError:
            return False
        return abs(began - moment) <= TOLERANCE_SECONDS

    async def _ask(self, kind: type[_T], method: str, token: str, **parts: Any) -> _T:
        """Send one request; an empty answer if there is none of use. What goes wrong costs patience, nothing else."""
        if not self._usable:
            return kind()
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        try:
            async with (
                session(f"Bearer {token}", timeout) as asking,
                asking.request(method, self._url, allow_redirects=False, **parts) as response,
            ):
                body = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            log.info("connections_unknown", error=plain(error))
            return kind()
        if response.status == 200:
            with suppress(*UNREADABLE):
                return msgspec.json.decode(body, type=kind)
            return kind()
        # 401 and 429 pass; others say that this access level, or this X, has no such thing.
        self._usable = response.status in {401, 429} or response.status >= 500
        log.info("connections_unknown", error=refusal(response.status, response.headers, body).words)
        return kind()
