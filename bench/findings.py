"""What `bench.check` has found in a run; apart from it, because the benchmark's own process must stay small."""

from dataclasses import dataclass, field


@dataclass
class Findings:
    """
    The result of a check.

    Attributes:
        sent: posts that the peer was given.
        lost: of these, how many did not arrive.
        repeated: copies after the first.
        unknown: posts that arrived and were not sent, or arrived changed.
        damaged: aggregated records that cannot be read.
        over_limit: requests or records larger than Kinesis takes.
        out_of_order: posts that arrived behind a later one of their key.
        wrong_shard: copies of posts on a shard that their key does not lead to.
        records: Kinesis records.
        stored: bytes of these: data and partition keys, as Kinesis counts them.
        units: PUT payload units of these, which Kinesis bills.
        latency: percentile, as text -> milliseconds; empty where it was not measured.
    """

    sent: int
    lost: int = 0
    repeated: int = 0
    unknown: int = 0
    damaged: int = 0
    over_limit: int = 0
    out_of_order: int = 0
    wrong_shard: int = 0
    records: int = 0
    stored: int = 0
    units: int = 0
    latency: dict[str, float] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """Name what must not be; a run with faults has no figures."""
        names = ("lost", "repeated", "unknown", "damaged", "over_limit")
        return [f"{getattr(self, name):,} {name.replace('_', ' ')}" for name in names if getattr(self, name)]
