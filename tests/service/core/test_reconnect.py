from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random
from typing import Any

import msgspec
import pytest

from service.core.reconnect import (
    CONNECTS,
    CROWDED,
    EXTRA,
    GOOD_LIFE_SECONDS,
    HTTP,
    NETWORK,
    PATIENT,
    POLICIES,
    WINDOW_SECONDS,
    WORDS,
    Budget,
    Cause,
    Ladders,
    Reason,
    Reconnect,
    Verdict,
    farewell,
    refusal,
)
from tests.service.chance import Longest, Shortest

TYPE = "https://api.twitter.com/2/problems/"


def json(**fields: object) -> bytes:
    """Encode an answer."""
    return msgspec.json.encode(fields)


NO_STREAM = json(title="ConnectionException", type=TYPE + "streaming-connection", connection_issue="TooManyConnections")
LIMITED = json(title="Too Many Requests", type="about:blank", status=429, detail="Too Many Requests")
CAPPED = json(title="UsageCapExceeded", period="Monthly", scope="Product", type=TYPE + "usage-capped")
WINDOW = {"Date": "Sun, 23 Aug 2026 10:00:00 GMT", "x-rate-limit-reset": "1787479500"}  # 10:05:00


ANSWERS: list[tuple[int, bytes, Reason, bool]] = [
    (400, json(title="Invalid Request", errors=[{"message": "no such field"}]), Reason.BAD_REQUEST, False),
    (401, json(title="Unauthorized", type="about:blank", status=401), Reason.UNAUTHORIZED, False),
    (402, json(title="CreditsDepleted"), Reason.PAYMENT_REQUIRED, False),
    (403, json(title="Client Forbidden", reason="client-not-enrolled"), Reason.FORBIDDEN, False),
    (404, b"", Reason.NOT_FOUND, False),
    (409, json(title="ConnectionException", connection_issue="RuleConfigurationIssue"), Reason.NO_RULES, False),
    (429, LIMITED, Reason.RATE_LIMITED, True),
    (429, json(errors=[{"code": 88, "message": "Rate limit exceeded"}]), Reason.RATE_LIMITED, True),
    (429, b"", Reason.RATE_LIMITED, True),
    (420, b"Enhance Your Calm", Reason.RATE_LIMITED, True),
    (429, NO_STREAM, Reason.TOO_MANY_CONNECTIONS, True),
    (429, CAPPED, Reason.USAGE_CAPPED, False),
    (402, CAPPED, Reason.USAGE_CAPPED, False),
    (403, json(title="?", type="https://api.x.com/2/problems/usage-capped"), Reason.USAGE_CAPPED, False),
    (400, json(title="ConnectionException", connection_issue="ProvisioningSubscription"), Reason.PROVISIONING, True),
    (500, json(title="Internal Error"), Reason.SERVER_ERROR, True),
    (503, b"<html><body>over capacity</body></html>", Reason.SERVER_ERROR, True),
    (599, b"\xff\xfe", Reason.SERVER_ERROR, True),
    (307, b"", Reason.REDIRECT, False),
    (204, b"", Reason.UNEXPECTED_ANSWER, False),
    (418, b"[1, 2]", Reason.UNEXPECTED_ANSWER, False),
]


@pytest.mark.parametrize(("status", "body", "reason", "healable"), ANSWERS)
def test_the_body_says_more_than_the_status(status: int, body: bytes, reason: Reason, healable: bool) -> None:
    """Three things share status 429 and one has three statuses; each gets its own reason."""
    verdict = Reconnect(0, Random(1)).refused(refusal(status, {}, body), 0)
    assert (verdict.reason, verdict.healable) == (reason, healable)
    assert str(status) in verdict.detail
    assert verdict.detail.isprintable()


def test_every_reason_has_a_policy() -> None:
    """No reason can be without a way to wait."""
    assert set(POLICIES) == set(Reason)


def test_the_words_of_x_reach_the_operator() -> None:
    """Title, detail and message come in one line, nothing twice, followed by the way out."""
    body = json(title="Unauthorized", detail="Unauthorized", errors=[{"message": "bad\n\n token"}])
    cause = refusal(401, {}, body)
    assert cause.words == "X answered 401: Unauthorized: bad token"
    verdict = Ladders(Random(1)).verdict(cause)
    way_out = "check MILLRACE_BEARER_TOKEN or MILLRACE_BEARER_TOKEN_FILE, or the API key"
    assert verdict.detail == f"X answered 401: Unauthorized: bad token; {way_out}"


