"""
Wanted and present rules -> what to add, what to delete.

X keeps a rule's value only once, whoever added it, gives it an id, and cannot change its tag. All clients of an app
share one set of rules. So a rule is ours if its tag starts with "millrace:"; what follows is the tag that the user
gave. From that the cases of a wanted rule:

    X has the value, tagged as wanted          kept, with its id
    X has the value under another owner's tag  kept: its posts come anyway, and it is not ours to touch
    X has the value as ours, with another tag  replaced: deleted first, because X would refuse the same value twice
    X has not got the value                    added

and of a present rule that is not wanted: ours is deleted, another owner's stays unless all owners' are to go.
"""

from collections.abc import Sequence
from typing import NamedTuple

TAG_PREFIX = "millrace:"


class Rule(NamedTuple):
    """A rule: what it matches, its tag, and X's id once X has it. A wanted rule has the user's tag, without prefix."""

    value: str
    tag: str = ""
    id: str = ""

    @property
    def is_ours(self) -> bool:
        """Millrace put it there."""
        return self.tag.startswith(TAG_PREFIX)


class Replacement(NamedTuple):
    """A rule of ours whose tag was changed: the old one goes, the new one comes."""

    old: Rule
    new: Rule


class Changes(NamedTuple):
    """
    The difference, in the order in which it is to be made: add, replace, delete. Tags are as X has them.

    `others` are those that belong to another owner and are neither wanted nor to go.
    """

    add: list[Rule]
    replace: list[Replacement]
    delete: list[Rule]
    keep: list[Rule]
    others: Sequence[Rule] = ()

    @property
    def is_empty(self) -> bool:
        """Nothing is to be done."""
        return not (self.add or self.replace or self.delete)


def compare(wanted: Sequence[Rule], present: Sequence[Rule], *, all_owners: bool = False) -> Changes:
    """
    Say how to get from the present rules to the wanted ones; no two wanted rules have the same value.

    With `all_owners`, rules of others that are not wanted are deleted too.
    """
    by_value = {rule.value: rule for rule in present}
    values = {rule.value for rule in wanted}
    unwanted = [rule for rule in present if rule.value not in values]
    delete = [rule for rule in unwanted if rule.is_ours or all_owners]
    changes = Changes([], [], delete, [], tuple(rule for rule in unwanted if rule not in delete))
    for rule in wanted:
        new = Rule(rule.value, TAG_PREFIX + rule.tag)
        old = by_value.get(rule.value)
        if old is None:
            changes.add.append(new)
        elif old.is_ours and old.tag != new.tag:
            changes.replace.append(Replacement(old, new))
        else:
            changes.keep.append(old)
    return changes
