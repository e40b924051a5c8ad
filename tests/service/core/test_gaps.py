import math
from random import Random

import pytest

from service.core.gaps import (
    BACKFILL_MINUTES,
    EMPTY_SECONDS,
    GAPS,
    LEARNT_SECONDS,
    MARGIN_SECONDS,
    SNOWFLAKE_EPOCH,
    WINDOW_POSTS,
    Gap,
    Gaps,
    Kept,
    Rate,
    Window,
    written_at,
)
from service.core.records import Post

NOW = 1_795_644_000.0


def post_id(written: float, number: int = 0) -> str:
    """Make an id as X makes it, for a post of this moment."""
    return str((round((written - SNOWFLAKE_EPOCH) * 1000) << 22) + number)


def post(written: float, number: int = 0) -> Post:
    """Make a post of this moment."""
    return Post(b"{}", post_id(written, number), b"k", 0.0)


def named(*ids: str) -> list[Post]:
    """Make posts with these ids."""
    return [Post(b"{}", name, b"k", 0.0) for name in ids]


class TestIds:
    def test_a_recorded_id(self) -> None:
        """The id of X's own example, a post of 2021-01-06T18:40:40Z, says the same second."""
        assert int(written_at("1346889436626259968") or 0) == 1609958440

    @pytest.mark.parametrize("name", ["", "abc", "-1", "1" * 20, "1.5"])
    def test_no_id_of_x(self, name: str) -> None:
        """Whatever else has an id, it says nothing about time."""
        assert written_at(name) is None


class TestWindow:
    def test_what_came_before_is_left_out(self) -> None:
        """In order, within one chunk and between chunks."""
        window = Window()
        assert window.fresh(named("1", "2", "1")) == named("1", "2")
        assert window.fresh(named("3", "2", "4", "3")) == named("3", "4")
        assert window.fresh(named("1", "2", "3", "4")) == []

    def test_a_chunk_without_repeats_is_handed_on_as_it_is(self) -> None:
        """No copy is made of what nearly every chunk is."""
        posts = named("1", "2")
        assert Window().fresh(posts) is posts

    def test_it_forgets_the_oldest(self) -> None:
        """It knows the last ten at least, and twenty at most."""
        window = Window(10)
        for number in range(100):
            assert window.fresh(named(str(number))) != []
            for back in range(10):
                if back <= number:
                    assert window.fresh(named(str(number - back))) == []
            assert len(window._young) + len(window._old) <= 22

    def test_it_covers_a_backfill(self) -> None:
        """Five minutes at the 250 posts a second that X delivers to most."""
        assert WINDOW_POSTS > BACKFILL_MINUTES * 60 * 250

    def test_posts_without_an_id_are_no_repeats(self) -> None:
        """Records that are not X's posts have none."""
        window = Window()
        assert window.fresh(named("", "", "1")) == named("", "", "1")
        assert window.fresh(named("", "1", "")) == named("", "")

    def test_what_is_forgotten_may_come_again(self) -> None:
        """Young or old."""
        window = Window(2)
        window.fresh(named("1", "2", "3"))
        window.fresh(named("4"))
        window.forget(named("1", "4", "9"))
        assert window.fresh(named("1", "2", "3", "4")) == named("1", "4")


class TestRate:
    def test_a_steady_stream(self) -> None:
        """The rate is right from the first seconds on."""
        rate = Rate()
        rate.resume(NOW)
        for second in range(1, 1000):
            rate.add(20, NOW + second)
            if second >= 10:
                assert rate.value == pytest.approx(20, rel=0.02)

    def test_it_follows_a_change(self) -> None:
        """After half an hour of another rate the old one is forgotten."""
        rate = Rate()
        rate.resume(NOW)
        rate.add(100_000, NOW + 100)
        for second in range(1800):
            rate.add(1, NOW + 100 + second)
        assert rate.value < 20

    def test_a_pause_is_no_silence(self) -> None:
        """Time without a connection does not lower the rate."""
        rate = Rate()
        rate.resume(NOW)
        rate.add(1000, NOW + 100)
        before = rate.value
        rate.pause()
        rate.resume(NOW + 100_000)
        rate.add(0, NOW + 100_000)
        assert rate.value == before

    def test_nothing_has_come(self) -> None:
        """The rate of nothing is nothing."""
        assert Rate().value == 0

    def test_a_clock_that_is_set_back(self) -> None:
        """It changes nothing."""
        rate = Rate()
        rate.resume(NOW)
        rate.add(10, NOW - 100)
        assert rate.value == 10


