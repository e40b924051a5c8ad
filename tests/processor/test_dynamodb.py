import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import boto3
import botocore.session
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials as Reference

from processor.dynamodb import (
    ApiError,
    Credentials,
    Dynamo,
    Endpoint,
    NoAnswerError,
    SetupError,
    connect,
    find_credentials,
    find_endpoint,
    signed_headers,
)
from processor.table import TableWriter
from tests.processor.fake_dynamodb import TABLE, Inline, typed

KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "secret"}
OK = (200, b"{}")


class Table:
    """
    An HTTP server that keeps what it gets and answers as it is told.

    An answer is status and content, or the bytes as they are, after which the connection is closed.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes] | bytes] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.connections = 0
        self.close_after = False
        self.gone = Event()
        table = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                table.connections += 1

            def finish(self) -> None:
                super().finish()
                table.gone.set()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                table.requests.append((self.command, self.path, headers, body))
                answer = table.answers.pop(0) if table.answers else OK
                if isinstance(answer, bytes):
                    self.wfile.write(answer)
                    self.close_connection = True
                    return
                status, content = answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                # As DynamoDB does with a connection that was idle too long: closed after the answer, unannounced.
                self.close_connection = table.close_after

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def served() -> Iterator[Table]:
    """Serve a table."""
    table = Table()
    thread = Thread(target=table.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield table
    finally:
        table.server.shutdown()
        thread.join()
        table.server.server_close()


@pytest.fixture
def table() -> Iterator[Table]:
    """A table that answers."""
    with served() as table:
        yield table


@pytest.fixture
def client(table: Table) -> Iterator[Dynamo]:
    """A client of it."""
    client = connect({"AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL": table.url, **KEYS})
    yield client
    client.close()


class TestAgainstBoto3:
    """boto3 and botocore are the reference."""

    @pytest.mark.parametrize("token", [None, "a/session+token=="])
    @pytest.mark.parametrize("body", [b"", b"{}", "水車".encode() * 1_000])
    def test_signature_is_that_of_botocore(self, body: bytes, token: str | None) -> None:
        """For the same request at the same moment both sign alike, with a session token and without."""
        endpoint = Endpoint("eu-central-1", "dynamodb.eu-central-1.amazonaws.com", tls=True)
        request = AWSRequest("POST", f"https://{endpoint.host}/", data=body)
        request.headers["Content-Type"] = "application/x-amz-json-1.0"
        request.headers["X-Amz-Target"] = "DynamoDB_20120810.BatchWriteItem"
        SigV4Auth(Reference("AKID", "secret", token), "dynamodb", "eu-central-1").add_auth(request)
        moment = datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)

        ours = signed_headers(endpoint, "BatchWriteItem", body, Credentials("AKID", "secret", token), moment)

        assert ours["Authorization"] == request.headers["Authorization"]

    def test_request_is_that_of_boto3(self, table: Table) -> None:
        """Method, path, target, type and the content of the body of a real write are the same as boto3 sends."""
        item: dict[str, str | int | list[str]] = {
            "Id": "1",
            "Message": '水車 "<&>" \\ \x1f\u2028 😀',
            "RuleTags": ["a", "b"],
            "ExpiresAt": 17,
        }
        ours = connect({"AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL_DYNAMODB": table.url, **KEYS})
        TableWriter(TABLE, lambda: ours, Inline()).put({"1": item}, deadline=float("inf"))
        ours.close()
        theirs = boto3.client(
            "dynamodb",
            endpoint_url=table.url,
            region_name="eu-central-1",
            aws_access_key_id="AKID",
            aws_secret_access_key="secret",
            config=Config(retries={"total_max_attempts": 1}),
        )
        theirs.batch_write_item(
            RequestItems={TABLE: [{"PutRequest": {"Item": typed(item)}}]},
            ReturnConsumedCapacity="TOTAL",
        )
        theirs.close()

        (mine, reference) = table.requests
        assert mine[:2] == reference[:2] == ("POST", "/")
        assert json.loads(mine[3]) == json.loads(reference[3])
        for name in ("content-type", "host", "x-amz-target"):
            assert mine[2][name] == reference[2][name]
        signed = [
            request[2]["authorization"].partition("SignedHeaders=")[2].split(",")[0] for request in table.requests
        ]
        assert signed[0] == signed[1]

    def test_hosts_are_those_of_botocore_in_every_partition(self) -> None:
        """China, GovCloud and the others have names of their own."""
        session = botocore.session.get_session()
        regions = [
            region
            for partition in session.get_available_partitions()
            for region in session.get_available_regions("dynamodb", partition)
            if "-fips" not in region and region != "local"
        ]
        assert len(regions) > 35
        for region in regions:
            reference = session.create_client(
                "dynamodb", region_name=region, aws_access_key_id="AKID", aws_secret_access_key="secret"
            )
            assert find_endpoint({"AWS_REGION": region}) == Endpoint(
                region, reference.meta.endpoint_url.removeprefix("https://"), tls=True
            )


class TestAnswers:
    def test_answer_is_the_json_of_the_body(self, table: Table, client: Dynamo) -> None:
        """A success is handed on as it is."""
        table.answers = [(200, '{"UnprocessedItems":{"t":["水"]}}'.encode())]

        assert client.call("BatchWriteItem", b"{}") == {"UnprocessedItems": {"t": ["水"]}}

    @pytest.mark.parametrize(
        ("status", "content", "code", "text"),
        [
            (
                400,
                b'{"__type":"com.amazonaws.dynamodb.v20120810#ValidationException","message":"no"}',
                "ValidationException",
                "ValidationException: no",
            ),
            (
                400,
                b'{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"not you"}',
                "AccessDeniedException",
                "AccessDeniedException: not you",
            ),
            (400, b'{"__type":"ThrottlingException"}', "ThrottlingException", "ThrottlingException"),
            (413, b"", "413", "413"),
            (503, b"<html>busy</html>", "503", "503"),
            (500, b"[]", "500", "500"),
        ],
    )
    def test_refusal_has_its_code(
        self, table: Table, client: Dynamo, status: int, content: bytes, code: str, text: str
    ) -> None:
        """The name of the error without its namespace, or else the status; the message as it is."""
        table.answers = [(status, content)]
        with pytest.raises(ApiError) as caught:
            client.call("BatchWriteItem", b"{}")

        assert (caught.value.code, str(caught.value)) == (code, text)

    def test_success_that_is_no_json_is_no_answer(self, table: Table, client: Dynamo) -> None:
        """A proxy's page in the place of an answer says nothing about what was stored."""
        table.answers = [(200, b"<html>hello</html>")]
        with pytest.raises(NoAnswerError, match="UnreadableAnswer"):
            client.call("BatchWriteItem", b"{}")


