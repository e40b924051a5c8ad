"""
What no linter looks at: whether the template means what it says.

Each check takes a template as a document and returns its faults, one line each. test_template.py demands that the real
one has none; test_checks.py breaks it in every place that a check is there for, and demands that the check says so.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from botocore import xform_name
from botocore.session import Session

from local.template import TemplateError
from processor.handler import METRICS as OWN_METRICS
from tests.deploy.rendering import FULL, allowed, combinations, leaves, references, render
from tests.docs.documents import anchors

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "operations.md"

Document = Mapping[str, Any]

# What the client's secret holds, by the names that the daemon reads.
SECRET = """\
{
  "AWS_ACCESS_KEY_ID": "${StreamClientKey}",
  "AWS_SECRET_ACCESS_KEY": "${StreamClientKey.SecretAccessKey}",
  "AWS_REGION": "${AWS::Region}",
  "MILLRACE_STREAM": "${EventStream}",
  "MILLRACE_LANES_PER_SHARD": "LANES"
}"""

# ---- Parameters ----

# A parameter, a value that it has not in FULL, and every property that this changes; None is one that goes away.
CHANGES: dict[str, tuple[str | int, dict[str, Any]]] = {
    "ArtifactBucket": ("other", {"DDBEventProcessor.Code.S3Bucket": "other"}),
    "ArtifactKey": ("2.zip", {"DDBEventProcessor.Code.S3Key": "2.zip"}),
    "StreamMode": (
        "ON_DEMAND",
        {"EventStream.StreamModeDetails.StreamMode": "ON_DEMAND", "EventStream.ShardCount": None},
    ),
    "ShardCount": (3, {"EventStream.ShardCount": 3}),
    "StreamRetentionHours": (48, {"EventStream.RetentionPeriodHours": 48}),
    "FunctionMemory": (1769, {"DDBEventProcessor.MemorySize": 1769}),
    "FunctionTimeout": (
        120,
        {"DDBEventProcessor.Timeout": 120, "ProcessorSlowAlarm.Metrics.0.Expression": "duration / 120 / 10"},
    ),
    "FunctionArchitecture": (
        "x86_64",
        {"DDBEventProcessor.Architectures.0": "x86_64", "Cleanup.Architectures.0": "x86_64"},
    ),
    "LogRetentionDays": (
        90,
        {f"{logs}.RetentionInDays": 90 for logs in ("DDBEventProcessorLogs", "CleanupLogs", "ProducerLogs")},
    ),
    "MappingEnabled": ("false", {"EventSourceMapping.Enabled": "false"}),
    "BatchSize": (77, {"EventSourceMapping.BatchSize": 77}),
    "MaximumBatchingWindowInSeconds": (7, {"EventSourceMapping.MaximumBatchingWindowInSeconds": 7}),
    "ParallelizationFactor": (
        4,
        {
            "EventSourceMapping.ParallelizationFactor": 4,
            "StreamClientCredentials.SecretString": SECRET.replace('"LANES"', '"4"'),
            "ProducerTask.ContainerDefinitions.0.Environment.2.Value": 4,
        },
    ),
    "MaximumRetryAttempts": (6, {"EventSourceMapping.MaximumRetryAttempts": 6}),
    "MaximumRecordAgeInSeconds": (3600, {"EventSourceMapping.MaximumRecordAgeInSeconds": 3600}),
    "RetentionDays": (
        9,
        {
            "DDBEventProcessor.Environment.Variables.TTL_DAYS": 9,
            "FailureBucket.LifecycleConfiguration.Rules.0.ExpirationInDays": 9,
        },
    ),
    "TimeShards": (16, {"DDBEventProcessor.Environment.Variables.TIME_SHARDS": 16, "Outputs.TimeShards": 16}),
    "MaxWriteUnits": (
        8,
        {
            f"EventDataTable.{place}OnDemandThroughput.MaxWriteRequestUnits": 8
            for place in ("", "GlobalSecondaryIndexes.0.", "GlobalSecondaryIndexes.1.")
        },
    ),
    "PointInTimeRecovery": (
        "true",
        {"EventDataTable.PointInTimeRecoverySpecification.PointInTimeRecoveryEnabled": "true"},
    ),
    "KeepTable": ("true", {"EventDataTable.DeletionProtectionEnabled": "true"}),
    "IdPointer": ("/event/id", {"DDBEventProcessor.Environment.Variables.ID_POINTER": "/event/id"}),
    "TimePointer": ("/event/time", {"DDBEventProcessor.Environment.Variables.TIME_POINTER": "/event/time"}),
    "ClientKeySerial": (2, {"StreamClientKey.Serial": 2}),
    "ProducerImage": ("image:2", {"ProducerTask.ContainerDefinitions.0.Image": "image:2"}),
    "ProducerTokenSecretArn": (
        "arn:other",
        {
            "ProducerTask.ContainerDefinitions.0.Secrets.0.ValueFrom": "arn:other",
            "ProducerExecutionPolicy.PolicyDocument.Statement.0.Resource": "arn:other",
        },
    ),
    "ProducerRules": ("tea", {"ProducerTask.ContainerDefinitions.0.Environment.4.Value": "tea"}),
    "ProducerVpc": ("vpc-2", {"ProducerSecurityGroup.VpcId": "vpc-2"}),
    "ProducerSubnets": (
        "subnet-1,subnet-2",
        {
            "ProducerService.NetworkConfiguration.AwsvpcConfiguration.Subnets.0": "subnet-1",
            "ProducerService.NetworkConfiguration.AwsvpcConfiguration.Subnets.1": "subnet-2",
        },
    ),
    "ProducerPublicIp": (
        "DISABLED",
        {"ProducerService.NetworkConfiguration.AwsvpcConfiguration.AssignPublicIp": "DISABLED"},
    ),
    "ProducerCpu": (
        "1024",
        {
            "ProducerTask.Cpu": "1024",
            "ProducerTask.Memory": "2048",
            "ProducerTask.ContainerDefinitions.0.Memory": "2048",
        },
    ),
    "ProducerArchitecture": ("ARM64", {"ProducerTask.RuntimePlatform.CpuArchitecture": "ARM64"}),
    "AlarmEmail": ("you@example.org", {"AlarmSubscription.Endpoint": "you@example.org"}),
    "SilentMinutes": (60, {"StreamSilentAlarm.EvaluationPeriods": 60}),
    "PermissionsBoundaryArn": (
        "arn:limit",
        {
            f"{who}.PermissionsBoundary": "arn:limit"
            for who in ("CleanupRole", "DDBEventProcessorRole", "ProducerExecutionRole", "ProducerRole", "StreamClient")
        },
    ),
}

# Parameters that switch whole resources: the value that switches them off, and what is gone then, outputs included.
# Monitoring switches the function's own metrics as well.
SWITCHES: dict[str, tuple[str, str]] = {
    "CreateClient": ("false", r"StreamClient(Group|Key|Credentials)?|AccessKeyId|Credentials(SecretArn|Command)"),
    "ProducerImage": ("", r"Producer\w+"),
    "Monitoring": ("false", r"\w+Alarm|Alarm(Topic|Subscription|TopicArn)|Dashboard"),
    "AlarmEmail": ("", r"AlarmSubscription"),
}


def switch_faults(document: Document) -> list[str]:
    """Tell each parameter that, switched off, leaves something behind, or takes away or changes anything else."""
    found = []
    whole = render(document, **FULL)
    for name, (off, pattern) in SWITCHES.items():
        left = render(document, **{**FULL, name: off})
        for part, before, after in (("", whole, left), ("Outputs.", whole["Outputs"], left["Outputs"])):
            expected = {key for key in before if not re.fullmatch(pattern, key)}
            found += [f"{name} does not take {part}{key} away" for key in sorted(after.keys() - expected)]
            found += [f"{name} takes {part}{key} away" for key in sorted(expected - after.keys())]
            # The dashboard shows the alarms and the service that there are.
            same = expected & after.keys() - {"Outputs", "Dashboard"}
            same -= {"DDBEventProcessor"} if name == "Monitoring" else set()
            found += [f"{name} changes {part}{key}" for key in sorted(same) if before[key] != after[key]]
    return found


def parameter_faults(document: Document, names: Iterable[str] | None = None) -> list[str]:
    """Tell each parameter that does not change what it is named for, or changes anything else."""
    found = []
    try:
        before = leaves(render(document, **FULL))
    except TemplateError as error:
        return [str(error)]
    for name in document["Parameters"] if names is None else names:
        if name in {"CreateClient", "Monitoring", "RunbookUrl"}:
            continue  # what they change is whole resources, and the text of every alarm
        value, expected = CHANGES.get(name, ("", {}))
        try:
            after = leaves(render(document, **{**FULL, name: value}))
        except TemplateError as error:
            found.append(f"{name}: {error}")
            continue
        changes = {
            path: after.get(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path)
        }
        if not expected or changes != expected:
            found.append(f"{name} changes {sorted(changes)}, not {sorted(expected)}")
    return found


# ---- Alarms and dashboard ----

# Which dimensions a metric has, and of what kind of resource they are; from the services' pages "metrics and
# dimensions". CloudWatch takes an alarm on any other without a word, and it never fires.
_BY_STREAM = [{"StreamName"}]
_BY_FUNCTION = [{"FunctionName"}]
_BY_MAPPING = [{"EventSourceMappingUUID"}]
_BY_TABLE_OR_INDEX = [{"TableName"}, {"TableName", "GlobalSecondaryIndexName"}]
_BY_OPERATION = [{"TableName", "Operation"}]
_OWN: dict[str, Any] = dict(OWN_METRICS)
METRICS: dict[str, dict[str, list[set[str]]]] = {
    "AWS/Kinesis": {
        "IncomingRecords": _BY_STREAM,
        "IncomingBytes": _BY_STREAM,
        "PutRecords.ThrottledRecords": _BY_STREAM,
        "PutRecords.Latency": _BY_STREAM,
        "WriteProvisionedThroughputExceeded": _BY_STREAM,
        "ReadProvisionedThroughputExceeded": _BY_STREAM,
        "GetRecords.Records": _BY_STREAM,
        "GetRecords.IteratorAgeMilliseconds": _BY_STREAM,
    },
    "AWS/Lambda": {
        "Invocations": _BY_FUNCTION,
        "Errors": _BY_FUNCTION,
        "Throttles": _BY_FUNCTION,
        "Duration": _BY_FUNCTION,
        "ConcurrentExecutions": _BY_FUNCTION,
        "IteratorAge": _BY_FUNCTION,
        "PolledEventCount": _BY_MAPPING,
        "DroppedEventCount": _BY_MAPPING,
        "OnFailureDestinationDeliveredEventCount": _BY_MAPPING,
    },
    "AWS/DynamoDB": {
        "ConsumedWriteCapacityUnits": _BY_TABLE_OR_INDEX,
        "WriteThrottleEvents": _BY_TABLE_OR_INDEX,
        "SuccessfulRequestLatency": _BY_OPERATION,
        "SystemErrors": _BY_OPERATION,
    },
    "AWS/ECS": {
        "CPUUtilization": [{"ClusterName", "ServiceName"}],
        "MemoryUtilization": [{"ClusterName", "ServiceName"}],
    },
    _OWN["Namespace"]: {
        metric["Name"]: [set(dimensions) for dimensions in _OWN["Dimensions"]] for metric in _OWN["Metrics"]
    },
}
DIMENSIONS = {
    "StreamName": ("AWS::Kinesis::Stream", ""),
    "FunctionName": ("AWS::Lambda::Function", ""),
    "EventSourceMappingUUID": ("AWS::Lambda::EventSourceMapping", ""),
    "TableName": ("AWS::DynamoDB::Table", ""),
    "ClusterName": ("AWS::ECS::Cluster", ""),
    "ServiceName": ("AWS::ECS::Service", ".Name"),
}

Metric = tuple[str, str, dict[str, str]]


def alarm_faults(document: Document) -> list[str]:
    """Tell each alarm and widget that watches nothing, tells nobody, or leads nowhere."""
    stack = render(document, **{**FULL, "RunbookUrl": "RUNBOOK"})
    alarms = {name: item for name, item in stack.items() if item.get("Type") == "AWS::CloudWatch::Alarm"}
    found = [f"{name}: {fault}" for name, alarm in alarms.items() for fault in _faults_of_alarm(stack, alarm)]
    dashboard = json.loads(stack["Dashboard"]["DashboardBody"])
    shown: set[str] = set()
    for widget in dashboard["widgets"]:
        shown |= set(widget["properties"].get("alarms", []))
        for metric in _metrics_of_widget(widget):
            found += [f"Dashboard: {fault}" for fault in _faults_of_metric(stack, metric)]
    if shown != {f"${{{name}.Arn}}" for name in alarms}:
        found.append("Dashboard: it does not show just the alarms that there are")
    return [*found, *_faults_of_coverage(stack, alarms)]


def _faults_of_alarm(stack: Document, alarm: Document) -> Iterator[str]:
    for action in ("AlarmActions", "OKActions"):
        targets = alarm.get(action, [])
        if not targets or {stack.get(target.strip("${}"), {}).get("Type") for target in targets} != {"AWS::SNS::Topic"}:
            yield f"{action} reach no topic"
    link = re.search(r" RUNBOOK#([\w-]+)$", alarm.get("AlarmDescription", ""))
    if not link or link[1] not in anchors(RUNBOOK):
        yield "its description does not end with a link to a section of the runbook"
    # What has too little is worst where there is nothing; what has too much is well there.
    missing = "breaching" if alarm["ComparisonOperator"].startswith("LessThan") else "notBreaching"
    if alarm.get("TreatMissingData") != missing:
        yield f"missing data are {missing} to what it watches, and it does not say so"
    if not 1 <= alarm.get("DatapointsToAlarm", 1) <= alarm["EvaluationPeriods"] <= 1440:
        yield "it looks at a number of periods that CloudWatch does not take"
    metrics = list(_metrics_of_alarm(alarm))
    if not metrics:
        yield "it watches no metric"
    for metric in metrics:
        yield from _faults_of_metric(stack, metric)
    if "Metrics" in alarm:
        (expression,) = (part["Expression"] for part in alarm["Metrics"] if "Expression" in part)
        ids = {part["Id"] for part in alarm["Metrics"] if "MetricStat" in part and part["ReturnData"] is False}
        if ids != set(re.findall(r"\b[a-z]+\b", expression)):
            yield "its expression is not about its metrics"


def _faults_of_metric(stack: Document, metric: Metric) -> Iterator[str]:
    namespace, name, dimensions = metric
    if set(dimensions) not in METRICS.get(namespace, {}).get(name, []):
        yield f"there is no metric {namespace} {name} by {', '.join(sorted(dimensions)) or 'nothing'}"
    for dimension, value in dimensions.items():
        if dimension in DIMENSIONS:
            kind, suffix = DIMENSIONS[dimension]
            good = [f"${{{other}{suffix}}}" for other, item in stack.items() if item.get("Type") == kind]
        elif dimension == "GlobalSecondaryIndexName":
            good = _index_names(stack)
        else:
            good = _operations(stack)
        if value not in good:
            yield f"{dimension} of {namespace} {name} is {value}, which there is not"


def _faults_of_coverage(stack: Document, alarms: Document) -> Iterator[str]:
    watched = [metric for alarm in alarms.values() for metric in _metrics_of_alarm(alarm)]
    throttled = {dims.get("GlobalSecondaryIndexName", "") for _, name, dims in watched if name == "WriteThrottleEvents"}
    if throttled != {"", *_index_names(stack)}:
        yield "no alarm watches the throttles of the table and of each index"
    if {dims.get("Operation") for _, name, dims in watched if name == "SystemErrors"} != {*_operations(stack)}:
        yield "no alarm watches the faults of every operation that the function calls"


def _index_names(stack: Document) -> list[str]:
    return [index["IndexName"] for index in stack["EventDataTable"]["GlobalSecondaryIndexes"]]


def _operations(stack: Document) -> list[str]:
    actions = [action.partition(":") for action, _ in allowed(stack, "DDBEventProcessorPolicy")]
    return [operation for service, _, operation in actions if service == "dynamodb"]


def _metrics_of_alarm(alarm: Document) -> Iterator[Metric]:
    parts = [part["MetricStat"]["Metric"] for part in alarm.get("Metrics", []) if "MetricStat" in part]
    for metric in parts or [alarm]:
        pairs = {dimension["Name"]: dimension["Value"] for dimension in metric.get("Dimensions", [])}
        if "MetricName" in metric:
            yield metric["Namespace"], metric["MetricName"], pairs


def _metrics_of_widget(widget: Document) -> Iterator[Metric]:
    before: list[str] = []
    for row in widget["properties"].get("metrics", []):
        cells = [cell for cell in row if isinstance(cell, str)]
        # A dot repeats what stands in the same place of the row above.
        before = [before[index] if cell == "." else cell for index, cell in enumerate(cells)]
        yield before[0], before[1], dict(zip(before[2::2], before[3::2], strict=True))


# ---- Permissions ----

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
        "DDBEventProcessorPolicy": (_permissions(lambda_sources()) - CONSOLE) | LAMBDA_MAPPING | LAMBDA_LOGS,
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


def lambda_sources() -> list[str]:
    """Return the texts of the modules that the handler is made of: itself, what it imports, and so on."""
    wanted, sources = ["handler"], {}
    while wanted:
        module = wanted.pop()
        if module not in sources:
            sources[module] = (ROOT / "processor" / f"{module}.py").read_text(encoding="utf-8")
            wanted += re.findall(r"^from processor\.(\w+) import", sources[module], re.MULTILINE)
            for names in re.findall(r"^from processor import (.+)$", sources[module], re.MULTILINE):
                wanted += names.split(", ")
    return list(sources.values())


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

# ---- Secrets ----

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


# ---- The whole ----


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
