"""The cut gate: the outside line is down, it was alive just before, and there is no other way out.

`ways_out` is the one list of what may exist in the node's namespace while a job holds the line; the keeper's watchdog judges
by the same function. What it does not name is a way out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from policies.gate import Evidence, Gate, Reason, check, check_each, limits_json

DEAD = frozenset({"unreachable", "timeout"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFact:
    """One interface: its kind as the kernel names it ("veth", "tun", "" for hardware), and whether it is up."""

    name: str
    kind: str
    up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressFact:
    link: str
    address: str
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFact:
    """`destination` in CIDR form; `link` empty for more than one next hop; `type` as in rtnetlink(7)."""

    destination: str
    link: str
    gateway: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """Everything in one namespace by which a packet or a neighbour process could be reached.

    inode: of the namespace. ipv6_open: links that take IPv6. sockets: listening UNIX sockets of this namespace that are not the
    node's own (abstract ones begin with @). sent: bytes sent over the outside line so far.
    """

    inode: int
    wan: str
    lan: tuple[str, ...]
    lan_routes: tuple[str, ...]
    links: tuple[LinkFact, ...]
    addresses: tuple[AddressFact, ...]
    routes: tuple[RouteFact, ...]
    ipv6_open: tuple[str, ...]
    sockets: tuple[str, ...]
    sent: int


def _node(wrong: str, todo: str) -> Reason:
    return Reason("node", wrong, todo)


WAYS_OUT = {
    "cut-link-up": _node("The outside line is up.", "Let the keeper cut it; look who brought it up."),
    "cut-link-missing": _node("The outside or the hospital's line does not exist.", "Check RAPHA_WAN_INTERFACE."),
    "cut-unknown-link": _node("There is an interface nobody declared.", "Remove it, or declare it as the hospital's."),
    "cut-tunnel": _node("An interface is a tunnel or a radio.", "Use a wired line or a veth pair as the hospital's."),
    "cut-route": _node("A route leads out over the hospital's line.", "Remove it, or declare the network as the hospital's."),
    "cut-ipv6": _node("IPv6 is on where nobody declared it.", "Set net.ipv6.conf.<interface>.disable_ipv6=1."),
    "cut-socket": _node("Another program listens on a UNIX socket in the namespace.", "Stop it, or run it elsewhere."),
}
_TUNNELS = frozenset(
    {"tun", "wireguard", "gre", "ipip", "sit", "vxlan", "geneve", "ip6tnl", "ppp", "xfrm", "vti", "wwan", "wlan"}
)


def ways_out(network: NetworkFacts) -> tuple[str, ...]:
    """Codes of every way out of the namespace; `()` when there is none (C01, C03, C04, C06)."""
    names = {link.name for link in network.links}
    known = {network.wan, "lo", *network.lan}
    found = {
        "cut-link-up": any(link.up for link in network.links if link.name == network.wan) or _routed(network),
        "cut-link-missing": not {network.wan, *network.lan} <= names or network.wan in network.lan,
        "cut-unknown-link": bool(names - known),
        "cut-tunnel": any(link.kind in _TUNNELS for link in network.links),
        "cut-route": any(not _stays_in(route, network) for route in network.routes),
        "cut-ipv6": bool(set(network.ipv6_open) - {"lo"}) or any(_foreign_v6(a) for a in network.addresses),
        "cut-socket": bool(network.sockets),
    }
    return tuple(code for code, out in found.items() if out)


def _routed(network: NetworkFacts) -> bool:
    # The kernel drops the routes of a line that goes down: one that is there came with the line.
    return any(route.link == network.wan and route.type == "unicast" for route in network.routes)


def _foreign_v6(fact: AddressFact) -> bool:
    address = ip_address(fact.address)
    return address.version == 6 and not address.is_loopback


def _stays_in(route: RouteFact, network: NetworkFacts) -> bool:
    """Whether a route ends on this machine, or on the hospital's own networks without a gateway nobody declared."""
    if route.type in {"blackhole", "unreachable", "prohibit", "throw"} or route.link == "lo":
        return True
    if route.type in {"local", "broadcast", "anycast"} and route.link in {network.wan, *network.lan}:
        return True  # this machine's own addresses; those of a line that is down stay in the table
    if route.link not in network.lan:
        return False
    target = ip_network(route.destination)
    if route.type == "multicast":
        return target.version == 6 and route.link not in network.ipv6_open
    declared = [*network.lan_routes] if route.gateway else [*network.lan_routes, *_own_networks(route.link, network.addresses)]
    return route.type == "unicast" and any(_within(route.destination, outer) for outer in declared)


