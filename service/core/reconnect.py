"""
What X answered or did -> when to try again, and whether a retry can help at all.

The status alone says too little: X gives 429 for a rate limit, for a second connection and for a spent post cap.
So the body is read first (see the files of problem types in X's OpenAPI description), then the status.

X's rules for coming back ("Handling disconnections" and "Consuming streaming data" in its documentation):

    after a connection that was lost       at once
    network errors                         0.25 s more at each try, at most 16 s
    HTTP errors                            5 s, doubling, at most 320 s
    429                                    60 s, doubling: each one too early makes the limit last longer
    all clients of an app                  50 connects in 15 minutes, for each kind of stream

What is added to them here:

* "At once" only after a connection that lived for a minute. A server that answers 200 and hangs up would otherwise
  be called hundreds of times a second.
* A ladder is climbed until a connection has lived for a minute; a 200 alone takes nobody down.
* The first two ladders have full jitter. The waits that X asks for are never cut short: jitter goes on top.
* The connects come out of a token bucket. It allows no more than 50 in any 15 minutes, and unlike a count over a
  window it never leaves the daemon without a try for more than 30 s. The partitions of one stream are processes that
  know nothing of each other, so each has its part of the 50: with 20 partitions a connect every ten minutes.
* A connection that is alive but brings no posts is replaced: see `core.gaps`.
* What only an operator can heal is still retried, slowly, so that it ends by itself once it is healed.

Times are the caller's clock, in seconds, any origin. X's own time comes from its `Date` header, so that neither
the origin nor the correctness of the local clock matters.
"""

from collections import Counter
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from enum import StrEnum
from random import Random
from typing import Any, NamedTuple

import msgspec

from service.core.records import UNREADABLE

# X: 50 connects per app in 15 minutes (rate limits page), the volume streams' partitions together.
WINDOW_SECONDS = 900.0
CONNECTS = 50.0
# A bucket of 20 that gains 30 in that time gives 50 at most.
BURST_SHARE = 0.4

# X may close a stream for its own reasons at any time; one that lived this long was a good one.
GOOD_LIFE_SECONDS = 60.0

# Jitter on top of a wait that X asked for, as a share of it.
EXTRA = 0.1

# Of what X wrote, an operator's line holds so many characters.
WORDS = 300


class Reason(StrEnum):
    """Why there is no connection. Each is a label of `millrace_stream_reconnects_total`."""

    NETWORK_ERROR = "network_error"
    CLEAN_CLOSE = "clean_close"
    CUT = "cut"  # the connection ended, the HTTP answer did not
    STALL = "stall"
    EMPTY = "empty"  # keep-alives, but no posts though there should be some
    OPERATIONAL_DISCONNECT = "operational_disconnect"
    SERVER_ERROR = "server_error"
    PROVISIONING = "provisioning"  # a changed subscription is being set up
    RATE_LIMITED = "rate_limited"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    USAGE_CAPPED = "usage_capped"
    BUDGET_SPENT = "budget_spent"  # our own limit, not X's
    UNAUTHORIZED = "unauthorized"
    TOKEN_REPLACED = "token_replaced"  # noqa: S105 - no token, though it looks like one: X refused the one before
    PAYMENT_REQUIRED = "payment_required"
    FORBIDDEN = "forbidden"
    NO_RULES = "no_rules"
    BAD_REQUEST = "bad_request"
    BACKFILL_REFUSED = "backfill_refused"  # perhaps: the next try goes without
    NOT_FOUND = "not_found"
    REDIRECT = "redirect"
    UNEXPECTED_ANSWER = "unexpected_answer"


class Ladder(NamedTuple):
    """How waits grow, in seconds; with `least` the step is the least wait, without it the longest."""

    first: float
    last: float
    doubling: bool
    least: bool

    def wait(self, failures: int, rng: Random) -> float:
        """Seconds to wait after this many failures in a row (1 or more)."""
        growth = 2.0 ** min(failures - 1, 32) if self.doubling else float(failures)
        step = min(self.last, self.first * growth)
        return step * (1 + EXTRA * rng.random()) if self.least else step * rng.random()


