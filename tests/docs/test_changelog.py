"""The changelog knows the version that there is; service/__init__.py is the one place that says it."""

import re
import tomllib

from service import __version__
from tests.docs.documents import ROOT


def test_the_newest_version_is_the_programs() -> None:
    """It stands below what is not released yet, with a date, and the project takes its version from the code."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    newest, date = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d{2}-\d{2})$", text, re.MULTILINE)[0]
    assert re.findall(r"^## \[(\w+)", text, re.MULTILINE)[0] == "Unreleased"
    assert newest == __version__
    assert date
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "service.__version__"}


def test_no_other_file_has_a_copy_of_the_version() -> None:
    """Not even the image's labels: `--version` tells it there too."""
    files = [ROOT / "pyproject.toml", ROOT / "Dockerfile", *ROOT.glob("docker-compose*.yml")]
    files += ROOT.glob("service/*.py")
    having = [path.name for path in files if f'"{__version__}"' in path.read_text(encoding="utf-8")]

    assert having == ["__init__.py"]
