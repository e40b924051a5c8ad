"""
The wanted rules of the filtered stream, kept in step with X's.

What to do is decided in `core.rules`; here it is done, in an order that misses no wanted post:

1. What is to be added is sent as a dry run, so that X's judgement of the rules comes before any change.
2. Missing rules are added.
3. Rules of ours that are not wanted are deleted; those whose tag changed are deleted and at once added again.

Done twice it changes nothing more, so after any failure it is simply done again. X takes rules up within some 20
seconds, on the connections that stand.

tweepy's here: the paths and the bodies of the changes. The request itself is ours: tweepy 4.17 has the host fixed,
loses the status of an answer that is HTML, and waits for five minutes. So is the list, whose pages tweepy does not
know. A flag in the query must be text, or aiohttp raises.

X answers 200 or 201, lists rules that it refuses among the `errors` of a success (some clients saw a 400), and
leaves `data` out when there is nothing in it. That a rule exists already is told as an error too, and is none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from json import JSONDecodeError
from random import Random
from typing import Any

import aiohttp
import msgspec
import structlog
from tweepy.asynchronous import AsyncStreamingClient

from service.core.reconnect import Cause, Ladders, Reason, refusal
from service.core.records import UNREADABLE
from service.core.rules import Changes, Rule, compare
from service.http_client import ANSWER_SECONDS, CONNECT_SECONDS, UnavailableError, session, unreachable

PATH = "/2/tweets/search/stream/rules"

# X names no limit for one request. This is its largest page, and all the rules that most access levels allow.
RULES_PER_REQUEST = 1000
# How often it is looked whether the file has changed.
LOOK_SECONDS = 1.0

log = structlog.get_logger()


class RulesError(Exception):
    """X does not take some rules. `problems` has one line for each, in X's words; `str` is one line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))
        self.problems = tuple(problems)


class Rules:
    """
    The rules that X has for this app.

    Arguments:
        url: base URL of the X API.
        rng: for the jitter of the waits that an UnavailableError proposes.
    """

    def __init__(self, url: str, rng: Random) -> None:
        self._url = url
        self._ladders = Ladders(rng)

    async def sync(self, token: str, wanted: Sequence[Rule], *, apply: bool, all_owners: bool = False) -> Changes:
        """
        Compare the wanted rules, no two with the same value, with X's; with `apply`, make the changes.

        With `all_owners`, rules that others have put there are deleted too if they are not wanted.

        Returns the changes, made or not. Raises RulesError, before any change if the dry run shows it, and
        UnavailableError.
        """
        try:
            timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
            async with session(f"Bearer {token}", timeout) as asking:
                changes = await _sync(_Client(self._url, asking), wanted, apply, all_owners)
        except _RefusedError as error:
            cause = error.cause
        except (*UNREADABLE, JSONDecodeError) as error:
            cause = Cause(Reason.UNEXPECTED_ANSWER, f"X's answer about rules has another shape: {error}")
        except (aiohttp.ClientError, OSError) as error:
            cause = Cause(Reason.NETWORK_ERROR, unreachable(error))
        else:
            self._ladders.reset()
            return changes
        raise UnavailableError(self._ladders.verdict(cause))


