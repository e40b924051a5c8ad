"""
The settings, from the environment: one frozen object, or every fault at once.

`Settings` is the only table. A field's annotation holds its reader and its meaning; parsing, the effective
configuration (`describe`) and docs/configuration.md (`markdown`) are all made from it.

Rules:

* A variable is `MILLRACE_` and the field's name in capitals. An empty variable counts as not set, because compose
  files pass on what their host does not have as an empty text.
* A field that has a reader for files may be given as `..._FILE` instead, never as both.
* An unknown `MILLRACE_` name is a fault: a misspelt limit that silently keeps its default is found too late.
  Kubernetes injects such names for a service that is called millrace; those are let through.
* Faults name the setting and the way out, and never repeat the value of a secret.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints
from urllib.parse import urlsplit

import msgspec
import yaml

from service.core.limits import KIB, MIB
from service.core.posts import PARTITION_KEYS, POINTER
from service.core.rules import Rule
from service.core.sources import SOURCES

PREFIX = "MILLRACE_"
_UNITS = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": 1024 * MIB, "tib": 1024 * 1024 * MIB}


class ConfigError(Exception):
    """The environment cannot be used; `faults` has one line for each thing to mend, and `str` has them all."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A text that shows itself to nobody who does not ask: `repr`, `str` and formatting give `***`."""

    _value: str

    def reveal(self) -> str:
        """Give the text itself, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return "***"


_RuleText = Annotated[str, msgspec.Meta(pattern=r"\S")]  # anything but blanks


class _RuleEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: _RuleText
    tag: str = ""


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


def _number(kind: type[int] | type[float], low: int, high: int) -> Reader:
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


def _size(minimum: int) -> Reader:
    def parse(text: str) -> int:
        match = re.fullmatch(r"(\d+)\s*([a-z]*)", text.lower(), re.ASCII)
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"{text!r} is not a size; write bytes, or a number with KiB, MiB, GiB or TiB (128MiB)")
        size = int(match[1]) * _UNITS[match[2]]
        if size < minimum:
            raise ValueError(f"{text} is too small; write at least {show(minimum)}")
        return size

    def show(size: int) -> str:
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            if size and size % _UNITS[unit.lower()] == 0:
                return f"{size // _UNITS[unit.lower()]}{unit}"
        return str(size)

    return Reader(parse, f"size, at least {show(minimum)}", show)


def _choice(*options: str) -> Reader:
    def parse(text: str) -> str:
        if text.lower() not in options:
            raise ValueError(f"{text!r} is not supported; write one of {', '.join(options)}")
        return text.lower()

    return Reader(parse, ", ".join(options))


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
        usable = url.scheme in {"http", "https"} and url.hostname and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{text!r} is not a URL; write one like https://api.x.com")
    if url.query or url.fragment:
        raise ValueError(f"{text!r} has a query or a fragment; write only the base, like https://api.x.com")
    return text.rstrip("/")


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


def _optional(reader: Reader) -> Reader:
    return reader._replace(show=lambda value: "" if value is None else reader.show(value))


_NAMES = Reader(_parse_names, "names, with commas", ",".join)
_SECRET = Reader(_parse_secret, "text", lambda secret: str(secret or ""), _parse_secret)
_RULES = Reader(_parse_rules, "one rule a line; in the file: YAML", _show_rules, _parse_rules_file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    Everything that can be set. Sizes are in bytes and times in seconds.

    `load` makes one from the environment and is the only place that checks.
    """

    bearer_token: Annotated[
        Secret | None, _SECRET, "App-only token of the X API. Not needed for SOURCE=stdin, nor with API_KEY."
    ] = None
    api_key: Annotated[
        Secret | None, _SECRET, "X API key; with API_KEY_SECRET it is exchanged for a token at the start."
    ] = None
    api_key_secret: Annotated[Secret | None, _SECRET, "The secret that belongs to API_KEY."] = None
    x_url: Annotated[str, Reader(_parse_url, "http or https URL"), "Base URL of the X API."] = "https://api.x.com"
    source: Annotated[
        str,
        _choice(*SOURCES, "stdin"),
        "Where posts come from: X's filtered stream, one of its volume streams (sample is 1 %, sample10 is 10 %), or"
        " JSON lines on standard input until it ends.",
    ] = "filtered"
    partition: Annotated[
        int | None,
        _optional(_number(int, 1, max(source.partitions for source in SOURCES.values()))),
        "Which part of sample10 (1 or 2) or of a firehose (1 to 20; en 1 to 8; ja, ko, pt 1 or 2): one process"
        " for each.",
    ] = None
    backfill: Annotated[
        str,
        _choice("auto", "off"),
        "auto: after a gap X is asked for what it had meanwhile (backfill_minutes); if it refuses, not again"
        " for a week.",
    ] = "auto"
    monthly_posts: Annotated[
        int | None,
        _optional(_number(int, 1, 10**12)),
        "Posts from X in a month of UTC. At nine tenths of them the log warns, at the last one the connection is closed"
        " until the month is over. Needs a journal.",
    ] = None
    tweet_fields: Annotated[
        tuple[str, ...], _NAMES, "X's `tweet.fields`. The processor needs those of the default."
    ] = (
        "author_id",
        "conversation_id",
        "created_at",
        "lang",
        # A long post has its whole text here.
        "note_tweet",
        "referenced_tweets",
    )
    expansions: Annotated[tuple[str, ...], _NAMES, "X's `expansions`."] = ("author_id",)
    user_fields: Annotated[tuple[str, ...], _NAMES, "X's `user.fields`."] = ("name", "username")
    media_fields: Annotated[tuple[str, ...], _NAMES, "X's `media.fields`."] = ()
    place_fields: Annotated[tuple[str, ...], _NAMES, "X's `place.fields`."] = ()
    poll_fields: Annotated[tuple[str, ...], _NAMES, "X's `poll.fields`."] = ()
    rules: Annotated[
        tuple[Rule, ...],
        _RULES,
        "Wanted rules of the filtered stream; the file is a list of rules, each a text or a mapping with value and tag."
        " Changes of the file are applied while the daemon runs. Without it the rules that X already has are used.",
    ] = ()
    stream: Annotated[str, Reader(_parse_stream, "name or ARN"), "Kinesis stream, name or ARN. **Required.**"]
    partition_key: Annotated[
        str,
        Reader(_parse_partition_key, f"{', '.join(PARTITION_KEYS)}, or a JSON pointer"),
        "Posts with the same value keep their order. A pointer is for records that are not X's posts.",
    ] = "author_id"
    aggregation: Annotated[
        str, _choice("kpl", "none"), "kpl: many posts in one Kinesis record; none: every post is a record."
    ] = "kpl"
    compression: Annotated[
        str,
        _choice("none", "zstd"),
        "zstd: containers are compressed; only Millrace's own processor reads them.",
    ] = "none"
    lanes_per_shard: Annotated[
        int, _number(int, 1, 10), "As many as the ParallelizationFactor of the Lambda mapping."
    ] = 1
    linger_seconds: Annotated[
        float,
        _number(float, 0, 60),
        "How long a post waits for others that go with it; where posts go one by one, a twentieth of it at most.",
    ] = 0.1
    memory_limit: Annotated[int, _size(MIB), "Bytes that posts and the requests that carry them take of memory."] = (
        128 * MIB
    )
    journal: Annotated[
        Path | None,
        Reader(_parse_journal, "directory, or off", lambda path: "off" if path is None else str(path)),
        "Where posts are kept until Kinesis has confirmed them.",
    ] = Path("./journal")
    journal_limit: Annotated[int, _size(MIB), "Bytes of posts in the journal; its files may take twice as much."] = (
        8 * 1024 * MIB
    )
    http_host: Annotated[
        str, Reader(str, "address or name"), "Where the admin server listens; 0.0.0.0 opens it to the network."
    ] = "127.0.0.1"
    http_port: Annotated[int, _number(int, 0, 65535), "Its port; 0 takes any free one."] = 8080
    show_posts: Annotated[
        str, _choice("off", "on"), "on: the live page names the last posts, by id and author, to all who may open it."
    ] = "off"
    shutdown_seconds: Annotated[
        float, _number(float, 0, 3600), "How long SIGTERM waits for posts in memory to be confirmed."
    ] = 8.0
    log_level: Annotated[str, _choice("debug", "info", "warning", "error"), "The least level that is logged."] = "info"
    log_format: Annotated[str, _choice("auto", "console", "json"), "auto: console on a terminal, JSON elsewhere."] = (
        "auto"
    )

    def parameters(self) -> Mapping[str, tuple[str, ...]]:
        """Give what is asked of X for each post, by the names of the settings, which are tweepy's too."""
        names = ("tweet_fields", "expansions", "user_fields", "media_fields", "place_fields", "poll_fields")
        return {name: getattr(self, name) for name in names}


