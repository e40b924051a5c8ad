from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from random import Random

import msgspec
import pytest

from service.core.reconnect import (
    BURST,
    CONNECTS_PER_SECOND,
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
    Ladder,
    Ladders,
    Reason,
    Reconnect,
    Verdict,
    farewell,
    refusal,
)

TYPE = "https://api.twitter.com/2/problems/"


class Longest(Random):
    """Chance at its upper end."""

    def random(self) -> float:
        return 1.0


class Shortest(Random):
    """Chance at its lower end."""

    def random(self) -> float:
        return 0.0


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
    verdict = Reconnect(0, Random(1)).refused(status, {}, body, 0)
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
    assert verdict.detail == "X answered 401: Unauthorized: bad token; check MILLRACE_BEARER_TOKEN, or the API key"


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
    assert delays(lambda: reconnect.refused(status, {}, body, 0), len(expected)) == pytest.approx(
        [step * scale for step in expected]
    )


def test_ladder_of_network_errors() -> None:
    """Network errors take 250 ms more each time and stop at 16 s."""
    reconnect = Reconnect(0, Longest())
    got = delays(lambda: reconnect.lost(Reason.NETWORK_ERROR, "refused", 0), 70)
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
    got = [reconnect.refused(status, {}, body, 0).delay for status, body in mixed]
    assert got == pytest.approx([5, 10, 60 * (1 + EXTRA), 20, 120 * (1 + EXTRA)])


def test_the_reset_header_is_honoured() -> None:
    """A rate limit is waited out by X's own clock, with one second for rounding and some jitter on top."""
    assert Reconnect(0, Shortest()).refused(429, WINDOW, LIMITED, 0).delay == 301
    assert Reconnect(0, Longest()).refused(429, WINDOW, LIMITED, 0).delay == pytest.approx(301 * (1 + EXTRA))


def test_a_second_rate_limit_climbs_the_ladder() -> None:
    """A reset time that does not help is not believed for ever."""
    past = {"date": "Sun, 23 Aug 2026 10:05:00 GMT", "x-rate-limit-reset": "1787479500"}
    reconnect = Reconnect(0, Shortest())
    assert delays(lambda: reconnect.refused(429, past, LIMITED, 0), 3) == [1, 120, 240]


@pytest.mark.parametrize("reset", ["", "soon", "nan", "1e400"])
def test_a_broken_reset_header_is_ignored(reset: str) -> None:
    """What is no number leaves the ladder to decide."""
    headers = {"date": "Sun, 23 Aug 2026 10:00:00 GMT", "x-rate-limit-reset": reset}
    assert Reconnect(0, Shortest()).refused(429, headers, LIMITED, 0).delay == 60


def test_a_reset_far_away_waits_one_window() -> None:
    """A limit of a day is asked after every 15 minutes."""
    headers = {"date": "Sun, 23 Aug 2026 10:00:00 GMT", "x-rate-limit-reset": "1797479500"}
    assert Reconnect(0, Shortest()).refused(429, headers, LIMITED, 0).delay == WINDOW_SECONDS


def test_a_taken_slot_is_no_rate_limit() -> None:
    """TooManyConnections is tried again after 5 s, whatever the rate limit's headers say."""
    assert Reconnect(0, Shortest()).refused(429, WINDOW, NO_STREAM, 0).delay == 5


LOSSES = [Reason.CLEAN_CLOSE, Reason.CUT, Reason.STALL]


@pytest.mark.parametrize("reason", LOSSES)
def test_at_once_after_a_good_connection(reason: Reason) -> None:
    """A connection that lived for a minute is replaced without waiting."""
    reconnect = Reconnect(0, Longest())
    reconnect.connecting(0)
    reconnect.connected(1)
    assert reconnect.lost(reason, "gone", 1 + GOOD_LIFE_SECONDS).delay == 0


@pytest.mark.parametrize("reason", LOSSES)
def test_not_at_once_after_a_short_connection(reason: Reason) -> None:
    """A server that answers 200 and hangs up climbs the ladder: the 200 does not take it down again."""
    reconnect = Reconnect(0, Longest())
    got = []
    for number in range(4):
        reconnect.connecting(number)
        reconnect.connected(number)
        got.append(reconnect.lost(reason, "gone", number + 0.5).delay)
    assert got == [0.25, 0.5, 0.75, 1.0]


def test_a_good_connection_takes_every_ladder_down() -> None:
    """After a minute of life the next trouble starts at the first step."""
    reconnect = Reconnect(0, Longest())
    for _ in range(5):
        reconnect.refused(503, {}, b"", 0)
        reconnect.lost(Reason.NETWORK_ERROR, "refused", 0)
    reconnect.connected(0)
    reconnect.lost(Reason.CUT, "gone", GOOD_LIFE_SECONDS)
    assert reconnect.refused(503, {}, b"", 61).delay == 5
    assert reconnect.lost(Reason.NETWORK_ERROR, "refused", 62).delay == 0.25


def test_an_operational_disconnect_is_read_from_the_last_line() -> None:
    """The line says more than the close that follows it."""
    line = json(errors=[{"title": "operational-disconnect", "detail": "being restarted", "disconnect_type": "x"}])
    reconnect = Reconnect(0, Longest())
    reconnect.connected(0)
    verdict = reconnect.lost(Reason.CUT, "gone", 30, line)
    assert verdict.reason is Reason.OPERATIONAL_DISCONNECT
    assert verdict.delay == 5
    assert verdict.detail == "X ended the stream: operational-disconnect: being restarted"
    reconnect.connected(30)
    assert reconnect.lost(Reason.CUT, "gone", 90, line).delay == 0


