import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from random import Random
from typing import Any, Self

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from service.core.reconnect import Reason, Verdict
from service.core.rules import Changes, Rule
from service.http_client import UnavailableError
from service.rules import PATH, Rules, RulesError, RulesKeeper
from tests.virtual_loop import virtual_time

TYPE = "https://api.twitter.com/2/problems/"
TOKEN = "secret-token"

Answer = Callable[[], web.Response]


class FakeX:
    """
    X's rules as far as Millrace uses them: pages of two, values only once, dry runs, mixed success.

    A value that begins with a minus is refused. `broken` is a method and what is answered to each such request.
    """

    def __init__(self, *rules: Rule, broken: tuple[str, Answer] | None = None) -> None:
        self.rules = {rule.id: rule for rule in rules}
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self._broken = broken
        self._ids = count(1000)

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        host, port = self._runner.addresses[0]
        return f"http://{host}:{port}"

    async def sync(self, *wanted: Rule, apply: bool = True, all_owners: bool = False) -> Any:
        return await Rules(self.url, Random(1)).sync(TOKEN, wanted, apply=apply, all_owners=all_owners)

    async def _serve(self, request: web.Request) -> web.Response:
        assert request.path == PATH
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self._broken and self._broken[0] == request.method:
            return self._broken[1]()
        if request.method == "GET":
            self.requests.append("list")
            return self._list(int(request.query.get("pagination_token", "0")))
        body = await request.json()
        if "delete" in body:
            self.requests.append("delete " + " ".join(body["delete"]["ids"]))
            for number in body["delete"]["ids"]:
                del self.rules[number]
            return web.json_response({"meta": {"summary": {"deleted": len(body["delete"]["ids"]), "not_deleted": 0}}})
        dry_run = request.query.get("dry_run") == "true"
        self.requests.append(("try " if dry_run else "add ") + " ".join(rule["value"] for rule in body["add"]))
        return self._add(body["add"], dry_run)

    def _list(self, start: int) -> web.Response:
        rules = list(self.rules.values())
        page = [{"id": rule.id, "value": rule.value, "tag": rule.tag} for rule in rules[start : start + 2]]
        for rule in page:
            if not rule["tag"]:
                del rule["tag"]
        answer: dict[str, Any] = {"meta": {"result_count": len(page)}}
        if page:
            answer["data"] = page
        if start + 2 < len(rules):
            answer["meta"]["next_token"] = str(start + 2)
        return web.json_response(answer)

    def _add(self, rules: Sequence[dict[str, str]], dry_run: bool) -> web.Response:
        created, errors = [], []
        for rule in rules:
            value = rule["value"]
            existing = next((old for old in self.rules.values() if old.value == value), None)
            if value.startswith("-"):
                details = ["a rule needs a positive clause (at position 1)", "and so on"]
                problem = {"details": details, "title": "UnprocessableEntity", "type": TYPE + "invalid-rules"}
                errors.append({"value": value, **problem})
            elif existing:
                problem = {"id": existing.id, "title": "DuplicateRule", "type": TYPE + "duplicate-rules"}
                errors.append({"value": value, **problem})
            else:
                new = Rule(value, rule.get("tag", ""), "" if dry_run else str(next(self._ids)))
                created.append(new._asdict())
                if not dry_run:
                    self.rules[new.id] = new
        answer = {"meta": {"summary": {"created": len(created), "not_created": len(errors)}}}
        return web.json_response(
            {**answer, **({"data": created} if created else {}), **({"errors": errors} if errors else {})}, status=201
        )


def ours(value: str, tag: str, number: int) -> Rule:
    """Make a rule as X has it after Millrace added it."""
    return Rule(value, "millrace:" + tag, str(number))


async def test_the_first_rules() -> None:
    """Where X has none, the list without data is understood, and the rules are tried and then added."""
    async with FakeX() as x:
        changes = await x.sync(Rule("cats lang:ja", "猫"), Rule("#dogs"))
        assert list(x.rules.values()) == [ours("cats lang:ja", "猫", 1000), ours("#dogs", "", 1001)]
        assert x.requests == ["list", "try cats lang:ja #dogs", "add cats lang:ja #dogs"]
    assert [rule.value for rule in changes.add] == ["cats lang:ja", "#dogs"]


async def test_a_second_time_nothing_changes() -> None:
    """Rules keep their ids, and nothing is asked but the list."""
    async with FakeX() as x:
        await x.sync(Rule("cats"), Rule("dogs"), Rule("birds"))
        before = dict(x.rules)
        x.requests.clear()
        changes = await x.sync(Rule("cats"), Rule("dogs"), Rule("birds"))
        assert changes.is_empty
        assert x.rules == before
        assert x.requests == ["list", "list"]