class _Setting(NamedTuple):
    """One row of the table: `name` is the variable, `default` is MISSING where there is none."""

    attribute: str
    name: str
    default: Any
    reader: Reader
    meaning: str


def _table() -> Iterator[_Setting]:
    hints = get_type_hints(Settings, include_extras=True)
    for field in fields(Settings):
        reader, meaning = hints[field.name].__metadata__
        yield _Setting(field.name, PREFIX + field.name.upper(), field.default, reader, meaning)


_TABLE = tuple(_table())


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings out of `environ`; raises ConfigError with every fault that it finds."""
    faults = _unknown_names(environ)
    values: dict[str, Any] = {}
    for setting in _TABLE:
        try:
            values[setting.attribute] = _value(setting, environ)
        except ValueError as error:
            faults += error.args
            values[setting.attribute] = None  # it is there, if badly: no second fault for its absence
    given = {attribute: value for attribute, value in values.items() if value is not MISSING}
    faults += [PREFIX + fault for fault in _contradictions(given)]
    if faults:
        raise ConfigError(faults)
    return Settings(**given)


def _value(setting: _Setting, environ: Mapping[str, str]) -> Any:
    """Read one setting, MISSING if it is not there; raises ValueError with the lines of its faults."""
    name, parse = setting.name, setting.reader.parse
    text = environ.get(name, "").strip()
    if setting.reader.parse_file is not None and (path := environ.get(f"{name}_FILE", "").strip()):
        if text:
            raise ValueError(f"{name}: set together with {name}_FILE; remove one of them")
        name, parse = f"{name}_FILE", setting.reader.parse_file
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(
                f"{name}: cannot read {path!r}: {error.strerror}; mend the path or its permissions"
            ) from None
        except ValueError:
            raise ValueError(f"{name}: {path!r} is not text in UTF-8; save it as such") from None
    elif not text:
        return MISSING
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(*(f"{name}: {fault}" for fault in error.args)) from None


def _contradictions(given: Mapping[str, Any]) -> Iterator[str]:
    """Find what is missing, or does not go together, among the settings that are there; faulty ones are None."""
    source, partition = given.get("source", "filtered"), given.get("partition")
    token, key, secret = (name in given for name in ("bearer_token", "api_key", "api_key_secret"))
    if "stream" not in given:
        yield "STREAM: not set; write the name or the ARN of the Kinesis stream"
    if source == "stdin":
        return
    if token and (key or secret):
        yield f"BEARER_TOKEN: set together with {PREFIX}API_KEY{'' if key else '_SECRET'}; remove one of them"
    elif key and not secret:
        yield f"API_KEY_SECRET: not set, but {PREFIX}API_KEY is; write the secret of that key"
    elif secret and not key:
        yield f"API_KEY: not set, but {PREFIX}API_KEY_SECRET is; write the key of that secret"
    elif not token and not key:
        other = f"{PREFIX}API_KEY and {PREFIX}API_KEY_SECRET"
        yield f"BEARER_TOKEN: not set; write the app-only token of X, or set {other}"
    if source is None:
        return
    if source != "filtered" and "rules" in given:
        yield f"RULES: SOURCE={source} takes no rules; remove them, or write SOURCE=filtered"
    most = SOURCES[source].partitions
    if most and "partition" not in given:
        yield f"PARTITION: not set, and SOURCE={source} is dealt out; write a number from 1 to {most}"
    elif not most and partition is not None:
        yield f"PARTITION: SOURCE={source} has no partitions; remove it"
    elif partition is not None and partition > most:
        yield f"PARTITION: SOURCE={source} has {most} partitions; write a number from 1 to {most}"
    ordered_by, asked_for = given.get("partition_key", "author_id"), given.get("tweet_fields")
    if asked_for is not None and ordered_by in PARTITION_KEYS and ordered_by not in {"id", *asked_for}:
        yield f"TWEET_FIELDS: lacks {ordered_by}, which {PREFIX}PARTITION_KEY keeps in order; add it"
    if given.get("monthly_posts") is not None and "journal" in given and given["journal"] is None:
        yield f"MONTHLY_POSTS: {PREFIX}JOURNAL is off, so each restart would count from 0; write a directory"


def _unknown_names(environ: Mapping[str, str]) -> list[str]:
    known = {setting.name for setting in _TABLE}
    known |= {f"{setting.name}_FILE" for setting in _TABLE if setting.reader.parse_file is not None}
    faults = []
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in known or _is_of_kubernetes(name, environ[name]):
            continue
        # Compared without the prefix, which would make all of them alike.
        near = difflib.get_close_matches(name[len(PREFIX) :], sorted(other[len(PREFIX) :] for other in known), 1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else "remove it; docs/configuration.md lists all names"
        faults.append(f"{name}: no such setting; {hint}")
    return faults


def _is_of_kubernetes(name: str, value: str) -> bool:
    """Tell the variables that a Service called millrace, or millrace-something, injects into each pod beside it."""
    injected = r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
    if re.fullmatch(PREFIX + injected, name):
        return True
    return name.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", value) is not None


def describe(settings: Settings) -> str:
    """Give the effective configuration, one `NAME=value` a line: secrets as `***`, nothing after `=` if not set."""
    return "\n".join(f"{row.name}={row.reader.show(getattr(settings, row.attribute))}" for row in _TABLE)


def markdown() -> str:
    """Give docs/configuration.md."""
    rows = []
    for setting in _TABLE:
        names = f"`{setting.name}`"
        if setting.reader.parse_file is not None:
            names += f" or `{setting.name}_FILE`"
        default = "" if setting.default is MISSING else setting.reader.show(setting.default)
        rows.append(
            f"| {names} | {f'`{default}`' if default else '–'} | {setting.reader.allowed} | {setting.meaning} |"
        )
    return _PAGE.format(rows="\n".join(rows))


_PAGE = """\
# Configuration