def test_long_words_are_cut() -> None:
    """A page of text does not become a page of log."""
    assert len(refusal(403, {}, json(title="x" * 10_000)).words) == WORDS


def test_a_redirect_names_its_target() -> None:
    """A redirect is not followed, because the token would go with it or be lost; the operator sees where to."""
    assert "https://elsewhere.example/2" in refusal(307, {"Location": "https://elsewhere.example/2"}, b"").words


def test_html_is_not_repeated() -> None:
    """A page of a proxy is named, not quoted."""
    words = refusal(502, {}, b"<html>secret</html>").words
    assert "without JSON" in words
    assert "secret" not in words


def delays(step: Callable[[], Verdict], count: int) -> list[float]:
    """Take several steps and keep how long each waits."""
    return [step().delay for _ in range(count)]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, b"", [5, 10, 20, 40, 80, 160, 320, 320]),
        (429, NO_STREAM, [5, 10, 20, 40, 80, 160, 320, 320]),
        (429, LIMITED, [60, 120, 240, 480, 900, 900]),
        (401, b"", [60, 120, 240, 480, 900, 900]),
    ],
)
def test_ladders_of_answers(status: int, body: bytes, expected: list[float]) -> None:
    """HTTP errors double from 5 s to 320 s, limits and refusals from 60 s to 15 minutes."""
    rng = Longest()
    scale = 1 + EXTRA if POLICIES[refusal(status, {}, body).reason].ladder.least else 1
    reconnect = Reconnect(0, rng)
    assert delays(lambda: reconnect.refused(refusal(status, {}, body), 0), len(expected)) == pytest.approx(
        [step * scale for step in expected]
    )


def test_ladder_of_network_errors() -> None:
    """Network errors take 250 ms more each time and stop at 16 s."""
    reconnect = Reconnect(0, Longest())
    got = delays(lambda: reconnect.lost(Cause(Reason.NETWORK_ERROR, "refused"), 0), 70)
    assert got[:4] == [0.25, 0.5, 0.75, 1.0]
    assert got[63:] == [16.0] * 7


def test_jitter_is_full_but_never_shortens_what_x_asked_for() -> None:
    """Chance may take a step of X's general ladders down to nothing, but not a limit, a refusal or a taken slot."""
    for ladder in (NETWORK, HTTP):
        assert (ladder.wait(3, Shortest()), ladder.wait(3, Longest())) == (0, ladder.wait(3, Longest()))
    assert PATIENT.wait(1, Shortest()) == 60
    assert CROWDED.wait(1, Shortest()) == 5


def test_a_ladder_has_no_overflow() -> None:
    """A year of failures waits as long as the last step."""
    for ladder in (NETWORK, HTTP, CROWDED, PATIENT):
        assert ladder.wait(10**6, Longest()) == pytest.approx(ladder.last * (1 + EXTRA if ladder.least else 1))


def test_ladders_do_not_share_their_steps() -> None:
    """Two 503 do not make the first 429 wait longer, nor the other way round."""
    reconnect = Reconnect(0, Longest())
    mixed = [(503, b""), (503, b""), (429, LIMITED), (503, b""), (429, LIMITED)]
    got = [reconnect.refused(refusal(status, {}, body), 0).delay for status, body in mixed]
    assert got == pytest.approx([5, 10, 60 * (1 + EXTRA), 20, 120 * (1 + EXTRA)])


def test_the_reset_header_is_honoured() -> None:
    """A rate limit is waited out by X's own clock, with one second for rounding and some jitter on top."""
    assert Reconnect(0, Shortest()).refused(refusal(429, WINDOW, LIMITED), 0).delay == 301
    assert Reconnect(0, Longest()).refused(refusal(429, WINDOW, LIMITED), 0).delay == pytest.approx(301 * (1 + EXTRA))


def test_a_second_rate_limit_climbs_the_ladder() -> None:
    """A reset time that does not help is not believed for ever."""
    past = {"date": "Sun, 23 Aug 2026 10:05:00 GMT", "x-rate-limit-reset": "1787479500"}
    reconnect = Reconnect(0, Shortest())
    assert delays(lambda: reconnect.refused(refusal(429, past, LIMITED), 0), 3) == [1, 120, 240]


