"""
Reads /metrics of a running daemon once, checks it, and passes it on to standard output, for promtool.

    python .ci/check_metrics.py http://127.0.0.1:8080 | promtool check metrics

Every metric that operators were promised must be there, and every post must have exactly one end. Standard library
only. Exit code 1 and one line for each fault on standard error if not so.
"""

import re
import sys
import urllib.request
from collections import Counter

PROMISED = {
    *("posts_received_total", "posts_recovered_total", "posts_delivered_total", "posts_dropped_total"),
    *("posts_duplicate_total", "posts_buffered", "buffer_bytes", "post_delivery_seconds", "post_lag_seconds"),
    *("put_requests_total", "put_records_total", "put_seconds", "flushes_total", "shard_throttles_total"),
    *("stream_connected", "stream_reconnects_total", "stream_gap_seconds_total", "order_violations_total"),
    *("journal_bytes", "build_info"),
}


def faults(exposition: str) -> list[str]:
    """Return what is wrong with a scrape, one line for each fault."""
    # A family whose labels have not occurred yet has a type and no sample.
    families = set(re.findall(r"^# TYPE millrace_(\w+) ", exposition, re.MULTILINE))
    found = [f"millrace_{name} is not there" for name in sorted(PROMISED - families)]
    posts: Counter[str] = Counter()
    for end, value in re.findall(r"^millrace_posts_(\w+?)(?:_total)?(?:\{.*\})? (\S+)$", exposition, re.MULTILINE):
        posts[end] += int(float(value))
    came = posts["received"] + posts["recovered"]
    went = posts["delivered"] + posts["dropped"] + posts["duplicate"] + posts["buffered"]
    if came != went:
        found.append(f"{came} posts came, but {went} are accounted for: {dict(posts)}")
    return found


def main(url: str) -> int:
    """Check one scrape and return the exit code."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as response:  # noqa: S310 - the caller's own http URL
        exposition = response.read().decode()
    sys.stdout.write(exposition)
    problems = faults(exposition)
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
