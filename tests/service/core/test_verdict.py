from typing import Any

import pytest

from service.core.records import DropReason
from service.core.verdict import STARTING, Check, Condition, View, conditions

WELL = Check(True, "", 0.0)
# Flowing: connected, posts come and go.
NOTHING_WRONG = View(
    checks={"stream": WELL, "kinesis": WELL, "buffer": WELL},
    closing=False,
    buffered=20,
    on_disk=0,
    surplus=0.0,
    throttled=0,
    shards=4,
    dropped={},
    silence=0.5,
    retry_in=None,
)


def verdict(**changes: Any) -> list[Condition]:
    """Give the conditions of a daemon that is well but for these changes."""
    return conditions(NOTHING_WRONG._replace(**changes))


def checks(**reasons: str) -> dict[str, Check]:
    """Give the checks of a daemon that is well but for these, with their reasons."""
    return {**NOTHING_WRONG.checks, **{name: Check(False, reason, 0.0) for name, reason in reasons.items()}}


def test_well() -> None:
    """What is well is one condition, and it says so."""
    assert verdict() == [Condition("flowing", "ok", "Flowing", "What comes is delivered.")]


@pytest.mark.parametrize(
    ("silence", "title", "detail"),
    [
        (None, "Connected, no posts yet", "Nothing that the rules want has been posted."),
        (45.0, "Connected, no posts", "The last post came 45 s ago."),
        (600.0, "Connected, no posts", "The last post came 10 min ago."),
        (7200.0, "Connected, no posts", "The last post came 2 h ago."),
    ],
)
def test_quiet(silence: float | None, title: str, detail: str) -> None:
    """A stream without posts is no fault, and the page says what it is."""
    assert verdict(silence=silence) == [Condition("quiet", "ok", title, detail)]


@pytest.mark.parametrize(("name", "state"), [("stream", "disconnected"), ("kinesis", "blocked"), ("buffer", "unsafe")])
def test_a_check_that_is_not_met(name: str, state: str) -> None:
    """Its reason is the detail, word for word."""
    (condition,) = verdict(checks=checks(**{name: "what is wrong"}))
    assert (condition.state, condition.level, condition.detail) == (state, "bad", "what is wrong")


@pytest.mark.parametrize(("seconds", "words"), [(890.0, "in 15 min"), (16.0, "in 16 s"), (0.2, "now")])
def test_the_next_try(seconds: float, words: str) -> None:
    """Who is not connected to X is told when it will be tried again."""
    (condition,) = verdict(checks=checks(stream="stall: silent"), retry_in=seconds)
    assert condition.detail == f"stall: silent. Next try {words}."


def test_starting() -> None:
    """What nobody has set yet is awaited, and is not called broken."""
    (condition,) = verdict(checks=checks(stream=STARTING, kinesis=STARTING))
    assert (condition.state, condition.level) == ("starting", "notice")
    assert condition.detail == "Not there yet: stream, kinesis."


def test_catching_up() -> None:
    """How many posts wait on disk, and how long that takes where they get fewer."""
    (condition,) = verdict(on_disk=12_000, surplus=100.0)
    assert (condition.state, condition.level) == ("catching_up", "notice")
    assert condition.detail == "12,000 posts on disk, to be sent before anything newer. At this pace that takes 2 min."
    (condition,) = verdict(on_disk=1, surplus=-5.0)
    assert condition.detail == "1 post on disk, to be sent before anything newer."


def test_throttled() -> None:
    """How many shards of how many."""
    (condition,) = verdict(throttled=1)
    assert (condition.state, condition.level) == ("throttled", "notice")
    assert condition.title == "Kinesis throttles 1 of 4 shards"


def test_drops() -> None:
    """Lost posts are bad, with the most frequent reason first; lines that are none are worth a notice."""
    found = verdict(dropped={DropReason.REFUSED: 1, DropReason.JOURNAL_FULL: 12, DropReason.NOT_JSON: 2})
    assert [(condition.state, condition.level) for condition in found] == [("dropping", "bad"), ("rejecting", "notice")]
    assert found[0].detail == "13 posts in the last minute: journal_full, refused. See the dead letters."
    assert found[1].detail == "2 in the last minute: not_json. They are among the dead letters."


def test_the_worst_is_first() -> None:
    """What passes by itself stands behind what does not."""
    found = verdict(checks=checks(kinesis="no answer"), on_disk=5, throttled=2, dropped={DropReason.NO_ID: 1})
    assert [condition.state for condition in found] == ["blocked", "rejecting", "catching_up", "throttled"]


def test_draining() -> None:
    """It comes before all, and the source that is closed on purpose is no fault."""
    found = verdict(closing=True, buffered=1, checks=checks(stream="the source is closed", kinesis="no answer"))
    assert [condition.state for condition in found] == ["draining", "blocked"]
    assert found[0].detail == "The source is closed; 1 post without an answer of Kinesis."
