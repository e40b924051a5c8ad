"""How a stack is made, changed and deleted, by a CloudFormation that a script moves on."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import pytest
from botocore.exceptions import ClientError

from deploy.stack import KEPT, POLL_SECONDS, Stack, StackError
from tests.deploy.rendering import DOCUMENT

DECLARED = DOCUMENT["Parameters"]
URL = "http://localhost/template"


# The status of a stack, and the events that come with it: resource, status, reason.
State = tuple[str, list[tuple[str, str, str]]]


class Cloud:
    """
    CloudFormation with one stack: a script says which states a stack goes through, and what it then tells.

    Each request moves the stack on to the next state, and each look at it after that; the last one stays.
    """

    def __init__(self, *states: State, exists: bool = True, **parameters: str) -> None:
        self.states = list(states)
        self.exists = exists
        self.parameters = parameters
        self.events: list[dict[str, str]] = []
        self.resources: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.numbers = count()
        self.refusal = ""

    def describe_stacks(self, StackName: str) -> Any:  # noqa: N803  # boto3's name
        if not self.exists:
            raise ClientError(
                {"Error": {"Code": "ValidationError", "Message": "mill does not exist"}}, "DescribeStacks"
            )
        status, told = self.states[0]
        # Told once, and the requests move the stack on.
        if self.requests and len(self.states) > 1:
            self.states.pop(0)
            status, told = self.states[0]
        for logical_id, event, reason in told:
            self.resources[logical_id] = event
            entry = {"EventId": str(next(self.numbers)), "LogicalResourceId": logical_id, "ResourceStatus": event}
            self.events.insert(0, {**entry, "ResourceStatusReason": reason} if reason else entry)
        told.clear()
        parameters = [{"ParameterKey": name, "ParameterValue": value} for name, value in self.parameters.items()]
        outputs = [{"OutputKey": "Region", "OutputValue": "eu-west-1"}]
        stack = {"StackId": "id", "StackStatus": status, "Parameters": parameters, "Outputs": outputs}
        return {"Stacks": [stack]}

    def create_stack(self, **request: Any) -> Any:
        self.exists = True
        self.requests.append(("create", request))
        return {"StackId": "id"}

    def update_stack(self, **request: Any) -> None:
        if self.refusal:
            raise ClientError({"Error": {"Code": "ValidationError", "Message": self.refusal}}, "UpdateStack")
        self.requests.append(("update", request))

    def delete_stack(self, **request: Any) -> None:
        self.requests.append(("delete", request))

    def get_paginator(self, operation: str) -> "Pages":
        return Pages(self, operation)


class Pages:
    def __init__(self, cloud: Cloud, operation: str) -> None:
        self.cloud = cloud
        self.operation = operation

    def paginate(self, StackName: str) -> Iterator[Mapping[str, Any]]:  # noqa: N803  # boto3's name
        if self.operation == "describe_stack_events":
            events = list(self.cloud.events)
            yield {"StackEvents": events[:2]}
            yield {"StackEvents": events[2:]}
        else:
            resources = self.cloud.resources.items()
            yield {
                "StackResourceSummaries": [
                    {"LogicalResourceId": name, "ResourceStatus": state} for name, state in resources
                ]
            }


def of(cloud: Cloud, lines: list[str] | None = None, asleep: list[float] | None = None) -> Stack:
    """Return the stack of this cloud; its lines, and the seconds of each wait, go into lists."""
    say = (lines if lines is not None else []).append
    return Stack("mill", cloud, say=say, sleep=(asleep if asleep is not None else []).append)


class TestDeploy:
    def test_new_stack_that_fails_leaves_nothing(self) -> None:
        """CloudFormation deletes it again, and the user reads what failed and why, not what was cancelled for it."""
        states: tuple[State, ...] = (
            ("", []),
            ("CREATE_IN_PROGRESS", [("mill", "CREATE_IN_PROGRESS", "User Initiated")]),
            (
                "DELETE_COMPLETE",
                [
                    ("EventStream", "CREATE_FAILED", "Limit\n exceeded"),
                    ("EventDataTable", "CREATE_FAILED", "Resource creation cancelled"),
                    ("mill", "DELETE_COMPLETE", ""),
                ],
            ),
        )
        cloud = Cloud(*states, exists=False)
        lines: list[str] = []
        asleep: list[float] = []
        with pytest.raises(StackError) as caught:
            of(cloud, lines, asleep).deploy(URL, DECLARED, {"ShardCount": "2"})
        assert str(caught.value) == "mill: DELETE_COMPLETE\nEventStream: Limit exceeded"
        ((_, request),) = cloud.requests
        assert request["OnFailure"] == "DELETE"
        assert request["Capabilities"] == ["CAPABILITY_IAM"]
        assert request["Parameters"] == [{"ParameterKey": "ShardCount", "ParameterValue": "2"}]
        assert [line.split()[0] for line in lines] == [
            "CREATE_IN_PROGRESS",
            "CREATE_FAILED",
            "CREATE_FAILED",
            "DELETE_COMPLETE",
        ]
        assert asleep == [POLL_SECONDS]

    def test_change_keeps_what_is_not_given(self) -> None:
        """Parameters keep the stack's values; those that the template has no more are left out."""
        states: tuple[State, ...] = (("CREATE_COMPLETE", []), ("UPDATE_COMPLETE", [("mill", "UPDATE_COMPLETE", "")]))
        cloud = Cloud(*states, ShardCount="3", BatchSize="7", Old="x")
        cloud.events.append({"EventId": "old", "LogicalResourceId": "mill", "ResourceStatus": "CREATE_COMPLETE"})
        lines: list[str] = []
        of(cloud, lines).deploy(URL, DECLARED, {"ShardCount": "4"})
        ((kind, request),) = cloud.requests
        assert kind == "update"
        assert {one["ParameterKey"]: one["ParameterValue"] for one in request["Parameters"]} == {
            "ShardCount": "4",
            "BatchSize": "7",
        }
        assert lines == ["  UPDATE_COMPLETE      mill"]

    def test_change_of_nothing_is_no_error(self) -> None:
        """A stack that is as it should be is said to be so."""
        cloud = Cloud(("CREATE_COMPLETE", []))
        cloud.refusal = "No updates are to be performed."
        lines: list[str] = []
        of(cloud, lines).deploy(URL, DECLARED, {})
        assert lines == ["mill is up to date"]

    def test_change_that_is_refused_is_an_error(self) -> None:
        """Any other refusal is passed on."""
        cloud = Cloud(("CREATE_COMPLETE", []))
        cloud.refusal = "Parameter ShardCount failed to satisfy constraint"
        with pytest.raises(ClientError, match="failed to satisfy"):
            of(cloud).deploy(URL, DECLARED, {})

    @pytest.mark.parametrize(
        ("status", "way_out"),
        [
            ("UPDATE_IN_PROGRESS", "try again when that has ended"),
            ("ROLLBACK_COMPLETE", "undeploy it"),
            ("REVIEW_IN_PROGRESS", "undeploy it"),
            ("DELETE_FAILED", "undeploy it"),
            ("UPDATE_ROLLBACK_FAILED", "continue its rollback"),
        ],
    )
    def test_stack_that_cannot_be_changed_is_told_with_the_way_out(self, status: str, way_out: str) -> None:
        """A state in which AWS would refuse the change is named before it is asked for."""
        cloud = Cloud((status, []))
        with pytest.raises(StackError, match=way_out):
            of(cloud).deploy(URL, DECLARED, {})
        assert cloud.requests == []

    @pytest.mark.parametrize("name", ["", "1mill", "mill_race", "mill race", 47 * "x"])
    def test_name_that_is_not_possible_is_refused(self, name: str) -> None:
        """Function and table are named after the stack, so its name has limits."""
        with pytest.raises(StackError, match="at most 46"):
            Stack(name, None)


