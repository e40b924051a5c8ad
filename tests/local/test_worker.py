"""The function in real child processes, with small handlers written for each test."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from local.template import FunctionSettings
from local.worker import Answer, Function, function_environment

ARN = "arn:aws:lambda:us-east-1:000000000000:function:it-DDBEventProcessor"

HANDLER = """
import os, sys, time
calls = 0
print("imported")

def handle(event, context):
    global calls
    calls += 1
    print("a line that the handler prints")
    what = event["what"]
    if what == "raise":
        raise ValueError("two\\nlines")
    if what == "exit":
        sys.exit(3)
    if what == "die":
        os._exit(4)
    if what == "hang":
        time.sleep(600)
    if what == "set":
        return {1, 2}
    if what == "meet":
        open(f"{event['place']}/{event['me']}", "w").close()
        while not os.path.exists(f"{event['place']}/{event['other']}"):
            time.sleep(0.001)
    if what == "environment":
        return dict(os.environ)
    if what == "context":
        return {
            "left": context.get_remaining_time_in_millis(),
            "request": context.aws_request_id,
            "arn": context.invoked_function_arn,
            "names": [context.function_name, context.function_version, context.memory_limit_in_mb],
            "log": [context.log_group_name, context.log_stream_name],
        }
    return {"pid": os.getpid(), "calls": calls, "text": event.get("text")}
