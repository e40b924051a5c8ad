"""The producer beside its peers: the same posts, the same stub of Kinesis, each peer in an environment of its own."""
