"""Bytes of pickles that are written opcode by opcode, since the objects' classes are not here."""

import pickle
import struct

from moco_tf.errors import UserError


def text(value: str) -> bytes:
    """A string. Raises UserError for anything else."""
    if not isinstance(value, str):
        raise UserError(f"a tensor's name is a {type(value).__name__}; expected a string")
    encoded = value.encode("utf-8")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    """An integer of at most 63 bits."""
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def integers(values: tuple) -> bytes:
    """A tuple of integers."""
    return pickle.MARK + b"".join(integer(int(v)) for v in values) + pickle.TUPLE