NETWORK = Ladder(0.25, 16, doubling=False, least=False)
HTTP = Ladder(5, 320, doubling=True, least=False)
# The slot of a connection that X has not yet seen dying is free after some seconds, as a rule.
CROWDED = Ladder(5, 320, doubling=True, least=True)
# A rate limit lasts for one window. It is also how often to knock where somebody has to act first.
PATIENT = Ladder(60, WINDOW_SECONDS, doubling=True, least=True)


class Policy(NamedTuple):
    """What to do about a reason: how to wait, whether waiting can help, and what an operator can do."""

    ladder: Ladder
    healable: bool
    advice: str = ""


POLICIES = {
    Reason.NETWORK_ERROR: Policy(NETWORK, healable=True),
    Reason.CLEAN_CLOSE: Policy(NETWORK, healable=True),
    Reason.CUT: Policy(NETWORK, healable=True),
    Reason.STALL: Policy(NETWORK, healable=True),
    Reason.EMPTY: Policy(NETWORK, healable=True),
    Reason.OPERATIONAL_DISCONNECT: Policy(HTTP, healable=True),
    Reason.SERVER_ERROR: Policy(HTTP, healable=True),
    Reason.PROVISIONING: Policy(PATIENT, healable=True),
    Reason.RATE_LIMITED: Policy(PATIENT, healable=True),
    Reason.TOO_MANY_CONNECTIONS: Policy(
        CROWDED, healable=True, advice="another client, or an older connection that X still counts, holds the slot"
    ),
    Reason.USAGE_CAPPED: Policy(PATIENT, healable=False, advice="the cap ends on its reset day, or with a larger plan"),
    Reason.BUDGET_SPENT: Policy(PATIENT, healable=False, advice="raise MILLRACE_MONTHLY_POSTS and restart to go on"),
    Reason.UNAUTHORIZED: Policy(
        PATIENT,
        healable=False,
        advice="check MILLRACE_BEARER_TOKEN or MILLRACE_BEARER_TOKEN_FILE, or the API key",
    ),
    Reason.TOKEN_REPLACED: Policy(NETWORK, healable=True, advice="trying the token that is set now"),
    Reason.PAYMENT_REQUIRED: Policy(PATIENT, healable=False, advice="add credits, or raise the spend limit, at X"),
    Reason.FORBIDDEN: Policy(PATIENT, healable=False, advice="the app's access level at X does not include this"),
    Reason.NO_RULES: Policy(
        HTTP,
        healable=False,
        advice="set MILLRACE_RULES or MILLRACE_RULES_FILE; where one is, its rules are put back now",
    ),
    Reason.BACKFILL_REFUSED: Policy(NETWORK, healable=True, advice="trying without backfill"),
    Reason.BAD_REQUEST: Policy(PATIENT, healable=False),
    Reason.NOT_FOUND: Policy(PATIENT, healable=False, advice="check MILLRACE_X_URL and MILLRACE_SOURCE"),
    Reason.REDIRECT: Policy(PATIENT, healable=False, advice="set MILLRACE_X_URL to where X is now"),
    Reason.UNEXPECTED_ANSWER: Policy(PATIENT, healable=False),
}

