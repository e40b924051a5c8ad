"""
The app's bearer token: the one that is set, or what X gives for the app's key and secret.

tweepy's own exchange blocks, and says less of what went wrong than X does.
"""

import base64
from collections.abc import Callable
from contextlib import suppress
from random import Random

import aiohttp
import msgspec

from service.core.reconnect import Cause, Ladders, Reason, refusal
from service.core.records import UNREADABLE
from service.http_client import ANSWER_SECONDS, CONNECT_SECONDS, UnavailableError, session, start_of, unreachable

PATH = "/oauth2/token"


class BearerToken:
    """
    See the module's text.

    Arguments:
        url: base URL of the X API.
        read: gives the token that is set, as it is now; "" if key and secret are.
        key: of the app.
        secret: that belongs to the key.
        rng: for the jitter of the waits that an UnavailableError proposes.
        on_new: called with each token before it is used.
    """

    def __init__(
        self,
        url: str,
        *,
        read: Callable[[], str] = str,
        key: str = "",
        secret: str = "",
        rng: Random,
        on_new: Callable[[str], None] = lambda _token: None,
    ) -> None:
        self._url = url.rstrip("/") + PATH
        self._read = read
        self._basic = "Basic " + base64.b64encode(f"{key}:{secret}".encode()).decode()
        self._ladders = Ladders(rng)
        self._on_new = on_new
        self._token = ""

    async def get(self) -> str:
        """Give it, and ask X for it if need be; X gives the same one until it is revoked. Raises UnavailableError."""
        if not self._token:
            self._token = self._read() or await self._exchange()
            self._on_new(self._token)
            self._ladders.reset()
        return self._token

    def refused(self, token: str) -> bool:
        """X does not take this one: it is read, or asked for, anew. Whether another one is set now."""
        if token == self._token:
            self._token = ""
        return (self._token or self._read()) not in {"", token}

    async def _exchange(self) -> str:
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
        form = {"grant_type": "client_credentials"}
        try:
            async with (
                session(self._basic, timeout) as asking,
                asking.post(self._url, data=form, allow_redirects=False) as response,
            ):
                body = await start_of(response, ANSWER_SECONDS)
        except (aiohttp.ClientError, OSError) as error:
            cause = Cause(Reason.NETWORK_ERROR, unreachable(error))
            raise UnavailableError(self._ladders.verdict(cause)) from None
        if response.status == 200:
            with suppress(*UNREADABLE):
                return msgspec.json.decode(body, type=_Token).access_token
        raise UnavailableError(self._ladders.verdict(refusal(response.status, response.headers, body)))


class _Token(msgspec.Struct):
    access_token: str
