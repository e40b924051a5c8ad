"""Who may do what, and sees what: of the checks of checks.py those on permissions and secrets."""

import ast
import json
import re
from collections.abc import Iterable
from functools import cache

from botocore import xform_name
from botocore.session import Session

from deploy.quickstart import modules
from tests.deploy.rendering import FULL, Document, allowed, leaves, render
from tests.docs.documents import ROOT

# What the operation of an SDK needs, where it is not a permission of the same name; Service Authorization Reference.
NEEDED = {
    "s3:DeleteObjects": {"s3:DeleteObject", "s3:DeleteObjectVersion"},
    "s3:ListObjectVersions": {"s3:ListBucketVersions"},
}
# What others do in the name of a role: Lambda reads the stream, finds the bucket, writes the log; ECS starts the task.
LAMBDA_LOGS = {"logs:CreateLogStream", "logs:PutLogEvents"}
LAMBDA_MAPPING = {
    "kinesis:DescribeStream",
    "kinesis:DescribeStreamSummary",
    "kinesis:GetRecords",
    "kinesis:GetShardIterator",
    "kinesis:ListShards",
    "s3:ListBucket",
}
# What only the console does, under the operator's own rights, with files of the function: the function may not.
CONSOLE = {"s3:ListObjectsV2", "s3:GetObject", "s3:DeleteObject"}
ECS_START = {
    "secretsmanager:GetSecretValue",
    "ecr:BatchCheckLayerAvailability",
    "ecr:BatchGetImage",
    "ecr:GetDownloadUrlForLayer",
    "ecr:GetAuthorizationToken",
}
# The client was promised to put events, by whatever call.
CLIENT_PROMISED = {"kinesis:PutRecord"}

# What a permission may be for, by its service.
TARGETS = {
    "kinesis": {"${EventStream.Arn}"},
    "dynamodb": {"${EventDataTable.Arn}"},
    "s3": {"${FailureBucket.Arn}", "${FailureBucket.Arn}/*"},
    "logs": {"${DDBEventProcessorLogs.Arn}", "${CleanupLogs.Arn}", "${ProducerLogs.Arn}"},
    "secretsmanager": {str(FULL["ProducerTokenSecretArn"])},
    "ecr": {"arn:${AWS::Partition}:ecr:${AWS::Region}:${AWS::AccountId}:repository/*"},
}


def permission_faults(document: Document) -> list[str]:
    """Tell each permission that the code does not need, and each that it needs and has not."""
    stack = render(document, **FULL)
    inline = document["Resources"]["Cleanup"]["Properties"]["Code"]["ZipFile"]
    needed = {
        "DDBEventProcessorPolicy": (_permissions(modules().values()) - CONSOLE) | LAMBDA_MAPPING | LAMBDA_LOGS,
        "CleanupPolicy": _permissions([inline]) | LAMBDA_LOGS,
        "StreamClientPolicy": _permissions([(ROOT / "service/kinesis.py").read_text(encoding="utf-8")])
        | CLIENT_PROMISED,
        "ProducerExecutionPolicy": ECS_START | LAMBDA_LOGS,
    }
    policies = {name for name, item in stack.items() if item.get("Type") == "AWS::IAM::ManagedPolicy"}
    found = [f"{name}: nobody knows what it is for" for name in policies - needed.keys()]
    for name, actions in needed.items():
        pairs = allowed(stack, name)
        granted = {action for action, _ in pairs}
        found += [f"{name}: {action} is needed and not there" for action in sorted(actions - granted)]
        found += [f"{name}: {action} is there and not needed" for action in sorted(granted - actions)]
        for action, resource in sorted(pairs):
            service = action.partition(":")[0]
            # IAM knows no resource for the log-in to a registry.
            good = {"*"} if action == "ecr:GetAuthorizationToken" else TARGETS.get(service, set())
            if service == "logs":
                good = good & {f"${{{name.removesuffix('Policy').removesuffix('Execution')}Logs.Arn}}"}
            if resource not in good:
                found.append(f"{name}: {action} is for {resource}")
    return found


@cache
def calls(source: str) -> set[str]:
    """Return the operations of AWS that a program names, as `service:Operation`; methods and names of operations."""
    tree = ast.parse(source)
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and "_" in node.attr}
    names |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {operation for name in names if (operation := OPERATIONS.get(name))}


def _permissions(sources: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for operation in {operation for source in sources for operation in calls(source)}:
        found |= NEEDED.get(operation, {operation})
    return found


def _operations_of_aws() -> dict[str, str]:
    names: dict[str, str] = {}
    session = Session()
    for service in ("kinesis", "dynamodb", "s3"):
        for operation in session.get_service_model(service).operation_names:
            for spelling in (operation, xform_name(operation)):
                names[spelling] = f"{service}:{operation}"
    return names


OPERATIONS = _operations_of_aws()

SHOWS_A_SECRET = re.compile(r"SecretAccessKey|SecretString|resolve:|(?<!Arn)Password")


def secret_faults(document: Document) -> list[str]:
    """Tell each place but the secret itself that holds a secret, or would show one."""
    found = []
    for name, output in document["Outputs"].items():
        if SHOWS_A_SECRET.search(json.dumps(output["Value"])) and name != "CredentialsCommand":
            found.append(f"output {name} shows a secret")
    stack = render(document, **FULL)
    for path, leaf in leaves(stack).items():
        if SHOWS_A_SECRET.search(str(leaf)) and path not in {
            "StreamClientCredentials.SecretString",
            "Outputs.CredentialsCommand",
        }:
            found.append(f"{path} holds a secret")
    if re.search(r"\$\{StreamClientKey\.|resolve:", stack["Outputs"].get("CredentialsCommand", "")):
        found.append("output CredentialsCommand shows a secret")
    found += [
        f"parameter {name} is a secret that everybody sees"
        for name, spec in document["Parameters"].items()
        if re.search(r"(Token|Secret|Password)$", name) or "NoEcho" in spec
    ]
    return found
