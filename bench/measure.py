"""
One run: a fresh stub, a peer, what it cost, and the check of what arrived.

Rules:

* CPU and peak memory are those that the operating system gives for the peer and all children that it waited for
  (wait4). The stub, the check and the benchmark itself are processes of their own and are not counted.
* This process must stay small: at the start of a child the peak of its parent is its own. So nothing large is imported
  here, and posts are written and checked by other processes.
* A peer gets its posts through a pipe, and its start and its end are not in the figure: see `bench.feed`. Fluent Bit
  reads the file by its name, and starts and ends within 30 ms; nothing is taken off.
* Posts a second are counted from the first byte of the first put that reaches the stub to its last answer.
* A peer whose posts did not all arrive once, as they were, has no figures: the run raises.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.feed import RunError, feed
from bench.findings import Findings
from bench.peers import fluent_bit
from bench.roster import Peer, python_of

ROOT = Path(__file__).resolve().parent.parent
# 256 MiB/s: more than any peer carries, so that no shard's limit slows a run that is to be as fast as it can.
SHARDS = 256
_RUN_SECONDS = 240.0


class Usage(NamedTuple):
    """What a process and its children took: seconds of CPU, bytes of memory at the peak."""

    cpu: float
    peak: int


@dataclass(frozen=True)
class Load:
    """
    What a peer has to carry.

    Attributes:
        posts: the file.
        count: how many are in it.
        shards: of the stream.
        tls: whether the stub speaks it.
        rate: posts a second; 0 for as fast as the peer reads them.
        delay: of the stub's answers, in seconds.
    """

    posts: Path
    count: int
    shards: int = SHARDS
    tls: bool = False
    rate: float = 0.0
    delay: float = 0.0


@dataclass(frozen=True)
class Result:
    """
    What a run has shown.

    Attributes:
        count: posts, all of them confirmed.
        cpu: microseconds a post, from the first that arrived to the last.
        start: seconds of CPU until the first post had arrived.
        rate: posts a second.
        peak: bytes of memory.
        received: bytes that the stub got: requests with their heads, before encryption.
        requests: calls that put something.
        findings: of the check.
    """

    count: int
    cpu: float
    start: float
    rate: float
    peak: int
    received: int
    requests: int
    findings: Findings

    @classmethod
    def of(
        cls, load: Load, start: float, end: float, usage: Usage, counted: Mapping[str, float], findings: Findings
    ) -> "Result":
        """Put together what a run has shown; `start` and `end` are the seconds of CPU before and after the posts."""
        return cls(
            count=load.count,
            cpu=(end - start) / load.count * 1e6,
            start=start,
            rate=load.count / (counted["last"] - counted["first"]),
            peak=usage.peak,
            received=int(counted["received"]),
            requests=int(counted["requests"]),
            findings=findings,
        )


class Stub:
    """A running `bench.stub`: where it listens, what it keeps, what it counted once it has ended."""

    def __init__(self, directory: Path, load: Load, certificate: tuple[Path, Path], *, port: int = 0) -> None:
        self.spool = directory / f"spool-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "bench.stub", "--shards", str(load.shards), "--spool", str(self.spool)]
        command += ["--delay", str(load.delay), "--port", str(port)]
        if load.tls:
            command += ["--certificate", str(certificate[0]), "--key", str(certificate[1])]
        self._log = directory / "stub.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        self.url = self._line()

    def stop(self) -> Mapping[str, float]:
        """End it and return what it counted."""
        self._process.send_signal(signal.SIGTERM)
        counted: dict[str, float] = json.loads(self._line())
        self._process.wait()
        return counted

    def close(self) -> None:
        """End it without asking, if it still runs, and remove what it kept."""
        self._process.kill()
        self._process.communicate()
        self.spool.unlink()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            words = self._log.read_text(errors="replace").strip().splitlines()
            raise RunError(f"the stub ended with exit code {self._process.wait()}: {words[-1:]}")
        return line


class Workshop:
    """
    Runs peers.

    Args:
        directory: for what a run needs; on the disk that the journal is to be measured on.
        environments: where the virtual environments are.
        certificate: of the stub, and its key.
        rounds: how often each measurement is made; the lowest CPU counts.
    """

    def __init__(self, directory: Path, environments: Path, certificate: tuple[Path, Path], rounds: int) -> None:
        self.directory = directory
        self.certificate = certificate
        self.rounds = rounds
        self._environments = environments

    def posts(self, count: int, *options: str) -> Path:
        """Write a file of posts, once; `options` are those of `bench.posts`."""
        name = "-".join(["posts", str(count), *(option.replace("/", "_") for option in options)])
        path = self.directory / name
        if not path.exists():
            subprocess.run([sys.executable, "-m", "bench.posts", str(path), str(count), *options], cwd=ROOT, check=True)
        return path

    def head(self, posts: Path, count: int) -> Path:
        """Write the first posts of a file to another, once."""
        path = self.directory / f"{posts.name}-first-{count}"
        if not path.exists():
            with posts.open("rb") as lines, path.open("wb") as file:
                file.writelines(itertools.islice(lines, count))
        return path

    def forget_posts(self) -> None:
        """Remove the files of posts; they are written again when they are wanted again."""
        for path in self.directory.glob("posts-*"):
            path.unlink()

    def measure(self, peer: Peer, load: Load, rounds: int = 0) -> Result:
        """Run a peer, `rounds` times or as often as everything; return the run with the least CPU. Raises RunError."""
        return min((self._run(peer, load) for _ in range(rounds or self.rounds)), key=lambda result: result.cpu)

    def _run(self, peer: Peer, load: Load) -> Result:
        self.forget_journal()
        fed, times = None, None
        with self.stub(load) as stub:
            command = self._command(peer, load, stub.url)
            stdin = subprocess.PIPE if peer.reads_pipes else subprocess.DEVNULL
            child = self.start(command, self.environment(peer, stub.url), peer.name, stdin)
            try:
                if peer.reads_pipes:
                    fed = feed(child, load.posts, load.count, load.rate, stub.spool)
            except BrokenPipeError:
                # It has ended too early, and `wait` or the check will say so.
                pass
            finally:
                usage = self.wait(child, peer.name)
            counted = stub.stop()
            if fed and fed.arrived != stub.spool.stat().st_size:
                raise RunError(f"{peer.name}: posts came when it had seemed to be done; its figures would be too low")
            if fed and fed.due:
                times = self.directory / "times"
                times.write_bytes(fed.due.tobytes())
            sent = ["--posts", str(load.posts), *(["--escaped"] if peer.escapes else [])]
            findings = self.check(load, sent, [stub.spool], times)
        if faults := findings.faults():
            raise RunError(f"{peer.name}: of {findings.sent:,} posts {', '.join(faults)}")
        start, end = (fed.start, fed.end) if fed else (0.0, usage.cpu)
        return Result.of(load, start, end, usage, counted, findings)

    def forget_journal(self) -> None:
        """Remove the journal: no run may find the posts of the one before."""
        shutil.rmtree(self.directory / "journal", ignore_errors=True)

    @contextmanager
    def stub(self, load: Load, port: int = 0) -> Iterator[Stub]:
        """Run a stub; what it kept is removed at the end."""
        stub = Stub(self.directory, load, self.certificate, port=port)
        try:
            yield stub
        finally:
            stub.close()

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], name: str, stdin: int
    ) -> subprocess.Popen[bytes]:
        """Start a process. What it says goes to a log file."""
        with self.log_of(name).open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environment),
                stdin=stdin,
                stdout=log,
                stderr=log,
                bufsize=0,
            )

    def wait(self, child: subprocess.Popen[bytes], name: str, seconds: float = _RUN_SECONDS) -> Usage:
        """Wait for the end of a process and return what it cost; raises RunError if it failed or took too long."""
        patience = threading.Timer(seconds, child.kill)
        patience.start()
        _, status, used = os.wait4(child.pid, 0)
        patience.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            words = self.log_of(name).read_text(errors="replace").strip().splitlines()
            raise RunError(f"{name}: exit code {child.returncode}: {words[-1] if words else 'it said nothing'}")
        return Usage(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)

    def check(self, load: Load, sent: Sequence[str], spools: Sequence[Path], times: Path | None = None) -> Findings:
        """Compare what arrived with what was sent; `sent` says where that is, as `bench.check` wants it."""
        command = [sys.executable, "-m", "bench.check", "--shards", str(load.shards), *sent]
        if times is not None:
            command += ["--times", str(times), "--delay", str(load.delay)]
        done = subprocess.run([*command, *map(str, spools)], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        return Findings(**json.loads(done.stdout))

    def environment(self, peer: Peer, url: str) -> dict[str, str]:
        """All the environment that a peer gets."""
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.directory),
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_KINESIS": url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        if url.startswith("https"):
            environment["AWS_CA_BUNDLE"] = str(self.certificate[0])
        if peer.is_millrace:
            journal = self.directory / "journal"
            settings = {"SOURCE": "stdin", "STREAM": "bench", "HTTP_PORT": "0", "JOURNAL": str(journal)}
            environment |= {f"MILLRACE_{name}": value for name, value in (settings | dict(peer.settings)).items()}
        return environment

    def log_of(self, name: str) -> Path:
        """Where a process writes what it has to say."""
        return self.directory / f"{name.replace(' ', '-')}.log"

    def _command(self, peer: Peer, load: Load, url: str) -> list[str]:
        if peer.is_millrace:
            return [sys.executable, "-m", "service"]
        if peer.program:
            return fluent_bit.command(self.directory, load.posts, url, self.certificate[0])
        return [str(python_of(peer.environment, self._environments)), "-m", f"bench.peers.{peer.module}"]
