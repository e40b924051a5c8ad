from service.core.figures import OTHER, Count, Counts, Histogram


def test_a_count_grows() -> None:
    """By one, or by what is told."""
    count = Count()
    count.inc()
    count.inc(2)
    assert count.value == 3


class TestCounts:
    def test_known_values(self) -> None:
        """They are there from the start; others come with their first event."""
        counts = Counts(["a", "b"])
        counts.labels("c").inc(2)
        assert dict(counts.items()) == {"a": 0, "b": 0, "c": 2}
        assert counts.total == 2

    def test_a_limit(self) -> None:
        """Beyond it all new values are one, and those that are known go on."""
        counts = Counts(["a"], most=2)
        for value in ("b", "c", "d", "b"):
            counts.labels(value).inc()
        assert dict(counts.items()) == {"a": 0, "b": 2, OTHER: 2}

    def test_keep(self) -> None:
        """Exactly the named values have counts afterwards, those that stay with what they had."""
        counts = Counts(["a", "b"])
        counts.labels("a").inc()
        counts.keep(["c", "a"])
        assert dict(counts.items()) == {"c": 0, "a": 1}


class TestHistogram:
    def test_edges(self) -> None:
        """A bound belongs to its own bucket; what is above all of them is in the last."""
        histogram = Histogram((1, 2))
        for value in (1.0, 1.5, 2.0, 3.0):
            histogram.observe(value)
        assert histogram.seen() == ((1, 2), (1, 2, 1), 7.5)

    def test_many_at_once(self) -> None:
        """The same value may be told for many."""
        histogram = Histogram((1, 2))
        histogram.observe(1.5, 40)
        assert histogram.seen() == ((1, 2), (0, 40, 0), 60.0)

    def test_below_nothing(self) -> None:
        """A negative duration, from clocks that disagree, counts as zero and keeps the sum from falling."""
        histogram = Histogram((1, 2))
        histogram.observe(-5.0, 3)
        assert histogram.seen() == ((1, 2), (3, 0, 0), 0.0)

    def test_quantile(self) -> None:
        """Within a bucket it is as far as the rank is, as with Prometheus; above all of them it is the last bound."""
        histogram = Histogram((1, 2, 4))
        nothing = histogram.seen()
        histogram.observe(0.5, 50)
        histogram.observe(3.0, 50)
        seen = histogram.seen()
        assert [seen.quantile(share, nothing) for share in (0.25, 0.5, 0.75)] == [0.5, 1.0, 3.0]
        histogram.observe(100.0, 900)
        assert histogram.seen().quantile(0.95, nothing) == 4

    def test_quantile_of_lately(self) -> None:
        """What was seen before does not count, and of nothing there is none."""
        histogram = Histogram((1, 2))
        histogram.observe(0.5, 1000)
        before = histogram.seen()
        assert before.quantile(0.5, before) is None
        histogram.observe(1.5, 2)
        assert histogram.seen().quantile(0.5, before) == 1.5
