"""Merkle trees against RFC 6962's own recursive definition, and their proofs of inclusion."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.records import Record, read_records, records_root, write_records
from rapha.merkle import includes, inclusion_proof, merkle_root

leaves = st.lists(st.binary(max_size=8), min_size=1, max_size=40)


def tree_hash(entries: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, as it is written there."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = 1
    while 2 * k < len(entries):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_hash(entries[:k]) + tree_hash(entries[k:])).digest()


def test_known_answers_of_certificate_transparency():
    """From the test vectors of certificate-transparency-go (Apache-2.0)."""
    vectors = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        bytes(range(0x50, 0x58)),
        bytes(range(0x60, 0x70)),
    ]
    assert merkle_root([]) == "sha256:" + hashlib.sha256(b"").hexdigest()
    assert merkle_root(vectors) == "sha256:5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@settings(deadline=None)
@given(st.lists(st.binary(max_size=8), max_size=40))
def test_the_root_is_the_rfcs(entries):
    assert merkle_root(entries) == "sha256:" + tree_hash(entries).hex()


@settings(deadline=None)
@given(leaves, st.data())
def test_each_leaf_is_proven_and_nothing_else_is(entries, data):
    index = data.draw(st.integers(0, len(entries) - 1))
    root, path = merkle_root(entries), inclusion_proof(entries, index)
    assert includes(root, entries[index], index, len(entries), path)
    assert not includes(root, entries[index] + b"x", index, len(entries), path)
    assert not includes(root, entries[index], index, len(entries), [*path, "00" * 32])
    assert not includes(root, entries[index], len(entries), len(entries), path)
    assert not includes("sha256:" + "0" * 64, entries[index], index, len(entries), path)
    if path:
        assert not includes(root, entries[index], index, len(entries), path[:-1])
        assert not includes(root, entries[index], index, len(entries), ["zz", *path[1:]])


@settings(deadline=None)
@given(leaves, st.data())
def test_a_leaf_proves_its_place(entries, data):
    index, other = (data.draw(st.integers(0, len(entries) - 1)) for _ in range(2))
    same = entries[other] == entries[index] or other == index
    assert same or not includes(merkle_root(entries), entries[index], other, len(entries), inclusion_proof(entries, index))


hexes = st.binary(min_size=32, max_size=32).map(bytes.hex)
records = st.lists(
    st.builds(Record, hexes, hexes, hexes.map(lambda h: "sha256:" + h), st.none() | st.integers(0, 9)),
    max_size=20,
    unique_by=lambda r: r.record,
)


@settings(deadline=None)
@given(records)
def test_a_records_file_is_read_back_whatever_the_order(listed):
    read = read_records(write_records(reversed(listed)))
    assert sorted(read, key=lambda r: r.record) == sorted(listed, key=lambda r: r.record)
    assert records_root(read) == records_root(listed)


@settings(deadline=None)
@given(records, st.data())
def test_D11_a_changed_label_or_content_is_another_root(listed, data):
    if listed:
        chosen = data.draw(st.integers(0, len(listed) - 1))
        old = listed[chosen]
        changed = [*listed[:chosen], Record(old.record, old.patient, old.content, 10), *listed[chosen + 1 :]]
        assert records_root(changed) != records_root(listed)
