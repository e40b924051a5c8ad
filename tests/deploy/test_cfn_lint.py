"""The templates as AWS's own linter sees them; it runs in a process of its own, because to load it takes a second."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.quickstart import quickstart
from local.template import TEMPLATE


def lint(path: Path, regions: str) -> set[tuple[str, str]]:
    """Return the rules that a template breaks, informational ones included, each with what is said."""
    program = Path(sys.executable).with_name("cfn-lint")
    options = ["--format", "json", "--include-checks", "I", "--regions", regions, "--template"]
    done = subprocess.run([program, *options, path], capture_output=True, text=True, check=False)
    return {(match["Rule"]["Id"], match["Message"]) for match in json.loads(done.stdout)}


@pytest.mark.long
def test_it_has_nothing_to_say_of_the_template() -> None:
    """In any region."""
    assert lint(TEMPLATE, "ALL_REGIONS") == set()


@pytest.mark.long
def test_it_has_nothing_to_say_of_the_quickstart(tmp_path: Path) -> None:
    """In any region."""
    path = tmp_path / "quickstart.yaml"
    path.write_text(quickstart(), encoding="utf-8")
    assert lint(path, "ALL_REGIONS") == set()


def test_what_it_is_told_to_ignore_is_there(tmp_path: Path) -> None:
    """Without the template's own word to cfn-lint, it finds the empty defaults of the producer, and nothing else."""
    bare = tmp_path / "template.yaml"
    text = TEMPLATE.read_text(encoding="utf-8")
    word = "      ignore_checks: [W1030, W1033]\n"
    assert word in text
    bare.write_text(text.replace(word, "      ignore_checks: []\n"), encoding="utf-8")
    found = lint(bare, "us-east-1")
    assert {(rule, re.findall(r"'(Producer\w+|)'", message)[0]) for rule, message in found} == {
        ("W1030", "ProducerTokenSecretArn"),
        ("W1030", "ProducerVpc"),
        ("W1033", ""),
    }
