"""
Who takes part: what each peer is called, how it is started, and what its virtual environment holds.

Environments are made once, under `.bench/`, and made anew when their requirements change.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers import fluent_bit

_BOTO3 = ("boto3==1.43.117", "botocore==1.43.117", "msgspec==0.22.0", "urllib3==2.8.0")
_ASYNC = ("aiobotocore==3.10.0", "aiohttp==3.14.5", "botocore==1.43.117", "msgspec==0.22.0", "uvloop==0.23.0")
# Name of a virtual environment -> what it holds. All asynchronous peers get uvloop, as Millrace has it.
ENVIRONMENTS = {
    "boto3": _BOTO3,
    "aiobotocore": _ASYNC,
    "async-kinesis": (*_ASYNC, "async-kinesis==3.0.1"),
    "aiokpl": (*_ASYNC, "aiokpl==0.2.0", "anyio==4.16.0"),
}


class PeerError(Exception):
    """A peer cannot be set up; the text is one line."""


@dataclass(frozen=True)
class Peer:
    """
    One that takes part.

    Attributes:
        name: in the tables.
        posts: how many make a run of some seconds.
        module: of `bench.peers`; empty for Millrace and for Fluent Bit.
        environment: of `ENVIRONMENTS`, in which the module runs.
        settings: of Millrace, without MILLRACE_.
        program: of another language; takes part only if it is installed.
        tls_only: it speaks nothing else.
        escapes: what arrives is the line as the inside of a JSON string.
    """

    name: str
    posts: int
    module: str = ""
    environment: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    program: str = ""
    tls_only: bool = False
    escapes: bool = False

    @property
    def is_millrace(self) -> bool:
        """Whether it is ours."""
        return not (self.module or self.program)

    @property
    def reads_pipes(self) -> bool:
        """Whether it can be fed at a steady rate."""
        return not self.program


AGGREGATED = Peer("Millrace, aggregated", 120_000, settings={"AGGREGATION": "kpl", "JOURNAL": "off"})
COMPRESSED = Peer("Millrace, compressed", 100_000, settings={"COMPRESSION": "zstd", "JOURNAL": "off"})
JOURNALED = Peer("Millrace, aggregated, journal on", 120_000, settings={"AGGREGATION": "kpl"})
PEERS = (
    AGGREGATED,
    JOURNALED,
    Peer("Millrace, not aggregated", 60_000, settings={"AGGREGATION": "none", "JOURNAL": "off"}),
    Peer("Millrace, not aggregated, journal on", 60_000, settings={"AGGREGATION": "none"}),
    Peer("Fluent Bit", 100_000, program=fluent_bit.PROGRAM, tls_only=True, escapes=True),
    Peer("aiobotocore, 500 a request, 16 in flight", 60_000, "aiobotocore_batches", "aiobotocore"),
    Peer("boto3, 500 a request", 60_000, "boto3_batches", "boto3"),
    Peer("async-kinesis, keyed", 8_000, "async_kinesis_keyed", "async-kinesis"),
    Peer("aiokpl, aggregated", 8_000, "aiokpl_aggregated", "aiokpl"),
    Peer("boto3, one PutRecord a post", 2_000, "boto3_single", "boto3"),
)


def is_missing(peer: Peer) -> bool:
    """Whether its program is not on this machine."""
    return bool(peer.program) and shutil.which(peer.program) is None


def python_of(environment: str, directory: Path) -> Path:
    """
    Return the interpreter of a virtual environment under `directory`; it is made if need be.

    Raises: PeerError, with the last line of what failed.
    """
    home = directory / environment
    python, made_of = home / "bin" / "python", home / "requirements.txt"
    wanted = "\n".join(ENVIRONMENTS[environment]) + "\n"
    if made_of.exists() and made_of.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted.split()]
    for command in ([sys.executable, "-m", "venv", str(home)], pip):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise PeerError(f"environment {environment}: {' '.join(command[1:4])} failed: {words[-1]}")
    made_of.write_text(wanted, encoding="utf-8")
    return python
