"""
The demo: the whole pipeline on this machine, some trouble on the way, and a reconciliation at the end.

Settings, from the environment, as `make demo` passes them on: SECONDS_TO_RUN (20; 0 runs until Ctrl-C), POSTS (a file
of recorded posts, one JSON object a line), POSTS_PER_SECOND (500). The exit code is 0 only if nothing was lost, no
key is out of order, and the daemon's own counts agreed at every look.
"""

import asyncio
import errno
import io
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from local.pipeline import CREDENTIALS, STREAM, TABLE, Pipeline
from local.processes import ProcessError
from local.reconcile import Reconciliation
from processor.__main__ import main as look
from processor.wire import MAGIC

LOOK_SECONDS = 0.5
# Without a terminal: a line now and then instead of a picture.
LINE_SECONDS = 2.0
LINE_COLUMNS = 120
IN_A_LINE = ("rules", "sent", "received", "repeats", "backfilled", "delivered", "buffered", "throttled", "reconnects")
NEWEST = 5
# Some other producer's: no JSON, no UTF-8, no post, and a container of the aggregated format that is cut short.
BAD_RECORDS = (b"this is no post", b"\xff\xfe\x00", b'{"data": {"text": "a post without an id"}}', MAGIC + b"\x0a\x02k")
RULES = "- value: coffee\n  tag: beans\n"
MORE_RULES = RULES + "- value: tea\n  tag: leaves\n"


async def _disconnect(pipeline: Pipeline) -> None:
    await pipeline.fault_at_x("refuse", answer="drop")
    await pipeline.fault_at_x("fin")


async def _change_rules(pipeline: Pipeline) -> None:
    """Add a rule to the file, or take it away again; the daemon looks at the file by itself."""
    path = _rules_file(pipeline.directory)
    text = await asyncio.to_thread(path.read_text, encoding="utf-8")
    await asyncio.to_thread(path.write_text, RULES if text == MORE_RULES else MORE_RULES, encoding="utf-8")


def _rules_file(directory: Path) -> Path:
    return directory / "rules.yaml"


# What happens, as a share of the run; an endless run begins anew every half minute.
TROUBLES = (
    (0.25, "X drops the connection, and is asked for what it had meanwhile", _disconnect),
    (0.35, "the file of rules changes, and the connection stays", _change_rules),
    (0.45, "X sends only keep-alives for 2 s", lambda p: p.fault_at_x("silence", seconds=2)),
    (0.55, "records that no table can hold come into Kinesis", lambda p: p.put_into_kinesis(BAD_RECORDS)),
    (0.65, "shard 0 is throttled for 3 s", lambda p: p.fault_at_kinesis("throttle_shard", shard=0, seconds=3)),
)
ROUND_SECONDS = 30.0

FOR_REAL = (
    "To do it for real: `make deploy STACK=millrace`, set MILLRACE_BEARER_TOKEN, MILLRACE_RULES and MILLRACE_STREAM,"
    ' and start `.venv/bin/python -m service`. "For real" in README.md leads through it step by step.'
)


class DemoError(Exception):
    """The demo cannot run; the text is one line with the way out."""


