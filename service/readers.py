"""
How the text of a variable becomes a value: a reader for each kind of setting that `config.Settings` has.

A fault says what is wrong with the text and how to write it; `config` puts the setting's name before it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import yaml

from service.core.limits import KIB, MIB
from service.core.posts import PARTITION_KEYS, POINTER
from service.core.rules import Rule

_UNITS = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": 1024 * MIB, "tib": 1024 * 1024 * MIB}


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A text that shows itself to nobody who does not ask: `repr`, `str` and formatting give `***`."""

    _value: str

    def reveal(self) -> str:
        """Give the text itself, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return "***"


class Reader(NamedTuple):
    """
    How a text becomes a value.

    Attributes:
        parse: text -> value; raises ValueError with one argument for each fault, none of them a secret.
        allowed: what may be written, for the table.
        show: value -> text, as `describe` prints it.
        parse_file: the text of a file -> value, where `..._FILE` is allowed too.
    """

    parse: Callable[[str], Any]
    allowed: str
    show: Callable[[Any], str] = str
    parse_file: Callable[[str], Any] | None = None


def number(kind: type[int] | type[float], low: int, high: int) -> Reader:
    """Read a number of this kind, from `low` to `high`."""
    allowed = f"{low} to {high}" if kind is float else f"whole number, {low} to {high}"

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number; write one from {low} to {high}") from None
        if not low <= value <= high:  # so written, it refuses nan too
            raise ValueError(f"{text} is out of range; write a number from {low} to {high}")
        return value

    return Reader(parse, allowed, lambda value: f"{value:g}" if kind is float else str(value))


def size(minimum: int) -> Reader:
    """Read bytes, also with a binary unit; `minimum` is the least."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"(\d+)\s*([a-z]*)", text.lower(), re.ASCII)
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"{text!r} is not a size; write bytes, or a number with KiB, MiB, GiB or TiB (128MiB)")
        count = int(match[1]) * _UNITS[match[2]]
        if count < minimum:
            raise ValueError(f"{text} is too small; write at least {show(minimum)}")
        return count

    def show(count: int) -> str:
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            if count and count % _UNITS[unit.lower()] == 0:
                return f"{count // _UNITS[unit.lower()]}{unit}"
        return str(count)

    return Reader(parse, f"size, at least {show(minimum)}", show)


def choice(*options: str) -> Reader:
    """Read one of these words, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in options:
            raise ValueError(f"{text!r} is not supported; write one of {', '.join(options)}")
        return text.lower()

    return Reader(parse, ", ".join(options))


def optional(reader: Reader) -> Reader:
    """Show None, which stands for a setting that is not there, as an empty text."""
    return reader._replace(show=lambda value: "" if value is None else reader.show(value))


def _parse_partition_key(text: str) -> str:
    if text not in PARTITION_KEYS and POINTER.fullmatch(text) is None:
        raise ValueError(f"{text!r} is none of {', '.join(PARTITION_KEYS)}, nor a JSON pointer like /user/id")
    return text


def _parse_secret(text: str) -> Secret:
    # It becomes a part of an HTTP header; a line break inside it would fail there, and the error would quote it.
    if re.fullmatch(r"[!-~]+", text.strip()) is None:
        raise ValueError("the text is empty or holds a blank or a character beyond ASCII; copy it again from X")
    return Secret(text.strip())


def _parse_url(text: str) -> str:
    if "@" in text:
        raise ValueError("the URL holds a user name or a password; leave them out")
    try:
        url = urlsplit(text)
        # As whoever looks it up encodes it, who would raise then.
        host = (url.hostname or "").encode("idna")
        usable = url.scheme in {"http", "https"} and host and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{text!r} is not a URL; write one like https://api.x.com")
    if url.query or url.fragment:
        raise ValueError(f"{text!r} has a query or a fragment; write only the base, like https://api.x.com")
    return text.rstrip("/")


def _parse_host(text: str) -> str:
    try:
        text.encode("idna")
    except ValueError:
        raise ValueError(f"{text!r} is no address and no name; write one of this machine, like 127.0.0.1") from None
    return text


def _parse_stream(text: str) -> str:
    # CreateStream: StreamName is 1 to 128 of these characters; an ARN names the region and the account before it.
    if re.fullmatch(r"(arn:aws[a-z-]*:kinesis:[a-z0-9-]+:\d{12}:stream/)?[a-zA-Z0-9_.-]{1,128}", text) is None:
        raise ValueError(f"{text!r} is neither a stream's name nor its ARN; copy one from the stack's outputs")
    return text


def _parse_journal(text: str) -> Path | None:
    return None if text.lower() == "off" else Path(text)


def _parse_names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        # X adds fields from time to time: which there are is for X to say.
        if re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", name) is None:
            raise ValueError(f"{name!r} is no name of a field of X; write such names with commas between them")
    return names


_RuleText = Annotated[str, msgspec.Meta(pattern=r"\S")]  # anything but blanks


class _RuleEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: _RuleText
    tag: str = ""


def _parse_rules(text: str) -> tuple[Rule, ...]:
    # No comment lines: X's rules may begin with a hash tag.
    return _without_repeats([_RuleEntry(line) for line in text.splitlines() if line.strip()])


def _parse_rules_file(text: str) -> tuple[Rule, ...]:
    way_out = "write a list, as - value: 'cats lang:en', with each text in single quotes"
    try:
        entries = msgspec.convert(yaml.safe_load(text), list[_RuleEntry | _RuleText])
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"not YAML: {error.problem}{line}; {way_out}") from None
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ValueError(f"not a list of rules: {str(error).splitlines()[0]}; {way_out}") from None
    return _without_repeats([_RuleEntry(entry) if isinstance(entry, str) else entry for entry in entries])


def _without_repeats(entries: list[_RuleEntry]) -> tuple[Rule, ...]:
    # X keeps a value once and refuses it a second time, whatever its tag. YAML's folded texts end with a line break.
    rules = tuple(Rule(entry.value.strip(), entry.tag) for entry in entries)
    seen: dict[str, int] = {}
    faults = [
        f"rule {number} repeats rule {seen[rule.value]}; remove one of them"
        for number, rule in enumerate(rules, 1)
        if seen.setdefault(rule.value, number) != number
    ]
    if faults:
        raise ValueError(*faults)
    return rules


def _show_rules(rules: tuple[Rule, ...]) -> str:
    return msgspec.json.encode([_RuleEntry(rule.value, rule.tag) for rule in rules]).decode() if rules else ""


HOST = Reader(_parse_host, "address or name")
JOURNAL = Reader(_parse_journal, "directory, or off", lambda path: "off" if path is None else str(path))
NAMES = Reader(_parse_names, "names, with commas", ",".join)
PARTITION_KEY = Reader(_parse_partition_key, f"{', '.join(PARTITION_KEYS)}, or a JSON pointer")
RULES = Reader(_parse_rules, "one rule a line; in the file: YAML", _show_rules, _parse_rules_file)
SECRET = Reader(_parse_secret, "text", lambda secret: str(secret or ""), _parse_secret)
STREAM = Reader(_parse_stream, "name or ARN")
URL = Reader(_parse_url, "http or https URL")