async def test_add_before_delete() -> None:
    """New rules match before old ones end; a changed tag goes and comes last; others' rules stay."""
    theirs = Rule("weather", "somebody", "7")
    async with FakeX(ours("old", "", 1), ours("cats", "animals", 2), ours("dogs", "", 3), theirs) as x:
        await x.sync(Rule("new"), Rule("cats", "pets"), Rule("dogs"), Rule("weather", "mine"))
        assert x.requests == ["list", "list", "try new cats", "add new", "delete 1 2", "add cats"]
        assert set(x.rules.values()) == {
            theirs,
            ours("dogs", "", 3),
            ours("new", "", 1000),
            ours("cats", "pets", 1001),
        }


async def test_showing_changes_makes_none() -> None:
    """Without apply X judges the rules and keeps what it has."""
    async with FakeX(ours("old", "", 1)) as x:
        changes = await x.sync(Rule("new"), apply=False)
        assert x.requests == ["list", "try new"]
        assert list(x.rules.values()) == [ours("old", "", 1)]
    assert [rule.value for rule in changes.add] == ["new"]
    assert [rule.value for rule in changes.delete] == ["old"]


async def test_all_owners() -> None:
    """If told so, rules that somebody else has put there go too, except those that are wanted."""
    mine, other, wanted = ours("old", "", 1), Rule("weather", "somebody", "7"), Rule("cats", "theirs", "8")
    async with FakeX(mine, other, wanted) as x:
        await x.sync(Rule("cats", "pets"), all_owners=True)
        assert list(x.rules.values()) == [wanted]


async def test_a_bad_rule_changes_nothing() -> None:
    """X's judgement comes before any change, and reaches the user in X's words, with the rule."""
    async with FakeX(ours("old", "", 1)) as x:
        with pytest.raises(RulesError) as raised:
            await x.sync(Rule("good"), Rule("-bad"), Rule("-worse"))
        assert list(x.rules.values()) == [ours("old", "", 1)]
    problem = (
        "X refuses the rule '-bad': a rule needs a positive clause (at position 1); and so on;"
        " change MILLRACE_RULES or MILLRACE_RULES_FILE"
    )
    assert str(raised.value) == problem + " (and 1 more)"
    assert raised.value.problems == (problem, problem.replace("-bad", "-worse"))


async def test_rules_refused_with_400() -> None:
    """Some clients saw the same judgement with status 400."""
    body = {"errors": [{"value": "-bad", "details": ["no"], "title": "UnprocessableEntity"}]}
    async with FakeX(broken=("POST", partial(web.json_response, body, status=400))) as x:
        with pytest.raises(RulesError, match="X refuses the rule '-bad': no; change"):
            await x.sync(Rule("-bad"))


async def test_too_many_rules() -> None:
    """An error that names no rule is passed on as well."""
    body = {"errors": [{"title": "RuleCap", "detail": "too many rules", "type": TYPE + "rule-cap"}]}
    async with FakeX(broken=("POST", partial(web.json_response, body))) as x:
        with pytest.raises(RulesError, match="X refuses rules: too many rules; change"):
            await x.sync(Rule("cats"))


async def test_a_rule_that_came_meanwhile_is_no_error() -> None:
    """If another client adds the same value between the list and the change, it is there, and that is enough."""
    body = {"errors": [{"value": "cats", "id": "1", "title": "DuplicateRule", "type": TYPE + "duplicate-rules"}]}
    async with FakeX(broken=("POST", partial(web.json_response, body, status=201))) as x:
        changes = await x.sync(Rule("cats"))
    assert [rule.value for rule in changes.add] == ["cats"]


async def test_the_request() -> None:
    """The token goes with every request, and the User-Agent says who asks."""
    async with FakeX() as x:
        await x.sync(Rule("cats"))
    assert [headers["authorization"] for headers in x.headers] == [f"Bearer {TOKEN}"] * 3
    assert all(headers["user-agent"].startswith("Millrace/") for headers in x.headers)


ELSEWHERE = {"location": "https://elsewhere.example/"}


