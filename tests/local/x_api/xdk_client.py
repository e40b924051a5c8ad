"""
A user's program with X's own client, xdk; it runs in an environment of its own.

    xdk_client.py URL POSTS

It adds, tries, lists and deletes rules, reads the filtered stream until it has so many posts, whatever happens to the
connection, asks for connections and usage, and prints what it saw as JSON.
"""

import json
import sys
from typing import Any

from xdk import Client  # type: ignore[import-not-found]  # not in this environment
from xdk.stream.models import UpdateRulesRequest  # type: ignore[import-not-found]
from xdk.streaming import StreamConfig  # type: ignore[import-not-found]


def main(url: str, posts: int) -> None:
    """Do all of it."""
    seen: dict[str, Any] = {}
    client = Client(base_url=url, bearer_token="t")
    # Only good ones: of X's recorded refusals of a rule, xdk 0.10.6 can read none.
    add = {"add": [{"value": "millrace", "tag": "all"}, {"value": "never matched"}]}
    seen["dry"] = client.stream.update_rules(UpdateRulesRequest(**add), dry_run=True).model_dump()["meta"]
    seen["added"] = client.stream.update_rules(UpdateRulesRequest(**add)).model_dump()["meta"]
    seen["rules"] = [rule for page in client.stream.get_rules() for rule in page.model_dump()["data"]]
    seen["counts"] = client.stream.get_rule_counts().model_dump()["data"]
    seen["posts"] = []
    config = StreamConfig(initial_backoff=0.1, timeout=20)
    for post in client.stream.posts(tweet_fields=["author_id", "created_at"], stream_config=config):
        seen["posts"].append(post.model_dump()["data"]["id"])
        if len(seen["posts"]) == posts:
            break
    history = next(iter(client.connections.get_connection_history(status="all")))
    seen["connections"] = history.model_dump()["data"]
    seen["usage"] = client.usage.get().model_dump()["data"]
    gone = client.stream.update_rules({"delete": {"ids": [rule["id"] for rule in seen["rules"]]}})
    seen["deleted"] = gone.model_dump()["meta"]
    sys.stdout.write(json.dumps(seen, default=str))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
