from itertools import count
from pathlib import Path

import pytest

from local.x_api.rulebook import RuleBook
from local.x_api.rules import Traits

POST = {"data": {"id": "1", "text": "fast water"}}


@pytest.fixture
def book() -> RuleBook:
    """Return an empty book for 3 rules of 20 characters."""
    numbers = count(1)
    return RuleBook(lambda: str(next(numbers)), cap=3, length=20)


def add(book: RuleBook, *values: str, dry_run: bool = False) -> dict[str, int]:
    """Add rules and return the summary of the answer."""
    answer = book.change({"add": [{"value": value} for value in values]}, dry_run=dry_run, delete_all=False)
    summary: dict[str, int] = answer.body["meta"]["summary"]
    return summary


def test_adding_answers_201_with_the_rules(book: RuleBook) -> None:
    """Created rules come back with id and, if they have one, tag."""
    wanted = {"add": [{"value": "water", "tag": "wet"}, {"value": "fire"}]}
    status, body = book.change(wanted, dry_run=False, delete_all=False)
    assert status == 201
    assert body["data"] == [{"value": "water", "tag": "wet", "id": "1"}, {"value": "fire", "id": "2"}]
    assert body["meta"]["summary"] == {"created": 2, "not_created": 0, "valid": 2, "invalid": 0}
    assert "errors" not in body


def test_repeated_value_is_a_duplicate_with_the_existing_id(book: RuleBook) -> None:
    """Nothing is created, the answer is 200, and the error names the rule that is there."""
    add(book, "water")
    status, body = book.change({"add": [{"value": "water", "tag": "new"}]}, dry_run=False, delete_all=False)
    kind = "https://api.twitter.com/2/problems/duplicate-rules"
    assert status == 200
    assert [{"value": "water", "id": "1", "title": "DuplicateRule", "type": kind}] == body["errors"]
    assert body["meta"]["summary"] == {"created": 0, "not_created": 1, "valid": 0, "invalid": 1}
    assert "data" not in body


def test_good_rules_of_a_mixed_request_are_added(book: RuleBook) -> None:
    """Each bad one is reported with its reason."""
    wanted = {"add": [{"value": "water"}, {"value": "--b"}, {"value": "x" * 21}]}
    status, body = book.change(wanted, dry_run=False, delete_all=False)
    assert status == 201
    assert [rule["value"] for rule in body["data"]] == ["water"]
    assert [error["title"] for error in body["errors"]] == ["UnprocessableEntity"] * 2
    assert len(body["errors"][0]["details"]) == 2
    assert "20 characters" in body["errors"][1]["details"][0]


def test_cap_refuses_further_rules(book: RuleBook) -> None:
    """A request may be cut by the cap in the middle."""
    assert add(book, "a", "b", "c", "d") == {"created": 3, "not_created": 1, "valid": 3, "invalid": 1}
    assert len(book) == 3


def test_dry_run_changes_nothing(book: RuleBook) -> None:
    """It answers like the real thing, and the version stays."""
    assert add(book, "water", "--b", dry_run=True) == {"created": 1, "not_created": 1, "valid": 1, "invalid": 1}
    assert (len(book), book.version) == (0, 0)
    add(book, "water")
    body = book.change({"delete": {"values": ["water"]}}, dry_run=True, delete_all=False).body
    assert body["meta"]["summary"] == {"deleted": 1, "not_deleted": 0}
    assert len(book) == 1


def test_rules_are_deleted_by_id_and_by_value(book: RuleBook) -> None:
    """What does not exist is counted and reported."""
    add(book, "a", "b", "c")
    wanted = {"delete": {"ids": ["1", "99"], "values": ["b", "nothing"]}}
    status, body = book.change(wanted, dry_run=False, delete_all=False)
    assert status == 200
    assert body["meta"]["summary"] == {"deleted": 2, "not_deleted": 2}
    assert len(body["errors"]) == 2
    assert [rule.value for rule in book.in_force()] == ["c"]


