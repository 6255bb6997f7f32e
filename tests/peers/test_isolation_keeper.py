"""The keeper on a real namespace with real veth pairs: cut, prove, restore, and what a crash leaves."""

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from policies.cut import ways_out
from rapha.errors import PeerError, Refusal
from tests.fixtures.isolation import World, job_of, make_world

REACH = ["python3", "-c", "import socket; socket.create_connection(('198.51.100.2', 7), 2)"]


@pytest.fixture(scope="module")
def node() -> Iterator[World]:
    made = make_world(sandboxes=False)
    yield made
    made.close()


@pytest.fixture
def world(node: World) -> World:
    node.refresh()
    return node


def reaches(world: World) -> bool:
    return world.inside(*REACH).returncode == 0


def test_cut_takes_the_line_down_and_proves_it(world: World) -> None:
    assert reaches(world)
    with world.keeper() as keeper:
        facts = keeper.cut(job_of("a"), 1)
        assert (facts.control, facts.held, facts.broken) == ("reached", True, ())
        assert facts.after in {"unreachable", "timeout"} and facts.after_any in {"unreachable", "timeout"}
        assert ways_out(facts.network) == () and facts.network.inode == world.network.inode
    assert not reaches(world)
    near_a = world.inside("python3", "-c", "import socket; socket.create_connection(('192.0.2.2', 1), 2)")
    assert b"ConnectionRefusedError" in near_a.stderr  # the hospital's side still answers


def test_restore_needs_every_proof_and_puts_routes_back(world: World) -> None:
    job = job_of("b")
    with world.keeper() as keeper:
        token = keeper.cut(job, 1).token
        assert keeper.restore(job, 1, token).codes == ("reconnect-not-sealed",)
        world.end(job, kind="sealed")
        assert keeper.restore(job, 1, "0" * 64).codes == ("reconnect-token",)
        world.holds(f"{job}#1")
        refused = keeper.restore(job, 1, token)
        assert refused.codes == ("reconnect-holder",) and refused.holding == ("reader",)
        world.holds("")
        assert not reaches(world)
        assert keeper.restore(job, 1, token).restored
    assert reaches(world)


def test_a_dead_holder_is_a_holder(world: World) -> None:
    job = job_of("c")
    with world.keeper() as keeper:
        token = keeper.cut(job, 1).token
        world.end(job)
        world.kill("reader")
        assert keeper.restore(job, 1, token).codes == ("reconnect-holder",)
        world.start_reader()
        world.ready("reader")
        assert keeper.restore(job, 1, token).restored


def test_a_living_process_of_the_sandbox_keeps_the_line_cut(world: World) -> None:
    job = job_of("d")
    sleeper = subprocess.Popen(["unshare", "-Urpf", "sleep", "60"])
    try:
        time.sleep(0.3)
        child = int(subprocess.check_output(["pgrep", "-P", str(sleeper.pid)]).split()[0])
        inode = int(subprocess.check_output(["readlink", f"/proc/{child}/ns/pid"]).strip()[5:-1])
        with world.keeper() as keeper:
            token = keeper.cut(job, 1).token
            keeper.register(job, 1, inode)
            world.end(job)
            assert keeper.restore(job, 1, token).codes == ("reconnect-alive",)
            subprocess.run(["kill", "-9", str(child)], check=True)
            sleeper.wait(timeout=5)
            assert keeper.restore(job, 1, token).restored
    finally:
        sleeper.kill()
        sleeper.wait()


def test_the_second_attempt_waits_and_the_first_may_ask_again(world: World) -> None:
    with world.keeper() as keeper:
        first = keeper.cut(job_of("e"), 1)
        assert keeper.cut(job_of("e"), 1).token == first.token
        with pytest.raises(PeerError) as busy:
            keeper.cut(job_of("f"), 1)
        assert busy.value.codes == ("keeper-busy",)


def test_an_attempt_that_was_ended_gives_way_to_the_next_that_asks(world: World) -> None:
    with world.keeper() as keeper:
        keeper.cut(job_of("e2"), 1)
        world.end(job_of("e2"))
        with pytest.raises(PeerError) as busy:
            keeper.cut(job_of("f2"), 1)  # whoever is turned away has the keeper look whether the line may come back
        assert busy.value.codes == ("keeper-busy",)
        assert keeper.status()["tokens"] == []
        assert keeper.cut(job_of("f2"), 1).control == "reached"


