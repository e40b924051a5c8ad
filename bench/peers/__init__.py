"""
The peers: each a program that carries the posts of standard input and ends when all of them are confirmed.

They run in virtual environments of their own, where nothing of Millrace's is installed: so nothing here may import more
than the standard library, msgspec and the peer's own libraries. AWS' variables say where Kinesis is.
"""

STREAM = "bench"
