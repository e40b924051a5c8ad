"""
What no linter looks at: whether the template means what it says.

Each check takes a template as a document and returns its faults, one line each. test_template.py demands that the real
one has none; test_checks.py breaks it in every place that a check is there for, and demands that the check says so.
"""

from local.template import TemplateError
from tests.deploy.checks_alarms import alarm_faults
from tests.deploy.checks_parameters import parameter_faults, switch_faults
from tests.deploy.checks_rights import permission_faults, secret_faults
from tests.deploy.rendering import FULL, Document, allowed, combinations, leaves, references, render


def reference_faults(document: Document) -> list[str]:
    """Tell each combination of what can be switched that refers to something that is not there."""
    found = []
    for parameters in combinations(document):
        try:
            stack = render(document, **parameters)
        except TemplateError as error:
            found.append(str(error))
            continue
        for name in stack.keys() - {"Outputs"}:
            depends = document["Resources"][name].get("DependsOn", name)
            if depends not in stack:
                found.append(f"{name} depends on {depends}, which is not there")
    return found


# CloudFormation's and the services' own limits. The longest name of a stack is that of the template's description.
STACK_NAME = 46
LIMITS = {
    "AWS::Lambda::Function.FunctionName": 64,
    "AWS::DynamoDB::Table.TableName": 255,
    "AWS::Logs::LogGroup.LogGroupName": 512,
    "AWS::CloudWatch::Dashboard.DashboardName": 255,
    "AWS::CloudWatch::Alarm.AlarmDescription": 1024,
    "AWS::EC2::SecurityGroup.GroupDescription": 255,
}


def size_faults(document: Document) -> list[str]:
    """Tell each name and text that is longer than AWS takes, with a stack name as long as it may be."""
    found = []
    stack = render(document, **{**FULL, "RunbookUrl": 512 * "x"})
    for name, item in stack.items():
        for place, limit in LIMITS.items():
            kind, _, key = place.rpartition(".")
            text = item.get(key, "").replace("${AWS::StackName}", STACK_NAME * "x") if item.get("Type") == kind else ""
            if len(text) > limit:
                found.append(f"{name}.{key} has {len(text)} characters, and AWS takes {limit}")
    described = {f"parameter {name}": spec for name, spec in document["Parameters"].items()}
    described |= {f"output {name}": spec for name, spec in document["Outputs"].items()}
    found += [f"{name} is not described" for name, spec in described.items() if not spec["Description"].endswith(".")]
    found += [f"{name}: too long" for name, spec in described.items() if len(spec["Description"].encode()) > 1024]
    if len(document["Description"].encode()) > 1024:
        found.append("the description is too long")
    if f"at most {STACK_NAME} characters" not in " ".join(document["Description"].split()):
        found.append(f"the description does not say that a stack name has at most {STACK_NAME} characters")
    return found


def deletion_faults(document: Document) -> list[str]:
    """Tell what would stay behind when the stack is deleted, unless somebody asked for it."""
    found = []
    for policy in ("DeletionPolicy", "UpdateReplacePolicy"):
        kept = [name for name, item in document["Resources"].items() if item.get(policy, "Delete") != "Delete"]
        found += [f"{name}: {policy} keeps it" for name in kept]
    for path, leaf in leaves(render(document)).items():
        if path.endswith("DeletionProtectionEnabled") and str(leaf).lower() != "false":
            found.append(f"{path} keeps it")
    stack = render(document, **FULL)
    for name, item in stack.items():
        if item.get("Type") == "AWS::Lambda::Function":
            group = item.get("LoggingConfig", {}).get("LogGroup", "").strip("${}")
            if stack.get(group, {}).get("Type") != "AWS::Logs::LogGroup":
                found.append(f"{name}: Lambda would make its log group, and leave it behind")
        if item.get("Type") == "AWS::IAM::ManagedPolicy":
            found += [
                f"{name}: it could bring a log group back" for action, _ in allowed(stack, name) if "LogGroup" in action
            ]
    if "FailureBucketCleanup" not in references({"Ref": document["Resources"]["DDBEventProcessor"].get("DependsOn")}):
        found.append("the function could write into the failure bucket after it was emptied")
    return found


CHECKS = (
    parameter_faults,
    switch_faults,
    alarm_faults,
    permission_faults,
    secret_faults,
    reference_faults,
    size_faults,
    deletion_faults,
)