@dataclass
class View:
    """What is seen of the flow at one moment, and since when."""

    rates: dict[str, float] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    trouble: str = ""
    unbalanced: str = ""

    async def look(self, pipeline: Pipeline, seconds: float) -> None:
        """Ask everyone how far they are."""
        x, kinesis, mapping = await asyncio.gather(
            pipeline.x_stats(), pipeline.kinesis_stats(), pipeline.mapping_stats()
        )
        metrics = await pipeline.metrics()
        stream: dict[str, Any] = kinesis["streams"][STREAM]
        totals = {
            "sent": x["written"],
            "received": metrics["posts_received_total"],
            "delivered": metrics["posts_delivered_total"],
            "buffered": metrics["posts_buffered"],
            "dropped": metrics["posts_dropped_total"],
            "requests": metrics["put_requests_total"],
            "records": stream["accepted"],
            "throttled": metrics.get("shard_throttles_total", 0.0),
            "reconnects": metrics.get("stream_reconnects_total", 0.0),
            "backfilled": metrics["posts_backfilled_total"],
            "repeats": metrics["posts_duplicate_total"],
            "rules": x["rules"],
            "done": mapping["records"],
            "invocations": mapping["invocations"],
            "connected": metrics["stream_connected"],
        }
        self.rates = {name: (value - self.totals.get(name, 0.0)) / seconds for name, value in totals.items()}
        self.totals = totals
        came = metrics["posts_received_total"] + metrics["posts_recovered_total"]
        went = sum(
            metrics[f"posts_{name}"] for name in ("delivered_total", "dropped_total", "duplicate_total", "buffered")
        )
        if came != went:
            self.unbalanced = f"the daemon counts {came:.0f} posts in and {went:.0f} out"

    def picture(self, done: float) -> Panel:
        """Draw it."""
        table = Table(box=None, expand=True, pad_edge=False)
        for name, justify in (("", "left"), ("in all", "right"), ("a second", "right"), ("", "left")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]  # one of the two words
        state = "[green]connected[/]" if self.totals.get("connected") else "[yellow]reconnecting[/]"
        rows = (
            ("X", "posts sent", "sent", f"for {self._total('rules')} rules"),
            ("daemon", "received", "received", f"{state}, {self._total('reconnects')} reconnects"),
            ("", "backfilled", "backfilled", f"{self._total('repeats')} repeats left out"),
            ("", "buffered", "buffered", f"{self._total('dropped')} dropped"),
            ("", "delivered", "delivered", f"in {self._total('requests')} requests"),
            ("Kinesis", "records stored", "records", f"{self._total('throttled')} throttled"),
            ("Lambda", "records done", "done", f"in {self._total('invocations')} invocations"),
        )
        for place, label, name, note in rows:
            rate = "" if name == "buffered" else f"{max(self.rates.get(name, 0.0), 0):,.0f}"
            table.add_row(f"[bold]{place:<9}[/]{label}", self._total(name), rate, f"  {note}")
        parts: list[RenderableType] = [table, Text(self.trouble or " ", style="yellow")]
        if done >= 0:
            parts.append(ProgressBar(total=1.0, completed=min(done, 1.0)))
        return Panel(Group(*parts), title="Millrace", title_align="left")

    def line(self) -> str:
        """Say it in one line, for a log; each trouble once."""
        trouble, self.trouble = self.trouble, ""
        return "  ".join(f"{name} {self._total(name)}" for name in IN_A_LINE) + (f"  <- {trouble}" if trouble else "")

    def _total(self, name: str) -> str:
        return f"{self.totals.get(name, 0):,.0f}"


async def run(environ: Mapping[str, str], console: Console) -> int:
    """Run the demo and return the exit code; raises DemoError and ProcessError."""
    seconds = _number(environ, "SECONDS_TO_RUN", 20)
    rate = _number(environ, "POSTS_PER_SECOND", 500)
    posts = Path(environ["POSTS"]) if environ.get("POSTS") else None
    if posts is not None and not posts.is_file():
        raise DemoError(f"POSTS: there is no file {posts}; name one with a JSON object a line")
    directory = Path(tempfile.mkdtemp(prefix="millrace-demo-"))
    console.print(f"Starting X, Kinesis, the Lambda, the table and the daemon; logs are in {directory}", soft_wrap=True)
    view = View()
    _rules_file(directory).write_text(RULES, encoding="utf-8")
    settings = {"MILLRACE_RULES": "", "MILLRACE_RULES_FILE": str(_rules_file(directory))}
    # Invented posts have no authors whom to name would harm.
    settings |= {} if posts else {"MILLRACE_SHOW_POSTS": "on"}
    async with Pipeline(directory, rate=rate, posts=posts, settings=settings, x_options=["--enterprise"]) as pipeline:
        url = pipeline.daemon.url
        console.print(f"The daemon is at {url} (open it in a browser; {url}/metrics is for Prometheus)", soft_wrap=True)
        await _watch(pipeline, view, seconds, console)
        console.print("No more posts; waiting until all of them have arrived.")
        await pipeline.stop_posts()
        await pipeline.settle()
        await view.look(pipeline, LOOK_SECONDS)
        code = await pipeline.daemon.stop()
        result = await pipeline.reconcile()
        answers = await asyncio.to_thread(_answers, pipeline, console.width)
    kept = pipeline.quarantined()
    _report(console, view, result, kept, answers)
    faults = [view.unbalanced] if view.unbalanced else []
    if sorted(record for record, _ in kept) != sorted(pipeline.put_in):
        faults.append(
            f"the quarantine holds {len(kept)} records, and not those {len(pipeline.put_in)} that belong there"
        )
    wanted = _rules_file(directory).read_text(encoding="utf-8").count("value:")
    if view.totals["rules"] != wanted:
        faults.append(f"X has {view.totals['rules']} rules, and the file {wanted}")
    if code != 0:
        faults.append(f"the daemon ended with exit code {code}: {pipeline.daemon.last_words()}")
    if not result.ok or faults:
        console.print("\n".join(["[bold red]Not all is well.[/]", *faults, f"The logs are in {directory}"]))
        return 1
    shutil.rmtree(directory)
    return 0


