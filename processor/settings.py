"""
What the function is told by its environment; the console reads the same.

    TABLE                      the table's name
    QUARANTINE                 s3://bucket/prefix, or a directory
    TTL_DAYS                   30; 0 keeps for ever
    TIME_SHARDS                4
    ID_POINTER, TIME_POINTER   for records that are no posts of X
    METRICS                    true; false leaves it at the log line, of which CloudWatch then makes no metrics

Region, endpoint and credentials are botocore's own.
"""

from collections.abc import Mapping
from typing import NamedTuple

from processor.items import Shape


class SettingsError(Exception):
    """The environment is not usable. The text is one line that names each fault and the way out."""


class Settings(NamedTuple):
    """What the function is told by its environment."""

    table: str
    quarantine: str
    shape: Shape
    with_metrics: bool
    function_name: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read all of it, or raise SettingsError with all faults."""
        faults: list[str] = []
        table = environ.get("TABLE", "")
        if not table:
            faults.append("TABLE is missing: set it to the name of the table")
        quarantine = environ.get("QUARANTINE", "")
        if not quarantine.removeprefix("s3://").strip("/"):
            faults.append("QUARANTINE is missing: set it to s3://bucket/prefix or to a directory")
        metrics = environ.get("METRICS", "true")
        if metrics not in {"true", "false"}:
            faults.append(f"METRICS is {metrics!r}: set it to true or false")
        shape = shape_from(environ, faults)
        if faults:
            raise SettingsError("; ".join(faults))
        return cls(table, quarantine, shape, metrics == "true", environ.get("AWS_LAMBDA_FUNCTION_NAME", "local"))


def shape_from(environ: Mapping[str, str], faults: list[str]) -> Shape:
    """Return the settings that decide about items; what is wrong with them is added to `faults`."""
    ttl_days = _number(environ, "TTL_DAYS", Shape().ttl_days, 0, 36_500, faults)
    time_shards = _number(environ, "TIME_SHARDS", Shape().time_shards, 1, 1_000, faults)
    id_pointer, time_pointer = (_pointer(environ, name, faults) for name in ("ID_POINTER", "TIME_POINTER"))
    if time_pointer and not id_pointer:
        faults.append("TIME_POINTER is set and ID_POINTER is not: posts of X need neither, other records need both")
    return Shape(ttl_days, time_shards, id_pointer, time_pointer)


def _pointer(environ: Mapping[str, str], name: str, faults: list[str]) -> str:
    pointer = environ.get(name) or ""
    if pointer and not pointer.startswith("/"):
        faults.append(f"{name} is {pointer!r}: set it to a JSON pointer such as /event/id, or leave it away")
    return pointer


def is_whole(text: str, least: int, most: int) -> bool:
    """Tell whether a text is a whole number from `least` to `most`."""
    return text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most


def _number(environ: Mapping[str, str], name: str, default: int, least: int, most: int, faults: list[str]) -> int:
    text = environ.get(name) or str(default)
    if is_whole(text, least, most):
        return int(text)
    faults.append(f"{name} is {text!r}: set it to a whole number from {least} to {most}")
    return default
