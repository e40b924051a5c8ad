"""
DynamoDB's protocol, with the standard library alone: one signed POST of JSON for each operation.

boto3 does the same for three times the CPU, and takes a third of a second to import. Credentials are taken from
the environment, where Lambda puts them; where there are none, botocore is asked for them, which knows profiles and
roles. The tests hold the requests against those of boto3.

Rules and traps:

* A connection belongs to a thread, and is used again. After Lambda has frozen the function for minutes it is closed on
  the other side: a request that finds it so goes once more over a new one.
* There are no other retries, and no proxies.

Sources: "Signature Version 4" in the IAM user guide; "DynamoDB low-level API" in the DynamoDB developer guide.
"""

import json
import os
import ssl
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from hashlib import sha256
from hmac import digest
from http.client import HTTPConnection, HTTPException, HTTPSConnection, RemoteDisconnected
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

SERVICE = "dynamodb"
TARGET = "DynamoDB_20120810."
CONTENT_TYPE = "application/x-amz-json-1.0"
# DynamoDB answers in milliseconds.
CONNECT_SECONDS = 1.0
READ_SECONDS = 2.0
# No header of DynamoDB is as long.
LINE_BYTES = 8192

# What comes after the region in a host's name, by the beginning of the region's name; from botocore's endpoints.
SUFFIXES = {
    "cn-": "amazonaws.com.cn",
    "eu-isoe-": "cloud.adc-e.uk",
    "eusc-": "amazonaws.eu",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "us-isof-": "csp.hci.ic.gov",
    "": "amazonaws.com",
}


class ApiError(Exception):
    """DynamoDB refuses; `code` is the name of its error, or the HTTP status where it gives none."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code


class NoAnswerError(Exception):
    """There was no answer: what was asked may be done, or not. The text is the name of what went wrong."""


class SetupError(Exception):
    """Region or credentials are missing, or the endpoint is no URL. The text is one line with the way out."""


class Credentials(NamedTuple):
    """What signs a request; `token` is there for the keys of a role, such as a Lambda function's."""

    access_key: str
    secret_key: str
    token: str | None = None


class Endpoint(NamedTuple):
    """Where DynamoDB answers: the region that is signed for, the host as in the header, and whether it speaks TLS."""

    region: str
    host: str
    tls: bool


class Dynamo:
    """
    A client. It may be used by many threads at once, each with a connection of its own.

    Args:
        endpoint: where to ask.
        credentials: called for each request, since they may run out.
        context: of TLS; may be None where there is none.
    """

    def __init__(
        self, endpoint: Endpoint, credentials: Callable[[], Credentials], context: ssl.SSLContext | None
    ) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._context = context
        self._mine = threading.local()
        self._all: list[_Connection] = []

    def call(self, operation: str, body: bytes) -> Any:
        """
        Return the answer to one operation, whose parameters are in `body` as JSON.

        Raises:
            ApiError: DynamoDB refuses.
            NoAnswerError: no answer came, or one that is not DynamoDB's.
        """
        headers = signed_headers(self._endpoint, operation, body, self._credentials(), datetime.now(UTC))
        status, content = self._post(body, headers)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if status == 200:
            if not isinstance(answer, dict):
                raise NoAnswerError("UnreadableAnswer")
            return answer
        fault = answer if isinstance(answer, dict) else {}
        code = str(fault.get("__type") or status).rpartition("#")[2]
        raise ApiError(code, str(fault.get("message") or fault.get("Message") or ""))

    def close(self) -> None:
        """Close the connections of all threads; none may be in use."""
        while self._all:
            self._all.pop().close()

    def _post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        connection: _Connection | None = getattr(self._mine, "connection", None)
        if connection is None:
            kind = partial(HTTPSConnection, context=self._context) if self._endpoint.tls else HTTPConnection
            connection = self._mine.connection = _Connection(kind(self._endpoint.host, timeout=CONNECT_SECONDS))
            self._all.append(connection)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"POST / HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body
        while True:
            was_open = connection.is_open
            try:
                return connection.exchange(request)
            except (OSError, HTTPException, ValueError) as error:
                connection.close()
                if not (was_open and isinstance(error, ConnectionError)):
                    raise NoAnswerError(type(error).__name__) from error