def test_delete_all(book: RuleBook) -> None:
    """One request empties the book."""
    add(book, "a", "b")
    body = book.change(None, dry_run=False, delete_all=True).body
    assert body["meta"]["summary"] == {"deleted": 2, "not_deleted": 0}
    assert len(book) == 0


@pytest.mark.parametrize(
    "body", [None, [], {}, {"add": "water"}, {"add": [{"tag": "x"}]}, {"delete": []}, {"add": [], "delete": {}}]
)
def test_request_must_be_one_of_three(book: RuleBook, body: object) -> None:
    """Anything but one well-formed add, delete or delete_all is 400."""
    assert book.change(body, dry_run=False, delete_all=False).status == 400


def test_list_without_rules_has_no_data(book: RuleBook) -> None:
    """An empty list is a missing key, as recorded."""
    body = book.listed([], 1000, "").body
    assert "data" not in body
    assert body["meta"]["result_count"] == 0


def test_list_has_pages_and_can_be_filtered(book: RuleBook) -> None:
    """Pages follow each other by token; ids choose."""
    add(book, "a", "b", "c")
    first = book.listed([], 2, "").body
    second = book.listed([], 2, first["meta"]["next_token"]).body
    values = [rule["value"] for rule in first["data"] + second["data"]]
    assert values == ["a", "b", "c"]
    assert "next_token" not in second["meta"]
    assert [rule["value"] for rule in book.listed(["2"], 1000, "").body["data"]] == ["b"]


def test_counts(book: RuleBook) -> None:
    """Totals and caps."""
    add(book, "a")
    data = book.counts().body["data"]
    assert (data["project_rules_count"], data["cap_per_client_app"]) == ("1", "3")


def test_matching_returns_all_rules_of_a_post(book: RuleBook) -> None:
    """One post may match several rules."""
    add(book, "water", "fast", "fire")
    assert [rule.value for rule in book.matching(Traits(POST), "1")] == ["water", "fast"]


def test_a_change_changes_the_version(book: RuleBook) -> None:
    """Whoever keeps results knows when they are old; a refused rule is no change."""
    add(book, "water sample:50")
    before = book.version
    add(book, "--b")
    assert before == book.version
    assert book.sampled
    book.change(None, dry_run=False, delete_all=True)
    assert before != book.version
    assert not book.sampled


def test_change_is_in_force_after_the_delay() -> None:
    """The list has it at once."""
    moment = [0.0]
    book = RuleBook(lambda: "1", now=lambda: moment[0], delay=20)
    add(book, "water")
    for now, rules in ((19, 0), (20, 1)):
        moment[0] = now
        book.refresh()
        assert (len(book), len(book.in_force()), book.version) == (1, rules, rules)


def test_rules_outlive_the_program(tmp_path: Path) -> None:
    """A file keeps values, tags and ids."""
    numbers = count(1)
    state = tmp_path / "rules.json"
    book = RuleBook(lambda: str(next(numbers)), state=state)
    book.change({"add": [{"value": "水車", "tag": "wet"}, {"value": "fire"}]}, dry_run=False, delete_all=False)
    book.change({"delete": {"values": ["fire"]}}, dry_run=False, delete_all=False)
    again = RuleBook(lambda: "9", state=state)
    assert [rule.as_object() for rule in again.in_force()] == [{"value": "水車", "tag": "wet", "id": "1"}]


def test_a_file_that_holds_no_rules_is_refused(tmp_path: Path) -> None:
    """The message names it."""
    state = tmp_path / "rules.json"
    state.write_text("nonsense")
    with pytest.raises(ValueError, match=str(state)):
        RuleBook(lambda: "1", state=state)


def test_answers_are_of_the_stand_ins_time() -> None:
    """Who puts its clock forward sees that in the answers too."""
    book = RuleBook(lambda: "1", now=lambda: 1_000_000_000.5)
    assert book.counts().body["meta"]["sent"] == "2001-09-09T01:46:40.500Z"
