"""
A stack through CloudFormation: made or changed, followed event by event, deleted.

Rules and traps:

* A creation that fails is deleted by CloudFormation itself; a change that fails goes back to what was before. For that
  it needs the old code, so that is deleted only after a change has succeeded.
* Parameters that are not given keep the value that the stack has.
* A table that the stack is told to keep stops the deletion of the stack at the end. It is then let go and stays.
* Stacks in a few states can only be deleted, or have to be waited for; AWS says so in words that do not help.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

# Names of function and table hold it, and the function's may have 64 characters.
STACK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,45}")
POLL_SECONDS = 3.0
# A stack in one of these can only be deleted.
HOPELESS = {"CREATE_FAILED", "DELETE_FAILED", "REVIEW_IN_PROGRESS", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED"}
KEPT = "EventDataTable"
UNCHANGED = "No updates are to be performed"


class StackError(Exception):
    """The stack is not what it should be. The text says in one or more lines what failed, and the way out."""


def check_names(parameters: Mapping[str, str], declared: Mapping[str, Any]) -> None:
    """Raise StackError if one of the parameters is not declared by the template."""
    if unknown := sorted(parameters.keys() - declared.keys()):
        raise StackError(f"{unknown[0]} is no parameter of the template; there are: {', '.join(declared)}")


class Stack:
    """
    A stack by its name.

    Args:
        name: letters, digits and hyphens, at most 46.
        cloudformation: boto3's client.
        say: takes a line for the user.
        sleep: waits that many seconds.

    Raises:
        StackError: the name is not possible.
    """

    def __init__(
        self,
        name: str,
        cloudformation: Any,
        *,
        say: Callable[[str], None] = print,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not STACK_NAME.fullmatch(name):
            raise StackError(
                f"{name!r} is no name for the stack: a letter, then letters, digits and hyphens, at most 46 in all"
            )
        self._name = name
        self._cloudformation = cloudformation
        self._say = say
        self._sleep = sleep

    def deploy(self, template_url: str, declared: Mapping[str, Any], parameters: Mapping[str, str]) -> None:
        """
        Make the stack, or change it to what is given.

        Args:
            template_url: where the template lies.
            declared: the template's parameters.
            parameters: values for some of them.

        Raises:
            StackError: the stack cannot be changed, or CloudFormation failed.
        """
        stack = self._describe()
        request: dict[str, Any] = {"TemplateURL": template_url, "Capabilities": ["CAPABILITY_IAM"]}
        given = [{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()]
        if stack is None:
            stack_id = self._cloudformation.create_stack(
                StackName=self._name, **request, Parameters=given, OnFailure="DELETE"
            )["StackId"]
            self._follow(stack_id, set(), "CREATE_COMPLETE")
            return
        self._check_state(stack["StackStatus"])
        # None of them is hidden from describe-stacks, so they can be sent as they are.
        kept = [
            parameter
            for parameter in stack.get("Parameters", [])
            if parameter["ParameterKey"] in declared.keys() - parameters.keys()
        ]
        seen = self._seen(stack["StackId"])
        try:
            self._cloudformation.update_stack(StackName=self._name, **request, Parameters=given + kept)
        except ClientError as error:
            if UNCHANGED not in str(error):
                raise
            self._say(f"{self._name} is up to date")
            return
        self._follow(stack["StackId"], seen, "UPDATE_COMPLETE")

    def delete(self) -> None:
        """Delete the stack, if there is one; StackError if something of it cannot be deleted."""
        stack = self._describe()
        if stack is None:
            self._say(f"there is no stack {self._name}")
            return
        keep = {parameter["ParameterKey"]: parameter["ParameterValue"] for parameter in stack.get("Parameters", [])}
        try:
            self._remove(stack["StackId"])
        except StackError:
            if keep.get("KeepTable") != "true" or self._undeleted(stack["StackId"]) != {KEPT}:
                raise
            self._remove(stack["StackId"], RetainResources=[KEPT])
            self._say(
                f"the table {self._name}-EventData stays, because KeepTable is true; it is protected from deletion"
            )

    def outputs(self) -> dict[str, str]:
        """Return the stack's outputs by name; nothing where there is no stack."""
        stack = self._describe() or {}
        return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}

    def _describe(self) -> Mapping[str, Any] | None:
        try:
            (stack,) = self._cloudformation.describe_stacks(StackName=self._name)["Stacks"]
        except ClientError as error:
            # It has no code of its own.
            if "does not exist" in str(error):
                return None
            raise
        found: Mapping[str, Any] = stack
        return found

    def _check_state(self, status: str) -> None:
        # REVIEW_IN_PROGRESS is of a change set that was never carried out: a stack of nothing, and nothing goes on.
        if status.endswith("_IN_PROGRESS") and status not in HOPELESS:
            raise StackError(f"{self._name} is busy ({status}): try again when that has ended")
        if status in HOPELESS:
            raise StackError(f"{self._name} cannot be changed any more ({status}): undeploy it, then deploy it again")
        if status == "UPDATE_ROLLBACK_FAILED":
            raise StackError(f"{self._name} is stuck ({status}): continue its rollback in the CloudFormation console")

    def _remove(self, stack_id: str, **options: Any) -> None:
        seen = self._seen(stack_id)
        self._cloudformation.delete_stack(StackName=self._name, **options)
        self._follow(stack_id, seen, "DELETE_COMPLETE")

    def _undeleted(self, stack_id: str) -> set[str]:
        summaries = self._cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack_id)
        return {
            resource["LogicalResourceId"]
            for page in summaries
            for resource in page["StackResourceSummaries"]
            if resource["ResourceStatus"] != "DELETE_COMPLETE"
        }

    def _follow(self, stack_id: str, seen: set[str], goal: str) -> None:
        """Tell each event that is not in `seen` until the stack is at rest; StackError unless that is the goal."""
        reasons: list[str] = []
        while True:
            (stack,) = self._cloudformation.describe_stacks(StackName=stack_id)["Stacks"]
            # After the state, so that no event before the end is missed.
            for event in reversed([event for event in self._events(stack_id) if event["EventId"] not in seen]):
                seen.add(event["EventId"])
                reason = " ".join(event.get("ResourceStatusReason", "").split())
                status = event["ResourceStatus"]
                self._say(f"  {status:<20} {event['LogicalResourceId']}" + (f"  {reason}" if reason else ""))
                # What was only stopped for the failure of another is no reason.
                if status.endswith("_FAILED") and reason and "cancelled" not in reason:
                    reasons.append(f"{event['LogicalResourceId']}: {reason}")
            status = stack["StackStatus"]
            if not status.endswith("_IN_PROGRESS"):
                break
            self._sleep(POLL_SECONDS)
        if status != goal:
            raise StackError("\n".join([f"{self._name}: {status}", *reasons]))

    def _seen(self, stack_id: str) -> set[str]:
        return {event["EventId"] for event in self._events(stack_id)}

    def _events(self, stack_id: str) -> Iterator[Mapping[str, Any]]:
        """Give all events, the newest first."""
        for page in self._cloudformation.get_paginator("describe_stack_events").paginate(StackName=stack_id):
            yield from page["StackEvents"]