@pytest.mark.parametrize("reset", ["", "soon", "nan", "1e400", "9" * 400])
@pytest.mark.parametrize("zone", ["GMT", "+999999999999999"])
def test_a_broken_reset_header_is_ignored(reset: str, zone: str) -> None:
    """What is no number, or far from any, leaves the ladder to decide; so does a date that is none."""
    headers = {"date": f"Sun, 23 Aug 2026 10:00:00 {zone}", "x-rate-limit-reset": reset}
    assert Reconnect(0, Shortest()).refused(refusal(429, headers, LIMITED), 0).delay == 60


def test_a_reset_far_away_waits_one_window() -> None:
    """A limit of a day is asked after every 15 minutes."""
    headers = {"date": "Sun, 23 Aug 2026 10:00:00 GMT", "x-rate-limit-reset": "1797479500"}
    assert Reconnect(0, Shortest()).refused(refusal(429, headers, LIMITED), 0).delay == WINDOW_SECONDS


def test_a_taken_slot_is_no_rate_limit() -> None:
    """TooManyConnections is tried again after 5 s, whatever the rate limit's headers say."""
    assert Reconnect(0, Shortest()).refused(refusal(429, WINDOW, NO_STREAM), 0).delay == 5


LOSSES = [Reason.CLEAN_CLOSE, Reason.CUT, Reason.STALL]


@pytest.mark.parametrize("reason", LOSSES)
def test_at_once_after_a_good_connection(reason: Reason) -> None:
    """A connection that lived for a minute is replaced without waiting."""
    reconnect = Reconnect(0, Longest())
    reconnect.budget.take(0)
    reconnect.connected(1)
    assert reconnect.lost(Cause(reason, "gone"), 1 + GOOD_LIFE_SECONDS).delay == 0


@pytest.mark.parametrize("reason", LOSSES)
def test_not_at_once_after_a_short_connection(reason: Reason) -> None:
    """A server that answers 200 and hangs up climbs the ladder: the 200 does not take it down again."""
    reconnect = Reconnect(0, Longest())
    got = []
    for number in range(4):
        reconnect.budget.take(number)
        reconnect.connected(number)
        got.append(reconnect.lost(Cause(reason, "gone"), number + 0.5).delay)
    assert got == [0.25, 0.5, 0.75, 1.0]


def test_a_good_connection_takes_every_ladder_down() -> None:
    """After a minute of life the next trouble starts at the first step."""
    reconnect = Reconnect(0, Longest())
    for _ in range(5):
        reconnect.refused(refusal(503, {}, b""), 0)
        reconnect.lost(Cause(Reason.NETWORK_ERROR, "refused"), 0)
    reconnect.connected(0)
    reconnect.lost(Cause(Reason.CUT, "gone"), GOOD_LIFE_SECONDS)
    assert reconnect.refused(refusal(503, {}, b""), 61).delay == 5
    assert reconnect.lost(Cause(Reason.NETWORK_ERROR, "refused"), 62).delay == 0.25


def test_an_operational_disconnect_is_read_from_the_last_line() -> None:
    """The line says more than the close that follows it."""
    line = json(errors=[{"title": "operational-disconnect", "detail": "being restarted", "disconnect_type": "x"}])
    reconnect = Reconnect(0, Longest())
    reconnect.connected(0)
    verdict = reconnect.lost(Cause(Reason.CUT, "gone"), 30, line)
    assert verdict.reason is Reason.OPERATIONAL_DISCONNECT
    assert verdict.delay == 5
    assert verdict.detail == "X ended the stream: operational-disconnect: being restarted"
    reconnect.connected(30)
    assert reconnect.lost(Cause(Reason.CUT, "gone"), 90, line).delay == 0


def test_a_bare_problem_is_read_as_well() -> None:
    """X has also been seen to write the problem without a list around it."""
    cause = farewell(json(title="operational-disconnect", type=TYPE + "operational-disconnect"))
    assert cause is not None
    assert cause.reason is Reason.OPERATIONAL_DISCONNECT


def test_a_cap_reached_while_streaming_is_not_retried_at_once() -> None:
    """A good life does not outweigh a spent cap."""
    reconnect = Reconnect(0, Shortest())
    reconnect.connected(0)
    verdict = reconnect.lost(Cause(Reason.CLEAN_CLOSE, "gone"), 1000, json(errors=[{"title": "UsageCapExceeded"}]))
    assert (verdict.delay, verdict.reason, verdict.healable) == (60, Reason.USAGE_CAPPED, False)


