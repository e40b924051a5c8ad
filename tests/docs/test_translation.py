"""The Japanese README leads through the same steps as the English one."""

import re

from tests.docs.documents import ROOT, commands, words

COMMAND = re.compile(r"^(?:make|\.venv/bin/python -m) \S+(?: [A-Za-z-]\S*)*", re.MULTILINE)


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


def test_both_readmes_show_the_same_proofs() -> None:
    """What the English one promises by a command for measuring or testing, the Japanese one promises by the same."""
    english, japanese = (
        {" ".join(words(command)[1]) for command in commands(ROOT / name) if "pytest" in command or "make" in command}
        for name in ("README.md", "README.ja.md")
    )
    assert any("test_crash.py" in command for command in english)
    assert english - japanese <= {"make setup"}
