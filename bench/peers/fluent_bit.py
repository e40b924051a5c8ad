"""
Fluent Bit, where it is installed: its own plugin for Kinesis, written in C.

It gets the file by its name, and takes each line as text: that is its cheapest way. What arrives is then the line as
the inside of a JSON string, escaped, and ends with a line end; the check undoes that. Parsing the lines as JSON instead
costs it half as much again. It chooses the partition keys by chance and has no setting for them, so its posts
keep no order. It speaks TLS only.
"""

from pathlib import Path

PROGRAM = "fluent-bit"

_CONFIGURATION = """\
[SERVICE]
    flush 0.1
    grace 5
    log_level warn

[INPUT]
    name tail
    path {posts}
    read_from_head on
    exit_on_eof on
    buffer_chunk_size 1M
    buffer_max_size 4M

[OUTPUT]
    name kinesis_streams
    match *
    region us-east-1
    stream bench
    log_key log
    endpoint localhost
    port {port}
    tls.ca_file {certificate}
"""


def command(directory: Path, posts: Path, url: str, certificate: Path) -> list[str]:
    """Write its configuration into a directory and return how it is started."""
    configuration = directory / "fluent-bit.conf"
    port = url.rpartition(":")[2]
    configuration.write_text(_CONFIGURATION.format(posts=posts, port=port, certificate=certificate), encoding="utf-8")
    return [PROGRAM, "--quiet", "--config", str(configuration)]
