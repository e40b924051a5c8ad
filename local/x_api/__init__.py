"""
A faithful X API v2: streams, rules, connections, usage, with faults on demand and an exact ledger.

    server.py     HTTP, and the command line    gate.py       tokens, limits and refusals at the entrance
    settings.py   how it behaves                door.py       the address: open, closed, or a hole
    clock.py      its time                      answers.py    bodies as X words them
    feed.py       which posts fall due, to whom rules.py      what a rule means
    archive.py    the past, for backfill        rulebook.py   the app's rules, and what X says of them
    stream.py     one connection                endpoints.py  the streams there are, and their partitions
    layout.py     where its chunks end          account.py    rules, connections, usage, tokens
    endings.py    how it can end                admin.py      faults, rate, clock, ledger and statistics over HTTP
    faults.py     what goes wrong, on demand    ledger.py     what became of each post
    fields.py     what a request wants to see
"""
