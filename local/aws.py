"""
AWS on this machine: Kinesis, the table, and the event source mapping with the Lambda, each a process of its own.

    python -m local aws --directory DIR [--host 127.0.0.1] [--kinesis-port 4567] [--dynamodb-port 4566] [--port 4568]

It prints one line when all can be used. SIGTERM and Ctrl-C end it. If one of the processes dies, all end.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from local.pipeline import CREDENTIALS, STREAM, TABLE, TABLE_COMMAND, kinesis_command, mapping_command
from local.processes import Process, ProcessError

CHECK_SECONDS = 1.0


async def serve(options: argparse.Namespace) -> None:
    """Run all until a signal comes; raises ProcessError if one dies."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    options.directory.mkdir(parents=True, exist_ok=True)

    def process(name: str, command: Sequence[str], *more: str) -> Process:
        arguments = [*command, "--host", options.host, *more]
        return Process(name, arguments, {**os.environ, **CREDENTIALS}, options.directory)

    kinesis = process("kinesis", kinesis_command(options.directory, options.kinesis_port))
    table = process("table", TABLE_COMMAND, "--port", str(options.dynamodb_port))
    async with AsyncExitStack() as stack:
        for one in (kinesis, table):
            stack.push_async_callback(one.stop)
            await one.start()
        # Only now: with port 0 they have chosen theirs.
        urls = (f"http://127.0.0.1:{one.url.rpartition(':')[2]}" for one in (kinesis, table))
        mapping = process("mapping", mapping_command(options.directory, *urls), "--port", str(options.port))
        stack.push_async_callback(mapping.stop)
        await mapping.start()
        print(f"AWS stand-ins: stream {STREAM} at {kinesis.url} and table {TABLE} at {table.url}", flush=True)
        while not stopped.is_set():
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await stopped.wait()
            except TimeoutError:
                for one in (kinesis, table, mapping):
                    one.check()


def main(arguments: list[str]) -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m local aws", description="Kinesis, the table and the Lambda.")
    parser.add_argument("--directory", type=Path, required=True, help="for logs, the stream's records, failures")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (%(default)s)")
    parser.add_argument("--kinesis-port", type=int, default=4567, help="0 takes any free one (%(default)s)")
    parser.add_argument("--dynamodb-port", type=int, default=4566, help="(%(default)s)")
    parser.add_argument("--port", type=int, default=4568, help="of the mapping's statistics (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(serve(options))
    except (OSError, ProcessError) as error:
        print(f"aws: {error}", file=sys.stderr)
        return 1
    return 0
