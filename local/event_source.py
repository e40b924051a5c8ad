"""
The event source mapping as a program: polls a Kinesis stream and calls the function with its records.

    python -m local.event_source --kinesis URL --stream NAME --dynamodb URL --failures DIR --stack NAME --port N

The settings of the mapping and of the function are those of deploy/template.yaml; mapping.py does the work.

Two directories stand for the S3 bucket of the stack: below DIR what Lambda would give up, in DIR/quarantine what the
function puts aside. A restart begins anew, as a new mapping does: so does the table, which is in memory. SIGTERM and
SIGINT let the invocations in flight end.

Over HTTP: GET /healthz, and GET /admin/stats with the counters since the start.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from aiohttp import web

from local import ACCOUNT, CLIENT, REGION
from local.batches import Source
from local.mapping import EventSource
from local.template import Template, load
from local.worker import Function, function_environment

# AWS_PROFILE is about an account, and may name a profile that this machine does not have.
NO_PROFILE = {"profile": (None, None, None, None)}


def admin(source: EventSource) -> web.Application:
    """Return the HTTP application: /healthz and /admin/stats."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def stats(_: web.Request) -> web.Response:
        return web.json_response(source.statistics())

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/admin/stats", stats)])
    return application


def _log(line: str) -> None:
    print(f"event source: {line}", file=sys.stderr, flush=True)


async def serve(arguments: argparse.Namespace, template: Template, environment: Mapping[str, str]) -> None:
    """Run the mapping and its HTTP server until SIGTERM or SIGINT."""
    deployed = template.function(arguments.stack)
    quarantine = {"QUARANTINE": str(arguments.failures / "quarantine")}
    deployed = replace(deployed, environment={**deployed.environment, **quarantine})
    source = Source(
        stream_arn=f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/{arguments.stream}",
        function_arn=f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{deployed.name}",
        role_arn=f"arn:aws:iam::{ACCOUNT}:role/{arguments.stack}-DDBEventProcessorRole",
        region=REGION,
    )
    workers = function_environment(deployed, region=REGION, endpoint_url=arguments.dynamodb, inherited=environment)
    function = Function(source.function_arn, deployed, workers)
    client = AioSession(NO_PROFILE).create_client(
        "kinesis",
        endpoint_url=arguments.kinesis,
        **CLIENT,
        config=AioConfig(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, proxies={}),
    )
    async with client as kinesis:
        mapping = EventSource(
            kinesis,
            function,
            stream=arguments.stream,
            source=source,
            settings=template.mapping(),
            failures=arguments.failures,
            log=_log,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, mapping.stop)
        runner = web.AppRunner(admin(mapping), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, arguments.host, arguments.port).start()
            print(f"event source ready at http://{arguments.host}:{runner.addresses[0][1]}", flush=True)
            await mapping.run()
        finally:
            await function.close()
            await runner.cleanup()


def main(argv: list[str], environment: Mapping[str, str]) -> int:
    """Run from the command line; return the exit code. What stops it is one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m local.event_source", description="The Kinesis to Lambda mapping.")
    parser.add_argument("--kinesis", required=True, metavar="URL", help="of the local Kinesis")
    parser.add_argument("--stream", required=True, metavar="NAME", help="to read")
    parser.add_argument("--dynamodb", required=True, metavar="URL", help="of the local DynamoDB")
    parser.add_argument("--failures", required=True, metavar="DIR", type=Path, help="stands for the failure bucket")
    parser.add_argument("--stack", required=True, metavar="NAME", help="whose function is called")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="to listen on (any free one)")
    arguments = parser.parse_args(argv)
    code = 0
    try:
        template = load()
    except (OSError, ValueError) as error:
        _log(str(error))
        return 2
    try:
        asyncio.run(serve(arguments, template, environment))
    except* OSError as group:  # the port, or a directory that cannot be written
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        _log(str(first))
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
