"""Breaks the template in memory in every place that a check is there for: a check that cannot fail proves nothing."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import combinations
from typing import Any

import pytest

from tests.deploy.checks import CHECKS, deletion_faults, reference_faults, size_faults
from tests.deploy.checks_alarms import alarm_faults
from tests.deploy.checks_parameters import CHANGES, parameter_faults, switch_faults
from tests.deploy.checks_rights import calls, permission_faults, secret_faults
from tests.deploy.rendering import DOCUMENT

RESOURCES = DOCUMENT["Resources"]
ALARMS = [name for name, resource in RESOURCES.items() if resource["Type"] == "AWS::CloudWatch::Alarm"]
POLICIES = [name for name, resource in RESOURCES.items() if resource["Type"] == "AWS::IAM::ManagedPolicy"]
STATEMENTS = [
    (name, index)
    for name in POLICIES
    for index in range(len(RESOURCES[name]["Properties"]["PolicyDocument"]["Statement"]))
]


Document = dict[str, Any]


def copy() -> Document:
    """Return a template to break."""
    return deepcopy(dict(DOCUMENT))


@pytest.fixture
def document() -> Document:
    """A template to break."""
    return copy()


def swapped(one: str, other: str) -> dict[str, Any]:
    """Return the template with two parameters in each other's places."""
    names = {one: other, other: one}

    def swap(node: Any) -> Any:
        if isinstance(node, dict):
            if isinstance(node.get("Ref"), str):
                return {"Ref": names.get(node["Ref"], node["Ref"])}
            return {key: swap(value) for key, value in node.items()}
        if isinstance(node, list):
            return [swap(value) for value in node]
        if isinstance(node, str):
            return (
                node.replace(f"${{{one}}}", "${-}")
                .replace(f"${{{other}}}", f"${{{one}}}")
                .replace("${-}", f"${{{other}}}")
            )
        return node

    return {**DOCUMENT, "Resources": swap(DOCUMENT["Resources"])}


