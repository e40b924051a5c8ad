"""
A faithful X API v2: streams, rules, connections, usage, with faults on demand and an exact ledger.

    server.py     HTTP, and the command line    gate.py      tokens, limits and refusals at the door
    settings.py   how it behaves                rules.py     what a rule means
    feed.py       which posts fall due, to whom rulebook.py  the rules endpoints
    stream.py     one connection and its end    account.py   connections, usage, token endpoints
    ledger.py     what became of each post      answers.py   bodies as X words them
    faults.py     what goes wrong, on demand    admin.py     faults, rate, ledger and statistics over HTTP
"""
