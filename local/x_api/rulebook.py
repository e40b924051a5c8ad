"""
The rules of the app that the X stand-in serves, and the answers of the rules endpoints.

Rules it obeys:

* A rule is unique by its value. It cannot be changed, only deleted and added, and then it has a new id.
* Adding answers 201 when something was added and 200 when nothing was; the good rules of a mixed request are added.
* A list without rules has no `data` key.
* A dry run answers like the real thing, ids included since clients read them, and changes nothing.
* A change shows in the list at once and on the streams some seconds later, without a new connection.
* Rules are permanent: they outlive connections and, where a file keeps them, the stand-in.

Bodies follow recorded answers. The body for too many rules was never recorded: only its type is X's.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from local.x_api.rules import Rule, RuleError, Traits

PROBLEMS = "https://api.twitter.com/2/problems/"


class Answer(NamedTuple):
    """A status and a JSON body."""

    status: int
    body: dict[str, Any]


class RuleBook:
    """
    The rules of one app.

    Args:
        take_id: gives the ids of new rules.
        cap: how many rules the app may have.
        length: how many characters a rule may have.
        now: the present moment, in seconds since 1970.
        delay: seconds until a change is in force.
        state: a file that keeps the rules; what is in it is in force at once.

    Attributes:
        version: changes whenever the rules in force do.

    Raises:
        ValueError: the file holds something else.
        OSError: the file cannot be read.
    """

    def __init__(
        self,
        take_id: Callable[[], str],
        *,
        cap: int = 1000,
        length: int = 1024,
        now: Callable[[], float] = lambda: 0.0,
        delay: float = 0.0,
        state: Path | None = None,
    ) -> None:
        self._take_id = take_id
        self._cap, self._length = cap, length
        self._now, self._delay = now, delay
        self._state = state
        self._rules = _kept(state)
        self._in_force = self._rules
        # Rules that are not yet in force, with the moment from which on they are.
        self._coming: deque[tuple[float, dict[str, Rule]]] = deque()
        self.version = 0

    def __len__(self) -> int:
        """Return how many rules there are."""
        return len(self._rules)

    @property
    def sampled(self) -> bool:
        """Whether any rule in force depends on the post's id."""
        return any(rule.sampled for rule in self._in_force.values())

    def in_force(self) -> list[Rule]:
        """Return the rules that streams match by, oldest first."""
        return list(self._in_force.values())

    def matching(self, traits: Traits, post_id: str) -> list[Rule]:
        """Return the rules in force that match a post."""
        return [rule for rule in self._in_force.values() if rule.matches(traits, post_id)]

    def refresh(self) -> None:
        """Put in force what has waited for its moment."""
        while self._coming and self._coming[0][0] <= self._now():
            _, self._in_force = self._coming.popleft()
            self.version += 1

    def change(self, body: Any, *, dry_run: bool, delete_all: bool) -> Answer:
        """Answer POST /2/tweets/search/stream/rules; a dry run answers alike and changes nothing."""
        keys = set(body) & {"add", "delete"} if isinstance(body, dict) else set()
        if delete_all and not keys:
            return self._delete(list(self._rules), [], dry_run)
        if len(keys) == 1 and not delete_all:
            if keys == {"delete"} and isinstance(body["delete"], dict):
                wanted = body["delete"]
                return self._delete([str(one) for one in wanted.get("ids") or ()], wanted.get("values") or (), dry_run)
            wanted = body.get("add")
            if isinstance(wanted, list) and all(isinstance(one, dict) and "value" in one for one in wanted):
                return self._add(wanted, dry_run)
        return invalid_request("body", "", "Exactly one of `add`, `delete` and `delete_all` must be given")

    def listed(self, ids: list[str], max_results: int, token: str) -> Answer:
        """Answer GET /2/tweets/search/stream/rules: the rules with these ids, or a page of all."""
        rules = [rule for rule in self._rules.values() if not ids or rule.id in ids]
        start = int(token) if token.isdigit() else 0
        page = rules[start : start + max_results]
        meta: dict[str, Any] = {"sent": self._sent(), "result_count": len(page)}
        if start + max_results < len(rules):
            meta["next_token"] = str(start + max_results)
        return Answer(200, ({"data": [rule.as_object() for rule in page]} if page else {}) | {"meta": meta})

    def counts(self) -> Answer:
        """Answer GET /2/tweets/search/stream/rules/counts."""
        here = {"client_app_id": "1", "rule_count": len(self)}
        caps = {"cap_per_client_app": str(self._cap), "cap_per_project": str(self._cap)}
        totals = {
            "client_app_rules_count": here,
            "project_rules_count": str(len(self)),
            "all_project_client_apps": [here],
        }
        return Answer(200, {"data": caps | totals, "meta": {"sent": self._sent()}})

    def _add(self, wanted: list[dict[str, Any]], dry_run: bool) -> Answer:
        rules = dict(self._rules)
        added: list[dict[str, str]] = []
        errors: list[dict[str, Any]] = []
        for entry in wanted:
            value, tag = str(entry["value"]), entry.get("tag")
            same = next((rule for rule in rules.values() if rule.value == value), None)
            if same:
                errors.append(
                    {"value": value, "id": same.id, "title": "DuplicateRule", "type": f"{PROBLEMS}duplicate-rules"}
                )
                continue
            if len(rules) >= self._cap:
                problem = {"title": "RulesCapped", "type": f"{PROBLEMS}rule-cap"}
                errors.append({"value": value, "detail": f"An app may have {self._cap} rules"} | problem)
                continue
            try:
                if len(value) > self._length:
                    raise RuleError(f"Rules must not be longer than {self._length} characters (at position 1)")
                rule = Rule(value, tag, self._take_id())
            except RuleError as error:
                problem = {"title": "UnprocessableEntity", "type": f"{PROBLEMS}invalid-rules"}
                errors.append({"value": value, "details": list(error.args)} | problem)
                continue
            rules[rule.id] = rule
            added.append(rule.as_object())
        if added and not dry_run:
            self._become(rules)
        counts = {"created": len(added), "not_created": len(errors), "valid": len(added), "invalid": len(errors)}
        return self._answer(201 if added else 200, added, counts, errors)

    def _delete(self, ids: list[str], values: Iterable[str], dry_run: bool) -> Answer:
        by_value = {rule.value: rule.id for rule in self._rules.values()}
        wanted = [*ids, *(by_value.get(value, "") for value in values)]
        found = {rule_id for rule_id in wanted if rule_id in self._rules}
        problem = invalid_request("", "", "Rule does not exist").body
        errors = [problem for rule_id in wanted if rule_id not in found]
        if found and not dry_run:
            self._become({rule_id: rule for rule_id, rule in self._rules.items() if rule_id not in found})
        return self._answer(200, [], {"deleted": len(found), "not_deleted": len(errors)}, errors)

    def _answer(
        self, status: int, data: list[dict[str, str]], summary: dict[str, int], errors: list[dict[str, Any]]
    ) -> Answer:
        body: dict[str, Any] = {"data": data} if data else {}
        body["meta"] = {"sent": self._sent(), "summary": summary}
        return Answer(status, body | ({"errors": errors} if errors else {}))

    def _sent(self) -> str:
        return datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _become(self, rules: dict[str, Rule]) -> None:
        self._rules = rules
        if self._state:
            whole = json.dumps([rule.as_object() for rule in rules.values()], ensure_ascii=False)
            # Never half a file: it is renamed when it is complete.
            new = self._state.with_name(self._state.name + ".new")
            new.write_text(whole, encoding="utf-8")
            new.replace(self._state)
        self._coming.append((self._now() + self._delay, rules))
        self.refresh()


def _kept(state: Path | None) -> dict[str, Rule]:
    if state is None or not state.exists():
        return {}
    try:
        rules = [Rule(one["value"], one.get("tag"), one["id"]) for one in json.loads(state.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{state}: holds no rules of this program") from error
    return {rule.id: rule for rule in rules}


def invalid_request(parameter: str, value: str, message: str) -> Answer:
    """Answer 400 for a parameter that is not valid."""
    parameters = {parameter: [value]} if parameter else {}
    body = {
        "errors": [{"parameters": parameters, "message": message}],
        "title": "Invalid Request",
        "detail": "One or more parameters to your request was invalid.",
        "type": f"{PROBLEMS}invalid-request",
    }
    return Answer(400, body)
