from hashlib import md5

from local.x_api.ledger import DISCARDED, UNSENT, WRITTEN, ConnectionRecord, Ledger, Row


def filled() -> Ledger:
    """Return a ledger with four posts on a connection and one on none."""
    ledger = Ledger()
    ledger.connections.append(ConnectionRecord(1, "u", "filtered_stream", "secret", "127.0.0.1", 0.0))
    for number in range(1, 5):
        ledger.add(str(number), "author" if number % 2 else str(number), b"line %d" % number, 1)
    ledger.add("5", "5", b"line 5", 0, UNSENT)
    return ledger


def test_rows_come_in_the_order_of_sending() -> None:
    """Each has id, key, digest, state and connection."""
    ledger = filled()
    ledger.settle([0, 1], WRITTEN)
    ledger.settle([3], DISCARDED)
    states = ["written", "written", "queued", "discarded", "unsent"]
    keys = ["author", "2", "author", "4", "5"]
    assert [
        Row(str(number), key, md5(b"line %d" % number).hexdigest(), state, int(number < 5))
        for number, (key, state) in enumerate(zip(keys, states, strict=True), 1)
    ] == list(ledger.rows())


def test_counts_agree_with_the_rows() -> None:
    """Every row is in exactly one state, and connections know their own."""
    ledger = filled()
    ledger.settle([0, 1], WRITTEN)
    ledger.settle([2, 3], DISCARDED)
    ledger.settle([], WRITTEN)
    assert ledger.counts == {"queued": 0, "written": 2, "discarded": 2, "unsent": 1}
    assert (ledger.connections[0].written, ledger.connections[0].discarded) == (2, 2)
    assert len(ledger) == 5


def test_what_a_reset_destroyed_is_discarded_after_all() -> None:
    """Rows and counts, those of the connection too."""
    ledger = filled()
    ledger.settle([0, 1, 2], WRITTEN)
    ledger.withdraw([1, 2])
    ledger.withdraw([])
    assert [row.state for row in ledger.rows()] == ["written", "discarded", "discarded", "queued", "unsent"]
    assert (ledger.counts["written"], ledger.counts["discarded"]) == (1, 2)
    assert (ledger.connections[0].written, ledger.connections[0].discarded) == (1, 2)


def test_connection_is_shown_without_its_token() -> None:
    """Secrets do not leave."""
    assert "secret" not in str(filled().connections[0].as_object())
