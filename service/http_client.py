"""
What all share that ask a server over HTTP: a session with its authorisation, and plain words for what goes wrong.

aiohttp's own words are for its users: "Cannot connect to host ... ssl:default [None]" and the `repr` of an exception of
its parser. An operator gets one sentence that says which side of the connection to look at.

Proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`), and so do certificates (`SSL_CERT_FILE`).
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress

import aiohttp

from service import __version__
from service.core.limits import KIB
from service.core.reconnect import Verdict

CONNECT_SECONDS = 10.0
# For a whole answer, where it is one that ends.
ANSWER_SECONDS = 30.0
# Of an answer that is not the wished one; nobody reads more.
BODY_BYTES = 64 * KIB
# Of asyncio: the addresses behind it are a tuple, or several.
_WITH_ADDRESSES = ("Connect call failed", "Multiple exceptions")


class UnavailableError(Exception):
    """X cannot be asked. `verdict` says why, and when to try again; its detail is this error's one line."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.detail)
        self.verdict = verdict


def session(
    authorization: str, timeout: aiohttp.ClientTimeout, middlewares: Sequence[aiohttp.ClientMiddlewareType] = ()
) -> aiohttp.ClientSession:
    """Make a session whose requests carry that header; not to be kept, or an old address of the server is used on."""

    async def authorise(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        # Set here because aiohttp refuses the header beside an entry in ~/.netrc.
        request.headers["Authorization"] = authorization
        return await send(request)

    headers = {"User-Agent": f"Millrace/{__version__}"}
    return aiohttp.ClientSession(
        headers=headers, timeout=timeout, trust_env=True, middlewares=(authorise, *middlewares)
    )


async def start_of(response: aiohttp.ClientResponse, seconds: float) -> bytes:
    """Read what a refusal says, as far as it comes in that time."""
    body = bytearray()
    with suppress(aiohttp.ClientError, OSError):
        async with asyncio.timeout(seconds):
            while len(body) < BODY_BYTES and (chunk := await response.content.readany()):
                body += chunk
    return bytes(body[:BODY_BYTES])


def plain(error: BaseException) -> str:
    """Say in a few words why there is no answer, or no whole one; no line breaks."""
    match error:
        case TimeoutError():
            return "it took too long"
        case aiohttp.ClientConnectorDNSError():
            return f"there is no address for {error.host}"
        case aiohttp.ClientConnectorCertificateError():
            return f"{error.host} is not trusted ({_one_line(error.certificate_error)})"
        case aiohttp.ClientConnectorSSLError():
            return f"no TLS with {error.host}:{error.port} ({_one_line(error.os_error)})"
        case aiohttp.ClientProxyConnectionError():
            return f"no connection to the proxy {error.host}:{error.port} ({_of_system(error.os_error)})"
        case aiohttp.ClientConnectorError():
            return f"no connection to {error.host}:{error.port} ({_of_system(error.os_error)})"
        case aiohttp.ClientPayloadError():
            return "the answer is cut short or damaged"
        case aiohttp.ServerDisconnectedError():
            return "the server hung up"
        case OSError():
            return _of_system(error)
        case _:
            return _one_line(error) or type(error).__name__


def unreachable(error: BaseException) -> str:
    """Say in one line that X cannot be asked, why, and where to look."""
    return f"X cannot be reached: {plain(error)}; check MILLRACE_X_URL and the network"


def _of_system(error: OSError) -> str:
    words = error.strerror or str(error)
    if error.errno and words.startswith(_WITH_ADDRESSES):
        words = os.strerror(error.errno)
    return _one_line(words) or "the server hung up"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
