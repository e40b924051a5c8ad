import dataclasses
import re
from pathlib import Path

import pytest

from service.config import ConfigError, Settings, describe, load, markdown
from service.core.rules import Rule
from service.readers import Secret

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
NEEDED = {"MILLRACE_STREAM": "posts", "MILLRACE_BEARER_TOKEN": "token-of-mine"}


def faults(environ: dict[str, str]) -> tuple[str, ...]:
    """Load an environment that cannot be used, and give its faults."""
    with pytest.raises(ConfigError) as caught:
        load(environ)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


def fault(name: str, value: str) -> str:
    """Add one variable to an environment that can be used, and give the only fault."""
    (line,) = faults(NEEDED | {name: value})
    assert "\n" not in line
    return line


def test_defaults() -> None:
    """A stream and a token are enough; everything else has its default."""
    settings = load(NEEDED)
    assert settings == Settings(stream="posts", bearer_token=Secret("token-of-mine"))
    assert settings.x_url == "https://api.x.com"
    assert settings.memory_limit == 128 * 1024 * 1024
    assert settings.journal == Path("journal")


def test_every_setting() -> None:
    """Each setting is read from the variable of its name."""
    settings = load(
        {
            "MILLRACE_API_KEY": "key",
            "MILLRACE_API_KEY_SECRET": "secret",
            "MILLRACE_X_URL": "http://127.0.0.1:8081/",
            "MILLRACE_SOURCE": "filtered",
            "MILLRACE_BACKFILL": "off",
            "MILLRACE_MONTHLY_POSTS": "3000000",
            "MILLRACE_TWEET_FIELDS": "author_id, conversation_id",
            "MILLRACE_EXPANSIONS": "referenced_tweets.id,author_id",
            "MILLRACE_USER_FIELDS": "verified",
            "MILLRACE_MEDIA_FIELDS": "url,type",
            "MILLRACE_PLACE_FIELDS": "name",
            "MILLRACE_POLL_FIELDS": "options",
            "MILLRACE_RULES": "#cats lang:en\n\n  dogs  ",
            "MILLRACE_STREAM": "arn:aws:kinesis:eu-west-1:123456789012:stream/posts",
            "MILLRACE_PARTITION_KEY": "conversation_id",
            "MILLRACE_AGGREGATION": "none",
            "MILLRACE_LANES_PER_SHARD": "10",
            "MILLRACE_LINGER_SECONDS": "0.25",
            "MILLRACE_MEMORY_LIMIT": "1MiB",
            "MILLRACE_JOURNAL": "/var/lib/millrace",
            "MILLRACE_JOURNAL_LIMIT": "2 GiB",
            "MILLRACE_HTTP_HOST": "::",
            "MILLRACE_HTTP_PORT": "0",
            "MILLRACE_SHUTDOWN_SECONDS": "25",
            "MILLRACE_LOG_LEVEL": "DEBUG",
            "MILLRACE_LOG_FORMAT": "json",
        }
    )
    assert settings == Settings(
        api_key=Secret("key"),
        api_key_secret=Secret("secret"),
        x_url="http://127.0.0.1:8081",
        source="filtered",
        backfill="off",
        monthly_posts=3_000_000,
        tweet_fields=("author_id", "conversation_id"),
        expansions=("referenced_tweets.id", "author_id"),
        user_fields=("verified",),
        media_fields=("url", "type"),
        place_fields=("name",),
        poll_fields=("options",),
        rules=(Rule("#cats lang:en"), Rule("dogs")),
        stream="arn:aws:kinesis:eu-west-1:123456789012:stream/posts",
        partition_key="conversation_id",
        aggregation="none",
        lanes_per_shard=10,
        linger_seconds=0.25,
        memory_limit=1024 * 1024,
        journal=Path("/var/lib/millrace"),
        journal_limit=2 * 1024 * 1024 * 1024,
        http_host="::",
        http_port=0,
        shutdown_seconds=25,
        log_level="debug",
        log_format="json",
    )


def test_other_variables() -> None:
    """Variables without the prefix do not matter."""
    assert load(NEEDED | {"PATH": "/bin", "AWS_DEFAULT_REGION": "eu-west-1"}) == load(NEEDED)


