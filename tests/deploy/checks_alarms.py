"""What CloudWatch watches and shows: of the checks of checks.py those on alarms and the dashboard."""

import json
import re
from collections.abc import Iterator
from typing import Any

from processor.handler import METRICS as OWN_METRICS
from tests.deploy.rendering import FULL, Document, allowed, render
from tests.docs.documents import ROOT, anchors

RUNBOOK = ROOT / "docs" / "operations.md"

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
