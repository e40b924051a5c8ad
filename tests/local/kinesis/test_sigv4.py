from datetime import UTC, datetime

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from multidict import CIMultiDict

from local.kinesis.errors import KinesisError
from local.kinesis.sigv4 import verify

BODY = '{"StreamName":"日本"}'.encode()


def signed(
    identity: str = "test", secret: str = "test", region: str = "us-east-1", service: str = "kinesis"
) -> tuple[CIMultiDict[str], float]:
    """Return the headers of a request that botocore has signed, and when that was."""
    request = AWSRequest(
        "POST",
        "http://127.0.0.1:4567/",
        data=BODY,
        headers={
            "Host": "127.0.0.1:4567",
            "X-Amz-Target": "Kinesis_20131202.PutRecords",
            "Content-Type": "application/x-amz-json-1.1",
            "User-Agent": "a  client",
        },
    )
    SigV4Auth(Credentials(identity, secret), service, region).add_auth(request)
    headers = CIMultiDict(request.headers.items())
    date = datetime.strptime(headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return headers, date.timestamp()


def check(headers: CIMultiDict[str], now: float, body: bytes = BODY) -> str | None:
    """Return the code with which a request is refused, or None."""
    try:
        verify(headers, body, now)
    except KinesisError as error:
        return error.code
    return None


def test_what_botocore_signs_is_accepted() -> None:
    """The reference signer and the check agree."""
    assert check(*signed()) is None


def test_an_unsigned_request_is_refused() -> None:
    """Without the Authorization header nothing is looked at."""
    headers, now = signed()
    del headers["Authorization"]
    assert check(headers, now) == "MissingAuthenticationTokenException"


def test_an_unknown_key_is_refused() -> None:
    """There is one key that may sign."""
    assert check(*signed(identity="AKIX")) == "UnrecognizedClientException"


def test_a_wrong_secret_is_refused() -> None:
    """The signature depends on the secret."""
    assert check(*signed(secret="secret")) == "InvalidSignatureException"


def test_a_changed_body_is_refused() -> None:
    """The signature covers each byte of the body."""
    headers, now = signed()
    assert check(headers, now, BODY + b" ") == "InvalidSignatureException"


def test_a_changed_header_is_refused() -> None:
    """The signature covers the operation."""
    headers, now = signed()
    headers["X-Amz-Target"] = "Kinesis_20131202.SplitShard"
    assert check(headers, now) == "InvalidSignatureException"


@pytest.mark.parametrize(("region", "service"), [("eu-west-1", "kinesis"), ("us-east-1", "dynamodb")])
def test_another_region_or_service_is_refused(region: str, service: str) -> None:
    """The scope must be this service in this region."""
    assert check(*signed(region=region, service=service)) == "InvalidSignatureException"


@pytest.mark.parametrize(("offset", "code"), [(299, None), (-299, None), (301, "InvalidSignatureException")])
def test_clocks_may_differ_by_five_minutes(offset: float, code: str | None) -> None:
    """An older or newer signature is refused."""
    headers, now = signed()
    assert check(headers, now + offset) == code


def test_a_signature_must_cover_what_the_request_is() -> None:
    """A signature over other headers than host, date and target is refused, even if it is right."""
    headers, now = signed()
    headers["Authorization"] = headers["Authorization"].replace(";x-amz-target", "")
    assert check(headers, now) == "InvalidSignatureException"


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "X",
        "Bearer abc",
        "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/kinesis/aws4_request, Signature=00",
        "AWS4-HMAC-SHA512 Credential=test/20260101/us-east-1/kinesis/aws4_request, SignedHeaders=host, Signature=00",
    ],
)
def test_an_incomplete_header_is_refused(authorization: str) -> None:
    """All three parts and the algorithm must be there."""
    headers, now = signed()
    headers["Authorization"] = authorization
    assert check(headers, now) == "IncompleteSignatureException"


def test_a_request_without_a_date_is_refused() -> None:
    """A date that cannot be read is as good as none."""
    headers, now = signed()
    headers["X-Amz-Date"] = "yesterday"
    assert check(headers, now) == "IncompleteSignatureException"