def test_empty_is_not_set() -> None:
    """An empty or blank variable counts as not set, its file form included."""
    assert load(NEEDED | {"MILLRACE_HTTP_PORT": "", "MILLRACE_API_KEY": " ", "MILLRACE_RULES_FILE": ""}) == load(NEEDED)


def test_frozen() -> None:
    """Settings cannot be changed after the start."""
    settings = load(NEEDED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.stream = "other"  # type: ignore[misc]


def test_all_faults_at_once() -> None:
    """Every fault is reported in one go, one line each, with the setting's name first."""
    lines = faults(
        {
            "MILLRACE_STREEM": "posts",
            "MILLRACE_SOURCE": "hosepipe",
            "MILLRACE_LANES_PER_SHARD": "11",
            "MILLRACE_MEMORY_LIMIT": "128MB",
            "MILLRACE_RULES": "cats",
            "MILLRACE_RULES_FILE": "rules.yaml",
        }
    )
    assert [line.split(":")[0] for line in lines] == [
        "MILLRACE_STREEM",
        "MILLRACE_SOURCE",
        "MILLRACE_RULES",
        "MILLRACE_LANES_PER_SHARD",
        "MILLRACE_MEMORY_LIMIT",
        "MILLRACE_STREAM",
        "MILLRACE_BEARER_TOKEN",
    ]


class TestMissing:
    def test_stream(self) -> None:
        """Without a stream there is nothing to do."""
        assert faults({"MILLRACE_BEARER_TOKEN": "t"}) == (
            "MILLRACE_STREAM: not set; write the name or the ARN of the Kinesis stream",
        )

    @pytest.mark.parametrize("source", ["filtered", "sample"])
    def test_token(self, source: str) -> None:
        """X's streams need a token or what it is exchanged for."""
        (line,) = faults({"MILLRACE_STREAM": "posts", "MILLRACE_SOURCE": source})
        assert line.startswith("MILLRACE_BEARER_TOKEN: not set; ")
        assert "MILLRACE_API_KEY and MILLRACE_API_KEY_SECRET" in line

    def test_standard_input_needs_no_token(self) -> None:
        """Standard input is read without any credentials and rules."""
        assert load({"MILLRACE_STREAM": "posts", "MILLRACE_SOURCE": "stdin"}).bearer_token is None

    @pytest.mark.parametrize(("given", "missing"), [("API_KEY", "API_KEY_SECRET"), ("API_KEY_SECRET", "API_KEY")])
    def test_half_a_pair(self, given: str, missing: str) -> None:
        """A key without its secret, or the other way round, is a fault of the one that is missing."""
        (line,) = faults({"MILLRACE_STREAM": "posts", f"MILLRACE_{given}": "half"})
        assert line.startswith(f"MILLRACE_{missing}: not set, ")

    def test_faulty_is_not_missing(self) -> None:
        """What is there but wrong is reported once, not as missing too."""
        lines = faults({"MILLRACE_STREAM": "a/b", "MILLRACE_BEARER_TOKEN": "a b"})
        assert [line.split(":")[0] for line in lines] == ["MILLRACE_BEARER_TOKEN", "MILLRACE_STREAM"]


class TestContradictions:
    def test_token_and_key(self) -> None:
        """A token and a key pair at once leave open which one is meant."""
        assert fault("MILLRACE_API_KEY", "key").startswith("MILLRACE_BEARER_TOKEN: set together with MILLRACE_API_KEY;")

    def test_rules_of_the_sample(self) -> None:
        """The sample stream would ignore rules and bring everything."""
        (line,) = faults(NEEDED | {"MILLRACE_SOURCE": "sample", "MILLRACE_RULES": "cats"})
        assert line.startswith("MILLRACE_RULES: SOURCE=sample takes no rules; ")

    @pytest.mark.parametrize(
        ("source", "partition", "fault_of_it"),
        [
            ("firehose", None, "not set, and SOURCE=firehose is dealt out; write a number from 1 to 20"),
            ("sample10", "3", "SOURCE=sample10 has 2 partitions; write a number from 1 to 2"),
            ("firehose_en", "9", "SOURCE=firehose_en has 8 partitions; write a number from 1 to 8"),
            ("firehose", "21", "21 is out of range; write a number from 1 to 20"),
            ("filtered", "1", "SOURCE=filtered has no partitions; remove it"),
            ("sample", "1", "SOURCE=sample has no partitions; remove it"),
        ],
    )
    def test_partition(self, source: str, partition: str | None, fault_of_it: str) -> None:
        """Each stream has as many partitions as X gives it, and each process one of them."""
        environ = NEEDED | {"MILLRACE_SOURCE": source} | ({"MILLRACE_PARTITION": partition} if partition else {})
        assert faults(environ) == (f"MILLRACE_PARTITION: {fault_of_it}",)

    @pytest.mark.parametrize(("source", "partition"), [("firehose", "20"), ("firehose_ja", "2"), ("sample10", "1")])
    def test_partition_that_there_is(self, source: str, partition: str) -> None:
        """The last one counts."""
        settings = load(NEEDED | {"MILLRACE_SOURCE": source, "MILLRACE_PARTITION": partition})
        assert settings.partition == int(partition)

    def test_the_partition_key_must_be_asked_for(self) -> None:
        """X sends only what it is asked for, and without the key there is no order."""
        line = fault("MILLRACE_TWEET_FIELDS", "created_at,lang")
        assert line == "MILLRACE_TWEET_FIELDS: lacks author_id, which MILLRACE_PARTITION_KEY keeps in order; add it"
        settings = {"MILLRACE_TWEET_FIELDS": "lang", "MILLRACE_PARTITION_KEY": "id"}
        assert load(NEEDED | settings).tweet_fields == ("lang",)

    def test_a_budget_needs_a_journal(self) -> None:
        """A guard that forgets at each restart guards nothing."""
        lines = faults(NEEDED | {"MILLRACE_MONTHLY_POSTS": "1000", "MILLRACE_JOURNAL": "off"})
        assert lines == (
            "MILLRACE_MONTHLY_POSTS: MILLRACE_JOURNAL is off, so each restart would count from 0; write a directory",
        )

    @pytest.mark.parametrize("name", ["MILLRACE_BEARER_TOKEN", "MILLRACE_RULES"])
    def test_value_and_file(self, name: str) -> None:
        """A value and its file at once leave open which one is meant."""
        lines = faults(NEEDED | {name: "x", f"{name}_FILE": "/nowhere"})
        assert lines == (f"{name}: set together with {name}_FILE; remove one of them",)


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("MILLRACE_STREEM", "MILLRACE_STREAM"),
            ("MILLRACE_PORT", "MILLRACE_HTTP_PORT"),
            ("MILLRACE_BEARER_TOKEN_FIEL", "MILLRACE_BEARER_TOKEN_FILE"),
            ("MILLRACE_MEMORY_LIMITS", "MILLRACE_MEMORY_LIMIT"),
        ],
    )
    def test_misspelt(self, name: str, meant: str) -> None:
        """A misspelt name is a fault that names the nearest real one."""
        assert fault(name, "1") == f"{name}: no such setting; did you mean {meant}?"

    def test_far_from_all(self) -> None:
        """A name that is like none is a fault that says where the names are."""
        line = fault("MILLRACE_XYZZY", "1")
        assert line == "MILLRACE_XYZZY: no such setting; remove it; docs/configuration.md lists all names"

    def test_only_secrets_and_rules_have_files(self) -> None:
        """A file form of any other setting does not exist."""
        assert "no such setting" in fault("MILLRACE_STREAM_FILE", "/etc/stream")

    def test_kubernetes(self) -> None:
        """What Kubernetes injects for a service called millrace, or millrace-x, is let through."""
        injected = {
            "MILLRACE_SERVICE_HOST": "10.0.0.1",
            "MILLRACE_SERVICE_PORT": "8080",
            "MILLRACE_SERVICE_PORT_HTTP": "8080",
            "MILLRACE_PORT": "tcp://10.0.0.1:8080",
            "MILLRACE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
            "MILLRACE_PORT_8080_TCP_ADDR": "10.0.0.1",
            "MILLRACE_X_SERVICE_HOST": "10.0.0.2",
            "MILLRACE_X_PORT": "udp://10.0.0.2:53",
        }
        assert load(NEEDED | injected) == load(NEEDED)


