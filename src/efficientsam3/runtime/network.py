"""By which of its addresses, and by which network interface, other machines reach this one."""

import ipaddress
import socket
import struct
import sys
from pathlib import Path

_IPV6_ADDRESSES = Path("/proc/net/if_inet6")  # hexadecimal address, index, length of the prefix, scope, flags, name
_GET_ADDRESS = 0x8915  # SIOCGIFADDR, netdevice(7)
_ANY_PORT = 9


def address_towards(host: str) -> str | None:
    """This machine's address from which packets to `host` leave, None where no way leads there; nothing is sent."""
    try:
        found = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return None
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
        except OSError:  # no way by this family of addresses
            continue
    return None


def is_loopback(address: str) -> bool:
    """Whether no other machine reaches this one by it."""
    return ipaddress.ip_address(address).is_loopback


def interface_of(address: str) -> str | None:
    """Name of the network interface that has an address; None where that is not known, as on anything but Linux."""
    if sys.platform != "linux":
        return None
    wanted = ipaddress.ip_address(address.partition("%")[0])
    if wanted.version == 4:
        return next((name for _, name in socket.if_nameindex() if _first_ipv4_address(name) == wanted.packed), None)
    lines = _IPV6_ADDRESSES.read_text().splitlines() if _IPV6_ADDRESSES.exists() else []
    return next((line.split()[5] for line in lines if line.startswith(wanted.packed.hex())), None)


def _first_ipv4_address(interface: str) -> bytes | None:
    import fcntl

    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            return fcntl.ioctl(any_socket.fileno(), _GET_ADDRESS, request)[20:24]
        except OSError:  # it has none
            return None