def dimensions(alarm: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Give each list of dimensions of an alarm, to change it."""
    for part in alarm.get("Metrics", []):
        if "MetricStat" in part:
            yield part["MetricStat"]["Metric"]["Dimensions"]
    if "Dimensions" in alarm:
        yield alarm["Dimensions"]


@pytest.mark.parametrize("check", CHECKS)
def test_template_passes(check: Any) -> None:
    """The template as it is has no fault that any check knows."""
    assert check(DOCUMENT) == []


class TestParameterFaults:
    def test_swapped_parameters_are_reported(self) -> None:
        """Whichever two parameters of one type change places, it is noticed."""
        types = {name: DOCUMENT["Parameters"][name]["Type"] for name in CHANGES}
        pairs = [(one, other) for one, other in combinations(CHANGES, 2) if types[one] == types[other]]
        assert [pair for pair in pairs if not parameter_faults(swapped(*pair), pair[:1])] == []

    @pytest.mark.parametrize("name", CHANGES)
    def test_parameter_that_reaches_nothing_is_reported(self, document: Document, name: str) -> None:
        """A constant in the place of a parameter is noticed."""
        constant = DOCUMENT["Parameters"][name].get("Default", "x")

        def fix(node: Any) -> Any:
            if isinstance(node, dict):
                return constant if node == {"Ref": name} else {key: fix(value) for key, value in node.items()}
            if isinstance(node, list):
                return [fix(value) for value in node]
            return node.replace(f"${{{name}}}", str(constant)) if isinstance(node, str) else node

        document["Resources"] = fix(document["Resources"])
        assert parameter_faults(document, [name])

    def test_parameter_that_the_check_does_not_know_is_reported(self, document: Document) -> None:
        """A new parameter has to be added to the table of what it changes."""
        document["Parameters"]["New"] = {"Type": "String", "Default": "x", "Description": "New."}
        assert parameter_faults(document, ["New"])


class TestSwitchFaults:
    @pytest.mark.parametrize(("name", "condition"), [("StreamSilentAlarm", "IsMailed"), ("ProducerLogs", "HasClient")])
    def test_condition_that_is_another_is_reported(self, document: Document, name: str, condition: str) -> None:
        """What goes with a switch that it has nothing to do with is noticed."""
        document["Resources"][name]["Condition"] = condition
        assert reference_faults(document) or switch_faults(document)

    @pytest.mark.parametrize("name", [name for name, resource in RESOURCES.items() if "Condition" in resource])
    def test_condition_that_is_missing_is_reported(self, document: Document, name: str) -> None:
        """Whatever a switch should take away, it is noticed if it stays or breaks the stack."""
        del document["Resources"][name]["Condition"]
        assert reference_faults(document) or switch_faults(document)


class TestAlarmFaults:
    @pytest.mark.parametrize("name", ALARMS)
    def test_dropped_dimension_is_reported(self, name: str) -> None:
        """An alarm that lost any one of its dimensions would never fire."""
        count = len(list(dimensions(RESOURCES[name]["Properties"])))
        for index in range(count):
            for place in range(len(list(dimensions(RESOURCES[name]["Properties"]))[index])):
                document = copy()
                del list(dimensions(document["Resources"][name]["Properties"]))[index][place]
                assert alarm_faults(document)

    @pytest.mark.parametrize("name", ALARMS)
    def test_dimension_of_another_resource_is_reported(self, name: str) -> None:
        """A dimension that names what is no such thing watches nothing."""
        for index in range(len(list(dimensions(RESOURCES[name]["Properties"])))):
            document = copy()
            list(dimensions(document["Resources"][name]["Properties"]))[index][0]["Value"] = {"Ref": "FailureBucket"}
            assert any(fault.startswith(name) for fault in alarm_faults(document))

    @pytest.mark.parametrize("name", ALARMS)
    @pytest.mark.parametrize("key", ["AlarmActions", "OKActions", "TreatMissingData"])
    def test_alarm_that_tells_nobody_is_reported(self, document: Document, name: str, key: str) -> None:
        """Each alarm says when it goes on and off, and what silence means."""
        del document["Resources"][name]["Properties"][key]
        assert any(fault.startswith(name) for fault in alarm_faults(document))

    @pytest.mark.parametrize("name", ALARMS)
    def test_silence_that_means_the_wrong_thing_is_reported(self, document: Document, name: str) -> None:
        """An alarm for too little would sleep when nothing comes at all; one for too much would always ring."""
        alarm = document["Resources"][name]["Properties"]
        alarm["TreatMissingData"] = "breaching" if alarm["TreatMissingData"] == "notBreaching" else "notBreaching"
        assert any(fault.startswith(name) for fault in alarm_faults(document))

    @pytest.mark.parametrize("name", ALARMS)
    @pytest.mark.parametrize("text", ["No link.", "${RunbookUrl}#nowhere", "elsewhere.md#the-table-falls-behind"])
    def test_link_that_leads_nowhere_is_reported(self, document: Document, name: str, text: str) -> None:
        """The link of an alarm is to a section that there is."""
        document["Resources"][name]["Properties"]["AlarmDescription"] = {"Fn::Sub": text}
        assert any(fault.startswith(name) for fault in alarm_faults(document))

    def test_misspelt_metric_is_reported(self, document: Document) -> None:
        """CloudWatch would wait for it for ever."""
        document["Resources"]["ProcessorErrorsAlarm"]["Properties"]["MetricName"] = "Error"
        assert alarm_faults(document) == ["ProcessorErrorsAlarm: there is no metric AWS/Lambda Error by FunctionName"]

    @pytest.mark.parametrize("metric", ["UserErrors", "ThrottledRequests", "SystemErrors"])
    def test_metric_that_is_not_of_a_table_alone_is_reported(self, document: Document, metric: str) -> None:
        """These three are of the account, or of an operation: alarms on them by a table's name never fire."""
        alarm = document["Resources"]["TableThrottledAlarm"]["Properties"]
        alarm["Metrics"][1]["MetricStat"]["Metric"]["MetricName"] = metric
        assert f"TableThrottledAlarm: there is no metric AWS/DynamoDB {metric} by TableName" in alarm_faults(document)

    def test_index_that_nobody_watches_is_reported(self, document: Document) -> None:
        """A new index needs its place in the alarm: it throttles the table."""
        indexes = document["Resources"]["EventDataTable"]["Properties"]["GlobalSecondaryIndexes"]
        indexes.append({**indexes[0], "IndexName": "ByRule"})
        assert alarm_faults(document) == ["no alarm watches the throttles of the table and of each index"]

    def test_operation_that_nobody_watches_is_reported(self, document: Document) -> None:
        """A new permission of the function needs its place in the alarm on faults."""
        statement = document["Resources"]["DDBEventProcessorPolicy"]["Properties"]["PolicyDocument"]["Statement"][1]
        statement["Action"] = [*statement["Action"], "dynamodb:PutItem"]
        assert alarm_faults(document) == ["no alarm watches the faults of every operation that the function calls"]

    def test_expression_without_its_metric_is_reported(self, document: Document) -> None:
        """A metric that the expression leaves out is not watched."""
        metrics = document["Resources"]["GivenUpAlarm"]["Properties"]["Metrics"]
        metrics[0]["Expression"] = "FILL(dropped, 0)"
        assert alarm_faults(document) == ["GivenUpAlarm: its expression is not about its metrics"]

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"IncomingBytes", "StreamName", "${EventStream}"', '"IncomingBytes"'),
            ('"Operation", "BatchWriteItem",', '"Operation", "Scan",'),
            ('"${EventSourceMapping}"', '"${EventStream}"'),
            ('"${QuarantineAlarm.Arn}", ', ""),
            ('".", "ByTime"', '".", "ByRule"'),
        ],
    )
    def test_widget_that_shows_nothing_is_reported(self, document: Document, old: str, new: str) -> None:
        """The dashboard shows metrics that there are, and all the alarms."""
        body = document["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
        assert old in body[0]
        body[0] = body[0].replace(old, new)
        assert any(fault.startswith("Dashboard") for fault in alarm_faults(document))


class TestPermissionFaults:
    @pytest.mark.parametrize(("policy", "index"), STATEMENTS)
    def test_widened_statement_is_reported(self, policy: str, index: int) -> None:
        """A wildcard in the place of actions, another action beside them, or a wider resource is too much."""
        original = RESOURCES[policy]["Properties"]["PolicyDocument"]["Statement"][index]
        actions = original["Action"] if isinstance(original["Action"], list) else [original["Action"]]
        service = actions[0].partition(":")[0]
        changes: list[dict[str, Any]] = [
            {"Action": f"{service}:*"},
            {"Action": "*"},
            {"Action": [*actions, f"{service}:Another"]},
        ]
        changes += [{"Action": [other for other in actions if other != action] or "none:None"} for action in actions]
        if original["Resource"] != "*":
            changes.append({"Resource": "*"})
            changes.append({"Resource": [original["Resource"], "arn:other"]})
        for change in changes:
            document = copy()
            document["Resources"][policy]["Properties"]["PolicyDocument"]["Statement"][index] |= change
            assert any(fault.startswith(policy) for fault in permission_faults(document)), change

    def test_policy_that_nobody_knows_is_reported(self, document: Document) -> None:
        """A further policy needs a line that says what it is for."""
        document["Resources"]["Another"] = document["Resources"]["CleanupPolicy"]
        assert permission_faults(document) == ["Another: nobody knows what it is for"]

    def test_new_call_of_the_inline_code_is_reported(self, document: Document) -> None:
        """Code that calls what its role does not cover is noticed before it fails in an account."""
        code = document["Resources"]["Cleanup"]["Properties"]["Code"]
        code["ZipFile"] += "\n\ndef more(s3):\n    s3.head_bucket(Bucket='x')\n"
        assert permission_faults(document) == ["CleanupPolicy: s3:HeadBucket is needed and not there"]

    def test_calls_are_found_by_method_and_by_name(self) -> None:
        """boto3's methods, its paginators and the names of the protocol are all calls."""
        source = "client.put_object(Key=1)\nclient.get_paginator('query')\nsend('BatchGetItem', body)\nclient.close()\n"
        assert calls(source) == {"s3:PutObject", "dynamodb:Query", "dynamodb:BatchGetItem"}


class TestSecretFaults:
    @pytest.mark.parametrize("name", DOCUMENT["Outputs"])
    @pytest.mark.parametrize(
        "value",
        [
            {"Fn::GetAtt": ["StreamClientKey", "SecretAccessKey"]},
            {"Fn::Sub": "key ${StreamClientKey.SecretAccessKey}"},
            {"Fn::Sub": "{{resolve:secretsmanager:${StreamClientCredentials}}}"},
        ],
    )
    def test_secret_in_an_output_is_reported(self, document: Document, name: str, value: Any) -> None:
        """Whichever output shows a secret, in whatever spelling, is noticed."""
        document["Outputs"][name]["Value"] = value
        assert secret_faults(document)

    def test_secret_in_a_property_is_reported(self, document: Document) -> None:
        """The environment of a function or a task is no place for the key."""
        variables = document["Resources"]["DDBEventProcessor"]["Properties"]["Environment"]["Variables"]
        variables["KEY"] = {"Fn::GetAtt": ["StreamClientKey", "SecretAccessKey"]}
        assert secret_faults(document) == ["DDBEventProcessor.Environment.Variables.KEY holds a secret"]

    @pytest.mark.parametrize("name", ["BearerToken", "Password", "ClientSecret"])
    def test_secret_parameter_is_reported(self, document: Document, name: str) -> None:
        """Whoever may describe the stack sees its parameters, so a secret is named by its ARN."""
        document["Parameters"][name] = {"Type": "String", "Default": ""}
        assert secret_faults(document) == [f"parameter {name} is a secret that everybody sees"]


class TestReferenceFaults:
    @pytest.mark.parametrize("name", [name for name, output in DOCUMENT["Outputs"].items() if "Condition" in output])
    def test_output_without_its_condition_is_reported(self, document: Document, name: str) -> None:
        """An output of something that is switched off breaks the stack."""
        del document["Outputs"][name]["Condition"]
        assert reference_faults(document)

    def test_dependency_on_what_is_switched_off_is_reported(self, document: Document) -> None:
        """DependsOn is a reference as well."""
        document["Resources"]["EventStream"]["DependsOn"] = "AlarmTopic"
        assert "EventStream depends on AlarmTopic, which is not there" in reference_faults(document)


class TestSizeFaults:
    def test_name_that_is_too_long_is_reported(self, document: Document) -> None:
        """One character more than the longest stack name leaves room for."""
        document["Resources"]["DDBEventProcessor"]["Properties"]["FunctionName"] = {
            "Fn::Sub": "${AWS::StackName}-DDBEventProcessors"
        }
        assert size_faults(document) == ["DDBEventProcessor.FunctionName has 65 characters, and AWS takes 64"]

    def test_text_that_is_missing_or_too_long_is_reported(self, document: Document) -> None:
        """Each parameter and output is described."""
        document["Parameters"]["BatchSize"]["Description"] = ""
        document["Outputs"]["Region"]["Description"] = 1024 * "x" + "."
        document["Description"] = "short"
        assert len(size_faults(document)) == 3


class TestDeletionFaults:
    @pytest.mark.parametrize("policy", ["DeletionPolicy", "UpdateReplacePolicy"])
    def test_resource_that_is_kept_is_reported(self, document: Document, policy: str) -> None:
        """Nothing outlives the stack unasked."""
        document["Resources"]["EventDataTable"][policy] = "Retain"
        assert deletion_faults(document) == [f"EventDataTable: {policy} keeps it"]

    def test_protection_by_default_is_reported(self, document: Document) -> None:
        """The table is protected for those who ask for it."""
        document["Parameters"]["KeepTable"]["Default"] = "true"
        assert deletion_faults(document) == ["EventDataTable.DeletionProtectionEnabled keeps it"]

    def test_log_group_that_lambda_would_make_is_reported(self, document: Document) -> None:
        """A function without a log group of the stack leaves one behind; so does one that may make them."""
        del document["Resources"]["Cleanup"]["Properties"]["LoggingConfig"]
        statement = document["Resources"]["CleanupPolicy"]["Properties"]["PolicyDocument"]["Statement"][2]
        statement["Action"] = [*statement["Action"], "logs:CreateLogGroup"]
        assert len(deletion_faults(document)) == 2

    def test_function_that_outlives_the_cleanup_is_reported(self, document: Document) -> None:
        """Nothing may write into the bucket after it was emptied."""
        del document["Resources"]["DDBEventProcessor"]["DependsOn"]
        assert deletion_faults(document) == ["the function could write into the failure bucket after it was emptied"]
