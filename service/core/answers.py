"""
What Kinesis answered to a request -> a result for each of its records, or what it means that there are none.

Kinesis' errors come with a code, as its API reference and the common errors of AWS list them. What stands before it,
such as a proxy or a load balancer, answers with a page instead, of which only the status counts.

What an operator reads is one line that holds neither secrets nor payload. The text of a signature error repeats the
signed headers, session token included, and is never quoted. Of other texts whatever looks like a secret, and the values
that a ValidationException repeats, are blotted out.
"""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import msgspec

from service.core.records import UNREADABLE, FailureKind, RecordResult, RequestFailure

# AWS refuses a signature that is five minutes off. Where the clocks agree to a minute, they are not the cause; where
# they do not, ours is wrong, whatever the way to the server took.
CLOCK_TOLERANCE_SECONDS = 60

# What an answer means that is not Kinesis' JSON: a page of a proxy or a load balancer.
_CODES_OF_STATUS = {401: "AccessDenied", 403: "AccessDenied", 413: "RequestEntityTooLarge", 429: "Throttling"}

# What must not reach a log: values that a ValidationException repeats, users in URLs, key ids, and whatever is long
# enough for a secret (a path, which begins with a slash, may be long).
_PRIVATE = re.compile(
    r"(?<=[Vv]alue ').*?(?=' at |$)|(?<=://)[^/\s]*(?=@)|\bA[KS]IA[A-Z0-9]{16}\b"
    r"|(?<![A-Za-z0-9+/=])[A-Za-z0-9+=][A-Za-z0-9+/=]{39,}"
)


class _Entry(msgspec.Struct, rename="pascal", gc=False):
    shard_id: str | None = None
    sequence_number: str | None = None
    error_code: str | None = None


class _PutRecordsOutput(msgspec.Struct, rename="pascal"):
    records: list[_Entry]


class _Fault(msgspec.Struct):
    # The body of an error; some of AWS' front ends write Message.
    code: str = msgspec.field(name="__type", default="")
    message: str = ""
    other_message: str = msgspec.field(name="Message", default="")


_put_records_output = msgspec.json.Decoder(_PutRecordsOutput)


def results(content: bytes, count: int, host: str) -> list[RecordResult] | RequestFailure:
    """
    Read the answer to a PutRecords request that went well.

    Returns:
        one result for each of its `count` records, in their order. Where the answer does not say what became of each,
        UNKNOWN: HTTP says that it went well, so it may well have.
    """
    try:
        entries = _put_records_output.decode(content).records
    except UNREADABLE:
        entries = []
    if len(entries) != count or not all(e.error_code or (e.shard_id and e.sequence_number) for e in entries):
        message = f"{host} does not say what became of each of {count} records"
        return RequestFailure(FailureKind.UNKNOWN, "UnreadableAnswer", message)
    return [RecordResult(e.shard_id, e.sequence_number, e.error_code) for e in entries]


def refusal(
    status: int, headers: Mapping[str, str], content: bytes, now: float, *, host: str, place: str
) -> RequestFailure:
    """
    Say what an error answer means for the records: the table of what Kinesis says.

    Args:
        status: of HTTP, 300 or more.
        headers: found by their names in any case.
        content: the body.
        now: seconds since 1970.
        host: who answered.
        place: the stream, and its region.
    """
    try:
        fault = msgspec.json.decode(content, type=_Fault)
    except UNREADABLE:
        fault = _Fault()
    # In full it is "com.amazonaws.kinesis#SomeException:http://...".
    code = (fault.code or headers.get("x-amzn-errortype") or "").rpartition("#")[2].partition(":")[0]
    name = code.removesuffix("Exception") or _CODES_OF_STATUS.get(status, "")
    code = code or f"HTTP {status}"
    said = f"{code}: {one_line(fault.message or fault.other_message)}".removesuffix(": ")
    ahead = _seconds_ahead(headers.get("date") or "", now)
    match name:
        case "ProvisionedThroughputExceeded" | "LimitExceeded" | "KMSThrottling" | "Throttling":
            # The whole request was turned away before any record was looked at.
            kind, text = FailureKind.NOT_STORED, f"Kinesis throttles {place} ({said})"
        case "InvalidSignature" | "SignatureDoesNotMatch" if abs(ahead) < CLOCK_TOLERANCE_SECONDS:
            # The key id is known, and the secret is not the one that belongs to it.
            kind, text = FailureKind.DENIED, f"The signature is refused ({code}): check the AWS secret access key"
        case "InvalidSignature" | "SignatureDoesNotMatch" | "RequestExpired" | "RequestTimeTooSkewed":
            # Signed for another time than Kinesis has, until the clock is right.
            off = f"{abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'}" if ahead else "not"
            kind, text = FailureKind.DENIED, f"The clock of this machine is {off} that of Kinesis ({code}): set it"
        case "ExpiredToken" | "UnrecognizedClient" | "InvalidClientTokenId":
            # Checked before the request is read; new credentials are taken up as they come.
            kind, text = FailureKind.DENIED, f"The AWS credentials are refused ({code}): renew or correct them"
        case "IncompleteSignature" | "MissingAuthenticationToken" | "OptInRequired":
            # As before; a proxy that takes headers away does it too.
            kind, text = FailureKind.DENIED, f"The AWS credentials do not serve ({code}): check account and proxies"
        case "AccessDenied" | "NotAuthorized":
            # A policy says no. An administrator can change it while the daemon waits.
            kind, text = FailureKind.DENIED, f"The AWS credentials may not use {place} ({said})"
        case "ResourceNotFound":
            # No such stream, or not yet. Either can change.
            way_out = "check MILLRACE_STREAM, AWS_REGION and the account of the credentials"
            kind, text = FailureKind.DENIED, f"There is no {place}: {way_out}"
        case "ResourceInUse":
            # It is being created or deleted. The first passes by itself.
            kind, text = FailureKind.DENIED, f"The {place} is not active ({said})"
        case _ if name.startswith("KMS"):
            # Disabled, missing or not for us, until the key's owner changes that.
            kind, text = FailureKind.DENIED, f"The encryption key of {place} cannot be used ({said})"
        case "Validation" | "ValidationError" | "InvalidArgument" | "Serialization" | "RequestEntityTooLarge":
            # The same bytes would be refused again.
            kind, text = FailureKind.REFUSED, f"The request to {place} is not valid ({said})"
        case "InternalFailure" | "ServiceUnavailable" | "RequestTimeout":
            # It failed before or after storing.
            kind, text = FailureKind.UNKNOWN, f"Kinesis failed ({said})"
        case _ if status >= 500 or status == 408:
            # The same, from whatever stands before Kinesis.
            kind, text = FailureKind.UNKNOWN, f"{host} failed ({said})"
        case _:
            # Turned away for a reason never seen: wait for an operator, because REFUSED would drop posts.
            kind, text = FailureKind.DENIED, f"{host} turns the request away ({said}): check AWS_ENDPOINT_URL_KINESIS"
    return RequestFailure(kind, code, text)


def one_line(text: object) -> str:
    """Quote somebody else's text: at most 500 characters, no line breaks, no secrets."""
    return _PRIVATE.sub("***", " ".join(str(text).split()))[:500]


def _seconds_ahead(date: str, now: float) -> float:
    """How far the clock of the server is ahead of this one; 0 where it does not tell."""
    try:
        return parsedate_to_datetime(date).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
