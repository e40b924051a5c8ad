"""
Lambda on this machine: the handler runs in a process of its own, as long as the template allows.

`Function` stands for the deployed function: as many workers as there are invocations at once, each used
again and again, as Lambda uses its execution environments. A worker is a child process that speaks over its
own standard input and output, so that it works on every operating system. Each message is a line of JSON:

    child to parent   {} when the handler is imported, or {"error": ...} when it cannot be
    parent to child   {"request_id", "arn", "timeout"}, and in the next line the event as it is
    child to parent   {"payload": ...} or {"error": ...}

Rules: what the handler prints goes to standard error, never between two lines. A handler that runs too long
is killed by its process id, and one that dies is a failed invocation; the next invocation gets a new worker.
The environment is the function's own and nothing else: no credentials of this machine, and every AWS endpoint
points at the stand-in, so that a local run cannot reach an account.
"""

import asyncio
import importlib
import json
import logging
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from local.template import FunctionSettings

ROOT = Path(__file__).resolve().parents[1]

# Lambda gives the start of a function 10 s (its quota for the init phase) and, when that is not enough, starts it
# once more within the function's own time-out. Here one start has both.
INIT_SECONDS = 10
EXIT_SECONDS = 5

# What a Python process needs of its surroundings to start; the rest of them is none of the function's business.
INHERITED = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")

# More than Lambda's 6 MB for an answer, so that no answer is too long to be read.
LINE_BYTES = 1 << 30


@dataclass(frozen=True)
class Answer:
    """What an invocation came to: its id and the handler's return value, or why there is none, in one line."""

    request_id: str
    payload: Any = None
    error: str | None = None


class WorkerLost(Exception):  # noqa: N818 - it says what happened; the text, one line, says why
    """The worker's process is gone: it would not start, died or was killed."""


def function_environment(
    settings: FunctionSettings, *, region: str, endpoint_url: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """
    Return the environment of a worker.

    It holds what the template gives the function, the variables that Lambda sets, and credentials that open
    nothing. `endpoint_url` answers for every AWS service; of `inherited` only the names in INHERITED are kept.
    """
    return {
        **{key: inherited[key] for key in INHERITED if key in inherited},
        **settings.environment,
        "AWS_LAMBDA_FUNCTION_NAME": settings.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(settings.memory_megabytes),
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{settings.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": "local",
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class Function:
    """
    One deployed function. `invoke` may be called while other invocations run; each has a worker of its own.

    Args:
        arn: of the function, for the handler's context.
        settings: what the template says of it.
        environment: all of the workers' environment, see `function_environment`.
    """

    def __init__(self, arn: str, settings: FunctionSettings, environment: Mapping[str, str]) -> None:
        self._arn = arn
        self._settings = settings
        self._environment = dict(environment)
        self._idle: list[_Worker] = []

    async def invoke(self, event: bytes) -> Answer:
        """Run the handler with the event, one line of JSON. Whatever goes wrong is an answer with an error."""
        request_id = str(uuid.uuid4())
        try:
            worker = await self._worker()
            message = await worker.invoke(request_id, self._arn, event)
        except WorkerLost as lost:
            return Answer(request_id, error=str(lost))
        self._idle.append(worker)
        return Answer(request_id, message.get("payload"), message.get("error"))

    async def close(self) -> None:
        """End the workers that wait for work."""
        while self._idle:
            await self._idle.pop().close()

    async def _worker(self) -> "_Worker":
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
        return await _Worker.start(self._settings, self._environment)


class _Worker:
    """The parent's side of one child process."""

    def __init__(self, process: asyncio.subprocess.Process, timeout: float) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._timeout = timeout
        self._requests = process.stdin
        self._answers = process.stdout

    @classmethod
    async def start(cls, settings: FunctionSettings, environment: Mapping[str, str]) -> Self:
        # A session of its own: Ctrl-C in the terminal is for the parent, which lets the invocation end.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-m", "local.worker", settings.handler),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        worker = cls(process, settings.timeout_seconds)
        seconds = INIT_SECONDS + settings.timeout_seconds
        ready = await worker._within(seconds, f"the handler was not imported within {seconds:g} s")
        if "error" in ready:
            await worker._kill()
            raise WorkerLost(ready["error"])
        return worker

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def invoke(self, request_id: str, arn: str, event: bytes) -> dict[str, Any]:
        header = {"request_id": request_id, "arn": arn, "timeout": self._timeout}
        self._requests.write(json.dumps(header).encode() + b"\n" + event + b"\n")
        return await self._within(self._timeout, f"{request_id} timed out after {self._timeout:.2f} seconds")

    async def close(self) -> None:
        """Let the child end by itself: its input ends."""
        self._requests.close()
        await self._process.wait()

    async def _within(self, seconds: float, too_late: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(seconds):
                await self._requests.drain()
                answer: dict[str, Any] = json.loads(await self._answers.readuntil())
                return answer
        except TimeoutError:
            await self._kill()
            raise WorkerLost(too_late) from None
        except (asyncio.IncompleteReadError, ConnectionError):
            # Its end of the pipe closes a moment before it exits; killed in that moment it would hide its status.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), EXIT_SECONDS)
            await self._kill()
            raise WorkerLost(f"the worker exited with status {self._process.returncode}") from None
        except asyncio.CancelledError:
            await self._kill()
            raise

    async def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._requests.close()
        await self._process.wait()


class _Context:
    """The second argument of a handler, with the names of Lambda's Python runtime."""

    identity = None
    client_context = None

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._deadline = time.monotonic() + request["timeout"]
        self.aws_request_id: str = request["request_id"]
        self.invoked_function_arn: str = request["arn"]
        self.function_name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
        self.function_version = os.environ["AWS_LAMBDA_FUNCTION_VERSION"]
        self.memory_limit_in_mb = os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]
        self.log_group_name = os.environ["AWS_LAMBDA_LOG_GROUP_NAME"]
        self.log_stream_name = os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the worker is killed, never below zero."""
        return max(0, int((self._deadline - time.monotonic()) * 1000))


def serve(name: str) -> int:
    """Be the child: import the handler, answer one event after the other, end when the input does."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    logging.basicConfig(stream=sys.stderr, format="[%(levelname)s] %(message)s")
    try:
        handler = _load(name)
    except Exception as error:  # whatever the module does at its import
        answers.write(json.dumps({"error": _describe(error)}) + "\n")
        return 1
    answers.write("{}\n")
    for request in requests:
        context = _Context(json.loads(request))
        event = json.loads(requests.readline())
        try:
            answer = json.dumps({"payload": handler(event, context)})
        except Exception as error:  # whatever the handler raises, or returns that is no JSON
            answer = json.dumps({"error": _describe(error)})
        answers.write(answer + "\n")
    return 0


def _load(name: str) -> Callable[[Any, _Context], Any]:
    module, _, function = name.rpartition(".")
    handler: Callable[[Any, _Context], Any] = getattr(importlib.import_module(module), function)
    return handler


def _describe(error: Exception) -> str:
    traceback.print_exc()
    return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1]))