def stream(gaps: Gaps, start: float, seconds: int, per_second: int = 10, lag: float = 0.0) -> float:
    """Let posts come for a while; return when it was over."""
    for second in range(1, seconds + 1):
        now = start + second
        gaps.arrived([post(now - lag, number) for number in range(per_second)], now)
    return start + seconds


def running(per_second: int = 10, lag: float = 0.0) -> tuple[Gaps, float]:
    """Make the account of a stream that has run for 100 s."""
    gaps = Gaps(Kept())
    assert gaps.connected(NOW) is None
    return gaps, stream(gaps, NOW, 100, per_second, lag)


class TestGaps:
    def test_the_first_connection_has_no_gap_before_it(self) -> None:
        """Tries that fail before it do not make one: nothing was ever there."""
        gaps = Gaps(Kept())
        gaps.lost("network_error", NOW)
        assert not gaps.is_connected
        assert gaps.connected(NOW + 5) is None
        assert (gaps.entries, gaps.seconds(NOW + 9), gaps.backfill_minutes(NOW + 9)) == ([], 0, 0)
        assert gaps.is_connected

    def test_a_gap(self) -> None:
        """From the drop to the 200, with the tries that failed, and each reason once: what began it stands first."""
        gaps, now = running()
        for second, reason in enumerate(("cut", "network_error", "server_error", "network_error", "cut")):
            gaps.lost(reason, now + second)
        assert not gaps.is_connected
        assert gaps.seconds(now + 20) == 20
        assert (gaps.missed, gaps.missing(now + 20)) == (0, 200), "a gap counts when it is over"
        gap = gaps.connected(now + 30)
        assert gap is gaps.entries[-1]
        assert gap == Gap(now, "cut", gap.rate, now + 30, tries=4, then=["network_error", "server_error"])
        assert gap.rate == pytest.approx(10, rel=0.01)
        assert gaps.seconds(now + 99) == 30
        assert gaps.missed == gap.missed(now + 99) == pytest.approx(300, rel=0.01)

    def test_several_gaps_add_up(self) -> None:
        """Seconds and posts count from the start of the process."""
        gaps, now = running()
        for _ in range(3):
            gaps.lost("cut", now)
            gaps.connected(now + 10)
            now = stream(gaps, now + 10, 60)
        assert len(gaps.entries) == 3
        assert gaps.seconds(now) == 30
        assert gaps.missed == pytest.approx(300, rel=0.02)

    def test_a_silent_end_is_dated_back(self) -> None:
        """A stall began with the last sign of life, an empty connection with its last post."""
        gaps, now = running()
        gaps.heard(now + 10)
        gaps.lost("stall", now + 40)
        assert gaps.entries[-1].since == now + 10
        gaps, now = running()
        gaps.heard(now + 20)
        gaps.lost("empty", now + 60)
        assert gaps.entries[-1].since == now

    def test_a_clock_that_is_set_back(self) -> None:
        """No gap is shorter than nothing."""
        gaps, now = running()
        gaps.lost("cut", now)
        gap = gaps.connected(now - 100)
        assert gap is not None
        assert (gap.seconds(now), gap.missed(now), gaps.seconds(now)) == (0, 0, 0)

    def test_the_oldest_are_forgotten(self) -> None:
        """A thousand are remembered."""
        gaps, now = running()
        for number in range(GAPS + 5):
            gaps.lost("cut", now + number)
            gaps.connected(now + number + 0.5)
        assert len(gaps.entries) == GAPS
        assert gaps.entries[0].since == now + 5


