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
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

from service.core.limits import MIB
from service.core.posts import PARTITION_KEYS
from service.core.rules import Rule
from service.core.sources import SOURCES
from service.readers import (
    HOST,
    JOURNAL,
    NAMES,
    PARTITION_KEY,
    RULES,
    SECRET,
    STREAM,
    URL,
    Reader,
    Secret,
    choice,
    number,
    optional,
    size,
)

PREFIX = "MILLRACE_"


class ConfigError(Exception):
    """The environment cannot be used; `faults` has one line for each thing to mend, and `str` has them all."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    Everything that can be set. Sizes are in bytes and times in seconds.

    `load` makes one from the environment and is the only place that checks.
    """

    bearer_token: Annotated[
        Secret | None, SECRET, "App-only token of the X API. Not needed for SOURCE=stdin, nor with API_KEY."
    ] = None
    api_key: Annotated[
        Secret | None, SECRET, "X API key; with API_KEY_SECRET it is exchanged for a token at the start."
    ] = None
    api_key_secret: Annotated[Secret | None, SECRET, "The secret that belongs to API_KEY."] = None
    x_url: Annotated[str, URL, "Base URL of the X API."] = "https://api.x.com"
    source: Annotated[
        str,
        choice(*SOURCES, "stdin"),
        "Where posts come from: X's filtered stream, one of its volume streams (sample is 1 %, sample10 is 10 %), or"
        " JSON lines on standard input until it ends.",
    ] = "filtered"
    partition: Annotated[
        int | None,
        optional(number(int, 1, max(source.partitions for source in SOURCES.values()))),
        "Which part of sample10 (1 or 2) or of a firehose (1 to 20; en 1 to 8; ja, ko, pt 1 or 2): one process"
        " for each.",
    ] = None
    backfill: Annotated[
        str,
        choice("auto", "off"),
        "auto: after a gap X is asked for what it had meanwhile (backfill_minutes); if it refuses, not again"
        " for a week.",
    ] = "auto"
    monthly_posts: Annotated[
        int | None,
        optional(number(int, 1, 10**12)),
        "Posts from X in a month of UTC. At nine tenths of them the log warns, at the last one the connection is closed"
        " until the month is over. Needs a journal.",
    ] = None
    tweet_fields: Annotated[tuple[str, ...], NAMES, "X's `tweet.fields`. The processor needs those of the default."] = (
        "author_id",
        "conversation_id",
        "created_at",
        "lang",
        # A long post has its whole text here.
        "note_tweet",
        "referenced_tweets",
    )
    expansions: Annotated[tuple[str, ...], NAMES, "X's `expansions`."] = ("author_id",)
    user_fields: Annotated[tuple[str, ...], NAMES, "X's `user.fields`."] = ("name", "username")
    media_fields: Annotated[tuple[str, ...], NAMES, "X's `media.fields`."] = ()
    place_fields: Annotated[tuple[str, ...], NAMES, "X's `place.fields`."] = ()
    poll_fields: Annotated[tuple[str, ...], NAMES, "X's `poll.fields`."] = ()
    rules: Annotated[
        tuple[Rule, ...],
        RULES,
        "Wanted rules of the filtered stream; the file is a list of rules, each a text or a mapping with value and tag."
        " Changes of the file are applied while the daemon runs. Without it the rules that X already has are used.",
    ] = ()
    stream: Annotated[str, STREAM, "Kinesis stream, name or ARN. **Required.**"]
    partition_key: Annotated[
        str,
        PARTITION_KEY,
        "Posts with the same value keep their order. A pointer is for records that are not X's posts.",
    ] = "author_id"
    aggregation: Annotated[
        str, choice("kpl", "none"), "kpl: many posts in one Kinesis record; none: every post is a record."
    ] = "kpl"
    compression: Annotated[
        str,
        choice("none", "zstd"),
        "zstd: containers are compressed; only Millrace's own processor reads them.",
    ] = "none"
    lanes_per_shard: Annotated[
        int, number(int, 1, 10), "As many as the ParallelizationFactor of the Lambda mapping."
    ] = 1
    linger_seconds: Annotated[
        float,
        number(float, 0, 60),
        "How long a post waits for others that go with it; where posts go one by one, a twentieth of it at most.",
    ] = 0.1
    memory_limit: Annotated[int, size(MIB), "Bytes that posts and the requests that carry them take of memory."] = (
        128 * MIB
    )
    journal: Annotated[
        Path | None,
        JOURNAL,
        "Where posts are kept until Kinesis has confirmed them.",
    ] = Path("./journal")
    journal_limit: Annotated[int, size(MIB), "Bytes of posts in the journal; its files may take twice as much."] = (
        8 * 1024 * MIB
    )
    http_host: Annotated[str, HOST, "Where the admin server listens; 0.0.0.0 opens it to the network."] = "127.0.0.1"
    http_port: Annotated[int, number(int, 0, 65535), "Its port; 0 takes any free one."] = 8080
    show_posts: Annotated[
        str, choice("off", "on"), "on: the live page names the last posts, by id and author, to all who may open it."
    ] = "off"
    shutdown_seconds: Annotated[
        float, number(float, 0, 3600), "How long SIGTERM waits for posts in memory to be confirmed."
    ] = 8.0
    log_level: Annotated[str, choice("debug", "info", "warning", "error"), "The least level that is logged."] = "info"
    log_format: Annotated[str, choice("auto", "console", "json"), "auto: console on a terminal, JSON elsewhere."] = (
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
