"""A document is read in an editor too, and compared line by line."""

from pathlib import Path

import pytest

from tests.docs.documents import DOCUMENTS


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_no_line_is_wider_than_120(path: Path) -> None:
    """A row of a table cannot be wrapped; all else can."""
    lines = path.read_text(encoding="utf-8").splitlines()

    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
