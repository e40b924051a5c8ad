"""The documents lead where they say, and the two READMEs through the same steps."""

import re
from pathlib import Path

import pytest

from tests.deploy.checks import anchors

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)\s]*)\)")
COMMAND = re.compile(r"^(?:make|\.venv/bin/python -m) \S+(?: [A-Za-z-]\S*)*", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Every link inside the project is to a file that there is, and to a heading in it."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for link in LINK.findall(text):
        file, _, anchor = link.partition("#")
        target = (ROOT / document).parent / file if file else ROOT / document
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_both_readmes_lead_through_the_same_steps() -> None:
    """What the Japanese README has people do for real, from deploy to delete, is what the English one does."""
    steps = []
    for name, heading in (("README.md", "## For real"), ("README.ja.md", "## 実際に動かす")):
        text = (ROOT / name).read_text(encoding="utf-8").partition(heading)[2].partition("\n## ")[0]
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        commands = [command for block in blocks for command in COMMAND.findall(block)]
        steps.append([command.split("  ")[0].strip() for command in commands])
    english, japanese = steps
    assert [command.split()[0] for command in english].count("make") == 2
    assert [command for command in japanese if command in english] == english
