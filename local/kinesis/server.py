"""
A strict Kinesis on this machine: JSON 1.1 over HTTP, signatures checked, limits kept, faults on demand.

    python -m local.kinesis.server --port 4567 --stream posts --shards 4 [--state DIR]

It prints one line with its address when it is ready, and ends on SIGTERM or SIGINT with exit code 0. With `--state` it
can be killed and started again without losing anything it has answered for. `local/kinesis/admin.py` says what it can
be asked and told beside the API of the service. In a test:

    async with LocalKinesis({"posts": 4}) as kinesis:
        ...  # a client with kinesis.url
        kinesis.stream("posts").map.shards[0].records
"""

import argparse
import asyncio
import errno
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self
from uuid import uuid4

import orjson
from aiohttp import web

from local.kinesis.account import Account
from local.kinesis.admin import Admin
from local.kinesis.api import CONTENT_TYPE, answer
from local.kinesis.errors import KinesisError
from local.kinesis.state import State, StateError
from local.kinesis.stream import Stream

# Larger than any request that keeps the limits: 10 MiB of data in base64, and 500 keys of 256 escaped characters.
MAX_BODY_BYTES = 32 << 20
MEMORY_LIMIT = 512 << 20
SETTLE_SECONDS = 0.5
STOP_SECONDS = 1.0


class LocalKinesis:
    """
    The server, as an asynchronous context manager.

    `streams` are made at the start, ACTIVE, with that many shards, unless they come back from `state`. Port 0 takes a
    free one. `settle_seconds` is how long a stream shows as CREATING, UPDATING or DELETING; `memory_limit` is in bytes
    over all streams; `clock` gives seconds since 1970. Entering raises OSError if the port cannot be used, StateError
    if the directory cannot.
    """

    def __init__(
        self,
        streams: Mapping[str, int],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        state: Path | None = None,
        settle_seconds: float = SETTLE_SECONDS,
        memory_limit: int = MEMORY_LIMIT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.account = Account(memory_limit=memory_limit, settle_seconds=settle_seconds)
        self.broken: asyncio.Future[StateError] | None = None
        self._streams = streams
        self._host, self._port = host, port
        self._directory = state
        self._clock = clock
        self._state: State | None = None
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where clients and `/admin` find it, once it is entered."""
        assert self._runner is not None
        return f"http://{self._host}:{self._runner.addresses[0][1]}"

    def stream(self, name: str) -> Stream:
        """Return the model of a stream; KeyError if there is none."""
        return self.account.streams[name]

    async def __aenter__(self) -> Self:
        self.broken = asyncio.get_running_loop().create_future()
        try:
            now = self._clock()
            if self._directory is not None:
                self._state = State(self._directory)
                self.account.keep, self.account.forget = self._state.save, self._state.forget
                for snapshot, records in self._state.load():
                    self.account.restore(snapshot, records, now)
            for name, shards in self._streams.items():
                if name not in self.account.streams:
                    self.account.changed(self.account.create(name, shards, now), now)
            await self._listen()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _listen(self) -> None:
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_post("/", self._serve)
        Admin(self.account, self._clock).add_routes(application.router)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_SECONDS)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._state is not None:
            self._state.close()
            self._state = None

    async def _serve(self, request: web.Request) -> web.Response:
        headers = {"x-amzn-RequestId": str(uuid4())}
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            self.account.refused["RequestEntityTooLarge"] += 1
            raise
        try:
            result = answer(self.account, request.headers, body, self._clock())
        except KinesisError as error:
            headers["x-amzn-ErrorType"] = error.code
            refusal = orjson.dumps({"__type": error.code, "message": error.message})
            return web.Response(body=refusal, status=error.status, content_type=CONTENT_TYPE, headers=headers)
        except StateError as error:
            # What is not on disk must not be answered for, and memory is ahead of the disk now.
            if self.broken and not self.broken.done():
                self.broken.set_result(error)
            return _hang_up(request)
        if result.delay:
            await asyncio.sleep(result.delay)
        if result.drop:
            return _hang_up(request)
        return web.Response(body=result.body, content_type=CONTENT_TYPE, headers=headers)


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def serve(arguments: argparse.Namespace) -> int:
    """Run until a signal; return the exit code. Raises as `LocalKinesis` does, and StateError later too."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    kinesis = LocalKinesis(
        {arguments.stream: arguments.shards},
        host=arguments.host,
        port=arguments.port,
        state=arguments.state,
        memory_limit=arguments.memory_limit,
    )
    async with kinesis:
        print(f"local Kinesis ready at {kinesis.url}", flush=True)
        assert kinesis.broken is not None
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((stopped, kinesis.broken), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not kinesis.broken.done():
            return 0
        raise kinesis.broken.result()


def _number(lowest: int, highest: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"wants a number from {lowest} to {highest}, not {text}")
        return int(text)

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local.kinesis.server", description="A strict local Kinesis.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=_number(0, 65_535), required=True, help="port to listen at; 0 takes a free one")
    parser.add_argument("--stream", required=True, help="stream to make at the start")
    parser.add_argument("--shards", type=_number(1, 10_000), default=1, help="its number of shards (1)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="keep everything here, over restarts")
    parser.add_argument(
        "--memory-limit",
        type=_number(1, 1 << 40),
        default=MEMORY_LIMIT,
        metavar="BYTES",
        help=f"records kept over all streams ({MEMORY_LIMIT})",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        import uvloop  # noqa: PLC0415 - faster, but not needed and not everywhere
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    try:
        return run(serve(options))
    except StateError as error:
        problem = str(error)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"port {options.port} on {options.host} is in use; give another --port"
        else:
            problem = f"{error}; see --host and --port"
    print(f"local Kinesis: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
