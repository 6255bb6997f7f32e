"""The little DER that the SGX extension of a PCK certificate needs (ITU-T X.690; PCK certificate profile, section 1.3.5)."""

BASE = "1.2.840.113741.1.13.1"


def sgx_extension(ppid: bytes, svns: list[int], pce_svn: int, cpu_svn: bytes, pce_id: bytes, fmspc: bytes) -> bytes:
    """The value of extension 1.2.840.113741.1.13.1 of a standard (single package) platform."""
    components = [_named(f"{BASE}.2.{i + 1}", _integer(svn)) for i, svn in enumerate(svns)]
    tcb = [*components, _named(f"{BASE}.2.17", _integer(pce_svn)), _named(f"{BASE}.2.18", _octets(cpu_svn))]
    return _sequence(
        _named(f"{BASE}.1", _octets(ppid)),
        _named(f"{BASE}.2", _sequence(*tcb)),
        _named(f"{BASE}.3", _octets(pce_id)),
        _named(f"{BASE}.4", _octets(fmspc)),
        _named(f"{BASE}.5", _tagged(0x0A, b"\x00")),
    )


def _tagged(tag: int, body: bytes) -> bytes:
    size = len(body)
    if size < 128:
        return bytes([tag, size]) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def _sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, b"".join(parts))


def _octets(value: bytes) -> bytes:
    return _tagged(0x04, value)


def _integer(value: int) -> bytes:
    return _tagged(0x02, value.to_bytes(max(1, value.bit_length() // 8 + 1), "big"))


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    out = bytearray([first * 40 + second])
    for value in rest:
        groups = [value & 0x7F]
        while value := value >> 7:
            groups.append(0x80 | (value & 0x7F))
        out += bytes(reversed(groups))
    return _tagged(0x06, bytes(out))


def _named(dotted: str, value: bytes) -> bytes:
    return _sequence(_oid(dotted), value)