class TestRestart:
    def test_the_time_between_two_runs_is_a_gap(self) -> None:
        """It begins with the last sign of life of the first, and has its rate."""
        gaps = Gaps(Kept(heard_at=NOW, rate=5.0))
        gaps.lost("network_error", NOW + 50)
        gap = gaps.connected(NOW + 60)
        assert gap == Gap(NOW, "restart", 5.0, NOW + 60, tries=1, then=["network_error"])
        assert gap.missed(NOW + 60) == 300

    def test_a_gap_goes_on_over_a_restart(self) -> None:
        """It keeps its reason."""
        first, now = running()
        first.lost("unauthorized", now)
        kept = Kept()
        first.keep(kept)
        second = Gaps(kept)
        assert second.seconds(now + 100) == 100
        gap = second.connected(now + 200)
        assert gap is not None
        assert (gap.since, gap.until, gap.reason) == (now, now + 200, "unauthorized")
        assert len(second.entries) == 1

    def test_the_rate_of_the_earlier_run_holds_until_there_is_one(self) -> None:
        """A daemon that is cut off again at once does not count as having missed nothing."""
        gaps = Gaps(Kept(heard_at=NOW, rate=5.0))
        gaps.connected(NOW + 1)
        gaps.lost("cut", NOW + 2)
        assert gaps.entries[-1].rate == 5.0

    def test_all_that_is_needed_is_kept(self) -> None:
        """What one run writes down is what the next one reads."""
        gaps, now = running()
        gaps.backfill_refused(now)
        kept = Kept()
        gaps.keep(kept)
        assert (kept.heard_at, kept.backfill_refused_at) == (now, now)
        assert kept.rate == pytest.approx(10, rel=0.01)
        assert Gaps(kept).has_refused(now + 1)


