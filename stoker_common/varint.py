"""Protobuf's varints."""

# Lengths and small numbers are most of what is written.
_SMALL = tuple(bytes((value,)) for value in range(128))


def varint(value: int) -> bytes:
    """Not negative."""
    if value < 0x80:
        return _SMALL[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x200000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
