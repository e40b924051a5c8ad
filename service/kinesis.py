"""
Kinesis as the daemon sees it: PutRecords, the open shards, the facts of the stream.

Calls go a way of their own. botocore's generic one writes every member and reads every answer by the service model, and
repeats requests behind the back of the lanes. Here a body is joined by hand around base64 by pybase64, and an answer is
one typed decode by msgspec; `core.answers` says what it means. All else stays botocore's: at the start it is asked how
it would send each operation for this stream (its event before-call shows URL, headers and signing names, so that FIPS,
dual stack, account endpoints and AWS_ENDPOINT_URL_KINESIS count), its signer signs every request with credentials that
it refreshes, and its HTTP session, with its TLS, proxies and pool, sends them.

CPU milliseconds of one PutRecords on the producer's side: CPython 3.11, uvloop, aiobotocore 3.10, canned answers over
plain HTTP on loopback, 8 requests in flight, the lowest of many rounds. "Events" is the plain call with body and answer
exchanged by botocore's own hooks, the way that needs no private name:

    records        plain call   events   this file
    20 of 50 KiB       8.2        3.1       2.5
    4 of 50 KiB        2.2        1.2       0.9
    500 of 1 KiB       8.9        2.6       2.3
    1 of 1 KiB         0.9        0.9       0.5

The private name is the client's `_endpoint.http_session`. A session of aiohttp's own would save another 0.04 ms, and
would have to repeat how botocore reads TLS and proxy settings. Of a large request half is SHA-256 and the socket.

Rules and traps:

* aiobotocore calls a connection that broke after sending EndpointConnectionError, like one that never stood. Only
  aiohttp's error inside tells them apart, and with them UNKNOWN from NOT_STORED.
* aiohttp counts its read time-out from the end of sending; a peer that stops reading would hold a request for ever.
  Hence a limit for the whole request.
* aiohttp warns of bodies over 1 MiB given as bytes, and copies them. Slices of one memoryview avoid both.
* botocore reads AWS_DEFAULT_REGION and profiles, but not AWS_REGION, which all other SDKs of AWS read.
* A ValidationException of STS speaks of a role, not of records. So nothing that fails before sending is ever REFUSED.
* The loggers of botocore and aiobotocore write whole requests at DEBUG: they must stay above it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
import orjson
import pybase64
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.awsrequest import AWSResponse, create_request_object
from botocore.compat import HTTPHeaders
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
)

from service import __version__
from service.core.answers import one_line, refusal, results
from service.core.limits import DEFAULT_RECORD_BYTES, HASH_KEYS, KIB
from service.core.records import (
    UNREADABLE,
    FailureKind,
    KinesisRecord,
    RecordResult,
    RequestFailure,
    Shard,
    StreamFacts,
)
from service.http_client import plain

# More requests in flight than this wait for a connection; botocore's default is 10.
_CONNECTIONS = 64

# Large enough that most of a body takes few writes, small enough that the loop breathes between them.
_SLICE_BYTES = 256 * KIB

_T = TypeVar("_T")


class KinesisError(Exception):
    """A call at the start, or a refresh of the shards, failed; `str` is one line for an operator without a secret."""


class _HashKeyRange(msgspec.Struct, rename="pascal"):
    starting_hash_key: str
    ending_hash_key: str


class _Shard(msgspec.Struct, rename="pascal"):
    shard_id: str
    hash_key_range: _HashKeyRange


class _ListShardsOutput(msgspec.Struct, rename="pascal"):
    shards: list[_Shard]
    next_token: str | None = None


class _Summary(msgspec.Struct, rename="pascal"):
    # The defaults are what all streams had before the API spoke of it; older stand-ins still do not.
    stream_name: str
    stream_status: str
    stream_mode_details: dict[str, str] = {}
    max_record_size_in_kib: int = msgspec.field(name="MaxRecordSizeInKiB", default=DEFAULT_RECORD_BYTES // KIB)
    record_distribution_strategy: str = "USER_PARTITION_KEY"


class _DescribeStreamSummaryOutput(msgspec.Struct, rename="pascal"):
    stream_description_summary: _Summary


class Kinesis:
    """
    One stream; an async context manager.

    Args:
        stream: its name or its ARN; an ARN also says the region.
        region: AWS_REGION of the environment, or None: then AWS_DEFAULT_REGION or the profile says it.
        session: where botocore's configuration and credentials come from; by default the environment.
        connect_timeout: seconds to a standing connection, TLS included.
        read_timeout: seconds without a byte of the answer, once the request is sent.
        request_timeout: seconds for a whole request, and before it for credentials.

    Entering it sends nothing to Kinesis. It raises KinesisError where no region or no credentials can be had.
    """

    def __init__(
        self,
        stream: str,
        *,
        region: str | None = None,
        session: AioSession | None = None,
        connect_timeout: float = 5.0,
        read_timeout: float = 10.0,
        request_timeout: float = 60.0,
    ) -> None:
        is_arn = stream.startswith("arn:")
        self._stream = {"StreamARN" if is_arn else "StreamName": stream}
        self._region = stream.split(":")[3] if is_arn else region
        self._session = session or AioSession()
        self._request_timeout = request_timeout
        self._config = AioConfig(
            parameter_validation=False,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            max_pool_connections=_CONNECTIONS,
            user_agent_extra=f"millrace/{__version__}",
        )
        self._place = f"stream {stream}"
        self._requests: dict[str, dict[str, Any]] = {}  # operation -> the request as botocore would send it
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        if self._region:
            # On the session, for the calls to STS and SSO that a provider of credentials may make.
            self._session.set_config_variable("region", self._region)
        async with AsyncExitStack() as resources:
            try:
                client = await resources.enter_async_context(
                    self._session.create_client("kinesis", region_name=self._region, config=self._config)
                )
                await self._learn_requests(client)
                # In vain, but credentials that cannot be had are told here, before anything is sent.
                await self._sign("PutRecords", b"")
            except Exception as error:  # what a provider of credentials raises is not only botocore's
                raise KinesisError(_setting(error)) from None
            self._resources = resources.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._resources.aclose()

    async def put(self, records: Sequence[KinesisRecord]) -> list[RecordResult] | RequestFailure:
        """
        Send one PutRecords request, once.

        Args:
            records: 1 to 500, within the limits of a request and of the stream.

        Returns:
            one result per record, in their order; or why there are none. Trouble that can be expected never raises.
        """
        answer = await self._ask("PutRecords", self.body(records))
        return answer if isinstance(answer, RequestFailure) else results(answer, len(records), self._host)

    async def shards(self) -> list[Shard]:
        """
        List the open shards.

        Raises:
            KinesisError: the list, or a page of it, could not be had.
        """
        query: dict[str, Any] = {**self._stream, "ShardFilter": {"Type": "AT_LATEST"}}
        found: list[_Shard] = []
        while True:
            page = self._read(await self._ask("ListShards", orjson.dumps(query)), _ListShardsOutput)
            found += page.shards
            if not page.next_token:
                break
            # ListShards refuses a token beside the stream's name: the token already names the stream.
            query = {"NextToken": page.next_token}
        if not found:
            raise KinesisError(f"The {self._place} has no open shard: it is being made, or deleted")
        ranges = [(shard.shard_id, shard.hash_key_range) for shard in found]
        return [Shard(name, int(keys.starting_hash_key), int(keys.ending_hash_key)) for name, keys in ranges]

    async def facts(self) -> StreamFacts:
        """
        Ask what the stream is: DescribeStreamSummary.

        Raises:
            KinesisError: the stream does not exist, the credentials do not serve, or there was no answer.
        """
        answer = await self._ask("DescribeStreamSummary", orjson.dumps(self._stream))
        summary = self._read(answer, _DescribeStreamSummaryOutput).stream_description_summary
        return StreamFacts(
            name=summary.stream_name,
            status=summary.stream_status,
            mode=summary.stream_mode_details.get("StreamMode", "PROVISIONED"),
            record_bytes=summary.max_record_size_in_kib * KIB,
            ignores_keys=summary.record_distribution_strategy == "AUTO",
        )

    @property
    def url(self) -> str:
        """Where PutRecords goes, without what a user may have put before the host."""
        return f"{urlsplit(self._requests['PutRecords']['url']).scheme}://{self._host}"

    async def probe(self) -> bool:
        """
        Check that records may be put, without putting one; returns whether that was tried.

        A dry run checks the permission and stores nothing, but a service that does not know the parameter takes the
        request for a real one. So the probe goes to hosts of AWS only and is skipped at any other endpoint: there are
        stand-ins that store whatever comes. Its record asks for hash key 2^128, one more than there are, which Kinesis
        refuses once it has checked the permission; so nothing is stored even where a region does not know dry runs.

        Raises:
            KinesisError: records may not be put.
        """
        if not self._is_aws():
            return False
        record = {"Data": "", "PartitionKey": "millrace-probe", "ExplicitHashKey": str(HASH_KEYS)}
        query = {**self._stream, "Records": [record], "DryRun": True}
        answer = await self._ask("PutRecords", orjson.dumps(query))
        allowed = {"DryRunOperationException", "InvalidArgumentException"}
        if isinstance(answer, RequestFailure) and answer.code not in allowed:
            raise KinesisError(answer.message)
        return True

    async def _learn_requests(self, client: Any) -> None:
        """Have botocore make each request up to the point of sending, and keep what it made."""

        def take(model: Any, params: dict[str, Any], request_signer: Any, **_: object) -> tuple[AWSResponse, Any]:
            self._requests[model.name], self._signer = params, request_signer
            return AWSResponse(params["url"], 200, HTTPHeaders(), None), {}

        client.meta.events.register_last("before-call.kinesis", take)
        await client.put_records(**self._stream, Records=[])
        await client.list_shards(**self._stream)
        await client.describe_stream_summary(**self._stream)
        self._http = client._endpoint.http_session  # noqa: SLF001 - see the module's docstring
        self._host = urlsplit(self._requests["PutRecords"]["url"]).netloc.rpartition("@")[2]
        self._place = f"{self._place} in {client.meta.region_name}"

    def _is_aws(self) -> bool:
        host = urlsplit(self._requests["PutRecords"]["url"]).hostname or ""
        partitions = self._session.get_component("data_loader").load_data("partitions")["partitions"]
        suffixes = {part["outputs"][name] for part in partitions for name in ("dnsSuffix", "dualStackDnsSuffix")}
        return any(host.endswith(f".{suffix}") for suffix in suffixes)

    async def _sign(self, operation: str, body: bytes) -> Any:
        request = create_request_object({**self._requests[operation], "body": body})
        # It may ask a provider for new credentials, and not all of them have a limit of their own.
        async with asyncio.timeout(self._request_timeout):
            await self._signer.sign(operation, request)
        signed: Any = request.prepare()
        signed.body = _slices(body)
        return signed

    def body(self, records: Sequence[KinesisRecord]) -> bytes:
        """Make the body of a request."""
        # Base64 needs no escapes, and joined in one go the body needs no room to grow: 10 MiB take 13 less at the peak.
        pieces = [orjson.dumps(self._stream)[:-1], b',"Records":[']
        for record in records:
            pieces += (b'{"Data":"', pybase64.b64encode(record.data), b'","PartitionKey":')
            pieces.append(orjson.dumps(record.partition_key))
            if record.explicit_hash_key:
                pieces += (b',"ExplicitHashKey":"', record.explicit_hash_key.encode(), b'"')
            pieces.append(b"},")
        pieces[-1] = b"}]}"
        return b"".join(pieces)

    async def _ask(self, operation: str, body: bytes) -> bytes | RequestFailure:
        try:
            request = await self._sign(operation, body)
        except Exception as error:  # what a provider of credentials raises is not only botocore's
            return RequestFailure(FailureKind.DENIED, _code_of(error), _setting(error))
        try:
            async with asyncio.timeout(self._request_timeout):
                response = await self._http.send(request)
                content: bytes = await response.content
        except (BotoCoreError, TimeoutError) as error:
            return self._broken(error)
        status, headers = response.status_code, response.headers
        if status < 300:
            return content
        return refusal(status, headers, content, time.time(), host=self._host, place=self._place)

    def _read(self, answer: bytes | RequestFailure, shape: type[_T]) -> _T:
        if isinstance(answer, RequestFailure):
            raise KinesisError(answer.message)
        try:
            return msgspec.json.decode(answer, type=shape)
        except UNREADABLE:
            message = f"{self._host} does not answer as Kinesis does: check AWS_ENDPOINT_URL_KINESIS"
            raise KinesisError(message) from None

    def _broken(self, error: Exception) -> RequestFailure:
        """Say what it means for the records that there was no answer: the table of what happens on the way."""
        cause = error.kwargs.get("error") if isinstance(error, BotoCoreError) else None
        reason, way_out = one_line(plain(cause or error)), "check AWS_REGION, AWS_ENDPOINT_URL_KINESIS and the network"
        match error:
            case ProxyConnectionError():
                # The tunnel never stood.
                kind, text = FailureKind.NOT_STORED, f"The proxy on the way to {self._host} fails: {reason}"
            case _ if isinstance(cause, aiohttp.ClientConnectorCertificateError):
                # Ends the handshake, before the request, until an operator sees to it.
                kind, text = FailureKind.DENIED, f"{reason}; check AWS_CA_BUNDLE"
            case _ if isinstance(error, ConnectTimeoutError) or isinstance(cause, aiohttp.ClientConnectorError):
                # Refused, unreachable, no such name, no TLS: none got as far as the request.
                kind, text = FailureKind.NOT_STORED, f"Kinesis cannot be reached: {reason}; {way_out}"
            case _ if type(error) is HTTPClientError and isinstance(cause, OSError):
                # A file of certificates that cannot be loaded; what a connection raises has a type of its own.
                kind, text = FailureKind.DENIED, f"TLS cannot be set up: {reason}; check AWS_CA_BUNDLE"
            case TimeoutError():
                # The limit of the whole request: it may be anywhere.
                kind, text = FailureKind.UNKNOWN, f"{self._host} was not done after {self._request_timeout:g} s"
            case _:
                # A time-out while reading, a connection lost after sending, half an answer.
                kind, text = FailureKind.UNKNOWN, f"No answer from {self._host}: {reason}; {way_out}"
        return RequestFailure(kind, type(error).__name__, text)


async def _slices(body: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for start in range(0, len(view), _SLICE_BYTES):
        yield view[start : start + _SLICE_BYTES]


def _setting(error: Exception) -> str:
    """Tell which setting keeps requests from being made at all."""
    match error:
        case NoRegionError():
            return "No AWS region: set AWS_REGION, or give MILLRACE_STREAM as an ARN"
        case NoCredentialsError() | PartialCredentialsError():
            way_out = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run under a role"
            return f"No AWS credentials in any place where botocore looks: {way_out}"
        case TimeoutError():
            return "No AWS credentials in time: look at what hands them out, such as a role, SSO or a program"
        case ProfileNotFound():
            return f"{one_line(error)}: check AWS_PROFILE, and AWS' files of this user"
        case ValueError() if str(error).startswith("Invalid endpoint"):
            return "AWS_ENDPOINT_URL_KINESIS, or AWS_ENDPOINT_URL, is not a URL: write one like https://host:port"
        case _:
            return f"The AWS configuration or credentials cannot be used ({_code_of(error)}: {one_line(error)})"


def _code_of(error: Exception) -> str:
    code = error.response.get("Error", {}).get("Code") if isinstance(error, ClientError) else None
    return code or type(error).__name__
