"""
What an operator is told first: how it is, in a word, a title and a line that says what it means.

Several things may be so at once; the first one is the worst. What is not here is well.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from service.core.records import DropReason

# So long without a post, and the stream counts as quiet.
QUIET_SECONDS = 30.0
STARTING = "starting"
"""The reason of a check that nobody has set yet."""


class Check(NamedTuple):
    """One condition of the readiness: met or not, why not, and since when (seconds since 1970)."""

    ok: bool
    reason: str
    since: float


class View(NamedTuple):
    """
    What the verdict rests on.

    Attributes:
        checks: the conditions of the readiness.
        closing: the source is closed for good.
        buffered: posts without an outcome; `on_disk` of them wait in the journal only.
        surplus: how many posts a second leave the buffer more than enter it.
        throttled: shards that throttled lately, of `shards`.
        dropped: posts that were lately dropped, by reason.
        silence: seconds since the last post; None if none has come.
        retry_in: seconds until the source is tried again, 0 or less for now; None if that is not planned.
    """

    checks: Mapping[str, Check]
    closing: bool
    buffered: int
    on_disk: int
    surplus: float
    throttled: int
    shards: int
    dropped: Mapping[DropReason, int]
    silence: float | None
    retry_in: float | None


class Condition(NamedTuple):
    """
    One thing that is so.

    Attributes:
        state: the short name.
        level: ok, notice (it passes by itself) or bad (posts do not flow, or are lost).
        title: some words.
        detail: one line: what it means, and what to do where there is something to do.
    """

    state: str
    level: str
    title: str
    detail: str


def conditions(view: View) -> list[Condition]:
    """Tell all that is so, the worst first; never empty."""
    found = [*_losses(view), *_troubles(view), *_delays(view)]
    found.sort(key=lambda condition: condition.level != "bad")
    if view.closing:
        words = f"The source is closed; {_posts(view.buffered)} without an answer of Kinesis."
        found.insert(0, Condition("draining", "notice", "Draining", words))
    return found or [_well(view)]


def _losses(view: View) -> list[Condition]:
    found = []
    lines = {reason: count for reason, count in view.dropped.items() if reason.of_line}
    posts = {reason: count for reason, count in view.dropped.items() if not reason.of_line}
    if posts:
        words = f"{_posts(sum(posts.values()))} in the last minute: {_reasons(posts)}. See the dead letters."
        found.append(Condition("dropping", "bad", "Posts are dropped", words))
    if lines:
        words = f"{sum(lines.values()):,} in the last minute: {_reasons(lines)}. They are among the dead letters."
        found.append(Condition("rejecting", "notice", "Lines are rejected", words))
    return found


def _troubles(view: View) -> list[Condition]:
    waiting = [name for name, check in view.checks.items() if check.reason == STARTING]
    found = []
    if waiting:
        found.append(Condition("starting", "notice", "Starting", f"Not there yet: {', '.join(waiting)}."))
    for name, state, title in (
        ("kinesis", "blocked", "Kinesis does not take posts"),
        ("buffer", "unsafe", "The buffer is not well"),
        ("stream", "disconnected", "Not connected to X"),
    ):
        check = view.checks.get(name)
        if check and not check.ok and check.reason != STARTING and not (name == "stream" and view.closing):
            words = check.reason
            if name == "stream" and view.retry_in is not None:
                words += f". Next try in {_duration(view.retry_in)}." if view.retry_in >= 1 else ". Next try now."
            found.append(Condition(state, "bad", title, words))
    return found


def _delays(view: View) -> list[Condition]:
    found = []
    if view.on_disk:
        words = f"{_posts(view.on_disk)} on disk, to be sent before anything newer."
        if view.surplus >= 1:
            words += f" At this pace that takes {_duration(view.on_disk / view.surplus)}."
        found.append(Condition("catching_up", "notice", "Catching up", words))
    if view.throttled:
        words = "Posts wait in order and none is lost. If it lasts, add shards."
        title = f"Kinesis throttles {view.throttled} of {view.shards} shards"
        found.append(Condition("throttled", "notice", title, words))
    return found


def _well(view: View) -> Condition:
    if view.silence is None:
        return Condition("quiet", "ok", "Connected, no posts yet", "Nothing that the rules want has been posted.")
    if view.silence >= QUIET_SECONDS:
        words = f"The last post came {_duration(view.silence)} ago."
        return Condition("quiet", "ok", "Connected, no posts", words)
    return Condition("flowing", "ok", "Flowing", "What comes is delivered.")


def _posts(count: int) -> str:
    return "1 post" if count == 1 else f"{count:,} posts"


def _reasons(counts: Mapping[DropReason, int]) -> str:
    reasons: Sequence[DropReason] = sorted(counts, key=lambda reason: -counts[reason])
    return ", ".join(reason.value for reason in reasons)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