"""

FunctionOf = Callable[..., Function]


def settings(timeout_seconds: int = 20, handler: str = "small_handler.handle") -> FunctionSettings:
    """What a template would say."""
    return FunctionSettings("it-DDBEventProcessor", handler, timeout_seconds, 256, {"TABLE": "it-EventData"})


@pytest.fixture
async def function_of(tmp_path: Path) -> AsyncIterator[FunctionOf]:
    """Make a function of HANDLER, or of other code, which is closed when the test ends."""
    functions: list[Function] = []

    def make(given: FunctionSettings, code: str = HANDLER) -> Function:
        (tmp_path / "small_handler.py").write_text(code)
        inherited = {**os.environ, "PYTHONPATH": str(tmp_path), "AWS_PROFILE": "mine", "MILLRACE_BEARER_TOKEN": "t"}
        environment = function_environment(
            given, region="us-east-1", endpoint_url="http://127.0.0.1:1", inherited=inherited
        )
        functions.append(Function(ARN, given, environment))
        return functions[-1]

    yield make
    for function in functions:
        await function.close()


def ask(function: Function, what: str, **more: str) -> Awaitable[Answer]:
    """Invoke with a small event."""
    return function.invoke(json.dumps({"what": what, **more}).encode())


class TestAnswers:
    async def test_return_value(self, function_of: FunctionOf) -> None:
        """The handler gets the event and its return value is the answer, whatever it prints meanwhile."""
        answer = await ask(function_of(settings()), "return", text="日本語" * 100_000)
        assert answer.error is None
        assert answer.payload["text"] == "日本語" * 100_000
        assert answer.request_id

    async def test_a_worker_is_used_again(self, function_of: FunctionOf) -> None:
        """Invocations one after the other are answered by one process, which keeps its state."""
        function = function_of(settings())
        first, second = await ask(function, "return"), await ask(function, "return")
        assert first.payload["pid"] == second.payload["pid"]
        assert [first.payload["calls"], second.payload["calls"]] == [1, 2]
        assert first.request_id != second.request_id

    async def test_an_exception_fails_the_invocation_only(self, function_of: FunctionOf) -> None:
        """A handler that raises, or returns what is no JSON, is an error in one line; its worker lives on."""
        function = function_of(settings())
        assert (await ask(function, "raise")).error == "ValueError: two lines"
        assert "TypeError" in ((await ask(function, "set")).error or "")
        assert (await ask(function, "return")).payload["calls"] == 3

    async def test_two_at_once_have_two_workers(self, function_of: FunctionOf, tmp_path: Path) -> None:
        """Invocations at the same time run in processes of their own."""
        function = function_of(settings())
        answers = await asyncio.gather(
            ask(function, "meet", place=str(tmp_path), me="a", other="b"),
            ask(function, "meet", place=str(tmp_path), me="b", other="a"),
        )
        assert [answer.error for answer in answers] == [None, None]
        assert answers[0].payload["pid"] != answers[1].payload["pid"]


class TestLoss:
    async def test_a_handler_that_hangs_is_killed(self, function_of: FunctionOf) -> None:
        """A handler that takes longer than the function may fails, and the next invocation has a new worker."""
        function = function_of(settings(timeout_seconds=1))
        before = (await ask(function, "return")).payload["pid"]
        answer = await ask(function, "hang")
        assert answer.error == f"{answer.request_id} timed out after 1.00 seconds"
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)
        assert (await ask(function, "return")).payload["calls"] == 1

    @pytest.mark.parametrize(("what", "status"), [("exit", 3), ("die", 4)])
    async def test_a_worker_that_dies(self, function_of: FunctionOf, what: str, status: int) -> None:
        """A handler that ends its process fails the invocation, and the next one has a new worker."""
        function = function_of(settings())
        assert (await ask(function, what)).error == f"the worker exited with status {status}"
        assert (await ask(function, "return")).error is None

    async def test_a_worker_that_died_while_idle_is_replaced(self, function_of: FunctionOf) -> None:
        """A worker that is killed between two invocations costs the next one at most."""
        function = function_of(settings())
        worker = (await ask(function, "return")).payload["pid"]
        os.kill(worker, 9)
        assert (await ask(function, "return")).error in {None, "the worker exited with status -9"}
        assert (await ask(function, "return")).payload["pid"] != worker

    @pytest.mark.parametrize(
        ("handler", "code", "error"),
        [
            ("small_handler.handle", "raise RuntimeError('TABLE is not set')", "RuntimeError: TABLE is not set"),
            ("small_handler.other", HANDLER, "AttributeError: module 'small_handler' has no attribute 'other'"),
            ("no_such.handle", HANDLER, "ModuleNotFoundError: No module named 'no_such'"),
        ],
    )
    async def test_a_handler_that_cannot_be_imported(
        self, function_of: FunctionOf, handler: str, code: str, error: str
    ) -> None:
        """A handler that cannot be imported fails each invocation with the reason."""
        function = function_of(settings(handler=handler), code)
        assert (await ask(function, "return")).error == error
        assert (await ask(function, "return")).error == error

    async def test_cancelling_kills(self, function_of: FunctionOf) -> None:
        """An invocation that is cancelled leaves no process behind."""
        function = function_of(settings())
        worker = (await ask(function, "return")).payload["pid"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(function, "hang"), 0.1)
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


class TestSurroundings:
    async def test_context(self, function_of: FunctionOf) -> None:
        """The context has the time that is left, and the names that Lambda gives."""
        answer = await ask(function_of(settings()), "context")
        assert 0 < answer.payload["left"] <= 20_000
        assert answer.payload["request"] == answer.request_id
        assert answer.payload["arn"] == ARN
        assert answer.payload["names"] == ["it-DDBEventProcessor", "$LATEST", "256"]
        assert answer.payload["log"] == ["/aws/lambda/it-DDBEventProcessor", "local"]

    async def test_environment(self, function_of: FunctionOf) -> None:
        """A handler sees the template's variables and the stand-in, and no secret or profile of this machine."""
        environment = (await ask(function_of(settings()), "environment")).payload
        assert environment["TABLE"] == "it-EventData"
        assert environment["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
        assert environment["AWS_REGION"] == "us-east-1"
        assert environment["AWS_ACCESS_KEY_ID"] == "local"
        assert environment["AWS_LAMBDA_FUNCTION_NAME"] == "it-DDBEventProcessor"
        assert "AWS_PROFILE" not in environment
        assert "MILLRACE_BEARER_TOKEN" not in environment

    async def test_output(self, function_of: FunctionOf, capfd: pytest.CaptureFixture[str]) -> None:
        """What a handler prints goes to standard error, and so does the traceback of what it raises."""
        function = function_of(settings())
        await ask(function, "raise")
        await function.close()
        output = capfd.readouterr()
        assert not output.out
        assert "imported" in output.err
        assert "a line that the handler prints" in output.err
        assert 'raise ValueError("two' in output.err
