"""Whose fault it was: a wrong setting, a disk or a ledger is the node's; a peer's silence and a study's content are not."""

import pytest

from policies.node_fault import OS_ERRORS, WHOLE_NODE, node_fault


@pytest.mark.parametrize(
    "code", ["ledger-unwritable", "audit-unwritable", "kept-unwritable", "models-other", "trainer-command-missing"]
)
def test_what_stops_every_study_is_the_nodes(code: str) -> None:
    assert node_fault([code]) == node_fault([code], setting=True) == node_fault(["another", code]) == "node"


@pytest.mark.parametrize("code", ["pacs-unknown", "endpoint-clear-dicomweb", "tls-certificate-missing"])
def test_another_wrong_setting_is_its_rows(code: str) -> None:
    assert node_fault([code], setting=True) == "row"
    assert node_fault([code]) == "", "as an archive's answer it is not ours"
    assert node_fault(["capabilities-odd"]) == "row"


def test_an_error_of_the_disk_is_the_nodes_where_it_was_raised_here() -> None:
    assert {node_fault([f"bug-{name}"], bug=True) for name in OS_ERRORS} == {"node"}
    assert {node_fault([f"bug-{name}"]) for name in OS_ERRORS} == {""}, "the study reader's may be what the study did to it"
    assert node_fault(["bug-valueerror"], bug=True) == ""
    for error in (OSError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError):
        assert error.__name__.lower() in OS_ERRORS


@pytest.mark.parametrize(
    "code",
    ["dimse-unreachable", "study-gone", "register-unavailable", "arrival-conflict", "ledger-entry", "report-own", "models"],
)
def test_a_peers_and_a_studys_own_are_not(code: str) -> None:
    assert node_fault([code]) == ""


def test_nothing_said_is_nobodys_fault() -> None:
    assert node_fault([]) == "" and all(WHOLE_NODE)
