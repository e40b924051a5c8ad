from service.core.figures import OTHER, Count, Counts, Histogram


def counts_of(histogram: Histogram) -> tuple[int, ...]:
    """Give what is in each bucket."""
    return histogram.seen().counts


def test_a_count_grows() -> None:
    """By one, or by what is told."""
    count = Count()
    count.inc()
    count.inc(2.5)
    assert count.value == 3.5


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
        assert counts_of(histogram) == (1, 2, 1)
        assert histogram.seen().sum == 7.5

    def test_many_at_once(self) -> None:
        """The same value may be told for many."""
        histogram = Histogram((1, 2))
        histogram.observe(1.5, 40)
        assert histogram.seen() == ((0, 40, 0), 60.0)

    def test_below_nothing(self) -> None:
        """A negative duration, from clocks that disagree, counts as zero and keeps the sum from falling."""
        histogram = Histogram((1, 2))
        histogram.observe(-5.0, 3)
        assert histogram.seen() == ((3, 0, 0), 0.0)

    def test_quantile(self) -> None:
        """Within a bucket it is as far as the rank is, as with Prometheus."""
        histogram = Histogram((1, 2, 4))
        histogram.observe(0.5, 50)
        histogram.observe(3.0, 50)
        assert histogram.quantile(0.25) == 0.5
        assert histogram.quantile(0.5) == 1.0
        assert histogram.quantile(0.75) == 3.0

    def test_quantile_above_all_bounds(self) -> None:
        """It is the highest bound: more is not known."""
        histogram = Histogram((1, 2))
        histogram.observe(100.0)
        assert histogram.quantile(0.95) == 2

    def test_quantile_of_nothing(self) -> None:
        """There is none."""
        assert Histogram((1, 2)).quantile(0.5) is None

    def test_quantile_since(self) -> None:
        """What was seen before does not count."""
        histogram = Histogram((1, 2))
        histogram.observe(0.5, 1000)
        before = histogram.seen()
        assert histogram.quantile(0.5, before) is None
        histogram.observe(1.5, 2)
        assert histogram.quantile(0.5, before) == 1.5
