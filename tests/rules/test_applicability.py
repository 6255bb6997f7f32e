"""Which instance which model reads: each has an answer, and no answer is empty."""

from dataclasses import replace

import pytest
from pydicom.uid import UID_dictionary

from policies.applicability import SLIDE, InstanceFacts, applicability
from policies.model import Model
from tests.fixtures.studies import CT, MODEL, SLIDES, facts


def reasons(*instances: InstanceFacts) -> dict[int, str]:
    return dict(applicability(instances, [MODEL, SLIDES]).left_out)


def test_each_model_reads_what_it_declares_and_nothing_else() -> None:
    mr = facts(1, sop_class="1.2.840.10008.5.1.4.1.1.4", modality="MR")
    found = applicability([facts(0), mr, facts(2, sop_class=SLIDE, modality="SM", flavour="VOLUME")], [MODEL, SLIDES])
    assert found.reading == ((0, (0,)), (1, (2,)))
    assert found.left_out == {1: "no-model"}


@pytest.mark.parametrize("changed", [{"modality": "MR"}, {"sop_class": "1.2.840.10008.5.1.4.1.1.4"}])
def test_modality_and_class_must_both_be_declared(changed: dict[str, str]) -> None:
    assert reasons(facts(0, **changed)) == {0: "no-model"}


def test_two_models_may_read_one_instance() -> None:
    other = replace(MODEL, name="second-reader")
    assert applicability([facts(0)], [MODEL, other]).reading == ((0, (0,)), (1, (0,)))


@pytest.mark.parametrize(
    ("sop_class", "modality", "reason"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.33", "SR", "structured-report"),
        ("1.2.840.10008.5.1.4.1.1.88.34", "CT", "structured-report"),
        (CT, "SR", "structured-report"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "KO", "key-object"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "PR", "presentation-state"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "SEG", "segmentation"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "DOC", "encapsulated-document"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE", "dose"),
        ("1.2.840.10008.5.1.4.1.1.481.5", "RTPLAN", "radiotherapy"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "ECG", "waveform"),
    ],
)
def test_what_is_no_image_has_its_own_reason(sop_class: str, modality: str, reason: str) -> None:
    everything = replace(MODEL, inputs=replace(MODEL.inputs, modalities=(modality,), sop_classes=(sop_class,)))
    found = applicability([facts(0, sop_class=sop_class, modality=modality)], [everything])
    assert (found.reading, found.left_out) == ((), {0: reason}), "not even a model that declares it reads it"


@pytest.mark.parametrize("reason", ["undecodable", "transfer-syntax", "no-pixels", "slide-unreadable"])
def test_a_fault_is_a_reason(reason: str) -> None:
    assert reasons(facts(0, fault=reason)) == {0: reason}


def test_our_own_report_is_named_so() -> None:
    assert reasons(facts(0, sop_class="1.2.840.10008.5.1.4.1.1.88.34", modality="SR", own=True)) == {0: "own-report"}


@pytest.mark.parametrize(
    ("flavour", "reason"),
    [("LABEL", "slide-label"), ("OVERVIEW", "slide-overview"), ("LOCALIZER", "slide-overview"), ("THUMBNAIL", "slide-thumbnail")],
)
def test_what_is_no_tissue_on_a_slide_is_left_out(flavour: str, reason: str) -> None:
    assert reasons(facts(0, sop_class=SLIDE, modality="SM", flavour=flavour)) == {0: reason}


def test_every_storage_class_of_the_standard_has_one_answer() -> None:
    classes = [uid for uid, (name, kind, *_) in UID_dictionary.items() if kind == "SOP Class" and name.endswith("Storage")]
    instances = [facts(index, sop_class=uid, modality="OT") for index, uid in enumerate(classes)]
    found = applicability(instances, [MODEL, SLIDES])
    assert len(classes) > 150
    assert found.reading == () and set(found.left_out) == set(range(len(classes)))
    assert all(found.left_out.values())


def test_no_models_leave_every_instance_out() -> None:
    models: list[Model] = []
    assert applicability([facts(0)], models).left_out == {0: "no-model"}
