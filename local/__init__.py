"""Stand-ins for the outside world: X, Kinesis, the event source mapping. For the demo, the tests and compose."""
