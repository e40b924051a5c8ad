"""
Checks that a request is signed as AWS wants it: Signature Version 4, in the Authorization header.

The steps are those of "Create a signed AWS API request" in the IAM user guide: canonical request, string to sign,
signing key, signature. Refusals carry the codes of the service; a clock may differ by five minutes. There is one key
that may sign, `local.ACCESS_KEY`.
"""

import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256

from local import ACCESS_KEY, REGION, SECRET_KEY
from local.kinesis.errors import KinesisError

ALLOWED_SKEW_SECONDS = 300
_PART = re.compile(r"(Credential|SignedHeaders|Signature)=([^,\s]+)")


def verify(headers: Mapping[str, str], body: bytes, now: float) -> None:
    """
    Return if a POST to `/` is signed well; raise KinesisError if not.

    `headers` finds a name whatever its case; `now` is in seconds since 1970.
    """
    authorization = headers.get("Authorization")
    if authorization is None:
        raise KinesisError("MissingAuthenticationTokenException")
    parts = dict(_PART.findall(authorization))
    date = headers.get("X-Amz-Date", "")
    missing = [name for name in ("Credential", "Signature", "SignedHeaders") if name not in parts]
    if missing or not authorization.startswith("AWS4-HMAC-SHA256 "):
        raise KinesisError("IncompleteSignatureException", f"Authorization header lacks {missing or 'its algorithm'}.")
    identity, _, scope = parts["Credential"].partition("/")
    if identity != ACCESS_KEY:
        raise KinesisError("UnrecognizedClientException")
    _check_date(date, now)
    if scope != f"{date[:8]}/{REGION}/kinesis/aws4_request":
        raise KinesisError(
            "InvalidSignatureException",
            f"Credential should be scoped to the date of the request, to {REGION} and to kinesis, not {scope}.",
        )
    signed = parts["SignedHeaders"].split(";")
    if not {"host", "x-amz-date", "x-amz-target"} <= set(signed):
        raise KinesisError("InvalidSignatureException", "'Host', 'X-Amz-Date' and 'X-Amz-Target' must be signed.")
    canonical = "\n".join(
        (
            "POST",
            "/",
            "",
            *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in signed),
            "",
            parts["SignedHeaders"],
            sha256(body).hexdigest(),
        )
    )
    to_sign = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    expected = hmac.new(_signing_key(scope), to_sign.encode(), sha256).hexdigest()
    if not hmac.compare_digest(expected, parts["Signature"]):
        raise KinesisError("InvalidSignatureException")


def _check_date(date: str, now: float) -> None:
    try:
        signed_at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise KinesisError("IncompleteSignatureException", "X-Amz-Date is missing or is no date.") from error
    if abs(now - signed_at) > ALLOWED_SKEW_SECONDS:
        word = "expired" if signed_at < now else "not yet current"
        raise KinesisError("InvalidSignatureException", f"Signature {word}: {date} is more than 5 minutes off.")


@lru_cache(maxsize=1)
def _signing_key(scope: str) -> bytes:
    key = f"AWS4{SECRET_KEY}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), sha256).digest()
    return key