def _own_networks(link: str, addresses: Iterable[AddressFact]) -> list[str]:
    # A prefix as short as /7 would make "my own network" mean half the internet.
    return [str(ip_network(f"{a.address}/{a.length}", strict=False)) for a in addresses if a.link == link and a.length >= 8]


def _within(inner: str, outer: str) -> bool:
    a, b = ip_network(inner), ip_network(outer)
    return a.version == b.version and int(b.network_address) <= int(a.network_address) <= int(a.broadcast_address) <= int(
        b.broadcast_address
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CutLimits:
    """A site's numbers. wan, lan, lan_routes: what the keeper must have been started with. control_seconds: how old the probe
    that succeeded may be."""

    wan: str = "portB"
    lan: tuple[str, ...] = ("portA",)
    lan_routes: tuple[str, ...] = ()
    control_seconds: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class CutEvidence(Evidence):
    """control: outcome of the live probe over the outside line before the cut, at `control_at`; after: the same probe since, both
    over the line and by any other route; token: the keeper's, held for this attempt; broken: what the watchdog has seen since."""

    control: str
    control_at: int
    after: str
    after_any: str
    token: str
    held: bool
    broken: tuple[str, ...]
    network: NetworkFacts
    limits: CutLimits


@check("cut-no-control", "node", "No live probe got through before the cut.", "Check the outside line and --probe; then retry.")
def had_control(e: CutEvidence) -> object:
    return e.control == "reached" and 0 <= e.at - e.control_at <= e.limits.control_seconds


@check("cut-line-alive", "node", "The outside can still be reached after the cut.", "Find the second way out before you retry.")
def line_is_dead(e: CutEvidence) -> object:
    return e.after in DEAD and e.after_any in DEAD


@check_each("cut-ways-out", WAYS_OUT)
def no_way_out(e: CutEvidence) -> tuple[str, ...]:
    return ways_out(e.network)


@check("cut-lan-down", "node", "The hospital's line is down too.", "Bring the hospital's line up.")
def hospital_is_up(e: CutEvidence) -> object:
    up = {link.name for link in e.network.links if link.up}
    return set(e.limits.lan) <= up


@check(
    "cut-other-interface",
    "node",
    "The keeper watches other lines than the site's policy names.",
    "Start the keeper with the policy's lines.",
)
def right_lines(e: CutEvidence) -> object:
    named = (e.network.wan, sorted(set(e.network.lan) - {"lo"}), sorted(e.network.lan_routes))
    return named == (e.limits.wan, sorted(set(e.limits.lan) - {"lo"}), sorted(e.limits.lan_routes))


@check("cut-not-held", "node", "The keeper holds no token for this attempt.", "Retry; if it stays, read `rapha doctor`.")
def is_held(e: CutEvidence) -> object:
    return e.held is True and len(e.token) == 64


@check(
    "cut-broken",
    "node",
    "The line or a route came up while the job held the cut.",
    "Find what changed the network; outputs stay in quarantine.",
)
def unbroken(e: CutEvidence) -> object:
    return e.broken == ()


@check("cut-no-namespace", "node", "The keeper did not say which namespace it keeps.", "Restart the keeper.")
def names_namespace(e: CutEvidence) -> object:
    return type(e.network.inode) is int and e.network.inode > 0


def cut_gate(limits: CutLimits) -> Gate[CutEvidence]:
    """The gate "cut" by this site's numbers."""
    checks = (had_control, line_is_dead, no_way_out, hospital_is_up, right_lines, is_held, unbroken, names_namespace)
    return Gate("cut", checks, ttl=24 * 3600, site=limits_json(limits))