class RulesKeeper:
    """
    Applies rules that change while the daemon runs.

    Arguments:
        read: gives the wanted rules; raises ValueError, with a line for each fault.
        stamp: changes whenever they may have changed, such as a file's time.
        sync: makes them X's; raises RulesError and UnavailableError.
        changed: called after X's rules were changed.
    """

    def __init__(
        self,
        read: Callable[[], Sequence[Rule]],
        stamp: Callable[[], object],
        sync: Callable[[Sequence[Rule]], Awaitable[Changes]],
        changed: Callable[[], None],
    ) -> None:
        self._read = read
        self._stamp = stamp
        self._sync = sync
        self._changed = changed
        self._seen = stamp()
        self._asked = asyncio.Event()

    def reload(self) -> None:
        """Read and apply the rules now, also if nothing has changed here: X's may have."""
        self._asked.set()

    async def run(self) -> None:
        """Follow changes until cancelled. What goes wrong is logged, and the rules that X has stay as they are."""
        retry_seconds: float | None = None
        while True:
            await self._wait(retry_seconds)
            retry_seconds = await self._apply(again=retry_seconds is not None)

    async def _wait(self, retry_seconds: float | None) -> None:
        """Wait until there is a reason to apply the rules: asked for, changed, or the time to try again."""
        left = retry_seconds
        while True:
            pause = LOOK_SECONDS if left is None else min(left, LOOK_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._asked.wait()
            seen = self._stamp()
            if self._asked.is_set() or seen != self._seen:
                self._asked.clear()
                self._seen = seen
                return
            if left is not None:
                left -= pause
                if left <= 0:
                    return

    async def _apply(self, *, again: bool) -> float | None:
        """Apply them once, or again; return in how many seconds to try again, None if there is no need."""
        try:
            wanted = self._read()
        except ValueError as error:
            way_out = "mend them; X's rules stay as they are"
            log.error("rules_not_read", faults=error.args, way_out=way_out)  # noqa: TRY400 - the operator's, not ours
            return None
        if not wanted:
            log.warning("rules_empty", way_out="write at least one; X's rules stay as they are")
            return None
        try:
            changes = await self._sync(wanted)
        except RulesError as error:
            log.error("rules_refused", problems=error.problems)  # noqa: TRY400 - as above
            return None
        except UnavailableError as error:
            verdict = error.verdict
            write = log.warning if verdict.healable else log.error
            write("rules_not_applied", reason=verdict.reason, detail=verdict.detail, retry_seconds=verdict.delay)
            return verdict.delay
        log_changes(changes)
        # Of a try that failed only the answer may have been lost.
        if again or not changes.is_empty:
            self._changed()
        return None


def log_changes(changes: Changes) -> None:
    """Say in the log what was done."""
    replaced = len(changes.replace)
    log.info(
        "rules_synced",
        added=len(changes.add) + replaced,
        deleted=len(changes.delete) + replaced,
        kept=len(changes.keep),
    )


async def _sync(client: "_Client", wanted: Sequence[Rule], apply: bool, all_owners: bool) -> Changes:
    changes = compare(wanted, await client.present(), all_owners=all_owners)
    replacements = [change.new for change in changes.replace]
    await client.add([*changes.add, *replacements], dry_run="true")
    if apply:
        await client.add(changes.add)
        await client.delete([*changes.delete, *(change.old for change in changes.replace)])
        await client.add(replacements)
    return changes


class _Problem(msgspec.Struct):
    value: str = ""
    title: str = ""
    type: str = ""
    detail: str = ""
    message: str = ""
    details: list[str] = []

    @property
    def is_duplicate(self) -> bool:
        return self.title == "DuplicateRule" or self.type.endswith("/duplicate-rules")

    def __str__(self) -> str:
        said = "; ".join(self.details) or self.detail or self.message or self.title
        which = f"the rule {self.value!r}" if self.value else "rules"
        return f"X refuses {which}: {said}; change MILLRACE_RULES or MILLRACE_RULES_FILE"


class _Rule(msgspec.Struct):
    id: str
    value: str
    tag: str | None = None


class _Meta(msgspec.Struct):
    next_token: str | None = None


class _Answer(msgspec.Struct):
    data: list[_Rule] = []
    meta: _Meta = msgspec.field(default_factory=_Meta)
    errors: list[_Problem] = []


class _RefusedError(Exception):
    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.words)
        self.cause = cause


class _Client(AsyncStreamingClient):  # type: ignore[misc]  # tweepy has no types
    """tweepy's client with another address and with answers that are read in full; changes go in batches."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        super().__init__(None, return_type=dict)
        self._url = url.rstrip("/")
        self.session = session

    async def present(self) -> list[Rule]:
        """List X's rules, all pages."""
        rules: list[Rule] = []
        params = {"max_results": str(RULES_PER_REQUEST)}
        while True:
            response = await self.request("GET", PATH, params)
            answer = msgspec.convert(await response.json(), _Answer)
            rules += [Rule(rule.value, rule.tag or "", rule.id) for rule in answer.data]
            if not answer.meta.next_token:
                return rules
            params["pagination_token"] = answer.meta.next_token

    async def add(self, rules: Sequence[Rule], **flags: str) -> None:
        """Add rules, or with the flag dry_run only have them judged; raises RulesError."""
        problems: list[_Problem] = []
        for batch in _batches(rules):
            answer = msgspec.convert(await self.add_rules(batch, **flags), _Answer)
            problems += [problem for problem in answer.errors if not problem.is_duplicate]
        if problems:
            raise RulesError([str(problem) for problem in problems])

    async def delete(self, rules: Sequence[Rule]) -> None:
        """Delete rules by their ids; one that is gone already is no error."""
        for batch in _batches(rules):
            await self.delete_rules([rule.id for rule in batch])

    async def request(
        self,
        method: str,
        route: str,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        user_auth: bool = False,
    ) -> aiohttp.ClientResponse:
        """Send one request; raises RulesError if rules are refused, _RefusedError if it is anything else."""
        assert not user_auth, "rules belong to the app"
        response: aiohttp.ClientResponse
        async with self.session.request(
            method, self._url + route, params=params, json=json, allow_redirects=False
        ) as response:
            body = await response.read()
        if 200 <= response.status < 300 and response.content_type == "application/json":
            return response
        if response.status == 400 and (problems := _rule_problems(body)):
            raise RulesError([str(problem) for problem in problems])
        raise _RefusedError(refusal(response.status, response.headers, body))


def _batches(rules: Sequence[Rule]) -> list[list[Rule]]:
    return [list(rules[start : start + RULES_PER_REQUEST]) for start in range(0, len(rules), RULES_PER_REQUEST)]


def _rule_problems(body: bytes) -> list[_Problem]:
    """Those errors of a refusal that are about a rule."""
    try:
        errors = msgspec.json.decode(body, type=_Answer).errors
    except UNREADABLE:
        return []
    return [problem for problem in errors if problem.value]
