"""Proxies that the environment names: servers of this machine are asked without one."""

import ipaddress
import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

__all__ = ["ask_local_servers_directly", "is_local", "through_proxy"]

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_EXCEPTIONS = ("no_proxy", "NO_PROXY")
_SERVERS = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")


def ask_local_servers_directly() -> dict[str, str]:
    """Add this machine's names to the hosts that are asked without a proxy, if there is a proxy.

    To be called before the first request. What the user has excepted stays so.

    Returns:
        The variables that say so; empty where no proxy is set.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return {}
    hosts = ["localhost", "127.0.0.1", "::1", socket.gethostname()]
    hosts += [_host(url) for name in _SERVERS if is_local(url := os.environ.get(name, ""))]
    given = next((os.environ[name] for name in _EXCEPTIONS if os.environ.get(name)), "")
    for name in _EXCEPTIONS:  # some programs read one of the two names first, some the other
        own = [host.strip() for host in (os.environ.get(name) or given).split(",")]
        if "*" not in own:
            os.environ[name] = ",".join(dict.fromkeys([*filter(None, own), *hosts]))
    return {name: os.environ[name] for name in _EXCEPTIONS if name in os.environ}


def is_local(url: str) -> bool:
    """Whether an address names this machine."""
    host = _host(url)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("localhost", socket.gethostname().lower()) or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def through_proxy(url: str) -> str:
    """A remark for a message about a server that does not answer; empty if no proxy is asked."""
    parts = urlsplit(url)
    known = getproxies()
    proxy = known.get(parts.scheme) or known.get("all")
    if not proxy or not parts.hostname or proxy_bypass(parts.hostname):
        return ""
    shown = proxy.rpartition("@")[2]  # without a password
    return (
        f" (asked through the proxy {shown} of the environment; if that does not lead there, add "
        f"{parts.hostname} to NO_PROXY)"
    )


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