class TestSecrets:
    def test_shown_to_nobody(self) -> None:
        """A secret is in no text of itself, of the settings or of their description."""
        settings = load(NEEDED)
        texts = [repr(settings), str(settings), describe(settings), f"{settings.bearer_token}"]
        assert not [text for text in texts if "token-of-mine" in text]
        assert settings.bearer_token is not None
        assert settings.bearer_token.reveal() == "token-of-mine"

    def test_from_a_file(self, tmp_path: Path) -> None:
        """A secret may stand in a file, with a line break at its end."""
        (tmp_path / "token").write_text("from-a-file\n")
        settings = load({"MILLRACE_STREAM": "posts", "MILLRACE_BEARER_TOKEN_FILE": str(tmp_path / "token")})
        assert settings.bearer_token == Secret("from-a-file")

    def test_no_file(self, tmp_path: Path) -> None:
        """A file that cannot be read is named with the cause."""
        path = str(tmp_path / "none")
        (line,) = faults({"MILLRACE_STREAM": "posts", "MILLRACE_BEARER_TOKEN_FILE": path})
        assert line.startswith(f"MILLRACE_BEARER_TOKEN_FILE: cannot read {path!r}: No such file or directory; ")

    def test_no_text(self, tmp_path: Path) -> None:
        """A file that is not text is named."""
        (tmp_path / "token").write_bytes(b"\xff\xfe")
        (line,) = faults({"MILLRACE_STREAM": "posts", "MILLRACE_BEARER_TOKEN_FILE": str(tmp_path / "token")})
        assert "is not text in UTF-8" in line


