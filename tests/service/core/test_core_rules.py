from hypothesis import given
from hypothesis import strategies as st

from service.core.rules import TAG_PREFIX, Changes, Replacement, Rule, compare


def ours(value: str, tag: str = "", number: str = "1") -> Rule:
    """Make a rule as X has it after Millrace added it."""
    return Rule(value, TAG_PREFIX + tag, number)


def test_a_missing_rule_is_added_under_our_prefix() -> None:
    """The tag at X marks the rule as ours and still holds the user's tag."""
    changes = compare([Rule("cats", "animals"), Rule("dogs")], [])
    assert changes.add == [Rule("cats", "millrace:animals"), Rule("dogs", "millrace:")]
    assert not changes.is_empty


def test_an_unchanged_rule_keeps_its_id() -> None:
    """Nothing is deleted and added again without need."""
    changes = compare([Rule("cats", "animals")], [ours("cats", "animals", "42")])
    assert changes == Changes([], [], [], [ours("cats", "animals", "42")])
    assert changes.is_empty


def test_our_stale_rule_is_deleted() -> None:
    """What an earlier run wanted does not go on matching."""
    assert compare([], [ours("cats")]).delete == [ours("cats")]


def test_the_rules_of_others_stay() -> None:
    """Without our prefix a rule is somebody else's, whatever it matches."""
    assert compare([], [Rule("cats", "", "1"), Rule("dogs", "somebody's millrace:", "2")]).is_empty


def test_a_rule_that_another_owner_has_counts_as_present() -> None:
    """X takes a value once, and its posts come to every client of the app."""
    theirs = Rule("cats", "theirs", "7")
    changes = compare([Rule("cats", "animals")], [theirs])
    assert changes.is_empty
    assert changes.keep == [theirs]


def test_a_changed_tag_replaces_the_rule() -> None:
    """X cannot change a tag, so the rule goes and comes again, with the new tag."""
    changes = compare([Rule("cats", "pets")], [ours("cats", "animals", "42")])
    assert changes.replace == [Replacement(ours("cats", "animals", "42"), Rule("cats", "millrace:pets"))]
    assert changes.add == changes.delete == []


RULES = st.lists(
    st.builds(Rule, st.sampled_from("abcdef"), st.sampled_from(["", "t", "u"]), st.just("")),
    unique_by=lambda rule: rule.value,
)


@given(RULES, RULES, st.sets(st.sampled_from("abcdef")))
def test_making_the_changes_leads_to_the_wanted_rules(
    wanted: list[Rule], before: list[Rule], foreign: set[str]
) -> None:
    """After the changes X has every wanted rule, others' as they were, nothing of ours besides, no value twice."""
    present = [
        Rule(rule.value, rule.tag if rule.value in foreign else TAG_PREFIX + rule.tag, str(number))
        for number, rule in enumerate(before)
    ]
    changes = compare(wanted, present)
    gone = {rule.id for rule in changes.delete} | {change.old.id for change in changes.replace}
    after = [rule for rule in present if rule.id not in gone] + changes.add + [change.new for change in changes.replace]
    values = [rule.value for rule in after]
    assert len(values) == len(set(values))
    assert {rule.value for rule in wanted} <= set(values)
    assert [rule for rule in present if not rule.is_ours] == [rule for rule in after if not rule.is_ours]
    theirs = {rule.value for rule in present if not rule.is_ours}
    assert {rule for rule in wanted if rule.value not in theirs} == {
        Rule(rule.value, rule.tag.removeprefix(TAG_PREFIX)) for rule in after if rule.is_ours
    }
    assert compare(wanted, after).is_empty
    assert list(changes.others) == [rule for rule in present if not rule.is_ours and rule not in changes.keep]
    everything = compare(wanted, present, all_owners=True)
    assert list(everything.others) == []
    assert [*changes.delete, *changes.others] == sorted(everything.delete, key=lambda rule: rule not in changes.delete)