class TestConnections:
    def test_connection_is_used_again(self, table: Table, client: Dynamo) -> None:
        """Requests of one thread share a connection; another thread has its own."""
        for _ in range(3):
            client.call("BatchWriteItem", b"{}")
        assert table.connections == 1

        thread = Thread(target=client.call, args=("BatchWriteItem", b"{}"))
        thread.start()
        thread.join()
        assert table.connections == 2

    def test_connection_that_was_closed_meanwhile_is_replaced(self, table: Table, client: Dynamo) -> None:
        """After a pause the other side has closed it: the request goes over a new one, once."""
        table.close_after = True
        client.call("BatchWriteItem", b"{}")
        assert table.gone.wait(5)
        client.call("BatchWriteItem", b"{}")

        assert len(table.requests) == table.connections == 2

    @pytest.mark.parametrize(
        ("answer", "name"),
        [
            (b"", "RemoteDisconnected"),
            (b"HTTP/1.1 200 OK\r\nContent-Le", "HTTPException"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "RemoteDisconnected"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "HTTPException"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}", "ValueError"),
            (b"SSH-2.0-OpenSSH\r\n", "HTTPException"),
            (b"HTTP/1.1 fine\r\nContent-Length: 2\r\n\r\n{}", "ValueError"),
        ],
        ids=["nothing", "half-a-head", "half-a-body", "chunks", "no-number", "no-http", "no-status"],
    )
    def test_broken_answer_is_not_asked_for_twice(self, table: Table, client: Dynamo, answer: bytes, name: str) -> None:
        """A new connection that breaks, or says nonsense, is no answer; what to do then is the writer's to say."""
        table.answers = [answer]
        with pytest.raises(NoAnswerError, match=name):
            client.call("BatchWriteItem", b"{}")
        assert len(table.requests) == 1
        assert client.call("BatchWriteItem", b"{}") == {}

    @pytest.mark.parametrize(
        "head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"], ids=["close", "http-1.0"]
    )
    def test_announced_end_is_no_trouble(self, table: Table, client: Dynamo, head: bytes) -> None:
        """Where the other side says that it will close, the next request opens a connection of its own."""
        table.answers = [head + b"content-length: 2\r\n\r\n{}"]

        assert client.call("BatchWriteItem", b"{}") == {}
        assert client.call("BatchWriteItem", b"{}") == {}
        assert table.connections == 2

    def test_nobody_there_is_no_answer(self) -> None:
        """A port that nobody listens on is told by the error's name."""
        with served() as gone:
            url = gone.url
        client = connect({"AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL": url, **KEYS})
        with pytest.raises(NoAnswerError, match="ConnectionRefusedError"):
            client.call("BatchWriteItem", b"{}")
        client.close()

    def test_tls_is_spoken_to_https(self, table: Table) -> None:
        """An https endpoint gets a handshake, and a server without TLS is no answer."""
        url = table.url.replace("http:", "https:")
        client = connect({"AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL": url, **KEYS})
        with pytest.raises(NoAnswerError, match="SSLError"):
            client.call("BatchWriteItem", b"{}")
        client.close()