<!-- Made by `python -m service config --markdown`. Change service/config.py instead. -->

The daemon is configured by environment variables only. All faults are reported at once, one line each, and end it
with exit code 2 before anything is opened. A name that begins with `MILLRACE_` and is not in the table is a fault too.
An empty variable counts as not set. `python -m service config` prints what is in effect, without secrets.

| name | default | allowed | meaning |
|---|---|---|---|
{rows}

A name that ends in `_FILE` holds the path of a file with the value, as orchestrators mount secrets; blanks and line
breaks around the value are dropped. A setting and its `_FILE` exclude each other. A changed file of rules is taken up
at once, that of the token when X refuses the old one, any other at a restart.

For X, set either `MILLRACE_BEARER_TOKEN`, or `MILLRACE_API_KEY` and `MILLRACE_API_KEY_SECRET`. `SOURCE=stdin` needs
neither.

A rules file is YAML. Put rules in single quotes: many of X's operators mean something to YAML too.

```yaml
- value: '"coffee beans" lang:en -is:retweet'
  tag: coffee
- '#espresso'
```

Sizes are bytes, or a number with `KiB`, `MiB`, `GiB` or `TiB`.

AWS is configured by its own variables: `AWS_REGION` or `AWS_DEFAULT_REGION` (an ARN in `MILLRACE_STREAM` says the
region too), `AWS_PROFILE`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL_KINESIS`, `AWS_CA_BUNDLE`
and all others that botocore reads. Roles of containers and instances work without any.
"""
