"""What a stack has told its function: the console then asks and writes by the same settings, whatever they are."""

from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from processor.settings import SettingsError


def settings_of(stack: str, location: Mapping[str, str], connect: Callable[..., Any] | None = None) -> dict[str, str]:
    """
    Return the environment of the stack's function.

    Args:
        stack: its name.
        location: for boto3.client.
        connect: makes a client of Lambda; boto3's own unless given.

    Raises:
        SettingsError: there is no such function in this region, or it may not be looked at.
    """
    function = f"{stack}-DDBEventProcessor"
    try:
        client = (connect or _connect)(**location)
        configuration = client.get_function_configuration(FunctionName=function)
        client.close()
    except (BotoCoreError, ClientError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(
            f"stack {stack}: {function} cannot be asked; check the name and AWS_REGION ({reason})"
        ) from error
    variables: dict[str, str] = configuration["Environment"]["Variables"]
    return variables


def _connect(**location: Any) -> Any:
    import boto3  # noqa: PLC0415 - a quarter of a second that a call for help does not need

    return boto3.client("lambda", **location)