class TestEnvironment:
    def test_the_endpoint_of_the_service_goes_first(self) -> None:
        """AWS_ENDPOINT_URL_DYNAMODB, then AWS_ENDPOINT_URL, as with boto3."""
        both = {"AWS_REGION": "r", "AWS_ENDPOINT_URL": "http://a:1", "AWS_ENDPOINT_URL_DYNAMODB": "https://b/"}

        assert find_endpoint(both) == Endpoint("r", "b", tls=True)
        assert find_endpoint({"AWS_DEFAULT_REGION": "r", "AWS_ENDPOINT_URL": "http://a:1"}) == Endpoint(
            "r", "a:1", tls=False
        )

    @pytest.mark.parametrize("url", ["b:8000", "ftp://b", "http://", "http://b/path"])
    def test_an_endpoint_that_is_no_url_is_told(self, url: str) -> None:
        """The line names the variable and what it should look like."""
        with pytest.raises(SetupError, match=r"AWS_ENDPOINT_URL.* set it to http\(s\)://host:port"):
            find_endpoint({"AWS_REGION": "r", "AWS_ENDPOINT_URL": url})

    def test_the_credentials_of_lambda_are_found(self) -> None:
        """Key, secret and token come from the environment."""
        credentials = find_credentials({**KEYS, "AWS_SESSION_TOKEN": "t"})()

        assert (credentials.access_key, credentials.secret_key, credentials.token) == ("AKID", "secret", "t")

    def test_a_profile_that_is_not_there_is_told(self) -> None:
        """Whether region or credentials are asked of it, the line names the profile."""
        for find in (find_endpoint, find_credentials):
            with pytest.raises(SetupError, match=r"cannot be had: .*\(nobody\)"):
                find({"AWS_PROFILE": "nobody"})

    def test_a_profile_is_botocore_s_to_find(self, tmp_path: Path) -> None:
        """Without keys in the environment region and credentials are those of the profile; what lacks is told."""
        region = "[profile mill]\nregion = eu-west-1\n"
        keys = "[mill]\naws_access_key_id = AKID\naws_secret_access_key = s\n"
        for name, config, credentials in (
            ("bare", "[profile mill]\n", ""),
            ("half", region, ""),
            ("all", region, keys),
        ):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config").write_text(config)
            (tmp_path / name / "credentials").write_text(credentials)
        # botocore reads the environment of its process.
        program = """
import os
from processor.dynamodb import SetupError, find_credentials, find_endpoint
for place in ("bare", "half", "all"):
    os.environ.update(AWS_CONFIG_FILE=f"{place}/config", AWS_SHARED_CREDENTIALS_FILE=f"{place}/credentials")
    try:
        print(find_endpoint(os.environ).region, find_credentials(os.environ)().access_key)
    except SetupError as error:
        print(error)
"""
        run = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={
                "AWS_PROFILE": "mill",
                "AWS_EC2_METADATA_DISABLED": "true",
                "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            },
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        )
        assert run.stdout.splitlines() == [
            "there is no region; set AWS_REGION",
            "there are no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            "eu-west-1 AKID",
        ]
