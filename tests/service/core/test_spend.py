from datetime import UTC, datetime

from service.core.spend import Spend


def at(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> float:
    """Give a moment by UTC."""
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()


def test_posts_are_counted_by_month() -> None:
    """A new month begins at 0, the turn of the year included."""
    spend = Spend(None)
    spend.add(5, at(2026, 12, 31, 23, 59, 59))
    assert (spend.month, spend.posts) == ("2026-12", 5)
    assert spend.ends_at(at(2026, 12, 31, 23, 59, 59)) == at(2027, 1, 1)
    spend.add(7, at(2027, 1, 1))
    assert (spend.month, spend.posts) == ("2027-01", 7)


def test_the_count_goes_on_after_a_restart() -> None:
    """In the same month; what another month has left does not count."""
    spend = Spend(100, "2026-11", 60)
    spend.add(1, at(2026, 11, 30))
    assert spend.posts == 61
    spend = Spend(100, "2026-10", 60)
    spend.add(1, at(2026, 11, 30))
    assert spend.posts == 1


def test_without_a_budget_nothing_is_spent() -> None:
    """Posts are counted all the same, for the metrics."""
    spend = Spend(None)
    spend.add(10**9, at(2026, 11, 1))
    assert not spend.is_spent(at(2026, 11, 2))
    assert not spend.should_warn(at(2026, 11, 2))


def test_the_budget_is_spent_until_the_month_is_over() -> None:
    """Also after a restart that sees no post."""
    spend = Spend(10)
    spend.add(9, at(2026, 11, 1))
    assert not spend.is_spent(at(2026, 11, 1))
    spend.add(3, at(2026, 11, 1))
    assert spend.is_spent(at(2026, 11, 30))
    assert not spend.is_spent(at(2026, 12, 1))
    again = Spend(10, "2026-11", 12)
    assert again.is_spent(at(2026, 11, 30))
    assert not Spend(10, "2026-11", 12).is_spent(at(2026, 12, 5))


def test_a_larger_budget_is_not_spent() -> None:
    """Raising it lets posts come again."""
    assert not Spend(100, "2026-11", 12).is_spent(at(2026, 11, 30))


def test_a_warning_comes_once_a_month() -> None:
    """At nine tenths; not before, not again, not for what came last month, and again in the next one."""
    spend = Spend(100)
    spend.add(89, at(2026, 11, 1))
    assert not spend.should_warn(at(2026, 11, 1))
    spend.add(1, at(2026, 11, 2))
    assert [spend.should_warn(at(2026, 11, 2)), spend.should_warn(at(2026, 11, 3))] == [True, False]
    for later in (spend, Spend(100, "2026-11", 90)):
        assert not later.should_warn(at(2026, 12, 1))
        assert (later.month, later.posts) == ("2026-12", 0)
    spend.add(95, at(2026, 12, 2))
    assert spend.should_warn(at(2026, 12, 2))


def test_the_end_of_the_month() -> None:
    """It is that of the month of the moment, whichever was looked at before; a year may end with it."""
    spend = Spend(10)
    assert spend.ends_at(at(2026, 11, 5)) == at(2026, 12, 1)
    assert spend.ends_at(at(2026, 12, 31)) == at(2027, 1, 1)