# By the body: X's connection_issue, the title, the last part of the type's URL. Its host has changed once already.
_BY_WORD = {
    "TooManyConnections": Reason.TOO_MANY_CONNECTIONS,
    "RuleConfigurationIssue": Reason.NO_RULES,
    "RulesInvalidIssue": Reason.NO_RULES,
    "ProvisioningSubscription": Reason.PROVISIONING,
    "UsageCapExceeded": Reason.USAGE_CAPPED,
    "usage-capped": Reason.USAGE_CAPPED,
    "CreditsDepleted": Reason.PAYMENT_REQUIRED,
    "operational-disconnect": Reason.OPERATIONAL_DISCONNECT,
    "rate-limit-exceeded": Reason.RATE_LIMITED,
}
# By the number that version 1 of the API gave its errors; some answers still carry it.
_BY_CODE = {32: Reason.UNAUTHORIZED, 88: Reason.RATE_LIMITED, 89: Reason.UNAUTHORIZED, 99: Reason.UNAUTHORIZED}
_BY_STATUS = {
    400: Reason.BAD_REQUEST,
    401: Reason.UNAUTHORIZED,
    402: Reason.PAYMENT_REQUIRED,
    403: Reason.FORBIDDEN,
    404: Reason.NOT_FOUND,
    408: Reason.SERVER_ERROR,
    409: Reason.NO_RULES,
    420: Reason.RATE_LIMITED,  # version 1 of the API said it so
    429: Reason.RATE_LIMITED,
}


class Cause(NamedTuple):
    """
    Why there is no connection, or why we ourselves want none.

    Attributes:
        reason: the short name.
        words: one line: what is the matter, in X's own words where it used any.
        wait: seconds to wait, if X or we ourselves say so.
    """

    reason: Reason
    words: str
    wait: float | None = None


class Verdict(NamedTuple):
    """
    What to do now.

    Attributes:
        delay: seconds to wait before the next try.
        reason: the short name of what happened.
        detail: one line for an operator: what happened, and the way out where there is one.
        healable: False if somebody has to act; the retries go on.
    """

    delay: float
    reason: Reason
    detail: str
    healable: bool


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> Cause:
    """Read an answer that is not the wished one."""
    problem = _problem(body)
    reason = _reason(problem) or _BY_STATUS.get(status)
    if reason is None:
        reason = Reason.UNEXPECTED_ANSWER
        if 300 <= status < 400:
            reason = Reason.REDIRECT
        elif status >= 500:
            reason = Reason.SERVER_ERROR
    fields = {name.lower(): value for name, value in headers.items()}
    words = _words(f"X answered {status}", problem)
    if body and not problem:
        words += " without JSON, so perhaps it was not X but something between"
    if reason is Reason.REDIRECT:
        words += f" and points to {_one_line(fields.get('location', 'nowhere'))}"
    return Cause(reason, words, _until_reset(fields) if reason is Reason.RATE_LIMITED else None)


def farewell(message: bytes) -> Cause | None:
    """Read the last errors that X wrote into a stream; None if they do not say why the stream ended."""
    problem = _problem(message)
    reason = _reason(problem)
    return None if reason is None else Cause(reason, _words("X ended the stream", problem))