def test_a_bare_problem_is_read_as_well() -> None:
    """X has also been seen to write the problem without a list around it."""
    cause = farewell(json(title="operational-disconnect", type=TYPE + "operational-disconnect"))
    assert cause is not None
    assert cause.reason is Reason.OPERATIONAL_DISCONNECT


def test_a_cap_reached_while_streaming_is_not_retried_at_once() -> None:
    """A good life does not outweigh a spent cap."""
    reconnect = Reconnect(0, Shortest())
    reconnect.connected(0)
    verdict = reconnect.lost(Reason.CLEAN_CLOSE, "gone", 1000, json(errors=[{"title": "UsageCapExceeded"}]))
    assert (verdict.delay, verdict.reason, verdict.healable) == (60, Reason.USAGE_CAPPED, False)


def test_partial_errors_are_no_farewell() -> None:
    """Errors about a deleted post beside which nothing was sent do not explain the end of the stream."""
    assert farewell(json(errors=[{"title": "Not Found Error", "type": TYPE + "resource-not-found"}])) is None
    reconnect = Reconnect(0, Random(1))
    assert reconnect.lost(Reason.CUT, "gone", 0, b'{"errors":[{"title":"x"}]}').reason is Reason.CUT


def test_a_bucket_holds_a_burst_and_refills() -> None:
    """After 20 connects at once there is one every 30 s."""
    budget = Budget(0)
    for _ in range(BURST):
        assert budget.wait(0) == 0
        budget.take(0)
    assert budget.wait(0) == pytest.approx(30)
    assert budget.wait(20) == pytest.approx(10)
    assert budget.wait(30) == pytest.approx(0)
    assert budget.spare(10**6) == BURST


def test_the_budget_survives_a_restart() -> None:
    """What was spare, and the time since, give the same wait as if nothing had happened."""
    budget = Budget(0)
    for _ in range(BURST):
        budget.take(0)
    restored = Budget(5000, budget.spare(10) + 5 * CONNECTS_PER_SECOND)
    assert restored.wait(5000) == pytest.approx(budget.wait(15))


def test_the_budget_outweighs_a_short_delay() -> None:
    """Where the ladder would allow a try at once but the budget is spent, the budget decides."""
    reconnect = Reconnect(0, Shortest(), spare=1)
    reconnect.connecting(0)
    assert reconnect.lost(Reason.NETWORK_ERROR, "refused", 0).delay == pytest.approx(30)


def assert_within_limits(connects: list[float]) -> None:
    """X's own limit over every window, and no hot loop."""
    for index, start in enumerate(connects):
        later = index + 50
        assert later >= len(connects) or connects[later] > start + WINDOW_SECONDS


@pytest.mark.parametrize("seed", range(3))
def test_a_week_of_faults_stays_within_the_limits(seed: int) -> None:
    """
    Whatever happens for a week, no 15 minutes see more than 50 connects.

    And no wait is longer than the last step of its ladder and the budget together.
    """
    chance = Random(seed)
    now = 0.0
    reconnect = Reconnect(now, Random(seed + 1000))
    connects: list[float] = []
    seen: Counter[Reason] = Counter()
    while now < 7 * 86_400:
        wait = reconnect.budget.wait(now)
        now += wait
        # Spells of one kind of trouble, as real outages come: a whole evening of quick closes, a night of 503.
        spell = now + chance.choice([1, 60, 3600, 20_000])
        kind = chance.randrange(6)
        while now < spell:
            reconnect.connecting(now)
            connects.append(now)
            now += chance.choice([0.0, 0.001, 0.1, 3.0])
            if kind == 0:
                verdict = reconnect.lost(Reason.NETWORK_ERROR, "refused", now)
            elif kind == 1:
                status, body, _, _ = chance.choice(ANSWERS)
                verdict = reconnect.refused(status, {}, body, now)
            elif kind == 2:
                verdict = reconnect.refused(chance.choice([500, 503]), {}, b"", now)
            else:
                reconnect.connected(now)
                now += {3: 0.0, 4: chance.uniform(0, 70), 5: chance.expovariate(1 / 20_000)}[kind]
                message = chance.choice([b"", b'{"errors":[{"title":"operational-disconnect"}]}'])
                verdict = reconnect.lost(chance.choice(LOSSES), "gone", now, message)
            seen[verdict.reason] += 1
            ladder: Ladder = POLICIES[verdict.reason].ladder
            assert 0 <= verdict.delay <= max(ladder.last * (1 + EXTRA), 1 / CONNECTS_PER_SECOND + 1e-6)
            now += verdict.delay
    assert_within_limits(connects)
    assert len(connects) > 1000
    assert len(seen) > 12


def test_a_server_that_hangs_up_at_once_is_called_twice_a_minute() -> None:
    """The worst case, an endless 200 and close, uses the budget and never more; it is not left alone either."""
    now = 0.0
    reconnect = Reconnect(now, Shortest())
    connects: list[float] = []
    while now < 86_400:
        reconnect.connecting(now)
        connects.append(now)
        reconnect.connected(now)
        now += reconnect.lost(Reason.CLEAN_CLOSE, "gone", now).delay
    assert_within_limits(connects)
    assert len(connects) == pytest.approx(BURST + 86_400 * CONNECTS_PER_SECOND, abs=2)
    assert max(later - earlier for earlier, later in pairwise(connects)) < 31
