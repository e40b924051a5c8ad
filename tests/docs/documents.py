"""What the documents hold: links, headings, commands."""

import re
import shlex
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROGRAMS = ("python ", ".venv/bin/", "make ", "docker ", "aws ", "sed ", "cp ", "promtool ", "export ", ".ci/")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"^(?:[A-Z_0-9]+=\S* )*")
# A link that is no picture of code: [text](target), and <https://...>.
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """Return a document without its blocks of code."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def links(path: Path) -> list[str]:
    """Return the targets of all links, pictures included; what is in code is none."""
    return _LINK.findall(re.sub(r"`[^`]*`", "", prose(path)))


def anchors(path: Path) -> set[str]:
    """Return the names of all headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def blocks(path: Path) -> list[str]:
    """Return the blocks of shell commands."""
    return [text for language, text in _FENCE.findall(path.read_text(encoding="utf-8")) if language == "sh"]


def commands(path: Path) -> list[str]:
    """Return all commands that begin with one of PROGRAMS: in the lines of the blocks, and in the text."""
    found: list[str] = []
    for block in blocks(path):
        lines = [" ".join(line.split()) for line in block.replace("\\\n", " ").splitlines()]
        found += filter(_is_command, lines)
    for code in re.findall(r"`([^`]+)`", prose(path)):
        command = " ".join(code.split())
        if " " in command and _is_command(command):
            found.append(command)
    return found


def _is_command(line: str) -> bool:
    return _ASSIGNMENT.sub("", line).startswith(PROGRAMS)


def words(command: str) -> tuple[dict[str, str], list[str]]:
    """Return the assignments before a command, and its words up to what the shell joins or redirects."""
    reader = shlex.shlex(command, posix=True, punctuation_chars="|&<>;")
    reader.whitespace_split = True
    parts = list(reader)
    end = next((index for index, part in enumerate(parts) if set(part) <= set("|&<>;")), len(parts))
    environment: dict[str, str] = {}
    for part in parts[:end]:
        if not re.match(r"^[A-Z_0-9]+=", part):
            break
        name, _, value = part.partition("=")
        environment[name] = value
    return environment, parts[len(environment) : end]