class TestBackfill:
    @pytest.mark.parametrize(("seconds", "minutes"), [(1, 1), (49, 1), (51, 2), (109, 2), (111, 3), (9999, 5)])
    def test_its_size(self, seconds: int, minutes: int) -> None:
        """Whole minutes that cover the gap and ten seconds, five at most."""
        gaps, now = running()
        gaps.lost("cut", now)
        assert gaps.backfill_minutes(now + seconds) == minutes
        assert math.ceil((seconds + MARGIN_SECONDS) / 60) == minutes or minutes == BACKFILL_MINUTES

    def test_a_stream_that_lags_needs_more(self) -> None:
        """What was behind when the connection broke is lost with it."""
        gaps, now = running(lag=60.0)
        gaps.lost("operational_disconnect", now)
        assert gaps.backfill_minutes(now + 1) == 2

    def test_none_without_a_gap(self) -> None:
        """While connected there is nothing to ask for."""
        gaps, now = running()
        assert gaps.backfill_minutes(now) == 0

    def test_a_refusal_is_believed_for_a_week(self) -> None:
        """Access may be bought meanwhile."""
        gaps, now = running()
        gaps.backfill_refused(now)
        gaps.lost("cut", now + 1)
        assert gaps.backfill_minutes(now + 10) == 0
        assert gaps.has_refused(now + LEARNT_SECONDS - 1)
        assert gaps.backfill_minutes(now + LEARNT_SECONDS) == BACKFILL_MINUTES

    def test_what_it_brings_is_not_missed(self) -> None:
        """Posts that were written during the gap are taken off; the live ones that follow end the account."""
        gaps, now = running()
        gaps.lost("cut", now)
        gaps.connected(now + 30, 1)
        old = [post(now + second / 10) for second in range(1, 251)]
        gaps.arrived(old, now + 31)
        assert gaps.missed == 0, "the account is open"
        gaps.arrived([post(now + 31.5)], now + 32)
        gap = gaps.entries[-1]
        assert (gap.backfill_minutes, gap.backfilled, gaps.backfilled) == (1, 250, 250)
        assert gaps.missed == pytest.approx(50, abs=3)

    def test_old_and_live_posts_in_one_chunk(self) -> None:
        """Each is counted as what it is."""
        gaps, now = running()
        gaps.lost("cut", now)
        gaps.connected(now + 30, 1)
        gaps.arrived([post(now + 1), post(now + 29), post(now + 31)], now + 31)
        assert gaps.entries[-1].backfilled == 2
        stream(gaps, now + 31, 5)
        assert gaps.entries[-1].backfilled == 2

    def test_a_backfill_does_not_raise_the_rate(self) -> None:
        """It comes as fast as it can, and says nothing about what is to be expected."""
        gaps, now = running()
        gaps.lost("cut", now)
        gaps.connected(now + 60, 2)
        gaps.arrived([post(now + number / 100) for number in range(5000)], now + 61)
        assert gaps.rate == pytest.approx(10, rel=0.05)

    def test_live_posts_that_lag_are_not_taken_for_backfill(self) -> None:
        """A stream that is always five seconds behind is so after a gap too."""
        gaps, now = running(lag=5.0)
        gaps.lost("cut", now)
        gaps.connected(now + 30, 1)
        stream(gaps, now + 30, 10, lag=4.9)
        assert gaps.entries[-1].backfilled == 0

    def test_an_account_that_nothing_ends(self) -> None:
        """A stream without live posts: it is closed when the minutes that were asked for have passed."""
        gaps, now = running()
        gaps.lost("cut", now)
        gaps.connected(now + 30, 1)
        gaps.settle(now + 80)
        assert gaps.missed == 0
        gaps.settle(now + 91)
        assert gaps.missed == pytest.approx(300, rel=0.01)

    def test_a_drop_during_the_backfill(self) -> None:
        """The next one is asked for both gaps, and each gets its own posts."""
        gaps, now = running()
        gaps.lost("cut", now)
        gaps.connected(now + 100, gaps.backfill_minutes(now + 100))
        gaps.arrived([post(now + second / 10) for second in range(1, 101)], now + 101)
        gaps.lost("cut", now + 102)
        gaps.settle(now + 500)
        assert gaps.missed == 0, "there is another chance"
        assert gaps.backfill_minutes(now + 105) == 2
        gaps.connected(now + 105, 2)
        gaps.arrived([post(now + second / 10) for second in range(101, 1051)], now + 106)
        stream(gaps, now + 106, 1)
        assert [gap.backfilled for gap in gaps.entries] == [999, 50]
        assert gaps.missed == pytest.approx(0, abs=5)

    def test_a_drop_before_backfill_was_refused(self) -> None:
        """Where nothing more is to be expected all accounts are closed."""
        gaps, now = running()
        gaps.lost("cut", now)
        gaps.connected(now + 30, 1)
        gaps.lost("cut", now + 31)
        gaps.connected(now + 41, 0)
        assert gaps.missed == pytest.approx(400, rel=0.01)

    def test_posts_without_a_time(self) -> None:
        """Ids that are not X's neither count nor end the account."""
        gaps, now = running()
        gaps.lost("cut", now)
        gaps.connected(now + 30, 1)
        gaps.arrived(named("a", "b"), now + 31)
        assert gaps.entries[-1].backfilled == 0
        gaps.settle(now + 1000)
        assert gaps.missed > 0


