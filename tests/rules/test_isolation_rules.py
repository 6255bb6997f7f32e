"""The cut, train and reconnect gates: evidence that passes, and one fact at a time that does not."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.cut import AddressFact, CutEvidence, CutLimits, LinkFact, NetworkFacts, RouteFact, cut_gate, ways_out
from policies.reconnect import RECONNECT_GATE, ReconnectEvidence
from policies.required import REQUIRED_CHECKS
from policies.train import BUCKETS, IsolationFacts, TrainEvidence, TrainLimits, bucket, train_gate
from rapha.canonical import digest

JOB = digest(b"job")
BASE: dict[str, Any] = {"job": JOB, "attempt": 1, "nonce": "0" * 64, "at": 1000, "previous": JOB, "mode": "development"}


def route(destination: str, link: str, gateway: str = "", kind: str = "unicast") -> RouteFact:
    return RouteFact(destination=destination, link=link, gateway=gateway, type=kind)


NETWORK = NetworkFacts(
    inode=7,
    wan="portB",
    lan=("portA",),
    lan_routes=("10.9.0.0/16",),
    links=(
        LinkFact(name="lo", kind="", up=True),
        LinkFact(name="portA", kind="veth", up=True),
        LinkFact(name="portB", kind="veth", up=False),
    ),
    addresses=(AddressFact(link="portA", address="192.0.2.1", length=30), AddressFact(link="lo", address="::1", length=128)),
    routes=(
        route("192.0.2.0/30", "portA"),
        route("192.0.2.1/32", "portA", kind="local"),
        route("10.9.1.0/24", "portA", "192.0.2.2"),
        route("198.51.100.1/32", "portB", kind="local"),
        route("127.0.0.0/8", "lo", kind="local"),
        route("0.0.0.0/0", "", kind="unreachable"),
    ),
    ipv6_open=("lo",),
    sockets=(),
    sent=0,
)
LIMITS = CutLimits(lan_routes=("10.9.0.0/16",))
CUT = CutEvidence(
    **BASE,
    control="reached",
    control_at=990,
    after="unreachable",
    after_any="timeout",
    token="a" * 64,
    held=True,
    broken=(),
    network=NETWORK,
    limits=LIMITS,
)
ISOLATED = IsolationFacts(
    netns=5,
    host_netns=4,
    pidns=6,
    links=("lo:down",),
    open=(),
    probed=44,
    user=65534,
    user_dropped=True,
    mechanism="cgroup-v1",
    registered=True,
    workload=digest(b"w"),
    launcher=digest(b"l"),
    weights="",
)
TRAIN = TrainEvidence(
    **BASE,
    exit="completed",
    reason="",
    left=0,
    bucket=60,
    isolation=ISOLATED,
    cut=(),
    cut_after="unreachable",
    wanted_workload=digest(b"w"),
    wanted_launcher=digest(b"l"),
    wanted_weights="",
    handed=12,
    unique=4,
    cap=4,
    commitment=digest(b"c"),
    reader_destroyed=True,
    outputs=digest(b"o"),
    output_files=2,
    output_bytes=100,
    odd=(),
    limits=TrainLimits(),
)
BACK = ReconnectEvidence(
    **BASE,
    restored=True,
    token_matched=True,
    holders=("launcher", "reader"),
    holding=(),
    processes=0,
    ending="sealed",
    line_up=True,
    codes=(),
    receipt=digest(b"r"),
)


def test_the_good_ones_pass_and_run_what_is_required() -> None:
    for gate, evidence in ((cut_gate(LIMITS), CUT), (train_gate(TrainLimits()), TRAIN), (RECONNECT_GATE, BACK)):
        verdict = gate.judge(evidence)  # type: ignore[arg-type]
        assert verdict.codes == () and verdict.ran - {"limits"} == REQUIRED_CHECKS[gate.name]


CUTS = [
    ({"control": "refused"}, "cut-no-control"),
    ({"control_at": 900}, "cut-no-control"),
    ({"control_at": 1001}, "cut-no-control"),
    ({"after": "reached"}, "cut-line-alive"),
    ({"after": "refused"}, "cut-line-alive"),  # somebody answered
    ({"after_any": "odd"}, "cut-line-alive"),
    ({"held": False}, "cut-not-held"),
    ({"token": ""}, "cut-not-held"),
    ({"broken": ("cut-link-up",)}, "cut-broken"),
    ({"limits": CutLimits()}, "limits-differ"),
]


@pytest.mark.parametrize(("change", "code"), CUTS)
def test_cut_refuses(change: dict[str, Any], code: str) -> None:
    assert code in cut_gate(LIMITS).judge(replace(CUT, **change)).codes


def link(name: str, kind: str = "veth", up: bool = True) -> LinkFact:
    return LinkFact(name=name, kind=kind, up=up)


NETWORKS = [
    ({"links": (*NETWORK.links[:2], link("portB"))}, "cut-link-up"),
    ({"links": NETWORK.links[:2]}, "cut-link-missing"),
    ({"links": (*NETWORK.links, link("usb0", ""))}, "cut-unknown-link"),
    ({"links": (*NETWORK.links, link("wlp2s0", "wlan", up=False))}, "cut-tunnel"),
    ({"routes": (route("0.0.0.0/0", "portA", "192.0.2.2"),)}, "cut-route"),
    ({"routes": (route("0.0.0.0/1", "portA", "192.0.2.2"),)}, "cut-route"),
    ({"routes": (route("10.0.0.0/8", "portA", "192.0.2.2"),)}, "cut-route"),  # wider than declared
    ({"routes": (route("198.51.100.0/24", "portA"),)}, "cut-route"),  # on the link, but not its network
    ({"routes": (route("192.0.2.0/30", "", ""),)}, "cut-route"),  # more than one next hop
    ({"routes": (route("192.0.2.0/30", "portA", "", "odd"),)}, "cut-route"),
    ({"routes": (route("::/0", "portA", "fe80::1"),)}, "cut-route"),
    ({"ipv6_open": ("lo", "portA")}, "cut-ipv6"),
    ({"addresses": (AddressFact(link="portA", address="fe80::1", length=64),)}, "cut-ipv6"),
    ({"addresses": (AddressFact(link="portA", address="192.0.2.1", length=1),)}, "cut-route"),
    ({"sockets": ("@abstract",)}, "cut-socket"),
]


@pytest.mark.parametrize(("change", "code"), NETWORKS)
def test_C03_every_way_out_has_its_code(change: dict[str, Any], code: str) -> None:
    network = replace(NETWORK, **change)
    assert code in ways_out(network)
    assert code in cut_gate(LIMITS).judge(replace(CUT, network=network)).codes


def test_no_hospital_line_or_other_lines_refuse() -> None:
    down = replace(NETWORK, links=(NETWORK.links[0], link("portA", up=False), NETWORK.links[2]))
    assert "cut-lan-down" in cut_gate(LIMITS).judge(replace(CUT, network=down)).codes
    other = replace(NETWORK, lan_routes=("10.0.0.0/8",))
    assert "cut-other-interface" in cut_gate(LIMITS).judge(replace(CUT, network=other)).codes
    nowhere = replace(NETWORK, inode=0)
    assert "cut-no-namespace" in cut_gate(LIMITS).judge(replace(CUT, network=nowhere)).codes


TRAINS = [
    ({"exit": "failed"}, "train-not-completed"),
    ({"exit": "timeout", "reason": "time"}, "train-not-completed"),
    ({"reason": "memory"}, "train-not-completed"),
    ({"left": 1}, "train-not-dead"),
    ({"left": -1}, "train-not-dead"),
    ({"left": False}, "train-not-dead"),
    ({"isolation": replace(ISOLATED, netns=4)}, "train-not-isolated"),
    ({"isolation": replace(ISOLATED, links=("lo:up",))}, "train-not-isolated"),
    ({"isolation": replace(ISOLATED, links=("lo:down", "eth0:down"))}, "train-not-isolated"),
    ({"isolation": replace(ISOLATED, open=("socket-vsock",))}, "train-not-isolated"),
    ({"isolation": replace(ISOLATED, probed=0)}, "train-not-isolated"),
    ({"isolation": replace(ISOLATED, registered=False)}, "train-not-held"),
    ({"isolation": replace(ISOLATED, mechanism="none")}, "train-limits-unheld"),
    ({"isolation": replace(ISOLATED, workload=digest(b"x"))}, "train-other-workload"),
    ({"wanted_launcher": digest(b"x")}, "train-other-workload"),
    ({"wanted_weights": digest(b"x")}, "train-other-workload"),
    ({"cut": ("cut-link-up",)}, "train-cut-broken"),
    ({"cut_after": "reached"}, "train-cut-broken"),
    ({"unique": 5}, "train-too-many-records"),
    ({"unique": 0}, "train-too-many-records"),
    ({"handed": 3}, "train-too-many-records"),
    ({"reader_destroyed": 1}, "train-reader-holds"),
    ({"commitment": ""}, "train-reader-holds"),
    ({"odd": ("out-linked",)}, "train-odd-output"),
    ({"output_files": 17}, "train-odd-output"),
    ({"output_files": 0, "outputs": ""}, "train-odd-output"),
]


@pytest.mark.parametrize(("change", "code"), TRAINS)
def test_train_refuses(change: dict[str, Any], code: str) -> None:
    assert train_gate(TrainLimits()).judge(replace(TRAIN, **change)).codes == (code,)


def test_a_site_that_wants_a_control_group_refuses_less() -> None:
    strict = TrainLimits(mechanisms=("cgroup-v2",))
    assert train_gate(strict).judge(replace(TRAIN, limits=strict)).codes == ("train-limits-unheld",)


BACKS = [
    ({"token_matched": False}, "reconnect-token"),
    ({"holding": ("reader",)}, "reconnect-holder"),
    ({"holders": ("launcher",)}, "reconnect-holder"),
    ({"processes": 1}, "reconnect-alive"),
    ({"ending": ""}, "reconnect-not-sealed"),
    ({"receipt": ""}, "reconnect-no-receipt"),
    ({"restored": False}, "reconnect-kept"),
    ({"line_up": False}, "reconnect-kept"),
    ({"codes": ("x",)}, "reconnect-kept"),
]


@pytest.mark.parametrize(("change", "code"), BACKS)
def test_reconnect_refuses(change: dict[str, Any], code: str) -> None:
    assert RECONNECT_GATE.judge(replace(BACK, **change)).codes == (code,)


@given(st.floats(min_value=0, max_value=10**6))
def test_C16_a_duration_is_one_of_a_few_numbers(seconds: float) -> None:
    assert bucket(seconds) in BUCKETS and (bucket(seconds) >= seconds or bucket(seconds) == BUCKETS[-1])
