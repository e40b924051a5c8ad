"""What each parameter of the template changes, and nothing else: of the checks of checks.py those on parameters."""

import re
from collections.abc import Iterable
from typing import Any

from local.template import TemplateError
from tests.deploy.rendering import FULL, Document, leaves, render

# What the client's secret holds, by the names that the daemon reads.
SECRET = """\
{
  "AWS_ACCESS_KEY_ID": "${StreamClientKey}",
  "AWS_SECRET_ACCESS_KEY": "${StreamClientKey.SecretAccessKey}",
  "AWS_REGION": "${AWS::Region}",
  "MILLRACE_STREAM": "${EventStream}",
  "MILLRACE_LANES_PER_SHARD": "LANES"
}"""

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