class TestEmpty:
    def test_a_busy_stream_falls_silent(self) -> None:
        """After a minute, if 20 posts were to be expected."""
        gaps, now = running()
        gaps.heard(now + 59)
        assert not gaps.is_empty(now + 59)
        assert gaps.is_empty(now + 60)

    def test_a_slow_stream_may_be_silent_for_long(self) -> None:
        """At a post in ten seconds it takes 200 s."""
        gaps = Gaps(Kept())
        gaps.connected(NOW)
        for number in range(1, 300):
            gaps.arrived([post(NOW + number * 10)], NOW + number * 10)
        now = NOW + 2990
        assert not gaps.is_empty(now + 190)
        assert gaps.is_empty(now + 210)

    def test_a_stream_that_never_brought_anything_is_not_empty(self) -> None:
        """Nothing is to be expected of it."""
        gaps = Gaps(Kept())
        gaps.connected(NOW)
        assert not gaps.is_empty(NOW + 10**6)

    def test_a_stream_that_has_really_fallen_silent_is_left_alone(self) -> None:
        """Each new connection is given twice the time: some 10 of them in the first day, not one a minute."""
        gaps, now = running(per_second=100)
        tries, end = 0, now + 86_400
        while now < end:
            now += 20
            gaps.heard(now)
            if gaps.is_empty(now):
                tries += 1
                gaps.lost("empty", now)
                gaps.connected(now + 1)
        assert 5 < tries < 15

    def test_a_new_connection_that_brings_posts_proves_the_old_one_was_broken(self) -> None:
        """What was to be expected of it was missed."""
        gaps, now = running()
        gaps.lost("empty", now + EMPTY_SECONDS)
        gaps.connected(now + EMPTY_SECONDS)
        gaps.settle(now + EMPTY_SECONDS + 1)
        assert gaps.missed == 0, "it is not known yet"
        stream(gaps, now + EMPTY_SECONDS, 3)
        assert gaps.missed == pytest.approx(600, rel=0.01)

    def test_a_new_connection_that_brings_nothing_takes_the_blame_from_the_old_one(self) -> None:
        """Posts have become rare: nothing was missed."""
        gaps, now = running()
        gaps.lost("empty", now + EMPTY_SECONDS)
        gaps.connected(now + EMPTY_SECONDS)
        gaps.settle(now + 2 * EMPTY_SECONDS + 1)
        assert gaps.missed == gaps.entries[-1].missed(now) == 0
        assert gaps.seconds(now + 1000) == EMPTY_SECONDS

    def test_a_post_makes_it_impatient_again(self) -> None:
        """The time is a minute from the last post on, as at first."""
        gaps, now = running()
        gaps.lost("empty", now + EMPTY_SECONDS)
        gaps.connected(now + EMPTY_SECONDS)
        assert not gaps.is_empty(now + 2.5 * EMPTY_SECONDS)
        gaps.arrived([post(now)], now + 2.5 * EMPTY_SECONDS)
        assert gaps.is_empty(now + 3.5 * EMPTY_SECONDS)

    def test_other_rules_make_another_rate(self) -> None:
        """After a change of the rules silence means nothing."""
        gaps, now = running()
        gaps.rules_changed()
        assert not gaps.is_empty(now + 10**6)
        stream(gaps, now, 100)
        assert gaps.is_empty(now + 161)

    def test_a_stream_that_is_not_there_is_not_empty(self) -> None:
        """It is lost, which is another matter."""
        gaps, now = running()
        gaps.lost("cut", now)
        assert not gaps.is_empty(now + 1000)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_accounts_hold(seed: int) -> None:
    """In any order of events, restarts included: totals only grow, and one gap at most lasts."""
    chance = Random(seed)
    gaps, now, seconds, missed = Gaps(Kept()), NOW, 0.0, 0
    for number in range(2000):
        now += chance.choice([0.0, 0.5, 5.0, 70.0, 400.0])
        match chance.randrange(9):
            case 0 | 1 if not gaps.is_connected:
                gaps.connected(now, gaps.backfill_minutes(now))
            case 2 if gaps.is_connected:
                gaps.lost("stall", now)
            case 3:
                gaps.lost("cut", now)
            case 4 if gaps.is_empty(now):
                gaps.lost("empty", now)
            case 5 | 6 if gaps.is_connected:
                ages = [chance.choice([0.0, 1.0, 60.0, 500.0]) for _ in range(chance.randrange(20))]
                gaps.arrived([post(now - age, number) for age in ages], now)
            case 7:
                gaps.settle(now)
            case 8 if chance.random() < 0.1:
                kept = Kept()
                gaps.keep(kept)
                gaps, seconds, missed = Gaps(kept), 0.0, 0
            case _:
                gaps.rules_changed()
                if chance.random() < 0.05:
                    gaps.backfill_refused(now)
        assert gaps.seconds(now) >= seconds - 1e-6
        assert gaps.missed >= missed
        assert 0 <= gaps.backfill_minutes(now) <= BACKFILL_MINUTES
        assert gaps.rate >= 0
        assert all(gap.until is not None for gap in gaps.entries[:-1])
        seconds, missed = gaps.seconds(now), gaps.missed
    assert len(gaps.entries) > 50