class _Connection:
    """
    One connection. It is made by http.client, which would then take most of a call's CPU for reading headers.

    An answer is taken as DynamoDB gives it: HTTP/1.1, with a Content-Length.
    """

    def __init__(self, http: HTTPConnection) -> None:
        self._http = http
        self._answers: BinaryIO | None = None

    @property
    def is_open(self) -> bool:
        return self._answers is not None

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; return status and content. Raises OSError, HTTPException or ValueError."""
        if self._answers is None:
            self._http.connect()
            self._http.sock.settimeout(READ_SECONDS)
            self._answers = self._http.sock.makefile("rb")
        self._http.sock.sendall(request)
        first = self._answers.readline(LINE_BYTES)
        if not first:
            raise RemoteDisconnected("no answer")
        version, _, status = first.partition(b" ")
        is_last = version != b"HTTP/1.1"
        length = -1
        while line := self._answers.readline(LINE_BYTES).rstrip():
            name, _, value = line.partition(b":")
            name = name.lower()
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                is_last = is_last or value.strip().lower() == b"close"
        if length < 0:
            raise HTTPException("an answer without its length")
        content = self._answers.read(length)
        if len(content) < length:
            raise RemoteDisconnected("half an answer")
        if is_last:
            self.close()
        return int(status[:3]), content

    def close(self) -> None:
        """Close it; the next request opens it anew."""
        if self._answers is not None:
            self._answers.close()
            self._answers = None
        self._http.close()


def signed_headers(
    endpoint: Endpoint, operation: str, body: bytes, credentials: Credentials, now: datetime
) -> dict[str, str]:
    """Return the headers of a request, its signature among them."""
    moment = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {
        "Content-Type": CONTENT_TYPE,
        "Host": endpoint.host,
        "X-Amz-Date": moment,
        "X-Amz-Target": TARGET + operation,
    }
    if credentials.token:
        headers["X-Amz-Security-Token"] = credentials.token
    lines = sorted(f"{name.lower()}:{value}\n" for name, value in headers.items())
    names = ";".join(line.partition(":")[0] for line in lines)
    request = f"POST\n/\n\n{''.join(lines)}\n{names}\n{sha256(body).hexdigest()}"
    scope = f"{moment[:8]}/{endpoint.region}/{SERVICE}/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    signature = digest(_signing_key(credentials.secret_key, scope), to_sign.encode(), "sha256").hex()
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    # Not signed, as with botocore.
    headers["User-Agent"] = "millrace-processor"
    headers["Accept-Encoding"] = "identity"
    return headers


@lru_cache(4)
def _signing_key(secret_key: str, scope: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = digest(key, part.encode(), "sha256")
    return key


def connect(environ: Mapping[str, str] = os.environ) -> Dynamo:
    """
    Return a client for the region, endpoint and credentials of the environment, by botocore's own variables.

    Raises:
        SetupError: something of it is missing.
    """
    endpoint = find_endpoint(environ)
    context = None
    if endpoint.tls:
        context = ssl.create_default_context(cafile=environ.get("AWS_CA_BUNDLE") or None)
    return Dynamo(endpoint, find_credentials(environ), context)


def find_endpoint(environ: Mapping[str, str]) -> Endpoint:
    """Return where the environment says that DynamoDB answers."""
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    region = region or _of_profile(environ, "region", lambda session: session.get_config_variable("region"))
    if not region:
        raise SetupError("there is no region; set AWS_REGION")
    url = environ.get("AWS_ENDPOINT_URL_DYNAMODB") or environ.get("AWS_ENDPOINT_URL")
    if not url:
        suffix = next(suffix for start, suffix in SUFFIXES.items() if region.startswith(start))
        return Endpoint(region, f"{SERVICE}.{region}.{suffix}", tls=True)
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path.strip("/"):
        raise SetupError(f"AWS_ENDPOINT_URL_DYNAMODB, or AWS_ENDPOINT_URL, is {url!r}: set it to http(s)://host:port")
    return Endpoint(region, parts.netloc, tls=parts.scheme == "https")


def find_credentials(environ: Mapping[str, str]) -> Callable[[], Credentials]:
    """Return what gives the credentials of the environment whenever it is called."""
    access_key, secret_key = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if access_key and secret_key:
        fixed = Credentials(access_key, secret_key, environ.get("AWS_SESSION_TOKEN"))
        return lambda: fixed
    found = _of_profile(environ, "credentials", lambda session: session.get_credentials())
    if found is None:
        raise SetupError("there are no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")

    def refreshed() -> Credentials:
        keys = found.get_frozen_credentials()
        return Credentials(keys.access_key or "", keys.secret_key or "", keys.token)

    return refreshed


def _of_profile(environ: Mapping[str, str], what: str, find: Callable[[Any], Any]) -> Any:
    """Return what botocore finds beyond the environment: in a profile, or in the role of the machine."""
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - a quarter of a second that Lambda does not need
    from botocore.session import Session  # noqa: PLC0415 - as above

    try:
        return find(Session(profile=environ.get("AWS_PROFILE")))
    except BotoCoreError as error:
        raise SetupError(f"the {what} cannot be had: {error}") from error
