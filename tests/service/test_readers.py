from pathlib import Path
from typing import Any

import pytest

from service.core.rules import Rule
from service.readers import (
    HOST,
    JOURNAL,
    NAMES,
    PARTITION_KEY,
    RULES,
    SECRET,
    STREAM,
    URL,
    Reader,
    Secret,
    choice,
    number,
    optional,
    size,
)

MIB = 1 << 20
WHOLE, REAL, SIZE = number(int, 1, 10), number(float, 0, 60), size(MIB)


def faults(reader: Reader, text: str, *, in_file: bool = False) -> tuple[Any, ...]:
    """Read what cannot be meant, and give what is said of it: one line for each fault."""
    parse = reader.parse_file if in_file else reader.parse
    assert parse is not None
    with pytest.raises(ValueError, match=r".") as caught:
        parse(text)
    assert not [line for line in caught.value.args if "\n" in line]
    return caught.value.args


def rules_in_file(text: str) -> Any:
    """Read a file of rules."""
    assert RULES.parse_file is not None
    return RULES.parse_file(text)


@pytest.mark.parametrize(
    ("reader", "texts", "words"),
    [
        (WHOLE, ["0", "11"], "{} is out of range; write a number from 1 to 10"),
        (WHOLE, ["1.5"], "'{}' is not a number; write one from 1 to 10"),
        (REAL, ["-0.1", "60.1", "nan", "inf"], "{} is out of range; write a number from 0 to 60"),
        (REAL, ["100ms"], "'{}' is not a number; write one from 0 to 60"),
        (
            SIZE,
            ["128MB", "1.5GiB", "-1", "MiB", "1 2"],
            "'{}' is not a size; write bytes, or a number with KiB, MiB, GiB or TiB (128MiB)",
        ),
        (SIZE, ["1023KiB"], "{} is too small; write at least 1MiB"),
        (choice("kpl", "none"), ["zip"], "'{}' is not supported; write one of kpl, none"),
        (
            URL,
            ["api.x.com", "ftp://api.x.com", "https://", "https://x:port", "http://[::1", "https://api..x.com"],
            "'{}' is not a URL; write one like https://api.x.com",
        ),
        # It is a base to append paths to.
        (
            URL,
            ["https://api.x.com?a=b", "https://api.x.com#a"],
            "'{}' has a query or a fragment; write only the base, like https://api.x.com",
        ),
        # The password is not shown.
        (URL, ["https://me:hunter2@x.com"], "the URL holds a user name or a password; leave them out"),
        (HOST, ["127.0..1"], "'{}' is no address and no name; write one of this machine, like 127.0.0.1"),
        (
            STREAM,
            ["a b", "arn:aws:kinesis:eu-west-1:123:stream/a", "x" * 129],
            "'{}' is neither a stream's name nor its ARN; copy one from the stack's outputs",
        ),
        (
            PARTITION_KEY,
            ["lang", "user/id", "/user~2"],
            "'{}' is none of author_id, id, conversation_id, nor a JSON pointer like /user/id",
        ),
        # A token that could not be sent in a header; it is not shown either.
        (
            SECRET,
            ["", "\n", "two words", "tokenü"],
            "the text is empty or holds a blank or a character beyond ASCII; copy it again from X",
        ),
    ],
)
def test_refused(reader: Reader, texts: list[str], words: str) -> None:
    """What cannot be meant is refused in one line, with the way out."""
    assert [faults(reader, text) for text in texts] == [(words.format(text),) for text in texts]


@pytest.mark.parametrize("names", ["author_id,,lang", "Author_id", "author_id;lang", "a b", ".a", "a."])
def test_fields(names: str) -> None:
    """What cannot be a name of X's is refused; which names there are is for X to say."""
    (line,) = faults(NAMES, names)
    assert "is no name of a field of X" in line


@pytest.mark.parametrize(
    ("text", "count", "shown"),
    [
        ("1048577", MIB + 1, "1048577"),
        ("2048KiB", 2 * MIB, "2MiB"),
        ("3 mib", 3 * MIB, "3MiB"),
        ("1TiB", MIB * MIB, "1TiB"),
    ],
)
def test_sizes(text: str, count: int, shown: str) -> None:
    """A size is a number of bytes, or of binary units in any case; it is shown in the largest unit that fits."""
    assert SIZE.parse(text) == count
    assert SIZE.show(count) == shown


@pytest.mark.parametrize(
    ("reader", "text", "value", "shown"),
    [
        (WHOLE, "7", 7, "7"),
        (REAL, "0.10", 0.1, "0.1"),
        (choice("kpl", "none"), "KPL", "kpl", "kpl"),
        (optional(WHOLE), "7", 7, "7"),
        (URL, "https://api.x.com/", "https://api.x.com", "https://api.x.com"),
        (URL, "https://münchen.example", "https://münchen.example", "https://münchen.example"),
        (HOST, "::1", "::1", "::1"),
        (PARTITION_KEY, "/user/id", "/user/id", "/user/id"),
        (JOURNAL, "OFF", None, "off"),
        (JOURNAL, "/var/lib/millrace", Path("/var/lib/millrace"), "/var/lib/millrace"),
        (NAMES, "a, b.c,a", ("a", "b.c"), "a,b.c"),
        (SECRET, " token\n", Secret("token"), "***"),
        (
            RULES,
            "cats\n\n dogs ",
            (Rule("cats"), Rule("dogs")),
            '[{"value":"cats","tag":""},{"value":"dogs","tag":""}]',
        ),
    ],
)
def test_taken(reader: Reader, text: str, value: object, shown: str) -> None:
    """What is meant is taken, without what is only about it, and shown as people write it."""
    assert reader.parse(text) == value
    assert reader.show(value) == shown


@pytest.mark.parametrize("reader", [optional(WHOLE), SECRET])
def test_not_there(reader: Reader) -> None:
    """Nothing is shown as nothing."""
    assert reader.show(None) == ""


class TestRules:
    def test_file(self) -> None:
        """The file is a list of texts and of mappings with value and tag."""
        text = "- value: '\"猫\" lang:ja'\n  tag: cats\n- '#dogs'\n- value: >\n    birds\n    -is:retweet\n"
        assert rules_in_file(text) == (Rule('"猫" lang:ja', "cats"), Rule("#dogs"), Rule("birds -is:retweet"))

    @pytest.mark.parametrize(
        ("text", "cause"),
        [
            ("- 'cats'\n- @dogs\n", "not YAML: found character '@' that cannot start any token in line 2"),
            ("- #cats\n", "not a list of rules: Expected `str | object`, got `null` - at `$[0]`"),
            ("- value: on\n", "not a list of rules: Expected `str`, got `bool` - at `$[0].value`"),
            ("- valeu: cats\n", "not a list of rules: Object contains unknown field `valeu` - at `$[0]`"),
            ("- ' '\n", "not a list of rules: Expected `str` matching regex"),
            ("", "not a list of rules: Expected `array`, got `null`"),
            ("\x00", "not a list of rules: unacceptable character #x0000"),
        ],
    )
    def test_faulty_file(self, text: str, cause: str) -> None:
        """A file that is no list of rules is refused with the place of the trouble, in one line."""
        (line,) = faults(RULES, text, in_file=True)
        assert line.startswith(cause)
        assert line.endswith("; write a list, as - value: 'cats lang:en', with each text in single quotes")

    def test_repeated(self) -> None:
        """X keeps a rule once; each repetition is a fault of its own."""
        assert faults(RULES, "a\nb\na\n\na") == (
            "rule 3 repeats rule 1; remove one of them",
            "rule 4 repeats rule 1; remove one of them",
        )