def test_faults_of_a_file(tmp_path: Path) -> None:
    """Each is a line of its own that names the variable of the file."""
    (tmp_path / "rules.yaml").write_text("- a\n- b\n- a\n- a\n")
    assert faults(NEEDED | {"MILLRACE_RULES_FILE": str(tmp_path / "rules.yaml")}) == (
        "MILLRACE_RULES_FILE: rule 3 repeats rule 1; remove one of them",
        "MILLRACE_RULES_FILE: rule 4 repeats rule 1; remove one of them",
    )


def test_describe() -> None:
    """The effective configuration is one line a setting, with sizes as people write them."""
    lines = describe(load(NEEDED | {"MILLRACE_RULES": "cats", "MILLRACE_JOURNAL": "off"})).splitlines()
    assert len(lines) == len(dataclasses.fields(Settings))
    assert {
        "MILLRACE_BEARER_TOKEN=***",
        "MILLRACE_API_KEY=",
        "MILLRACE_STREAM=posts",
        'MILLRACE_RULES=[{"value":"cats","tag":""}]',
        "MILLRACE_MEMORY_LIMIT=128MiB",
        "MILLRACE_JOURNAL=off",
        "MILLRACE_LINGER_SECONDS=0.1",
    } <= set(lines)


def test_the_page_is_current() -> None:
    """docs/configuration.md is what the settings say."""
    assert markdown() == PAGE.read_text(encoding="utf-8"), "python -m service config --markdown > docs/configuration.md"


def test_every_setting_has_a_reader() -> None:
    """Somebody in the daemon asks for it, or it is among what is asked of X."""
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "service").glob("*.py"))
    read = {*re.findall(r"settings\.(\w+)", source), *load(NEEDED).parameters()}
    assert {field.name for field in dataclasses.fields(Settings)} - read == set()


def test_the_example_of_the_page(tmp_path: Path) -> None:
    """The rules file that the page shows can be used as it is."""
    (tmp_path / "rules.yaml").write_text(markdown().split("```yaml\n")[1].split("```")[0])
    settings = load(NEEDED | {"MILLRACE_RULES_FILE": str(tmp_path / "rules.yaml")})
    assert settings.rules == (Rule('"coffee beans" lang:en -is:retweet', "coffee"), Rule("#espresso"))
