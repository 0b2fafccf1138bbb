from __future__ import annotations

import asyncio
import ipaddress
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.outside import OutsideTransport, fault, is_outside

INSIDE = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
    *("168.63.129.16/32", "::/128", "::1/128", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    *("64:ff9b::/96", "2001:db8::/32", "2001::/32", "100::/64", "::7f00:0/104"),
)
PUBLIC = ("1.0.0.0/8", "8.0.0.0/8", "93.184.0.0/16", "2606:4700::/32", "2a00:1450::/32")


def addresses(networks: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.sampled_from([ipaddress.ip_network(item) for item in networks]).flatmap(
        lambda net: st.integers(0, net.num_addresses - 1).map(lambda place: str(net[place]))
    )


@given(addresses(INSIDE))
def test_no_address_of_this_machine_or_its_network_is_outside(address: str) -> None:
    assert not is_outside(address)


@given(addresses(PUBLIC))
def test_public_addresses_are_outside(address: str) -> None:
    assert is_outside(address)


@given(st.ip_addresses(v=4))
def test_a_v4_address_is_the_same_wherever_it_is_wrapped(ip: ipaddress.IPv4Address) -> None:
    mapped = ipaddress.IPv6Address(0xFFFF << 32 | int(ip))
    sixtofour = ipaddress.IPv6Address(0x2002 << 112 | int(ip) << 80 | 1)
    assert is_outside(str(ip)) == is_outside(str(mapped)) == is_outside(str(sixtofour))


@given(st.ip_addresses(v=6))
def test_what_ipv6_has_not_given_out_is_not_outside(ip: ipaddress.IPv6Address) -> None:
    if ip.ipv4_mapped is None and int(ip) >> 125 != 1:
        assert not is_outside(str(ip))
        assert not is_outside(f"{ip}%eth0")


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "0x7f000001", "1.2.3.4:80"])
def test_what_is_no_address_is_not_outside(text: str) -> None:
    assert not is_outside(text)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://hooks.example/a", None),
        ("http://box.local:8000/a", None),
        ("http://BOX.local./a", None),
        ("http://hooks.example/a", "not https"),
        ("ftp://box.local/a", "no URL"),
        ("file:///etc/passwd", "no URL"),
        ("https:///a", "no URL"),
        ("https://me:pw@hooks.example/", "password"),
        ("https://[::1", "no URL"),
    ],
)
def test_only_https_is_asked_and_http_of_listed_hosts(url: str, said: str | None) -> None:
    found = fault(url, ["Box.Local"])
    assert found is None if said is None else said in str(found)


async def get(transport: OutsideTransport, url: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=transport, timeout=5) as http:
        return await http.get(url)


@pytest.mark.parametrize(
    "url",
    [
        *("https://127.0.0.1:1/", "https://[::1]:1/", "https://localhost:1/", "https://127.1:1/"),
        *("https://2130706433:1/", "https://0x7f.1:1/", "https://[::ffff:127.0.0.1]:1/"),
        "https://169.254.169.254/latest/meta-data/",
    ],
)
def test_no_spelling_of_a_private_address_is_asked(url: str) -> None:
    with pytest.raises(httpx.ConnectError, match="private_hosts"):
        asyncio.run(get(OutsideTransport([]), url))


def test_a_name_with_one_private_address_among_others_is_not_asked() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.215.14", "10.0.0.1"]

    with pytest.raises(httpx.ConnectError, match=r"10\.0\.0\.1"):
        asyncio.run(get(OutsideTransport([], resolve=resolve), "https://hooks.example/"))


def test_the_address_that_was_checked_is_asked_under_the_name_of_the_url(tmp_path: Path) -> None:
    """A name is resolved once, and the certificate has to be that name's."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    make += ["-nodes", "-subj", "/CN=hooks.example", "-days", "2"]
    make += ["-addext", "subjectAltName=DNS:hooks.example"]
    subprocess.run(
        [*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    resolved: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        resolved.append(host)
        return ["127.0.0.1"]

    async def go(port: int) -> None:
        names = ["hooks.example", "other.example"]
        transport = OutsideTransport(names, resolve=resolve, verify=trusting)
        async with httpx.AsyncClient(transport=transport) as http:
            answer = await http.get(f"https://hooks.example:{port}/")
            assert answer.text == f"hooks.example:{port}"
            assert str(answer.url) == f"https://hooks.example:{port}/"
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await http.get(f"https://other.example:{port}/")
        assert resolved == names

    asyncio.run(with_echo(go, serving))


async def with_echo(go: Callable[[int], object], context: ssl.SSLContext) -> None:
    """A server that answers with the Host it was asked for."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        host = head.partition(b"\r\nhost: ")[2].partition(b"\r\n")[0]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(host) + host)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        coming = go(server.sockets[0].getsockname()[1])
        assert asyncio.iscoroutine(coming)
        await coming
