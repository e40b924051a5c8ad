import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from local.template import TEMPLATE
from tests.docs.documents import DOCUMENTS, ROOT, anchors, links

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])


@every_document
def test_a_link_leads_somewhere(path: Path) -> None:
    """Every link within the project names a file that is there and a heading of it; all others are https."""
    broken = []
    for link in links(path):
        target, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", target):
            if not target.startswith("https://"):
                broken.append(link)
            continue
        file = (path.parent / target) if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)

    assert broken == []


def test_every_document_can_be_found() -> None:
    """From the README, links lead to all others."""
    seen = {ROOT / "README.md"}
    ahead = [ROOT / "README.md"]
    while ahead:
        path = ahead.pop()
        for link in links(path):
            target = (path.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target not in seen:
                seen.add(target)
                ahead.append(target)

    assert seen >= set(DOCUMENTS)


def test_the_alarms_of_the_stack_lead_to_sections() -> None:
    """Each alarm's link names a heading of docs/operations.md."""
    named = re.findall(r"\$\{RunbookUrl\}#([\w-]+)", TEMPLATE.read_text(encoding="utf-8"))

    assert named
    assert set(named) <= anchors(ROOT / "docs/operations.md")


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    """The reading above knows links, pictures, headings that are there twice, and leaves out code."""
    document = tmp_path / "a.md"
    document.write_text(
        "# One `two`: three!\n\n[a](b.md#c) ![d](e.svg) `[f](g.md)`\n\n```sh\n[h](i.md)\n```\n\n# One\n\n# One\n",
        encoding="utf-8",
    )

    assert links(document) == ["b.md#c", "e.svg"]
    assert anchors(document) == {"one-two-three", "one", "one-1"}