@pytest.mark.parametrize(
    ("method", "answer", "reason", "healable"),
    [
        ("GET", partial(web.json_response, {"title": "Unauthorized"}, status=401), Reason.UNAUTHORIZED, False),
        ("GET", partial(web.Response, status=503, text="<html>", content_type="text/html"), Reason.SERVER_ERROR, True),
        ("POST", partial(web.json_response, {"title": "Client Forbidden"}, status=403), Reason.FORBIDDEN, False),
        ("POST", partial(web.json_response, {"title": "Invalid Request"}, status=400), Reason.BAD_REQUEST, False),
        ("GET", partial(web.Response, status=307, headers=ELSEWHERE), Reason.REDIRECT, False),
        ("GET", partial(web.Response, text="<html>", content_type="text/html"), Reason.UNEXPECTED_ANSWER, False),
        ("GET", partial(web.Response, text="{", content_type="application/json"), Reason.UNEXPECTED_ANSWER, False),
        (
            "GET",
            partial(web.Response, body=b'"\xff"', content_type="application/json"),
            Reason.UNEXPECTED_ANSWER,
            False,
        ),
        (
            "GET",
            partial(web.Response, text="[" * 100_000, content_type="application/json"),
            Reason.UNEXPECTED_ANSWER,
            False,
        ),
        ("GET", partial(web.json_response, []), Reason.UNEXPECTED_ANSWER, False),
        ("GET", partial(web.json_response, {"data": [{"id": 1}]}), Reason.UNEXPECTED_ANSWER, False),
    ],
)
async def test_x_cannot_be_asked(method: str, answer: Answer, reason: Reason, healable: bool) -> None:
    """Whatever comes instead of an answer about rules is told apart as it is for the stream, in one line."""
    async with FakeX(broken=(method, answer)) as x:
        with pytest.raises(UnavailableError) as raised:
            await x.sync(Rule("cats"))
    verdict = raised.value.verdict
    assert (verdict.reason, verdict.healable) == (reason, healable)
    assert str(raised.value) == verdict.detail
    assert verdict.detail.isprintable()
    assert TOKEN not in verdict.detail


async def test_a_rate_limit_says_how_long() -> None:
    """The reset header becomes the wait."""
    headers = {"Date": "Sun, 23 Aug 2026 10:00:00 GMT", "x-rate-limit-reset": "1787479500"}
    answer = partial(web.json_response, {"title": "Too Many Requests"}, status=429, headers=headers)
    async with FakeX(broken=("GET", answer)) as x:
        with pytest.raises(UnavailableError) as raised:
            await x.sync(Rule("cats"))
    assert raised.value.verdict.reason is Reason.RATE_LIMITED
    assert raised.value.verdict.delay == pytest.approx(301, rel=0.11)


async def test_repeated_failures_climb_a_ladder() -> None:
    """One object remembers how often it failed, so that X is not asked in a hot loop."""
    async with FakeX() as x:
        rules = Rules(x.url, Random(1))
    delays = []
    for _ in range(30):
        with pytest.raises(UnavailableError, match="X cannot be reached: no connection to 127") as raised:
            await rules.sync(TOKEN, [], apply=True)
        delays.append(raised.value.verdict.delay)
    assert raised.value.verdict.reason is Reason.NETWORK_ERROR
    assert sum(delays[20:]) > sum(delays[:10])


