"""What a stack has told its function: the console then asks and writes by the same settings, whatever they are."""

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from processor.settings import SettingsError


def settings_of(stack: str, location: Mapping[str, Any]) -> dict[str, str]:
    """
    Return the environment of the stack's function; `location` is for boto3.client.

    Raises:
        SettingsError: there is no such function in this region, or it may not be looked at.
    """
    import boto3  # noqa: PLC0415 - a quarter of a second that a call for help does not need

    function = f"{stack}-DDBEventProcessor"
    try:
        client = boto3.client("lambda", **location)
        configuration = client.get_function_configuration(FunctionName=function)
        client.close()
    except (BotoCoreError, ClientError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(
            f"stack {stack}: {function} cannot be asked; check name, AWS_REGION and credentials ({reason})"
        ) from error
    return dict(configuration["Environment"]["Variables"])