def test_partial_errors_are_no_farewell() -> None:
    """Errors about a deleted post beside which nothing was sent do not explain the end of the stream."""
    assert farewell(json(errors=[{"title": "Not Found Error", "type": TYPE + "resource-not-found"}])) is None
    reconnect = Reconnect(0, Random(1))
    assert reconnect.lost(Cause(Reason.CUT, "gone"), 0, b'{"errors":[{"title":"x"}]}').reason is Reason.CUT


def test_a_bucket_holds_a_burst_and_refills() -> None:
    """After 20 connects at once there is one every 30 s; one that never reached X is given back."""
    budget = Budget(0)
    assert budget.burst == 20
    for _ in range(budget.burst):
        assert budget.wait(0) == 0
        budget.take(0)
        budget.give_back()
        budget.take(0)
    assert budget.wait(0) == pytest.approx(30)
    assert budget.wait(20) == pytest.approx(10)
    assert budget.wait(30) == pytest.approx(0)
    assert budget.spare(10**6) == budget.burst


@pytest.mark.parametrize(
    ("connects", "burst", "every"), [(50, 20, 30), (25, 10, 60), (50 / 8, 2, 211.8), (2.5, 1, 600)]
)
def test_partitions_share_a_budget(connects: float, burst: int, every: float) -> None:
    """The processes of one stream together stay within the limit, though none knows of the others."""
    budget = Budget(0, connects=connects)
    assert budget.burst == burst
    assert 1 / budget.per_second == pytest.approx(every, rel=0.01)
    assert burst + WINDOW_SECONDS * budget.per_second <= connects + 1e-9


def test_the_budget_survives_a_restart() -> None:
    """What was spare, and the time since, give the same wait as if nothing had happened."""
    budget = Budget(0)
    for _ in range(budget.burst):
        budget.take(0)
    # Another clock, 5 s later: the time away is put before its beginning.
    restored = Budget(5000 - 5, budget.spare(10))
    assert restored.wait(5000) == pytest.approx(budget.wait(15))


def test_the_budget_outweighs_a_short_delay() -> None:
    """Where the ladder would allow a try at once but the budget is spent, the budget decides."""
    reconnect = Reconnect(0, Shortest(), spare=1)
    reconnect.budget.take(0)
    assert reconnect.lost(Cause(Reason.NETWORK_ERROR, "refused"), 0).delay == pytest.approx(30)


def test_an_objection_waits_as_long_as_it_says() -> None:
    """What we ourselves do not want is no failure: no ladder is climbed."""
    reconnect = Reconnect(0, Longest())
    reconnect.connected(0)
    verdict = reconnect.put_off(Cause(Reason.BUDGET_SPENT, "enough for this month", 86_400))
    assert (verdict.delay, verdict.reason, verdict.healable) == (86_400, Reason.BUDGET_SPENT, False)
    assert verdict.detail == "enough for this month; raise MILLRACE_MONTHLY_POSTS and restart to go on"
    assert reconnect.lost(Cause(Reason.NETWORK_ERROR, "refused"), 86_400).delay == 0.25


def assert_within_limits(connects: list[float]) -> None:
    """X's own limit over every window."""
    for index, start in enumerate(connects):
        later = index + int(CONNECTS)
        assert later >= len(connects) or connects[later] > start + WINDOW_SECONDS


WEEK = 7 * 86_400.0
# What X may do for a spell; None hangs up after that many seconds of a connection at most.
SPELLS = (*ANSWERS, "network", 0.0, 20.0, 90.0)