async def _watch(pipeline: Pipeline, view: View, seconds: float, console: Console) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    started = last_look = last_line = time.monotonic()
    pending = _troubles(seconds or ROUND_SECONDS, started)
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while not stopped.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), LOOK_SECONDS)
            now = time.monotonic()
            if seconds and now - started >= seconds:
                break
            pipeline.check()
            while pending and pending[0][0] <= now:
                _, view.trouble, act = pending.pop(0)
                await act(pipeline)
                # Each has a line, even if the next comes soon.
                last_line = 0.0
            if not pending and not seconds:
                pending = _troubles(ROUND_SECONDS, now)
            await view.look(pipeline, now - last_look)
            last_look = now
            if live:
                live.update(view.picture((now - started) / seconds if seconds else -1.0), refresh=True)
            elif now - last_line >= LINE_SECONDS:
                console.print(view.line(), soft_wrap=True)
                last_line = now
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)


def _troubles(seconds: float, start: float) -> list[tuple[float, str, Callable[[Pipeline], Any]]]:
    return [(start + share * seconds, text, act) for share, text, act in TROUBLES]


def _answers(pipeline: Pipeline, columns: int) -> list[tuple[str, str]]:
    """Ask the processor's console as an operator would; return each command with what it shows on a terminal."""

    def ask(*command: str, columns: int | None = columns) -> str:
        output = io.StringIO()
        environ = {"TABLE": TABLE, "AWS_ENDPOINT_URL_DYNAMODB": pipeline.table.url, **CREDENTIALS}
        look(command, environ, output=output, errors=output, columns=columns)
        return output.getvalue().rstrip()

    shown = ("-n", str(NEWEST))
    commands: list[tuple[str, ...]] = [("latest", *shown)]
    # Not splitlines: posts hold U+2028 and other characters at which it cuts as well.
    lines = ask("latest", *shown, columns=None).split("\n")
    posts = [json.loads(line) for line in lines if line.startswith("{")]
    commands += [("author", post["AuthorId"], *shown) for post in posts if "AuthorId" in post][:1]
    commands += [("rule", tag, *shown) for post in posts for tag in post.get("RuleTags", ())][:1]
    return [(f"python -m processor {' '.join(command)}", ask(*command)) for command in commands]


def _report(
    console: Console,
    view: View,
    result: Reconciliation,
    kept: list[tuple[bytes, str]],
    answers: list[tuple[str, str]],
) -> None:
    total = {name: f"{view.totals[name]:>9,.0f}" for name in ("received", "backfilled", "delivered", "dropped")}
    console.print()
    for line in result.summary().splitlines():
        name = line.split("  ")[0]
        if name == "put aside":
            # Here these are what was dropped, and what is in quarantine.
            continue
        good = name in {"lost", "out of order"} and line.split()[-1] == "0"
        bad = name in {"lost", "out of order"} and not good
        console.print(line, style="bold green" if good else "bold red" if bad else None, highlight=False)
        if name == "sent":
            repeats = f"{view.totals['repeats']:,.0f} repeats that were left out"
            console.print(f"received      {total['received']}, with {repeats}", highlight=False)
            console.print(f"backfilled    {total['backfilled']}, after a connection was lost", highlight=False)
            console.print(f"delivered     {total['delivered']}", highlight=False)
            console.print(f"dropped       {total['dropped']}", highlight=False)
    console.print(f"quarantined   {len(kept):>9,}, what another producer sent", highlight=False)
    for reason, number in sorted(Counter(reason for _, reason in kept).items()):
        console.print(f"{number:>23,}  {reason}", markup=False, highlight=False, soft_wrap=True)
    for command, answer in answers:
        console.print(f"\n$ {command}", style="bold", markup=False, highlight=False, soft_wrap=True)
        console.print(answer, markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n{FOR_REAL}", markup=False, highlight=False)


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise DemoError(f"{name}: {text!r} is not a number from 0 on")
    return number


def main(environ: Mapping[str, str]) -> int:
    """Run the demo from the command line."""
    console = Console(width=None if sys.stdout.isatty() else LINE_COLUMNS)
    try:
        return asyncio.run(run(environ, console))
    except (DemoError, ProcessError) as error:
        console.print(f"demo: {error}", markup=False, style="red")
    except OSError as error:
        way_out = "; make room on the disk, or set TMPDIR to another one" if error.errno == errno.ENOSPC else ""
        console.print(f"demo: {error}{way_out}", markup=False, style="red")
    return 1
