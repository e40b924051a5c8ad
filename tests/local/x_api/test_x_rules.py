from typing import Any

import pytest

from local.x_api.rules import Rule, RuleError, Traits

POST = {
    "data": {
        "id": "100",
        "text": "The Mill wheel turns: fast water, well-known Grünkern! 水車が回る",
        "author_id": "1",
        "in_reply_to_user_id": "2",
        "lang": "en",
        "geo": {"place_id": "x"},
        "attachments": {"media_keys": ["3_1"]},
        "referenced_tweets": [{"type": "quoted", "id": "50"}, {"type": "replied_to", "id": "51"}],
        "entities": {
            "hashtags": [{"start": 0, "end": 1, "tag": "Bread"}],
            "cashtags": [{"start": 0, "end": 1, "tag": "MILL"}],
            "mentions": [{"start": 0, "end": 1, "username": "Otto", "id": "3"}],
            "urls": [{"start": 0, "end": 1, "url": "https://t.example/1"}],
        },
        "note_tweet": {"text": "and at the very end a heron"},
    },
    "includes": {
        "users": [{"id": "1", "username": "Mina", "verified": True}, {"id": "2", "username": "Weir"}],
        "tweets": [{"id": "50", "text": "quoted sluice"}, {"id": "51", "text": "answered flood"}],
        "media": [{"media_key": "3_1", "type": "photo"}],
    },
}
BARE = {"data": {"id": "1", "text": "only #text $CASH and @someone here"}}


def matches(value: str, post: dict[str, Any] = POST) -> bool:
    """Say whether a rule matches a post."""
    return Rule(value, None, "1").matches(Traits(post), "100")


@pytest.mark.parametrize(
    "value",
    [
        "mill",
        "WHEEL water",
        '"fast water"',
        "well-known",
        "grünkern",
        "水車",
        "heron",
        "sluice",
        "from:mina",
        "from:1",
        "to:WEIR",
        "#bread",
        "@otto",
        "$mill",
        "mill has:images has:media has:links has:hashtags has:mentions has:cashtags has:geo",
        "mill is:quote is:reply is:verified",
        "mill lang:en",
        "mill -nothing",
        "nothing OR mill",
        "nothing mill OR water",
        "mill (nothing OR (water wheel))",
        "mill -is:retweet -has:videos -lang:ja",
        "mill sample:100",
        "(mill)",
    ],
)
def test_matches(value: str) -> None:
    """Each operator finds what it stands for."""
    assert matches(value)


@pytest.mark.parametrize(
    "value",
    [
        "millwheel",
        "mil",
        '"water fast"',
        "grunkern",
        "flood",
        "from:otto",
        "to:mina",
        "#mill",
        "@mina",
        "$bread",
        "mill has:videos",
        "mill is:retweet",
        "mill lang:ja",
        "mill -water",
        "mill (nothing OR flood)",
        "nothing water OR flood",
    ],
)
def test_does_not_match(value: str) -> None:
    """Parts of words, other accents, what is answered, and anything negated do not match."""
    assert not matches(value)


@pytest.mark.parametrize("value", ["#TEXT", "$cash", "@Someone", "text", "only here OR someone"])
def test_marks_are_found_in_a_line_without_entities(value: str) -> None:
    """A line of default fields has its text only."""
    assert matches(value, BARE)


def test_and_binds_closer_than_or() -> None:
    """`a b OR c` is `(a b) OR c`."""
    assert matches("nothing mill OR water")
    assert not matches("nothing (mill OR water)")


def test_sample_takes_its_share_by_id() -> None:
    """`sample:` draws by the post's id: about so many of a hundred, the same ones again and again."""
    rule = Rule("mill sample:10", None, "1")
    traits = Traits(POST)
    drawn = [rule.matches(traits, str(number)) for number in range(5000)]
    assert 0.08 < sum(drawn) / len(drawn) < 0.12
    assert drawn == [rule.matches(traits, str(number)) for number in range(5000)]
    assert rule.sampled


@pytest.mark.parametrize(
    ("value", "details"),
    [
        (
            "--b",
            [
                "Rules must contain a non-negation term (at position 1)",
                "Rules must contain at least one positive, non-stopword clause (at position 1)",
            ],
        ),
        ("h:m", ["Reference to invalid operator 'h' (at position 1)"]),
        ("mill has:polls", ["Reference to invalid operator 'has:polls' (at position 6)"]),
        ("lang:en", ["is/has/lang cannot be used as a standalone operator (at position 1)"]),
        ("sample:10 has:media", ["is/has/lang cannot be used as a standalone operator (at position 1)"]),
        ("mill -(a b)", ["Groups cannot be negated (at position 6)"]),
        ("mill -sample:10", ["sample: cannot be negated (at position 6)"]),
        ("mill sample:0", ["Reference to invalid operator 'sample' (at position 6)"]),
        ("(mill OR wheel", ["Missing ')' (at position 1)"]),
        ("mill)", ["Unexpected ')' (at position 5)"]),
        ("mill OR", ["An operator is missing (at position 6)"]),
        ("()", ["An operator is missing (at position 2)"]),
        ('mill "wheel', ["Rules must have closed quotes (at position 1)"]),
        ("", ["Rules must not be empty (at position 1)"]),
        ("!!!", ["Keywords must hold a letter or a digit (at position 1)"]),
        ("(" * 101 + "mill" + ")" * 101, ["Rules must not have more than 100 groups (at position 1)"]),
    ],
)
def test_what_x_refuses(value: str, details: list[str]) -> None:
    """A rule that is not one is refused with the reason and the place."""
    with pytest.raises(RuleError) as caught:
        Rule(value, None, "1")
    assert details == list(caught.value.args)
