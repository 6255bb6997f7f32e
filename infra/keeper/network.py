"""The node's namespace as netlink shows it (rtnetlink(7)), and the one switch: port B."""

import errno
import socket
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from policies.cut import AddressFact, LinkFact, NetworkFacts, RouteFact
from rapha.errors import PeerError

IFF_UP = 1
_ROUTE_TYPES = dict(
    enumerate(("", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw"))
)
_GONE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENODEV, errno.EADDRNOTAVAIL}


class Line:
    """Port B of the namespace that this process lives in, and what else is there.

    wan: port B's name; lan: the hospital's interfaces; lan_routes: the networks behind them (CIDR); probe: (host, port) beyond B;
    run: the folders in which the node's own UNIX sockets live.
    """

    def __init__(
        self, wan: str, lan: tuple[str, ...], lan_routes: tuple[str, ...], probe: tuple[str, int], run: tuple[str, ...]
    ) -> None:
        self.wan, self.lan, self.lan_routes, self._probe, self._run = wan, lan, lan_routes, probe, run

    def facts(self) -> NetworkFacts:
        """Every link, address, route, IPv6 switch and listening UNIX socket. Raises `PeerError(netlink-failed)`."""
        try:
            with IPRoute() as netlink:
                links = {message["index"]: message for message in netlink.get_links()}
                names = {index: str(_attribute(message, "IFLA_IFNAME")) for index, message in links.items()}
                addresses = tuple(_address(message, names) for message in netlink.get_addr())
                routes = tuple(_routes(netlink, names))
        except (NetlinkError, OSError):
            raise PeerError("netlink-failed", "the kernel did not answer about the namespace's links", peer="keeper") from None
        return NetworkFacts(
            inode=Path("/proc/self/ns/net").stat().st_ino,
            wan=self.wan,
            lan=self.lan,
            lan_routes=self.lan_routes,
            links=tuple(sorted((_link(message) for message in links.values()), key=lambda link: link.name)),
            addresses=addresses,
            routes=routes,
            ipv6_open=tuple(sorted(name for name in names.values() if _takes_ipv6(name))),
            sockets=tuple(sorted(_foreign_sockets(self._run))),
            sent=next((_sent(message) for message in links.values() if names[message["index"]] == self.wan), 0),
        )

    def down(self) -> None:
        """Takes port B down, and reads back that it is."""
        self._set("down")
        if self.is_up():
            raise PeerError("line-stays-up", "the outside line does not go down", peer="keeper")

    def up(self, routes: list[dict[str, str]]) -> None:
        """Brings port B up and puts back the routes that went with it; down again when one cannot be."""
        self._set("up")
        try:
            with IPRoute() as netlink:
                index = netlink.link_lookup(ifname=self.wan)[0]
                for route in sorted(routes, key=lambda r: bool(r["gateway"])):
                    gateway = {"gateway": route["gateway"]} if route["gateway"] else {}
                    whole = route["destination"] in ("0.0.0.0/0", "::/0")
                    netlink.route("replace", dst="default" if whole else route["destination"], oif=index, **gateway)
        except (NetlinkError, OSError, IndexError):
            self._set("down")
            raise PeerError("route-lost", "a route over the outside line could not be put back", peer="keeper") from None

    def is_up(self) -> bool:
        """Whether port B is up; a port that is not there counts as up: nobody can say where it went."""
        with IPRoute() as netlink:
            found = [message for message in netlink.get_links() if _attribute(message, "IFLA_IFNAME") == self.wan]
        return not found or bool(found[0]["flags"] & IFF_UP)

    def wan_routes(self) -> list[dict[str, str]]:
        """Unicast routes over port B that the kernel does not make by itself."""
        own = {str(ip_network(f"{a.address}/{a.length}", strict=False)) for a in self.facts().addresses if a.link == self.wan}
        return [
            {"destination": route.destination, "gateway": route.gateway}
            for route in self.facts().routes
            if route.link == self.wan and route.type == "unicast" and (route.gateway or route.destination not in own)
        ]

    def probe(self, *, over_wan: bool, seconds: float = 2.0) -> str:
        """One TCP connection to the outside: "reached", "refused", "unreachable", "timeout" or "odd"."""
        family = socket.AF_INET6 if ":" in self._probe[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(seconds)
            try:
                if over_wan:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.wan.encode())
                sock.connect(self._probe)
            except TimeoutError:
                return "timeout"
            except OSError as error:
                return "refused" if error.errno == errno.ECONNREFUSED else "unreachable" if error.errno in _GONE else "odd"
        return "reached"

    def reached(self, *, seconds: float = 3.0) -> str:
        """The control: the probe over port B, tried again while the line comes up."""
        end = time.monotonic() + seconds
        while (outcome := self.probe(over_wan=True, seconds=1.0)) != "reached" and time.monotonic() < end:
            time.sleep(0.1)
        return outcome

    def _set(self, state: str) -> None:
        try:
            with IPRoute() as netlink:
                found = netlink.link_lookup(ifname=self.wan)
                if not found:
                    raise PeerError("line-missing", "the outside line's interface does not exist", peer="keeper")
                netlink.link("set", index=found[0], state=state)
        except (NetlinkError, OSError):
            raise PeerError("netlink-failed", "the kernel refused to change the outside line", peer="keeper") from None


def _attribute(message: Any, name: str) -> Any:
    return message.get_attr(name)


def _link(message: Any) -> LinkFact:
    info = _attribute(message, "IFLA_LINKINFO")
    name = str(_attribute(message, "IFLA_IFNAME"))
    kind = str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else ""
    radio = any((Path("/sys/class/net") / name / part).exists() for part in ("wireless", "phy80211"))
    return LinkFact(name=name, kind="wlan" if radio else kind, up=bool(message["flags"] & IFF_UP))


def _sent(message: Any) -> int:
    counters = _attribute(message, "IFLA_STATS64") or {}
    return int(counters.get("tx_bytes", 0))


def _address(message: Any, names: dict[int, str]) -> AddressFact:
    address = _attribute(message, "IFA_LOCAL") or _attribute(message, "IFA_ADDRESS")
    return AddressFact(link=names.get(message["index"], ""), address=str(address), length=int(message["prefixlen"]))


def _routes(netlink: IPRoute, names: dict[int, str]) -> list[RouteFact]:
    """Of every table, both families."""
    families = (socket.AF_INET, socket.AF_INET6)
    return [_route(message, family, names) for family in families for message in netlink.get_routes(family=family)]


def _route(message: Any, family: int, names: dict[int, str]) -> RouteFact:
    whole = "0.0.0.0" if family == socket.AF_INET else "::"
    odd = _attribute(message, "RTA_MULTIPATH") is not None or _attribute(message, "RTA_ENCAP") is not None
    gateway = _attribute(message, "RTA_GATEWAY") or ("via" if _attribute(message, "RTA_VIA") else "")
    return RouteFact(
        destination=f"{_attribute(message, 'RTA_DST') or whole}/{message['dst_len']}",
        link="" if odd else names.get(_attribute(message, "RTA_OIF"), ""),
        gateway=str(gateway),
        type=_ROUTE_TYPES.get(message["type"], "odd"),
    )


def _takes_ipv6(name: str) -> bool:
    conf = Path("/proc/sys/net/ipv6/conf") / name / "disable_ipv6"
    try:
        return conf.read_text().strip() != "1"
    except FileNotFoundError:
        return False  # a kernel without IPv6


def _foreign_sockets(run: tuple[str, ...]) -> list[str]:
    """Listening UNIX sockets of this network namespace, but the node's own. Abstract ones are reachable by whoever is in it."""
    found = []
    for line in Path("/proc/self/net/unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        listening = int(words[3], 16) & 0x10000 != 0
        if listening and len(words) == 8 and str(Path(words[7]).parent) not in run:
            found.append("@abstract" if words[7].startswith("@") else "path")
    return found
