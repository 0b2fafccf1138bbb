"""HTTP to addresses that somebody else has written down: webhooks, and graders' endpoints.

Whoever may name a URL could name this machine, its network, or the cloud's metadata service. So the
name is resolved here, every address of it is looked at, and the connection goes to the very
address that was looked at: a second look-up could be answered with another one (DNS rebinding). The
certificate is still checked against the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection

import httpx

AZURE_HOST = ipaddress.ip_address("168.63.129.16")
"""A public address that reaches Azure's own services from inside a virtual machine."""

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All that IPv6 has given out of public addresses."""

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""From a host and a port to IP addresses. Raises OSError."""


def is_outside(address: str) -> bool:
    """Whether an IP address is one of the public Internet's."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is not None:
            return is_outside(str(inner))
        if ip not in GLOBAL_UNICAST:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip == AZURE_HOST)


def fault(url: str, private_hosts: Collection[str]) -> str | None:
    """What keeps a URL from ever being asked, as a sentence; None where nothing does.

    Args:
        private_hosts: hosts that may have any address, and that plain http is good enough for.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return "that is no URL"
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        return "that is no URL of the web"
    if parsed.userinfo:
        return "a URL with a name or a password in it is not asked"
    if parsed.scheme == "http" and not _listed(parsed.raw_host.decode(), private_hosts):
        return f"the URL is not https, and {parsed.host} is not in private_hosts"
    return None


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system finds them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class OutsideTransport(httpx.AsyncHTTPTransport):
    """Reaches public addresses over https, and the hosts that the owner of the machine listed.

    Anything else is an httpx.ConnectError that says why. For `httpx.AsyncClient(transport=...)`,
    which must not follow redirects on its own account: each is checked like the first request.

    Args:
        private_hosts: see `fault`.
    """

    def __init__(
        self,
        private_hosts: Collection[str],
        *,
        resolve: Resolve = resolve,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        # No connection is kept: one to this address under another name was not checked for this.
        limits = httpx.Limits(max_keepalive_connections=0)
        super().__init__(verify=verify, trust_env=False, limits=limits)
        self._private, self._resolve = private_hosts, resolve

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it to the address that was checked."""
        url = request.url
        said = fault(str(url), self._private)
        if said is not None:
            raise httpx.ConnectError(said, request=request)
        address = await self._address(request)
        sent = httpx.Request(
            request.method,
            url.copy_with(host=address),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": url.raw_host.decode()},
        )
        return await super().handle_async_request(sent)

    async def _address(self, request: httpx.Request) -> str:
        host = request.url.raw_host.decode()
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        timeout = request.extensions.get("timeout", {}).get("connect")
        try:
            async with asyncio.timeout(timeout):
                found = await self._resolve(host, port)
        except TimeoutError:
            raise httpx.ConnectTimeout(f"{host} is not resolved in time", request=request) from None
        except OSError as error:
            raise httpx.ConnectError(f"{host} has no address: {error}", request=request) from None
        inside = [item for item in found if not is_outside(item)]
        if inside and not _listed(host, self._private):
            raise httpx.ConnectError(
                f"{host} has the address {inside[0]}, which is not one of the public Internet's;"
                " where that is meant, add the host to private_hosts",
                request=request,
            )
        return found[0]


def _listed(host: str, private_hosts: Collection[str]) -> bool:
    return host.rstrip(".").lower() in {item.rstrip(".").lower() for item in private_hosts}
