"""The inline code that empties the failure bucket: run as Lambda does, beside S3 and CloudFormation's side of it."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from tests.deploy.emulator import as_lambda, moto
from tests.deploy.rendering import DOCUMENT, render

# Headers and body of each answer that CloudFormation got.
Received = list[tuple[dict[str, str], dict[str, str]]]


class Answers(BaseHTTPRequestHandler):
    """CloudFormation's side of a custom resource; as S3, it denies everything."""

    received: Received

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.received.append((dict(self.headers.items()), body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>No.</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        pass


class Context:
    """Lambda's context, with so many milliseconds left."""

    def __init__(self, milliseconds: int = 900_000) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


class FakeS3:
    """A bucket of object versions that pages, and may refuse to delete a key; boto3's client as far as it is used."""

    exceptions = SimpleNamespace(NoSuchBucket=FileNotFoundError)

    def __init__(self, versions: int, *, bucket: str = "failures", locked: str = "") -> None:
        self.bucket = bucket
        self.locked = locked
        self.objects = [(f"key-{number // 2}", f"version-{number}") for number in range(versions)]

    def get_paginator(self, operation: str) -> "FakeS3":
        assert operation == "list_object_versions"
        return self

    def paginate(self, *, Bucket: str) -> Iterator[dict[str, Any]]:  # noqa: N803  # boto3's name for it
        if self.bucket != Bucket:
            raise self.exceptions.NoSuchBucket(Bucket)
        listed = [{"Key": key, "VersionId": version} for key, version in self.objects]
        for start in range(0, len(listed) or 1, 1000):
            page = listed[start : start + 1000]
            # As S3: a kind of which a page has none is not in it at all.
            kinds = {"Versions": page[::2], "DeleteMarkers": page[1::2]}
            yield {kind: entries for kind, entries in kinds.items() if entries}

    def delete_objects(self, *, Bucket: str, Delete: dict[str, Any]) -> dict[str, Any]:  # noqa: N803  # boto3's names
        assert self.bucket == Bucket
        asked = [(entry["Key"], entry["VersionId"]) for entry in Delete["Objects"]]
        assert 1 <= len(asked) <= 1000
        assert Delete["Quiet"]
        refused = [{"Key": key, "Code": "AccessDenied"} for key, _ in asked if key == self.locked]
        self.objects = [entry for entry in self.objects if entry not in asked or entry[0] == self.locked]
        return {"Errors": refused} if refused else {}


CLEANUP = DOCUMENT["Resources"]["Cleanup"]["Properties"]
EVENT = {
    "RequestType": "Delete",
    "StackId": "arn:stack/mill",
    "RequestId": "request",
    "LogicalResourceId": "FailureBucketCleanup",
    "PhysicalResourceId": "failures",
    "ResourceProperties": {"ServiceToken": "arn", "BucketName": "failures"},
}


@pytest.fixture
def answers() -> Iterator[tuple[str, Received]]:
    """Address of a server for the answer, and what came there."""
    handler = type("Recorder", (Answers,), {"received": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.received  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def empty() -> Any:
    """The function of the inline code that does the work."""
    namespace: dict[str, Any] = {}
    exec(compile(CLEANUP["Code"]["ZipFile"], "index.py", "exec"), namespace)
    return namespace["empty"]


def invoke(folder: Path, s3: str, event: dict[str, Any]) -> list[str]:
    """Run the inline code as Lambda does, as module index with an S3 at this address; return its log."""
    (folder / "index.py").write_text(CLEANUP["Code"]["ZipFile"], encoding="utf-8")
    _, log = as_lambda(folder, CLEANUP["Handler"], {}, s3, event)
    return log


def test_delete_empties_a_versioned_bucket(tmp_path: Path, answers: tuple[str, Received]) -> None:
    """All versions and delete markers go, so that the bucket itself can be deleted, and the answer says so."""
    address, received = answers
    with moto() as session:
        s3 = session.client("s3")
        s3.create_bucket(Bucket="failures", CreateBucketConfiguration={"LocationConstraint": session.region_name})
        s3.put_bucket_versioning(Bucket="failures", VersioningConfiguration={"Status": "Enabled"})
        for key in ("quarantine/a b.json", "quarantine/水車", "quarantine/a b.json"):
            s3.put_object(Bucket="failures", Key=key, Body=b"{}")
        s3.delete_object(Bucket="failures", Key="quarantine/水車")
        invoke(tmp_path, session.url, {**EVENT, "ResponseURL": f"{address}/answer"})
        s3.delete_bucket(Bucket="failures")

    ((headers, answer),) = received
    assert answer == {
        "Status": "SUCCESS",
        "Reason": "",
        "PhysicalResourceId": "failures",
        "StackId": "arn:stack/mill",
        "RequestId": "request",
        "LogicalResourceId": "FailureBucketCleanup",
    }
    assert headers["Content-Type"] == ""


def test_failure_is_answered_with_its_reason(tmp_path: Path, answers: tuple[str, Received]) -> None:
    """When S3 refuses, CloudFormation is told at once instead of waiting for its time limit."""
    address, received = answers
    log = invoke(tmp_path, address, {**EVENT, "ResponseURL": f"{address}/answer"})
    ((_, answer),) = received
    assert answer["Status"] == "FAILED"
    assert answer["PhysicalResourceId"] == "failures"
    assert answer["Reason"].startswith("failures is not empty yet: An error occurred (AccessDenied)")
    assert answer["Reason"] in log


@pytest.mark.parametrize("request_type", ["Create", "Update"])
def test_only_delete_touches_the_bucket(
    tmp_path: Path,
    answers: tuple[str, Received],
    request_type: str,
) -> None:
    """Creating and updating the stack succeed without a word to S3, which here would refuse."""
    address, received = answers
    event = {**EVENT, "RequestType": request_type, "ResponseURL": f"{address}/answer"}
    invoke(tmp_path, address, event)
    ((_, answer),) = received
    assert (answer["Status"], answer["PhysicalResourceId"]) == ("SUCCESS", "failures")


@pytest.mark.parametrize("versions", [0, 1, 1000, 2501])
def test_every_page_is_emptied(empty: Any, versions: int) -> None:
    """Whatever the number of versions, none is left, and no request deletes more than S3 takes."""
    s3 = FakeS3(versions)
    empty(s3, "failures", Context())
    assert s3.objects == []


def test_object_that_stays_is_an_error(empty: Any) -> None:
    """S3 answers 200 with errors inside; they are not taken for success."""
    with pytest.raises(RuntimeError, match="AccessDenied at key-3"):
        empty(FakeS3(10, locked="key-3"), "failures", Context())


def test_end_of_time_is_an_error_that_says_what_to_do(empty: Any) -> None:
    """Before Lambda ends the function without an answer, it stops by itself."""
    s3 = FakeS3(10)
    with pytest.raises(TimeoutError, match="delete the stack again"):
        empty(s3, "failures", Context(milliseconds=1_000))
    assert len(s3.objects) == 10


def test_bucket_that_is_gone_is_empty(empty: Any) -> None:
    """A bucket that somebody deleted by hand does not hold up the stack."""
    empty(FakeS3(0, bucket="another"), "failures", Context())


def test_cloudformation_waits_longer_than_the_function_runs() -> None:
    """The stack outlasts the function's time limit, and not by the hour that is the default."""
    stack = render()
    limit, patience = stack["Cleanup"]["Timeout"], stack["FailureBucketCleanup"]["ServiceTimeout"]
    assert limit < patience <= limit + 60
