"""The addresses of a host name, and sockets that listen on them. Both transports use the same."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Sequence

LISTEN_BACKLOG = 2048

ANY_ADDRESS = ("0.0.0.0", "::")
"""Both mean every address of the machine, IPv4 and IPv6: gRPC does not distinguish them."""

FREE_PORT_TRIALS = 10
"""A port that is free at one address may be in use at another."""

NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""The machine does not have the address, or not its kind."""


async def resolve(host: str) -> list[str]:
    """The addresses of this machine that ``host`` stands for, as text.

    Raises:
        OSError: there is none.
    """
    name = host.removeprefix("[").removesuffix("]")
    if name in ANY_ADDRESS:
        return ["::" if socket.has_dualstack_ipv6() else "0.0.0.0"]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise OSError(f"cannot listen on {host}: the name does not resolve ({error})") from None
    addresses = list(dict.fromkeys(_as_text(entry[4]) for entry in found))
    usable = [address for address in addresses if _is_here(address)]
    if not usable:
        found_text = ", ".join(addresses)
        raise OSError(f"cannot listen on {host}: this machine has no address {found_text}")
    return usable


def listen(addresses: Sequence[str], port: int) -> list[socket.socket]:
    """A listening socket for each address, all on one port. Port 0 stands for a free one.

    Raises:
        OSError: the port cannot be used. The message has the address and the reason.
    """
    for _ in range(FREE_PORT_TRIALS if port == 0 else 1):
        with contextlib.ExitStack() as opened:
            sockets: list[socket.socket] = []
            common_port = port
            try:
                for address in addresses:
                    sockets.append(
                        opened.enter_context(_bind(address, common_port, LISTEN_BACKLOG))
                    )
                    common_port = sockets[0].getsockname()[1]
            except OSError as error:
                reason = os.strerror(error.errno or 0).lower()
                problem = f"cannot listen on {join(address, common_port)}: {reason}"
                continue
            opened.pop_all()
            return sockets
    raise OSError(problem)


def join(address: str, port: int) -> str:
    """An address and a port as they are usually written."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def are_loopback(addresses: Sequence[str]) -> bool:
    """Whether only this machine can reach the addresses."""
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _bind(address: str, port: int, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server(
        (address, port), family=family, backlog=backlog, dualstack_ipv6=address == "::"
    )


def _is_here(address: str) -> bool:
    """Whether this machine has the address. `localhost` may have one of IPv6 that it lacks."""
    try:
        _bind(address, 0, 0).close()
    except OSError as error:
        return error.errno not in NOT_HERE
    return True


def _as_text(socket_address: tuple[object, ...]) -> str:
    """The address with its scope, if it has one. An IPv4 address in IPv6 form becomes IPv4."""
    text, _ = socket.getnameinfo(
        socket_address,  # type: ignore[arg-type]
        socket.NI_NUMERICHOST | socket.NI_NUMERICSERV,
    )
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
