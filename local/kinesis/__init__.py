"""
A strict Kinesis: the published limits, throttles, reshards, faults on demand and a ledger.

    server.py     HTTP, and the command line    shards.py    records, token buckets, the shard map
    api.py        operations that change        stream.py    one stream: put, read, trim, reshard
    views.py      operations that show          account.py   all streams
    requests.py   typed requests                limits.py    limits of a request
    errors.py     codes and wording             faults.py    what goes wrong, on demand
    sigv4.py      the check of signatures       state.py     the state directory
    admin.py      faults, ledger and statistics over HTTP

It plays what Millrace and its operators ask: making, changing, showing and deleting streams, writing and reading.
"""
