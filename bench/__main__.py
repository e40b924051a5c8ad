"""
The benchmark: Millrace beside its peers, on the same posts and the same stub of Kinesis.

    python -m bench                  everything, some ten minutes; writes docs/performance.md and docs/performance.svg
    python -m bench --quick          about a minute: short runs, without TLS, latency and growth; writes nothing
    python -m bench --posts FILE     beside the invented posts, those of a recorded archive (a post a line)
    python -m bench --only peers growth outage --outage 20

Exit codes: 0 well; 1 a peer failed, or posts were lost. Figures that miss their aims are shown and are no failure.
It needs Linux: it reads the CPU clock of other processes, and moves bytes from file to pipe without reading them.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import document, plot, scenarios, tables
from bench.measure import ROOT, SHARDS, Workshop
from bench.roster import ENVIRONMENTS, PEERS, is_missing
from bench.tables import Figures
from service import __version__

SECTIONS = ("peers", "growth", "outage")
_HOME = ROOT / ".bench"
_PICTURE = ROOT / "docs" / "performance.svg"


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    # Where somebody keeps an archive is nobody's business.
    head = _head(["FILE" if argument == str(options.posts) else argument for argument in arguments])
    _HOME.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_HOME, prefix="run-") as directory:
        certificate = _certificate(Path(directory))
        workshop = Workshop(Path(directory), _HOME, certificate, rounds=1 if options.quick else 2)
        figures = _measure(workshop, options)
    print(f"took {time.monotonic() - started:.0f} s", file=sys.stderr)
    text = f"{head}\n\n{_body(figures)}\n"
    print(text)
    if not options.quick and tuple(options.only) == SECTIONS:
        document.write("python -m bench", text)
        _PICTURE.write_text(plot.draw(figures.rows, figures.axes), encoding="utf-8")
        print(f"written: {document.PATH.relative_to(ROOT)}, {_PICTURE.relative_to(ROOT)}", file=sys.stderr)
    return 1 if _failed(figures) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short runs, and not all of them")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="these sections")
    parser.add_argument("--posts", type=Path, metavar="FILE", help="a recorded archive to measure too")
    parser.add_argument("--outage", type=float, default=60.0, metavar="SECONDS", help="for which Kinesis is away")
    return parser


def _measure(workshop: Workshop, options: argparse.Namespace) -> Figures:
    figures = Figures()
    scale = 0.1 if options.quick else 1.0
    if "peers" in options.only:
        full = not options.quick
        figures.rows += scenarios.beside_peers(workshop, _say, scale=scale, tls=full, paced=full)
        if options.posts:
            figures.recorded += scenarios.on_archive(workshop, options.posts, _say, scale)
            figures.compression += scenarios.compression(workshop, options.posts, _say)
    if "growth" in options.only and not options.quick:
        figures.axes += scenarios.growth(workshop, _say, scale)
    if "outage" in options.only:
        seconds = min(options.outage, 5.0) if options.quick else options.outage
        _say(f"Kinesis away for {seconds:g} s")
        figures.outage = scenarios.outage(workshop, seconds)
    return figures


def _say(what: str) -> None:
    print(f"  {datetime.now(UTC):%H:%M:%S}  {what}", file=sys.stderr, flush=True)


def _certificate(directory: Path) -> tuple[Path, Path]:
    # By a process of its own: see bench.measure on why this one must stay small.
    subprocess.run([sys.executable, "-m", "bench.tls", str(directory)], cwd=ROOT, check=True)
    return directory / "stub.pem", directory / "stub.key"


def _head(arguments: Sequence[str]) -> str:
    versions = sorted({pin.replace("==", " ") for pins in ENVIRONMENTS.values() for pin in pins})
    for peer in PEERS:
        if peer.program and not is_missing(peer):
            said = subprocess.run([peer.program, "--version"], capture_output=True, text=True, check=True).stdout
            versions.append(said.splitlines()[0])
    return (
        f"{document.head(' '.join(['python -m bench', *arguments]))}"
        f" Millrace {__version__}; {', '.join(versions)}. {SHARDS} shards unless said otherwise."
    )


def _body(figures: Figures) -> str:
    parts = []
    if figures.rows:
        parts += [
            "### Beside its peers",
            tables.cost(figures.rows),
            tables.delivery(figures.rows),
            tables.explanation(),
        ]
    if figures.recorded:
        parts += ["### On recorded posts", tables.cost(figures.recorded), tables.delivery(figures.recorded)]
    if figures.compression:
        parts += ["### Compression", tables.compression(figures.compression)]
    if figures.axes:
        parts += ["### How cost grows", tables.growth(figures.axes)]
    if figures.outage:
        parts += ["### An outage", tables.outage(figures.outage)]
    return "\n\n".join([*parts, "### Aims", tables.aims(figures)])


def _failed(figures: Figures) -> bool:
    lost = figures.outage is not None and bool(figures.outage.findings.lost or figures.outage.findings.out_of_order)
    return lost or any(row.note.startswith("failed") for row in [*figures.rows, *figures.recorded])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
