"""What the project stands on: pyproject.toml, the locks, docs/design.md and the imports say the same."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions, requires
from pathlib import Path

from tests.test_architecture import imports

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SECTION = (
    (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("\n## Dependencies\n")[2].partition("\n## ")[0]
)
OURS = {"bench", "deploy", "local", "processor", "service", "tests"}
# Imported as well, and brought along by one that is declared.
COMPANIONS = {"botocore": "boto3", "cryptography": "moto", "multidict": "aiohttp", "werkzeug": "moto"}
# In environments of their own: bench/roster.py, requirements/xdk.in.
APART = {"aiokpl", "kinesis", "xdk"}
# The licences' names in SPDX, where a package has others.
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "Dual License": "Apache-2.0 OR BSD-3-Clause",
    "MIT License": "MIT",
}


def canonical(name: str) -> str:
    """Give a package's name in the form that indexes compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """Give the packages that pyproject.toml names."""
    project = PROJECT["project"]["dependencies"]
    groups = [line for group in PROJECT["dependency-groups"].values() for line in group if isinstance(line, str)]
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in [*project, *groups]}  # type: ignore[index]


def pins(lock: str) -> dict[str, str]:
    """Give the packages of a lock with their versions."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^ ;]+)", text, re.MULTILINE)
    return {canonical(name): version for name, version in found}


def licence_of(package: str) -> str:
    """Give the licence that an installed package says it has."""
    said = metadata(package).json
    if "license_expression" in said:
        return str(said["license_expression"])
    classes = [line.rpartition(" :: ")[2] for line in said.get("classifier", ()) if line.startswith("License ::")]
    word = str(said.get("license") or classes[0])
    return SPDX.get(word, word)


def licences_told() -> dict[str, str]:
    """Give the packages of the table in docs/design.md with their licences."""
    rows = re.findall(r"^\| ([\w. ()-]+) \| ([\w., -]+) \|$", SECTION.partition("| licence |")[2], re.MULTILINE)
    return {package: licence for licence, packages in rows for package in packages.split(", ")}


def test_each_dependency_has_its_reason() -> None:
    """Whatever pyproject.toml names stands in docs/design.md."""
    told = set(re.findall(r"[a-z0-9-]+", canonical(SECTION)))
    assert declared() - told == set()


def test_each_dependency_is_declared() -> None:
    """Whatever is imported is named in pyproject.toml, or needed by something that is."""
    names = {
        name.split(".")[0]
        for path in ROOT.glob("*/**/*.py")
        if path.relative_to(ROOT).parts[0] in OURS
        for name in imports(path.read_text(encoding="utf-8"))
    }
    foreign = names - OURS - APART - set(sys.stdlib_module_names) - {"compression", "__import__"}
    providers = packages_distributions()
    packages = {canonical(package) for name in foreign for package in providers[name]}
    unknown = {
        package for package in packages - declared() if not package.startswith(("mypy-boto3-", "opentelemetry-"))
    }
    assert unknown == COMPANIONS.keys()
    assert [
        name for name, by in COMPANIONS.items() if not any(line.startswith(name) for line in requires(by) or ())
    ] == []


def test_a_package_has_one_version() -> None:
    """The locks can be installed one upon the other."""
    versions: dict[str, set[str]] = {}
    for lock in ("daemon", "demo", "traces", "dev"):
        for package, version in pins(lock).items():
            versions.setdefault(package, set()).add(version)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}
    assert declared() - versions.keys() == set()


def test_the_licences_are_those_that_the_packages_have() -> None:
    """What the daemon, its traces and the demo install is listed with its licence, and nothing else is."""
    wanted = {}
    for package in pins("daemon") | pins("traces") | pins("demo"):
        try:
            wanted[package] = licence_of(package)
        except PackageNotFoundError:
            wanted[package] = licences_told().get(package, "")  # of another system
    assert licences_told() == wanted
