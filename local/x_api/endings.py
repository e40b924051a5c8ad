"""How a connection ends, and what each of the ways has in common with others."""

from enum import StrEnum


class Ending(StrEnum):
    """How a connection ends."""

    LAST_CHUNK = "last_chunk"  # as HTTP wants it
    LAST_CHUNK_MID_LINE = "last_chunk_mid_line"  # half a line, then as HTTP wants it
    LAST_CHUNK_MID_BLOCK = "last_chunk_mid_block"  # as before, but half of the line's compressed bytes
    FIN = "fin"  # closed without the last chunk: what real drops nearly always look like
    FIN_MID_LINE = "fin_mid_line"
    FIN_MID_BLOCK = "fin_mid_block"
    CUT = "cut"  # as FIN, and TLS does not say goodbye either
    RESET = "reset"  # RST: what the client's kernel has not confirmed is lost
    OPERATIONAL_DISCONNECT = "operational_disconnect"  # the line that says so, if it is said, then FIN
    SLOW_READER = "slow_reader"  # queue over its limit: dropped, the queue discarded
    KILLED = "killed"  # by the Connections API
    REPLACED = "replaced"  # by a newer connection
    SHUTDOWN = "shutdown"  # the stand-in itself stops
    CLIENT = "client"  # the client closed, or died: what it had not read of the written lines is lost


AT_ONCE = {Ending.RESET, Ending.SLOW_READER, Ending.KILLED, Ending.REPLACED, Ending.SHUTDOWN}
MID_BLOCK = {Ending.LAST_CHUNK_MID_BLOCK, Ending.FIN_MID_BLOCK}
MID_LINE = {Ending.LAST_CHUNK_MID_LINE, Ending.FIN_MID_LINE} | MID_BLOCK
WITH_LAST_CHUNK = {Ending.LAST_CHUNK, Ending.LAST_CHUNK_MID_LINE, Ending.LAST_CHUNK_MID_BLOCK}
