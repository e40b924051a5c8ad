import json
import re
from email.utils import formatdate

import pytest

from service.core.answers import refusal, results
from service.core.records import FailureKind, RecordResult, RequestFailure

HOST, PLACE = "kinesis.eu-west-1.amazonaws.com", "stream tweets in eu-west-1"
NOON = 1795442400.0
KEY_ID, SECRET, TOKEN = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "FwoGZXIvYXdzEBYaDH" * 8


def judge(content: bytes, status: int = 400, **headers: str) -> RequestFailure:
    """Judge an error answer, and see that it is told in one line."""
    failure = refusal(status, headers, content, NOON, host=HOST, place=PLACE)
    assert "\n" not in failure.message
    assert ": )" not in failure.message
    return failure


def error(code: str, message: str = "") -> bytes:
    """Make the body with which Kinesis turns a request away."""
    return json.dumps({"__type": code, "message": message}).encode()


class TestResults:
    def test_each_record_has_its_own(self) -> None:
        """In the order of the request: where it is stored, or why not."""
        throttle = {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "Rate exceeded"}
        good = {"SequenceNumber": "49601", "ShardId": "shardId-000000000003"}
        answer = json.dumps({"FailedRecordCount": 1, "EncryptionType": "KMS", "Records": [good, throttle]}).encode()
        assert results(answer, 2, HOST) == [
            RecordResult("shardId-000000000003", "49601"),
            RecordResult(None, None, "ProvisionedThroughputExceededException"),
        ]

    @pytest.mark.parametrize(
        "content",
        [
            b"<html>welcome</html>",
            b"",
            b"\xff\xfe",
            b'{"Records":[{"ShardId":"\xff","SequenceNumber":"1"}]}',
            b'{"Else":' + b"[" * 100_000,
            b"[]",
            b'{"Records":"none"}',
            b'{"FailedRecordCount":0}',
            b'{"Records":[{}]}',
            b'{"Records":[{"ShardId":"shardId-000000000000"}]}',
            b'{"Records":[{"SequenceNumber":"1"}]}',
            b'{"Records":[]}',
            b'{"Records":[{"ShardId":"a","SequenceNumber":"1"},{"ShardId":"a","SequenceNumber":"2"}]}',
        ],
    )
    def test_a_success_that_cannot_be_read(self, content: bytes) -> None:
        """One that does not say what became of each record leaves it unknown."""
        failure = results(content, 1, HOST)
        assert isinstance(failure, RequestFailure)
        assert failure[:2] == (FailureKind.UNKNOWN, "UnreadableAnswer")
        assert HOST in failure.message


class TestRefusal:
    @pytest.mark.parametrize(
        ("kind", "status", "line", "codes"),
        [
            (
                FailureKind.NOT_STORED,
                400,
                f"Kinesis throttles {PLACE}",
                "ProvisionedThroughputExceededException LimitExceededException Throttling KMSThrottlingException",
            ),
            (FailureKind.UNKNOWN, 400, "Kinesis failed", "InternalFailureException ServiceUnavailable RequestTimeout"),
            (FailureKind.UNKNOWN, 500, f"{HOST} failed", "SomethingNew"),
            (
                FailureKind.DENIED,
                400,
                f"The AWS credentials may not use {PLACE}",
                "AccessDeniedException NotAuthorized",
            ),
            (
                FailureKind.DENIED,
                400,
                "The AWS credentials are refused",
                "ExpiredTokenException UnrecognizedClientException InvalidClientTokenId",
            ),
            (
                FailureKind.DENIED,
                400,
                "The AWS credentials do not serve",
                "IncompleteSignatureException MissingAuthenticationTokenException OptInRequired",
            ),
            (FailureKind.DENIED, 400, "The signature is refused", "InvalidSignatureException SignatureDoesNotMatch"),
            (FailureKind.DENIED, 400, f"There is no {PLACE}: check MILLRACE_STREAM", "ResourceNotFoundException"),
            (FailureKind.DENIED, 400, f"The {PLACE} is not active", "ResourceInUseException"),
            (
                FailureKind.DENIED,
                400,
                f"The encryption key of {PLACE} cannot be used",
                "KMSDisabledException KMSInvalidStateException KMSAccessDeniedException KMSNotFound KMSOptInRequired",
            ),
            (FailureKind.DENIED, 400, f"{HOST} turns the request away", "SomethingNewException"),
            (
                FailureKind.REFUSED,
                400,
                f"The request to {PLACE} is not valid",
                "ValidationException ValidationError InvalidArgumentException Serialization RequestEntityTooLarge",
            ),
        ],
    )
    def test_a_code_says_what_became_of_the_records(
        self, kind: FailureKind, status: int, line: str, codes: str
    ) -> None:
        """Alone, with its namespace, and in the header where the body has none."""
        for code in codes.split():
            address = f"{code}:http://internal.amazon.com/coral/com.amazon.coral.service/"
            for failure in (
                judge(error(code), status),
                judge(error(f"com.amazonaws.kinesis.v20131202#{code}"), status),
                judge(b"{}", status, **{"x-amzn-errortype": address}),
            ):
                assert failure[:2] == (kind, code)
                assert failure.message.startswith(line)

    @pytest.mark.parametrize(
        ("kind", "status"),
        [
            (FailureKind.UNKNOWN, 502),
            (FailureKind.UNKNOWN, 503),
            (FailureKind.UNKNOWN, 408),
            (FailureKind.NOT_STORED, 429),
            (FailureKind.REFUSED, 413),
            (FailureKind.DENIED, 401),
            (FailureKind.DENIED, 403),
            (FailureKind.DENIED, 404),
        ],
    )
    def test_a_page(self, kind: FailureKind, status: int) -> None:
        """Of a proxy, a load balancer or a wrong address: judged by its status and not quoted."""
        for page in (b"<html>\xff<h1>Sorry</h1></html>", b'{"Else":' + b"[" * 100_000):
            failure = judge(page, status)
            assert (kind, f"HTTP {status}") == failure[:2]
            assert "html" not in failure.message