class Ladders:
    """Counts failures in a row, by ladder, and turns causes into verdicts."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._failures: Counter[Ladder] = Counter()

    def reset(self) -> None:
        """All is well again."""
        self._failures.clear()

    def verdict(self, cause: Cause) -> Verdict:
        """Count the failure and say how long to wait."""
        ladder = POLICIES[cause.reason].ladder
        self._failures[ladder] += 1
        failures = self._failures[ladder]
        delay = ladder.wait(failures, self._rng)
        if cause.wait is not None:
            asked = cause.wait * (1 + EXTRA * self._rng.random())
            # A second refusal shows that what X asked for was not enough.
            delay = asked if failures == 1 else max(asked, delay)
        return _verdict(cause, delay)


class Budget:
    """
    A token bucket for connects: two fifths of them at once, the others evenly.

    `spare` is how many may be made at once, at `now`; None for all. To keep the budget over a restart, keep what
    `spare()` says with the time of day, and pass on the sum of it and of `per_second` for the time since.

    Arguments:
        connects: how many are allowed in 15 minutes, at least 2.
    """

    def __init__(self, now: float, spare: float | None = None, connects: float = CONNECTS) -> None:
        self.burst = max(1, int(connects * BURST_SHARE))
        self.per_second = (connects - self.burst) / WINDOW_SECONDS
        self._spare = self.burst if spare is None else min(spare, self.burst)
        self._at = now

    def spare(self, now: float) -> float:
        """How many connects may be made at once."""
        return min(self.burst, self._spare + (now - self._at) * self.per_second)

    def take(self, now: float) -> None:
        """One connect is made."""
        self._spare = self.spare(now) - 1
        self._at = now

    def give_back(self) -> None:
        """The last one was none: X cannot have counted it."""
        self._spare += 1

    def wait(self, now: float) -> float:
        """Seconds until the next connect may be made."""
        return max(0.0, (1 - self.spare(now)) / self.per_second)


class Reconnect:
    """
    One stream's way back: what happened goes in, a verdict comes out.

    `spare` and `connects` are those of its `budget`. Each try to connect is to be taken from it, successful or not: X
    counts both, and only those not that never reached it.
    """

    def __init__(self, now: float, rng: Random, spare: float | None = None, connects: float = CONNECTS) -> None:
        self.budget = Budget(now, spare, connects)
        self._ladders = Ladders(rng)
        self._connected_at: float | None = None

    def connected(self, now: float) -> None:
        """X answered 200."""
        self._connected_at = now

    def refused(self, cause: Cause, now: float) -> Verdict:
        """X answered, but not with a stream: see `refusal`."""
        return self._within_budget(self._ladders.verdict(cause), now)

    def lost(self, cause: Cause, now: float, message: bytes = b"") -> Verdict:
        """Nothing answered, or the connection ended; `message` is X's last line of errors, if there was any."""
        cause = (farewell(message) if message else None) or cause
        was_good = self._connected_at is not None and now - self._connected_at >= GOOD_LIFE_SECONDS
        self._connected_at = None
        if was_good:
            self._ladders.reset()
        at_once = was_good and not POLICIES[cause.reason].ladder.least
        return self._within_budget(_verdict(cause, 0.0) if at_once else self._ladders.verdict(cause), now)

    def put_off(self, cause: Cause) -> Verdict:
        """We ourselves want no connection for as long as the cause says."""
        self._connected_at = None
        return _verdict(cause, cause.wait or 0.0)

    def _within_budget(self, verdict: Verdict, now: float) -> Verdict:
        return verdict._replace(delay=max(verdict.delay, self.budget.wait(now)))


def _verdict(cause: Cause, delay: float) -> Verdict:
    policy = POLICIES[cause.reason]
    detail = f"{cause.words}; {policy.advice}" if policy.advice else cause.words
    return Verdict(delay, cause.reason, detail, policy.healable)


def _problem(body: bytes) -> dict[str, Any]:
    """The first problem in an answer of X; empty if it is HTML, cut or otherwise not X's."""
    try:
        answer = msgspec.json.decode(body)
    except UNREADABLE:
        return {}
    if not isinstance(answer, dict):
        return {}
    errors = answer.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        # An answer may have a title of its own beside the list; what it says more is kept.
        return {**errors[0], **answer}
    return answer


def _reason(problem: dict[str, Any]) -> Reason | None:
    code = problem.get("code")
    if isinstance(code, int) and code in _BY_CODE:
        return _BY_CODE[code]
    kind = str(problem.get("type", "")).rpartition("/")[2]
    words = (str(problem.get("connection_issue")), str(problem.get("title")), kind)
    return next((_BY_WORD[word] for word in words if word in _BY_WORD), None)


def _words(start: str, problem: dict[str, Any]) -> str:
    said = [str(problem[key]) for key in ("title", "detail", "message") if problem.get(key)]
    # X likes to say the same twice, as title and as detail.
    return _one_line(": ".join(dict.fromkeys([start, *said])))


def _one_line(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= WORDS else line[: WORDS - 1] + "…"


def _until_reset(fields: Mapping[str, str]) -> float | None:
    """Seconds from X's now to the end of its rate limit, at most one window; None where X did not say."""
    try:
        reset = int(fields["x-rate-limit-reset"])
        left = reset - parsedate_to_datetime(fields["date"]).timestamp()
    except (KeyError, ValueError, OverflowError):
        return None
    # One second more, because both are cut to whole seconds.
    return min(max(left, 0.0) + 1, WINDOW_SECONDS)
