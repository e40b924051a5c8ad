"""
Holds the template against the rules of checkov and of AWS Control Tower, and both against the exceptions it declares.

    python -m deploy.audit DIRECTORY       the virtual environment with both tools; `make audit` makes it

The template's Metadata names each rule that it does not follow, with the resources and the reason. A finding that is
not among them is a fault, and so is an exception that no finding needs any more: it would hide the next one. Exit code
0; 1 with one line for each fault; 2 when a tool does not do its work, which must not pass for a clean template.

Traps: checkov asks a server for its guidelines and goes on without. CloudFormation Guard comes as a binary inside a
package for another language inside a wheel; nothing of that package is ever run but the binary.
"""

import json
import platform
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from local.template import TEMPLATE, load

# What the tools end with where they have findings; 0 is without. Anything else is a failure of the tool itself.
CHECKOV_HAS_FINDINGS = 1
GUARD_HAS_FINDINGS = 19

GUARD_RULE = re.compile(r"\[(CT\.[A-Z0-9]+\.PR\.\d+)\]")
RESOURCE = re.compile(r"/Resources/(\w+)")
GUARD_BINARY = {
    ("Linux", "x86_64"): "ubuntu/x86_64",
    ("Linux", "aarch64"): "ubuntu/aarch64",
    ("Darwin", "x86_64"): "macos/x86_64",
    ("Darwin", "arm64"): "macos/aarch64",
}


class AuditError(Exception):
    """A tool cannot be run, or did not check anything; the text is one line."""


class Finding(NamedTuple):
    """A rule that a resource does not follow."""

    rule: str
    resource: str


def exceptions(document: Mapping[str, Any]) -> dict[Finding, str]:
    """Return the exceptions of a template, each with its reason; AuditError for one that is declared twice."""
    found: dict[Finding, str] = {}
    for entry in document["Metadata"]["Exceptions"]:
        for finding in (Finding(rule, resource) for rule in entry["Rules"] for resource in entry["At"]):
            if finding in found:
                raise AuditError(f"{finding.rule} on {finding.resource} is excepted twice")
            found[finding] = entry["Because"]
    return found


def faults(found: Iterable[Finding], excepted: Mapping[Finding, str]) -> list[str]:
    """Return what is wrong, one line each: findings without an exception, exceptions without a finding or reason."""
    findings = set(found)
    return [
        *(f"{rule} on {resource}: not followed, and no exception" for rule, resource in sorted(findings - {*excepted})),
        *(f"{rule} on {resource}: the exception is not needed" for rule, resource in sorted({*excepted} - findings)),
        *(f"{rule} on {resource}: no reason" for (rule, resource), reason in excepted.items() if not reason.strip()),
    ]


def of_checkov(report: str) -> list[Finding]:
    """Return the findings in a JSON report of checkov."""
    document = json.loads(report)
    if not isinstance(document, dict) or not document.get("summary", {}).get("passed"):
        raise AuditError("checkov has checked nothing")
    if document["summary"]["parsing_errors"]:
        raise AuditError("checkov cannot read the template")
    return [
        Finding(one["check_id"], one["resource"].rpartition(".")[2]) for one in document["results"]["failed_checks"]
    ]


def of_guard(report: str) -> list[Finding]:
    """Return the findings in a structured JSON report of CloudFormation Guard."""
    (document,) = json.loads(report)
    if not document["compliant"]:
        raise AuditError("CloudFormation Guard has checked nothing")
    found = []
    for entry in document["not_compliant"]:
        text = json.dumps(entry)
        rules, resources = set(GUARD_RULE.findall(text)), set(RESOURCE.findall(text))
        if len(rules) != 1 or not resources:
            raise AuditError(f"the report of CloudFormation Guard on {entry['Rule']['name']} is not readable")
        found += [Finding(rule, resource) for rule in rules for resource in resources]
    return found


def _run(command: Sequence[str], has_findings: int) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the commands are those below
            command, capture_output=True, text=True, check=False, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AuditError(f"{command[0]}: {error}") from error
    if done.returncode not in {0, has_findings}:
        raise AuditError(f"{command[0]} ends with {done.returncode}: {' '.join(done.stderr.split())[-500:]}")
    return done.stdout


def _checkov(environment: Path) -> list[Finding]:
    options = ["--framework", "cloudformation", "--output", "json", "--quiet", "--compact"]
    report = _run([str(environment / "bin/checkov"), "--file", str(TEMPLATE), *options], CHECKOV_HAS_FINDINGS)
    return of_checkov(report)


def _guard(environment: Path, directory: Path) -> list[Finding]:
    machine = (platform.system(), platform.machine())
    if machine not in GUARD_BINARY:
        raise AuditError(f"there is no CloudFormation Guard for {' '.join(machine)}")
    packages = list(environment.glob("lib/python*/site-packages/cdklabs/cdk_validator_cfnguard/_jsii/*.tgz"))
    if len(packages) != 1:
        raise AuditError(f"CloudFormation Guard is not in {environment}")
    with tarfile.open(packages[0]) as archive:
        archive.extractall(directory, filter="data")
    binary = directory / "package/bin" / GUARD_BINARY[machine] / "cfn-guard"
    binary.chmod(0o755)
    rules = directory / "package/rules/control-tower/cfn-guard"
    options = ["--show-summary", "none", "--output-format", "json", "--structured"]
    command = [str(binary), "validate", "--rules", str(rules), "--data", str(TEMPLATE), *options]
    return of_guard(_run(command, GUARD_HAS_FINDINGS))


def main(arguments: Sequence[str]) -> int:
    """Audit the template with the tools in the environment that is named; return the exit code."""
    if len(arguments) != 1:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    environment = Path(arguments[0])
    try:
        excepted = exceptions(load().document)
        with TemporaryDirectory() as directory:
            found = [*_checkov(environment), *_guard(environment, Path(directory))]
    except AuditError as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    problems = faults(found, excepted)
    for problem in problems:
        print(f"audit: {problem}", file=sys.stderr)
    print(f"audit: {len(set(found))} findings, {len(excepted)} exceptions")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
