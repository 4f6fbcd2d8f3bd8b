"""Addresses of hosts and servers, as settings give them."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit, urlunsplit


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`: an address, in brackets or not, or a name."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def without_user(url: str) -> str:
    """The URL as it may be shown: `user:password@` goes."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