class Week:
    """
    X for a week: spells of one kind of trouble, as real outages come, and good times between them.

    A daemon lives through it that is also restarted now and then, and takes up its budget again.
    """

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.now = 0.0
        self.connects: list[float] = []
        self.seen: Counter[Reason] = Counter()
        self.late: list[float] = []
        self._troubles = list(self._plan())
        self._rng = Random(seed + 1000)
        self._reconnect = Reconnect(0.0, self._rng)

    def _plan(self) -> Iterator[tuple[float, float, Any]]:
        start = self.chance.uniform(0, 3600)
        while start < WEEK:
            end = start + self.chance.choice([1, 60, 1800, 20_000])
            yield start, end, self.chance.choice(SPELLS)
            start = end + self.chance.choice([30, 600, 7200])

    def trouble(self) -> tuple[float, float, Any] | None:
        """Give the spell of this moment."""
        return next((one for one in self._troubles if one[0] <= self.now < one[1]), None)

    def run(self) -> None:
        """Live through it."""
        verdict: Verdict | None = None
        while self.now < WEEK:
            since = self.now
            self.now += max(self._reconnect.budget.wait(self.now), verdict.delay if verdict else 0.0)
            self._note_lateness(verdict, since)
            verdict = self._connect()
            self.seen[verdict.reason] += 1
            if self.chance.random() < 0.02:
                self._restart()
                verdict = None

    def _connect(self) -> Verdict:
        self._reconnect.budget.take(self.now)
        self.connects.append(self.now)
        self.now += self.chance.choice([0.0, 0.001, 0.1, 3.0])
        trouble = self.trouble()
        if trouble is None:
            following = min((start for start, _, _ in self._troubles if start > self.now), default=WEEK)
            # Three drops a day are X's usual.
            return self._live(min(self.chance.expovariate(3 / 86_400), following - self.now))
        kind = trouble[2]
        if kind == "network":
            return self._reconnect.lost(Cause(Reason.NETWORK_ERROR, "refused"), self.now)
        if isinstance(kind, float):
            return self._live(self.chance.uniform(0, kind))
        status, body, _, _ = kind
        return self._reconnect.refused(refusal(status, {}, body), self.now)

    def _live(self, seconds: float) -> Verdict:
        self._reconnect.connected(self.now)
        self.now += seconds
        message = self.chance.choice([b"", b'{"errors":[{"title":"operational-disconnect"}]}'])
        return self._reconnect.lost(Cause(self.chance.choice(LOSSES), "gone"), self.now, message)

    def _restart(self) -> None:
        spare = self._reconnect.budget.spare(self.now)
        away = self.chance.choice([0.0, 1.0, 600.0])
        self.now += away
        self._reconnect = Reconnect(self.now - away, self._rng, spare)

    def _note_lateness(self, verdict: Verdict | None, since: float) -> None:
        """How long after the end of a spell the next connect came, as a share of what its ladder may wait."""
        over = max((end for _, end, _ in self._troubles if end <= self.now), default=0.0)
        if verdict is None or over <= since:
            return
        ladder = POLICIES[verdict.reason].ladder
        bound = ladder.last * (1 + EXTRA) + 1 / self._reconnect.budget.per_second
        self.late.append((self.now - over) / bound)


@pytest.mark.parametrize("seed", range(5))
def test_a_week_of_faults(seed: int) -> None:
    """
    Whatever happens for a week, restarts included, no 15 minutes see more than 50 connects.

    And after each trouble the daemon is there again before the last step of the ladder and the budget have passed.
    """
    week = Week(seed)
    week.run()
    assert_within_limits(week.connects)
    assert len(week.connects) > 500
    assert len(week.seen) > 8
    assert len(week.late) > 20
    assert max(week.late) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_a_daemon_that_crashes_all_week(seed: int) -> None:
    """A process that is restarted within a second of each connect stays within X's limit too."""
    chance = Random(seed)
    now, spare, away = 0.0, None, 0.0
    connects: list[float] = []
    while now < WEEK:
        budget = Budget(now - away, spare)
        now += budget.wait(now)
        budget.take(now)
        connects.append(now)
        spare = budget.spare(now)
        away = chance.uniform(0.0, 1.0)
        now += away
    assert_within_limits(connects)
    assert len(connects) == pytest.approx(20 + WEEK / 30, rel=0.01)


def test_a_server_that_hangs_up_at_once_is_called_twice_a_minute() -> None:
    """The worst case, an endless 200 and close, uses the budget and never more; it is not left alone either."""
    now = 0.0
    reconnect = Reconnect(now, Shortest())
    connects: list[float] = []
    while now < 86_400:
        reconnect.budget.take(now)
        connects.append(now)
        reconnect.connected(now)
        now += reconnect.lost(Cause(Reason.CLEAN_CLOSE, "gone"), now).delay
    assert_within_limits(connects)
    assert len(connects) == pytest.approx(20 + 86_400 / 30, abs=2)
    assert max(later - earlier for earlier, later in pairwise(connects)) < 31