def test_without_a_control_the_gate_has_nothing_to_judge(world: World) -> None:
    world.inside("ip", "route", "del", "default")
    world.inside("ip", "link", "set", "portB", "down")
    with world.keeper() as keeper:
        assert keeper.cut(job_of("g"), 1).control != "reached"


def test_C14_sigkill_of_the_keeper_leaves_the_line_cut_until_proven_clean(world: World) -> None:
    job = job_of("h")
    with world.keeper() as keeper:
        token = keeper.cut(job, 1).token
    world.kill("keeper")
    world.inside("ip", "link", "set", "portB", "up")
    world.start_keeper()
    world.ready("keeper")
    assert not reaches(world)
    with world.keeper() as keeper:
        assert keeper.status()["tokens"] == [f"{job}#1"]
        assert keeper.sweep() == {"restored": [], "kept": [f"{job}#1"]}
        world.end(job)
        assert keeper.sweep() == {"restored": [f"{job}#1"], "kept": []}
        assert not keeper.restore(job, 1, token).restored
    assert reaches(world)


@pytest.mark.parametrize("damage", ["missing", "half", "odd"])
def test_C14_a_state_that_cannot_be_read_is_a_cut_line(world: World, damage: str) -> None:
    state = world.folder / "keeper.json"
    with world.keeper() as keeper:
        keeper.cut(job_of("before"), 1)
    world.end(job_of("before"))
    world.kill("keeper")
    if damage == "missing":
        state.unlink()
    else:
        state.write_text(state.read_text()[:20] if damage == "half" else json.dumps({"version": 1, "tokens": []}))
    world.inside("ip", "link", "set", "portB", "up")
    world.start_keeper()
    world.ready("keeper")
    assert not reaches(world)
    with world.keeper() as keeper:
        assert keeper.status()["unknown"] is True
        world.holds("anything")
        assert keeper.sweep()["kept"] == ["unknown"]
        with pytest.raises(PeerError):
            keeper.cut(job_of("i"), 1)
        world.holds("")
        assert keeper.sweep() == {"restored": ["unknown"], "kept": []}
    assert reaches(world)


def test_C02_a_line_that_comes_up_is_cut_again_and_kept_on_record(world: World) -> None:
    job = job_of("j")
    with world.keeper() as keeper:
        keeper.cut(job, 1)
        world.inside("ip", "link", "set", "portB", "up")
        end = time.monotonic() + 5
        while not keeper.watch(job, 1) and time.monotonic() < end:
            time.sleep(0.05)
        assert "cut-link-up" in keeper.watch(job, 1)
        assert "cut-link-up" in keeper.prove(job, 1).broken
        with pytest.raises(Refusal) as refused:
            keeper.register(job, 1, 5)
        assert "cut-broken" in refused.value.codes
    assert not reaches(world)


WAYS = {
    "cut-unknown-link": ["ip", "link", "add", "tether0", "type", "veth", "peer", "name", "tether1"],
    "cut-route": ["ip", "route", "add", "default", "via", "192.0.2.2", "dev", "portA", "metric", "9"],
    "cut-ipv6": ["sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/portA/disable_ipv6"],
}


@pytest.mark.parametrize("code", sorted(WAYS))
def test_C03_every_other_way_out_is_named(world: World, code: str) -> None:
    assert world.inside(*WAYS[code]).returncode == 0
    with world.keeper() as keeper:
        assert code in ways_out(keeper.cut(job_of(code), 1).network)


def test_C03_a_route_in_another_table_and_a_split_default_are_ways_out(world: World) -> None:
    world.inside("ip", "route", "add", "0.0.0.0/1", "via", "192.0.2.2", "dev", "portA", "table", "77")
    with world.keeper() as keeper:
        assert "cut-route" in ways_out(keeper.cut(job_of("k"), 1).network)


def test_C06_a_strangers_abstract_socket_in_the_namespace_is_a_way_out(world: World) -> None:
    code = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0docker'); s.listen(); print('up', flush=True); input()"
    stranger = world.network.popen(["python3", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert stranger.stdout.readline() == b"up\n"
        with world.keeper() as keeper:
            assert "cut-socket" in ways_out(keeper.cut(job_of("l"), 1).network)
    finally:
        stranger.kill()
        stranger.wait()
