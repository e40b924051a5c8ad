"""
The language of filtered stream rules: what is a rule, and which posts it matches.

Rules it obeys:

* AND (a space) binds closer than OR; parentheses group; `-` negates one operator, never a group.
* `has:`, `is:`, `lang:` and `sample:` need another, standalone operator in the rule; negations alone are no rule.
* Matching ignores case, not accents. A quote post matches on what it quotes too.

The operators are a subset of X's: keywords, "phrases", #, @, $, from:, to:, has:, is:, lang: and sample:. Any other
is refused in the words that X has for operators it does not know. The words for a rule without a positive term and
for a lone `lang:` are X's as well; those for unbalanced quotes and parentheses are ours.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

_ONLY_NEGATIONS = (
    "Rules must contain a non-negation term (at position 1)",
    "Rules must contain at least one positive, non-stopword clause (at position 1)",
)
_HAS = {"cashtags", "geo", "hashtags", "images", "links", "media", "mentions", "videos"}
_IS = {"nullcast", "quote", "reply", "retweet", "verified"}
# Ours, so that a hostile rule cannot exhaust the stack.
_GROUPS = 100
# Written without spaces between words, so that a keyword is looked for as it stands.
_UNSPACED_SCRIPT = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
_TOKEN = re.compile(r'\s*(?:(?P<mark>[()])|(?P<not>-+)|"(?P<phrase>[^"]*)"|(?P<word>[^\s()"]+))')


class RuleError(ValueError):
    """A rule that X would refuse; the arguments are the details that it would give."""


class Traits:
    """
    What rules can see of a post.

    Args:
        post: a line of the stream as an object: data, includes.
    """

    def __init__(self, post: Mapping[str, Any]) -> None:
        data, includes = post["data"], post.get("includes", {})
        kinds = {reference["type"]: reference["id"] for reference in data.get("referenced_tweets", ())}
        users = {user["id"]: user["username"].lower() for user in includes.get("users", ())}
        texts = [data["text"], data.get("note_tweet", {}).get("text", "")]
        texts += [other["text"] for other in includes.get("tweets", ()) if other["id"] == kinds.get("quoted")]
        self.text = "\n".join(texts).lower()
        self.words = _spaced_words(self.text)
        entities = data.get("entities") or {}
        self.hashtags = {entry["tag"].lower() for entry in entities.get("hashtags", ())} or _marked("#", self.text)
        self.cashtags = {entry["tag"].lower() for entry in entities.get("cashtags", ())} or _marked("$", self.text)
        self.mentions = {entry["username"].lower() for entry in entities.get("mentions", ())} or _marked("@", self.text)
        author, answered = data.get("author_id", ""), data.get("in_reply_to_user_id", "")
        self.authors = {author, users.get(author, "")} - {""}
        self.answered = {answered, users.get(answered, "")} - {""}
        self.lang = data.get("lang", "").lower()
        keys = set((data.get("attachments") or {}).get("media_keys", ()))
        media = {medium["type"] for medium in includes.get("media", ()) if medium["media_key"] in keys}
        self.has = {
            name
            for name, present in (
                ("cashtags", self.cashtags),
                ("geo", data.get("geo")),
                ("hashtags", self.hashtags),
                ("images", "photo" in media),
                ("links", entities.get("urls")),
                ("media", keys),
                ("mentions", self.mentions),
                ("videos", "video" in media),
            )
            if present
        }
        names = {"retweeted": "retweet", "quoted": "quote", "replied_to": "reply"}
        self.kinds = {names[kind] for kind in kinds if kind in names}
        if any(user["id"] == author and user.get("verified") for user in includes.get("users", ())):
            self.kinds.add("verified")


# Takes the traits of a post and the number, 0 to 99, that its id draws for `sample:`.
_Test = Callable[[Traits, int], bool]


class _Term(NamedTuple):
    """A part of a rule: its test, and whether it can carry a rule alone."""

    test: _Test
    positive: bool = True
    standalone: bool = True


class Rule:
    """
    One rule.

    Attributes:
        value: as it was given.
        tag: as it was given; None if there was none.
        id: 1 to 19 digits.
        sampled: whether the result depends on the post's id, and not on its template alone.

    Raises:
        RuleError: X would refuse the value.
    """

    def __init__(self, value: str, tag: str | None, rule_id: str) -> None:
        self.value, self.tag, self.id = value, tag, rule_id
        self.sampled = "sample:" in value
        self._test = _Parser(value).parse()

    def matches(self, traits: Traits, post_id: str) -> bool:
        """Say whether a post with these traits and this id matches."""
        return self._test(traits, zlib.crc32(post_id.encode()) % 100)

    def as_object(self) -> dict[str, str]:
        """Return the rule as the endpoints show it: a tag only if there is one."""
        shown = {"value": self.value, "id": self.id}
        return shown if self.tag is None else {"value": self.value, "tag": self.tag, "id": self.id}


class _Parser:
    """Recursive descent over one rule."""

    def __init__(self, value: str) -> None:
        self._tokens = [match for match in _TOKEN.finditer(value) if match.lastgroup]
        if "".join(match[0] for match in self._tokens).strip() != value.strip():
            raise RuleError("Rules must have closed quotes (at position 1)")
        if value.count("(") > _GROUPS:
            raise RuleError(f"Rules must not have more than {_GROUPS} groups (at position 1)")
        self._next = 0

    def parse(self) -> _Test:
        """Return the test of the whole rule."""
        if not self._tokens:
            raise RuleError("Rules must not be empty (at position 1)")
        term = self._either()
        if self._next < len(self._tokens):
            raise RuleError(f"Unexpected ')' (at position {self._position()})")
        if not term.positive:
            raise RuleError(*_ONLY_NEGATIONS)
        if not term.standalone:
            raise RuleError("is/has/lang cannot be used as a standalone operator (at position 1)")
        return term.test

    def _position(self) -> int:
        token = self._tokens[min(self._next, len(self._tokens) - 1)]
        return token.end() - len(token[0].lstrip()) + 1

    def _peek(self) -> str:
        return self._tokens[self._next][0].strip() if self._next < len(self._tokens) else ""

    def _either(self) -> _Term:
        terms = [self._both()]
        while self._peek() == "OR":
            self._next += 1
            terms.append(self._both())
        return _joined(terms, any)

    def _both(self) -> _Term:
        terms = [self._one()]
        while self._peek() not in {"", ")", "OR"}:
            terms.append(self._one())
        return _joined(terms, all)

    def _one(self) -> _Term:
        if self._peek() in {"", ")", "OR"}:
            raise RuleError(f"An operator is missing (at position {self._position()})")
        token = self._tokens[self._next]
        position = self._position()
        self._next += 1
        if token["not"]:
            return self._negated(position)
        if token["mark"]:
            term = self._either()
            if self._peek() != ")":
                raise RuleError(f"Missing ')' (at position {position})")
            self._next += 1
            return term
        if token["phrase"] is not None:
            return _phrase(token["phrase"], position)
        return _operator(token["word"], position)

    def _negated(self, position: int) -> _Term:
        if self._peek() == "(":
            raise RuleError(f"Groups cannot be negated (at position {position})")
        if self._peek().startswith("sample:"):
            raise RuleError(f"sample: cannot be negated (at position {position})")
        test = self._one().test
        return _Term(lambda traits, bucket: not test(traits, bucket), positive=False, standalone=False)


def _joined(terms: list[_Term], how: Callable[[Iterable[object]], bool]) -> _Term:
    if len(terms) == 1:
        return terms[0]
    tests = [term.test for term in terms]
    return _Term(
        lambda traits, bucket: how(test(traits, bucket) for test in tests),
        any(term.positive for term in terms),
        any(term.standalone for term in terms),
    )


def _operator(word: str, position: int) -> _Term:
    name, colon, argument = word.partition(":")
    argument = argument.lower()
    if word[0] in "#@$" and len(word) > 1:
        tag, field = word[1:].lower(), {"#": "hashtags", "@": "mentions", "$": "cashtags"}[word[0]]
        return _Term(lambda traits, _: tag in getattr(traits, field))
    if not colon:
        return _phrase(word, position)
    if name in {"from", "to"} and argument:
        field = "authors" if name == "from" else "answered"
        return _Term(lambda traits, _: argument.removeprefix("@") in getattr(traits, field))
    if name == "has" and argument in _HAS:
        return _Term(lambda traits, _: argument in traits.has, standalone=False)
    if name == "is" and argument in _IS:
        return _Term(lambda traits, _: argument in traits.kinds, standalone=False)
    if name == "lang" and argument:
        return _Term(lambda traits, _: traits.lang == argument, standalone=False)
    if name == "sample" and argument.isdecimal() and 1 <= int(argument) <= 100:
        percent = int(argument)
        return _Term(lambda _, bucket: bucket < percent, standalone=False)
    unknown = word if name in {"has", "is"} else name
    raise RuleError(f"Reference to invalid operator '{unknown}' (at position {position})")


def _phrase(text: str, position: int) -> _Term:
    wanted = text.lower()
    if _UNSPACED_SCRIPT.search(wanted):
        return _Term(lambda traits, _: wanted in traits.text)
    words = _spaced_words(wanted)
    if not words.strip():
        raise RuleError(f"Keywords must hold a letter or a digit (at position {position})")
    return _Term(lambda traits, _: words in traits.words)


def _spaced_words(text: str) -> str:
    """Put exactly one space around each word, so that a phrase is found as a part of a text."""
    words = " ".join(re.findall(r"\w+", text))
    return f" {words} "


def _marked(mark: str, text: str) -> set[str]:
    """Return the words after a mark, for lines without entities."""
    return set(re.findall(rf"(?<!\w)[{mark}](\w+)", text))
