"""Networks of proxies and prefixes of paths, as they are written in settings and headers."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

ROOT_PATH_PATTERN: Final = r"^(/[A-Za-z0-9._~-]+)*$"
"""Pattern of a path prefix: empty, or without a slash at its end."""


def parse_networks(text: str) -> list[IPv4Network | IPv6Network]:
    """Return the comma-separated networks and addresses in `text`; raises ValueError."""
    return [ip_network(part, strict=False) for part in re.split(r"[\s,]+", text) if part]


def check_networks(text: str) -> str:
    """Return `text` if it is a list of networks; raises ValueError."""
    parse_networks(text)
    return text
