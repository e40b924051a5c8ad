import json
import platform
import shlex
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from deploy.audit import (
    CHECKOV_HAS_FINDINGS,
    GUARD_BINARY,
    GUARD_HAS_FINDINGS,
    AuditError,
    Finding,
    exceptions,
    faults,
    main,
    of_checkov,
    of_guard,
)
from local.template import load

DOCUMENT = load().document
EXCEPTED = exceptions(DOCUMENT)


def guard_report(*not_compliant: Mapping[str, object], compliant: list[str] | None = None) -> str:
    """Return what CloudFormation Guard prints, as far as it is read."""
    document = {"not_compliant": not_compliant, "compliant": ["another"] if compliant is None else compliant}
    return json.dumps([document])


def checkov_report(*failed: tuple[str, str], passed: int = 1, errors: int = 0) -> str:
    """Return what checkov prints, as far as it is read."""
    found = [{"check_id": rule, "resource": resource} for rule, resource in failed]
    return json.dumps({"results": {"failed_checks": found}, "summary": {"passed": passed, "parsing_errors": errors}})


def test_exceptions_are_justified_and_of_the_template() -> None:
    """Each exception is on a resource that there is and says why in a sentence."""
    assert {finding.resource for finding in EXCEPTED} <= DOCUMENT["Resources"].keys()
    assert all(reason.endswith(".") and len(reason.split()) > 4 for reason in EXCEPTED.values())


def test_findings_that_are_excepted_are_no_faults() -> None:
    """What was found is just what is excepted: nothing to say."""
    assert faults(EXCEPTED, EXCEPTED) == []


def test_finding_without_exception_is_a_fault() -> None:
    """A rule that a new resource does not follow is told, though others may leave it out."""
    assert faults([*EXCEPTED, Finding("CKV_AWS_117", "New")], EXCEPTED) == [
        "CKV_AWS_117 on New: not followed, and no exception"
    ]


@pytest.mark.parametrize("finding", EXCEPTED)
def test_exception_that_is_not_needed_is_a_fault(finding: Finding) -> None:
    """Once a finding is gone, its exception has to go."""
    assert faults(EXCEPTED.keys() - {finding}, EXCEPTED) == [
        f"{finding.rule} on {finding.resource}: the exception is not needed"
    ]


def test_exception_needs_a_reason() -> None:
    """An empty reason is none."""
    assert faults([Finding("R", "A")], {Finding("R", "A"): " "}) == ["R on A: no reason"]


def test_exception_is_declared_once() -> None:
    """Two reasons for one exception would leave one of them without effect."""
    entry = {"Rules": ["R"], "At": ["A"], "Because": "It must."}
    with pytest.raises(AuditError, match="R on A is excepted twice"):
        exceptions({"Metadata": {"Exceptions": [entry, entry]}})


def test_report_of_checkov_is_read() -> None:
    """The resource is named without its type, as in the template."""
    assert of_checkov(checkov_report(("CKV_AWS_1", "AWS::S3::Bucket.B"))) == [Finding("CKV_AWS_1", "B")]


@pytest.mark.parametrize("report", [checkov_report(passed=0), checkov_report(errors=1), "[]"])
def test_checkov_that_checks_nothing_is_an_error(report: str) -> None:
    """A report without a single check passed, or with a file that it cannot read, is not taken for a good one."""
    with pytest.raises(AuditError, match="checkov"):
        of_checkov(report)


def test_report_of_guard_is_read() -> None:
    """The rule stands in its message, the resources in the paths."""
    entry = {
        "Rule": {
            "name": "r",
            "message": "[CT.S3.PR.8]: x",
            "checks": [{"path": "/Resources/A/Properties"}, {"path": "/Resources/B/Properties/C"}],
        }
    }
    assert set(of_guard(guard_report(entry))) == {Finding("CT.S3.PR.8", "A"), Finding("CT.S3.PR.8", "B")}


@pytest.mark.parametrize(
    "report",
    [guard_report(compliant=[]), guard_report({"Rule": {"name": "r", "checks": ["[CT.S3.PR.8] without a resource"]}})],
)
def test_report_of_guard_that_says_nothing_is_an_error(report: str) -> None:
    """No rule applied, or a finding that cannot be placed: it is not passed over."""
    with pytest.raises(AuditError, match="CloudFormation Guard"):
        of_guard(report)


def program(path: Path, output: str, code: int) -> None:
    """Write a program that prints this and ends so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!/bin/sh\nprintf %s {shlex.quote(output)}\necho '  in short' >&2\nexit {code}\n", encoding="utf-8"
    )
    path.chmod(0o755)


def install(directory: Path, findings: Iterable[Finding], code: int = CHECKOV_HAS_FINDINGS) -> Path:
    """Return an environment with programs in the places of the tools, which find this; checkov ends with a code."""
    by_guard = [finding for finding in findings if finding.rule.startswith("CT.")]
    by_checkov = [finding for finding in findings if finding not in by_guard]
    entries = [
        {"Rule": {"name": "r", "message": f"[{rule}]: x", "checks": [{"path": f"/Resources/{resource}/Properties"}]}}
        for rule, resource in by_guard
    ]
    environment = directory / "environment"
    report = checkov_report(*((rule, f"AWS::Some::Kind.{resource}") for rule, resource in by_checkov))
    program(environment / "bin/checkov", report, code)
    guard = directory / "package/bin" / GUARD_BINARY[platform.system(), platform.machine()] / "cfn-guard"
    program(guard, guard_report(*entries), GUARD_HAS_FINDINGS)
    package = environment / "lib/python3/site-packages/cdklabs/cdk_validator_cfnguard/_jsii/guard.tgz"
    package.parent.mkdir(parents=True)
    with tarfile.open(package, "w:gz") as archive:
        archive.add(directory / "package", "package")
    return environment


def test_template_is_audited_by_both_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the tools of the environment find is just what the template excepts."""
    assert main([str(install(tmp_path, EXCEPTED))]) == 0
    assert capsys.readouterr() == (f"audit: {len(EXCEPTED)} findings, {len(EXCEPTED)} exceptions\n", "")


def test_fault_ends_the_audit_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finding more is named, and the exit code is 1."""
    assert main([str(install(tmp_path, [*EXCEPTED, Finding("CKV_AWS_117", "New")]))]) == 1
    assert capsys.readouterr().err == "audit: CKV_AWS_117 on New: not followed, and no exception\n"


def test_tool_that_breaks_down_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tool that ends otherwise than with or without findings has checked nothing, whatever it printed."""
    environment = install(tmp_path, EXCEPTED, code=3)
    assert main([str(environment)]) == 2
    assert capsys.readouterr().err == f"audit: {environment}/bin/checkov ends with 3: in short\n"


def test_missing_tools_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An environment without the tools is one line and exit code 2, not a clean audit."""
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([]) == 2
    assert "python -m deploy.audit DIRECTORY" in capsys.readouterr().err