class TestDelete:
    def test_stack_that_is_not_there_is_no_error(self) -> None:
        """To delete it twice is fine."""
        lines: list[str] = []
        of(Cloud(exists=False), lines).delete()
        assert lines == ["there is no stack mill"]

    def test_resource_that_stays_is_told(self) -> None:
        """What could not be deleted is named with its reason."""
        failed = ("DELETE_FAILED", [("FailureBucketCleanup", "DELETE_FAILED", "out of time; delete the stack again")])
        with pytest.raises(StackError, match="FailureBucketCleanup: out of time"):
            of(Cloud(("CREATE_COMPLETE", []), failed)).delete()

    def test_table_that_is_to_be_kept_is_let_go(self) -> None:
        """Once only the protected table is left, the stack goes without it, and the user is told."""
        states: tuple[State, ...] = (
            ("CREATE_COMPLETE", []),
            ("DELETE_FAILED", [(KEPT, "DELETE_FAILED", "protected"), ("EventStream", "DELETE_COMPLETE", "")]),
            ("DELETE_COMPLETE", [("mill", "DELETE_COMPLETE", "")]),
        )
        cloud = Cloud(*states, KeepTable="true")
        lines: list[str] = []
        of(cloud, lines).delete()
        assert [request.get("RetainResources") for _, request in cloud.requests] == [None, [KEPT]]
        assert lines[-1].startswith("the table mill-EventData stays")

    @pytest.mark.parametrize(("keep", "resource"), [("false", KEPT), ("true", "EventStream")])
    def test_nothing_else_is_let_go(self, keep: str, resource: str) -> None:
        """A table that nobody asked to keep, or another resource, is a failure and not left behind quietly."""
        states: tuple[State, ...] = (("CREATE_COMPLETE", []), ("DELETE_FAILED", [(resource, "DELETE_FAILED", "no")]))
        cloud = Cloud(*states, KeepTable=keep)
        with pytest.raises(StackError, match=resource):
            of(cloud).delete()
        assert len(cloud.requests) == 1
