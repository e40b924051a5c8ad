"""The zip that is deployed, under AWS's own runtime interface client, beside a stand-in for Lambda's runtime API."""

import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import ZipFile

import pytest

from deploy.package import package
from local import CLIENT
from local.table import create_table, dynamodb
from local.template import load
from local.worker import function_environment
from processor.reader import connect_reader, plain

pytest.importorskip("awslambdaric", reason="AWS builds the client for Linux only")
pytestmark = pytest.mark.integration

BATCH = json.loads((Path(__file__).parents[1] / "processor" / "events" / "batch.json").read_text())
MESSAGES = {"おはよう、世界", "水車小屋の朝 & 川の音", "小麦を二袋", "Second thoughts <3 😀", "lost"}
API = "/2018-06-01/runtime"


class RuntimeApi:
    """What a function asks for its events, and gives its answers: each as (where it was posted, the body)."""

    def __init__(self) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.answers: queue.Queue[tuple[str, Any]] = queue.Queue()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                assert self.path == f"{API}/invocation/next"
                event = api.events.get()
                if event is None:
                    self.close_connection = True
                    return
                body = json.dumps(event).encode()
                self.send_response(200)
                # Without it the native part of the client crashes.
                self.send_header("Content-Type", "application/json")
                self.send_header("Lambda-Runtime-Aws-Request-Id", "request-1")
                self.send_header("Lambda-Runtime-Deadline-Ms", str(int((time.time() + 30) * 1000)))
                self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:0:function:it")
                self.send_header("Lambda-Runtime-Trace-Id", "Root=1-5759e988-bd862e3fe1be46a994272793")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                api.answers.put((self.path.removeprefix(API), json.loads(body)))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True


class Lambda:
    """The running function: its API, and what it wrote to its log."""

    def __init__(self, api: RuntimeApi, log: Path) -> None:
        self._api = api
        self._log = log

    def invoke(self, event: Any) -> tuple[str, Any]:
        self._api.events.put(event)
        return self._api.answers.get(timeout=30)

    @property
    def log(self) -> str:
        return self._log.read_text()


@contextmanager
def running(directory: Path, endpoint_url: str, **changes: str) -> Iterator[Lambda]:
    """Run the deployed zip as Lambda does, by the handler and the environment of the template."""
    code = directory / "task"
    with ZipFile(BytesIO(package())) as archive:
        archive.extractall(code)
    settings = load().function("it")
    settings = replace(settings, environment={**settings.environment, "QUARANTINE": str(directory / "quarantine")})
    api = RuntimeApi()
    thread = Thread(target=api.server.serve_forever, args=(0.05,))
    thread.start()
    environment = function_environment(settings, region="us-east-1", endpoint_url=endpoint_url, inherited={})
    environment |= {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{api.server.server_address[1]}",
        "LAMBDA_TASK_ROOT": str(code),
        "PATH": os.environ["PATH"],
    }
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", settings.handler],
            cwd=code,
            env=environment | changes,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Lambda(api, directory / "log")
    finally:
        process.kill()
        process.wait()
        api.events.put(None)
        api.server.shutdown()
        thread.join()
        api.server.server_close()


def test_it_starts_and_stores_as_on_lambda(tmp_path: Path) -> None:
    """An event of Lambda, twice, is answered in Lambda's words, and ends in the table and in the quarantine."""
    with dynamodb() as url:
        table = create_table(url, load(), "it")
        with running(tmp_path, url) as function:
            answers = [function.invoke(BATCH) for _ in range(2)]
            lines = [json.loads(line) for line in function.log.splitlines() if line.startswith("{")]
        client = connect_reader(endpoint_url=url, **CLIENT)
        messages = {plain(item)["Message"] for item in client.scan(TableName=table)["Items"]}
        client.close()

    assert answers == [("/invocation/request-1/response", {"batchItemFailures": []})] * 2
    assert messages == MESSAGES
    assert len(list((tmp_path / "quarantine").rglob("*.json"))) == 2
    assert [line["Written"] for line in lines] == [5, 5]
    assert {line["RequestId"] for line in lines} == {"request-1"}


def test_a_table_that_is_not_there_fails_the_call_and_not_the_function(tmp_path: Path) -> None:
    """The error is told to Lambda in one line, with the way out; the function goes on."""
    with dynamodb() as url, running(tmp_path, url) as function:
        for _ in range(2):
            where, error = function.invoke(BATCH)
            assert where == "/invocation/request-1/error"
            assert error["errorType"] == "TableError"
            assert error["errorMessage"].startswith("table it-EventData: there is no such table")


def test_a_missing_setting_is_told_to_lambda(tmp_path: Path) -> None:
    """Without its table the function says what to set."""
    with running(tmp_path, "http://127.0.0.1:1", TABLE="") as function:
        where, error = function.invoke(BATCH)

    assert where == "/invocation/request-1/error"
    assert error["errorType"] == "SettingsError"
    assert "TABLE is missing" in error["errorMessage"]