async def test_cancelling() -> None:
    """A sync that waits for X can be cancelled."""
    asked, release = asyncio.Event(), asyncio.Event()

    class Slow(FakeX):
        async def _serve(self, request: web.Request) -> web.Response:
            asked.set()
            await release.wait()
            return web.Response()

    async with Slow() as x:
        task = asyncio.create_task(x.sync(Rule("cats")))
        await asyncio.wait_for(asked.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()


class Keeping:
    """A keeper over a file that the test writes and an X that answers as the test says, on a virtual clock."""

    def __init__(self) -> None:
        self.wanted: list[Rule] = []
        self.fault: Exception | None = None
        self.answers: list[Changes | Exception] = []
        self.synced: list[tuple[float, list[Rule]]] = []
        self.changes = 0
        self.stamp = 0
        self.keeper = RulesKeeper(self._read, lambda: self.stamp, self._sync, self._changed)

    def _read(self) -> list[Rule]:
        if self.fault:
            raise self.fault
        return self.wanted

    async def _sync(self, wanted: Sequence[Rule]) -> Changes:
        self.synced.append((asyncio.get_running_loop().time(), list(wanted)))
        answer = self.answers.pop(0) if self.answers else Changes(list(wanted), [], [], [])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _changed(self) -> None:
        self.changes += 1

    def write(self, *rules: Rule) -> None:
        """Write the file."""
        self.wanted = list(rules)
        self.stamp += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[list[Any]]:
        """Let it run; give its lines of log."""
        with capture_logs() as logs:
            task = asyncio.create_task(self.keeper.run())
            await asyncio.sleep(0)
            yield logs
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()


def unavailable(seconds: float, healable: bool = True) -> UnavailableError:
    """Make the trouble that X cannot be asked."""
    return UnavailableError(Verdict(seconds, Reason.SERVER_ERROR, "X answered 503", healable))


class TestKeeper:
    @virtual_time
    async def test_a_change_of_the_file_is_applied(self) -> None:
        """Within a second or so, once, and without a signal."""
        keeping = Keeping()
        async with keeping.running() as logs:
            await asyncio.sleep(100)
            assert keeping.synced == []
            keeping.write(Rule("cats"))
            await asyncio.sleep(100)
        assert [rules for _, rules in keeping.synced] == [[Rule("cats")]]
        assert keeping.synced[0][0] <= 101
        assert keeping.changes == 1
        assert [(entry["event"], entry["added"]) for entry in logs] == [("rules_synced", 1)]

    @virtual_time
    async def test_a_signal_applies_them_at_once(self) -> None:
        """Also if the file is as it was: X's rules may not be."""
        keeping = Keeping()
        keeping.wanted = [Rule("cats")]
        keeping.answers = [Changes([], [], [], [Rule("cats")])]
        async with keeping.running():
            await asyncio.sleep(10.25)
            keeping.keeper.reload()
            await asyncio.sleep(0.1)
            assert keeping.synced == [(10.25, [Rule("cats")])]
        assert keeping.changes == 0, "nothing had to be changed"

    @virtual_time
    async def test_a_file_that_cannot_be_read_changes_nothing(self) -> None:
        """The log says what to mend; the mended file is applied."""
        keeping = Keeping()
        keeping.fault = ValueError("MILLRACE_RULES_FILE: not YAML", "and more")
        async with keeping.running() as logs:
            keeping.write(Rule("cats"))
            await asyncio.sleep(10)
            assert keeping.synced == []
            assert [(entry["event"], entry["faults"]) for entry in logs] == [
                ("rules_not_read", ("MILLRACE_RULES_FILE: not YAML", "and more"))
            ]
            keeping.fault = None
            keeping.write(Rule("cats"))
            await asyncio.sleep(10)
        assert len(keeping.synced) == 1

    @virtual_time
    async def test_an_empty_file_changes_nothing(self) -> None:
        """To delete all rules would end the stream."""
        keeping = Keeping()
        async with keeping.running() as logs:
            keeping.write()
            await asyncio.sleep(10)
        assert keeping.synced == []
        assert [entry["event"] for entry in logs] == ["rules_empty"]

    @virtual_time
    async def test_rules_that_x_refuses_are_not_tried_again(self) -> None:
        """X's words reach the log; the daemon goes on with the rules that X has."""
        keeping = Keeping()
        keeping.answers = [RulesError(["X refuses the rule '-bad': no"])]
        async with keeping.running() as logs:
            keeping.write(Rule("-bad"))
            await asyncio.sleep(100)
        assert len(keeping.synced) == 1
        assert keeping.changes == 0
        assert [(entry["event"], entry["problems"]) for entry in logs] == [
            ("rules_refused", ("X refuses the rule '-bad': no",))
        ]

    @virtual_time
    async def test_an_x_that_cannot_be_asked_is_asked_again(self) -> None:
        """After the time that the verdict names; with the newest rules, if they change meanwhile."""
        keeping = Keeping()
        keeping.answers = [unavailable(5.5), unavailable(300, healable=False)]
        async with keeping.running() as logs:
            keeping.write(Rule("cats"))
            await asyncio.sleep(10)
            assert [moment for moment, _ in keeping.synced] == [1, 6.5]
            keeping.write(Rule("dogs"))
            await asyncio.sleep(10)
        assert [rules for _, rules in keeping.synced] == [[Rule("cats")], [Rule("cats")], [Rule("dogs")]]
        assert keeping.changes == 1
        assert [entry["log_level"] for entry in logs] == ["warning", "error", "info"]

    @virtual_time
    async def test_a_change_whose_answer_was_lost_is_told(self) -> None:
        """X has made it, so there is nothing left to change; but who waits for rules must hear that there are some."""
        keeping = Keeping()
        keeping.answers = [unavailable(5), Changes([], [], [], [Rule("cats")]), Changes([], [], [], [Rule("cats")])]
        async with keeping.running():
            keeping.write(Rule("cats"))
            await asyncio.sleep(10)
            assert keeping.changes == 1
            keeping.keeper.reload()
            await asyncio.sleep(10)
        assert len(keeping.synced) == 3
        assert keeping.changes == 1, "once"