class TestMessages:
    @pytest.mark.parametrize(
        "code",
        [
            "ValidationException",
            "InvalidSignatureException",
            "UnrecognizedClientException",
            "SerializationException",
            "AccessDeniedException",
        ],
    )
    @pytest.mark.parametrize(
        "text",
        [
            f"Value 'lane-77's key' at 'records.1.member.partitionKey' failed: {KEY_ID} {SECRET}\r\n{TOKEN}",
            f"The Canonical String for this request should have been\n'POST\n/\n\nx-amz-security-token:{TOKEN}\n'",
            "no such thing, " * 100,
            f'Unexpected token in \'{{"Data":"{"cGF5bG9hZA" * 9}"}}\'',
        ],
    )
    def test_secrets_and_payload_stay_in(self, code: str, text: str) -> None:
        """However much of them Kinesis repeats."""
        message = judge(error(code, text)).message
        assert not any(part in message for part in (KEY_ID, SECRET, TOKEN, "lane-77", "cGF5bG9hZA" * 5))
        assert len(message) < 800

    def test_a_policy_is_quoted(self) -> None:
        """Only AWS knows which permission was refused; some of its front ends write Message."""
        text = "User: arn:aws:iam::123456789012:user/millrace is not authorized to perform: kinesis:PutRecords"
        assert text in judge(error("AccessDeniedException", text)).message
        assert text in judge(json.dumps({"__type": "AccessDeniedException", "Message": text}).encode()).message

    @pytest.mark.parametrize(("seconds", "side"), [(-3600, "ahead of"), (3600, "behind")])
    @pytest.mark.parametrize("code", ["InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed"])
    def test_another_time(self, code: str, seconds: int, side: str) -> None:
        """A signature that is refused by a server with another time is put down to the clock."""
        failure = judge(error(code, "Signature expired"), date=formatdate(NOON + seconds, usegmt=True))
        assert failure.kind is FailureKind.DENIED
        assert re.search(f"clock of this machine is 3600 s {side} that of Kinesis", failure.message)

    @pytest.mark.parametrize("date", ["late", "Thu, 26 Nov 2026 05:00:00 +999999999999999"])
    def test_no_time(self, date: str) -> None:
        """A request that came too late for a server that tells no time is put down to the clock, without a figure."""
        assert "clock of this machine is not that of Kinesis" in judge(error("RequestExpired"), date=date).message

    def test_a_wrong_secret(self) -> None:
        """A signature that is refused while the clocks agree is put down to the secret."""
        date = formatdate(NOON + 59, usegmt=True)
        assert "secret access key" in judge(error("InvalidSignatureException"), date=date).message
