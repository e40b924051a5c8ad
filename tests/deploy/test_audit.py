import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from deploy.audit import AuditError, Finding, exceptions, faults, main, of_checkov, of_guard
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


def test_missing_tools_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An environment without the tools is one line and exit code 2, not a clean audit."""
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([]) == 2
    assert "python -m deploy.audit DIRECTORY" in capsys.readouterr().err
