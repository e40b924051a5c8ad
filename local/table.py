"""
DynamoDB on this machine: moto's server with the table of the stack, in memory.

    python -m local.table --port N --stack NAME

The table is made from its definition in deploy/template.yaml, so that it has the keys and indexes that the stack
has. It prints one line with its address when it is ready. SIGTERM and SIGINT end it, and the table with it.

Traps: werkzeug ends the process by itself when its port is in use, and moto's own wrapper would wait for ever then,
so the socket is bound here. moto's tables belong to the process, so there is one server at a time. It deletes nothing
when its time to live is over, and takes 26 items in a batch, where DynamoDB refuses more than 25. It checks no
signature.
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from botocore.config import Config
from moto.moto_api._internal.models import moto_api_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from local import CLIENT
from local.template import Template, load

POLL_SECONDS = 0.05  # how soon the server sees that it is to end


@contextmanager
def dynamodb(host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Run a DynamoDB and give its URL; 0 is any free port. Raises OSError when it cannot listen there."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # or there would be a line for each request
    with socket.create_server((host, port)) as listener:
        application = DomainDispatcherApplication(create_backend_app)
        server = make_server(
            host, port, application, threaded=True, request_handler=MotoRequestHandler, fd=listener.fileno()
        )
        thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,))
        thread.start()
        try:
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            moto_api_backend.reset()


def create_table(url: str, template: Template, stack: str) -> str:
    """Make the table that the template describes for a stack of this name; return the table's name."""
    client = boto3.client("dynamodb", endpoint_url=url, config=Config(proxies={}), **CLIENT)
    definition = template.table_definition(stack)
    name: str = definition["TableName"]
    client.create_table(**definition)
    client.update_time_to_live(
        TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": template.ttl_attribute}
    )
    client.close()
    return name


def main(argv: list[str]) -> int:
    """Run from the command line; return the exit code. What stops it is one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m local.table", description="A local DynamoDB with the table.")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="to listen on (any free one)")
    parser.add_argument("--stack", required=True, metavar="NAME", help="whose table it is")
    arguments = parser.parse_args(argv)
    # moto asks botocore for all regions, which fails when one of these names a profile that is not there.
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        os.environ.pop(name, None)
    try:
        template = load()
        with dynamodb(arguments.host, arguments.port) as url:
            table = create_table(url, template, arguments.stack)
            asyncio.run(_stay(f"local DynamoDB ready at {url} with the table {table}"))
    except (OSError, ValueError) as error:
        print(f"local DynamoDB: {error}", file=sys.stderr)
        return 1
    return 0


async def _stay(ready: str) -> None:
    """Say so and wait for a signal. A thread that waits for a lock may miss one that another thread received."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    print(ready, flush=True)
    await stopping.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
