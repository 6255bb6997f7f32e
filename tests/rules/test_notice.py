"""Who is told what: persons in turn, texts of counts alone, names that repeat for a repeat, and what a failure leads to."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.notice import (
    GROUPS,
    REFUSED_FOR_GOOD,
    REFUSED_FOR_NOW,
    TEMPLATES,
    NoticeRules,
    after_failure,
    channel_codes,
    is_address,
    is_host,
    message_id,
    words,
    wrong_recipients,
)
from rapha.errors import Refusal

PERSONS = ("first@hospital.example", "second@hospital.example", "third@hospital.example")
RULES = NoticeRules(persons={"radiology": PERSONS}, escalate_after=900)
FACTS = {"study": 17, "findings": 3, "critical": 1, "analysed": 12, "left_out": 2}
ANYTHING = st.one_of(
    st.text(), st.integers(), st.booleans(), st.floats(), st.none(), st.lists(st.text()), st.dictionaries(st.text(), st.text())
)


def test_persons_are_told_in_their_order_and_then_again_from_the_first():
    assert [RULES.person("radiology", level) for level in range(5)] == [*PERSONS, *PERSONS[:2]]
    with pytest.raises(Refusal) as nobody:
        RULES.person("cardiology", 0)
    assert nobody.value.codes == ("notice-nobody",)


def test_who_cannot_be_told_is_passed_over_at_once_but_nobody_is_tried_in_circles():
    assert [RULES.escalated_at("radiology", level, 1000, given_up=True) - 1000 for level in range(6)] == [0, 0, 900, 0, 0, 900]
    assert {RULES.escalated_at("radiology", level, 1000, given_up=False) for level in range(6)} == {1000}


def test_a_mail_says_counts_row_and_how_to_take_it():
    said = words(5, 17, "critical", "critical", FACTS, escalate_after=900)
    assert said.subject == "CRITICAL finding in row 17 (notice 5)" and said.codes == ()
    assert "Findings: 3, of them critical: 1. Instances analysed: 12, left out: 2." in said.body
    assert "`rapha notify ack 5`; after 15 minutes the next person is told." in said.body and "number" not in said.body
    assert "you are told as number 2" in words(5, 17, "critical", "critical", FACTS, level=1, escalate_after=900).body
    plain = words(5, 17, "result", "result", FACTS, escalate_after=900)
    assert plain.subject == "Result for row 17 (notice 5)" and "ack" not in plain.body


@pytest.mark.parametrize(
    "facts",
    [
        {**FACTS, "findings": "Nightingale^Florence"},
        {**FACTS, "findings": True},
        {**FACTS, "findings": -1},
        {**FACTS, "findings": 4711_0042},
        {**FACTS, "patient": "MRN-0042"},
        {"findings": 3},
        {},
    ],
)
def test_a_notice_with_other_facts_is_told_bare(facts):
    for kind in ("critical", "result"):
        said = words(5, 17, kind, kind, facts)
        assert said.codes == ("notice-facts",)
        assert ("CRITICAL" in said.subject) is (kind == "critical") and ("notify ack 5" in said.body) is (kind == "critical")
        assert not re.search(r"Nightingale|MRN|4711|True|-1|Findings", said.subject + said.body)
    assert words(5, 17, "critical", "no-such-template", FACTS).codes == ("notice-facts",)


@given(
    st.dictionaries(st.one_of(st.sampled_from([*FACTS, "0", "row.__class__"]), st.text()), ANYTHING),
    st.sampled_from([*TEMPLATES, "{row}", ""]),
)
def test_whatever_the_facts_hold_a_mail_is_a_template_with_numbers_in_it(facts, template):
    said = words(5, 17, template, template, facts, level=2, escalate_after=900)
    texts = {words(5, 17, name, name, FACTS, level=2, escalate_after=900) for name in TEMPLATES}
    texts |= {words(5, 17, kind, "none", {}, level=2, escalate_after=900) for kind in ("critical", "result")}
    shapes = {re.sub(r"\d+", "#", one.subject + "\n" + one.body) for one in texts}
    assert re.sub(r"\d+", "#", said.subject + "\n" + said.body) in shapes
    assert all(len(number) <= 5 for number in re.findall(r"\d+", said.subject + said.body))


def test_a_message_id_repeats_for_a_repeat_alone():
    first = (5, 1000, 0, PERSONS[0], "rapha@hospital.example")
    others = [(6, *first[1:]), (5, 1001, *first[2:]), (5, 1000, 1, *first[3:]), (*first[:3], PERSONS[1], first[4])]
    assert message_id(*first) == message_id(*first)
    assert len({message_id(*one) for one in [first, *others]}) == 5
    assert re.fullmatch(r"<rapha\.[0-9a-f]{40}@hospital\.example>", message_id(*first))


def test_what_a_failure_leads_to():
    down = (
        "mail-unreachable",
        "mail-timeout",
        "mail-no-starttls",
        "mail-certificate-expired",
        "mail-login",
        "mail-sender-refused",
    )
    assert {after_failure(code, kind, 9, 900) for code in down for kind in ("critical", "result")} == {"held-up"}
    for code in REFUSED_FOR_GOOD:
        assert (after_failure(code, "critical", 0, 900), after_failure(code, "result", 0, 900)) == ("given-up", "again")
    for code in REFUSED_FOR_NOW:
        assert [after_failure(code, "critical", tries, 900) for tries in (0, 5, 6)] == ["again", "again", "given-up"]
        assert after_failure(code, "result", 99, 900) == "again"


@given(st.integers(60, 86400))
def test_a_critical_notice_is_not_tried_for_longer_than_an_escalation_takes(delay):
    waited = tries = 0
    while after_failure("mail-recipient-later", "critical", tries, delay) == "again":
        tries += 1
        waited += min(3600, 5 * 2**tries)
    assert waited <= delay


def test_a_channel_behind_the_outside_line_cannot_be_the_only_one():
    assert channel_codes({"email": True}) == ("notices-need-outside-line",)
    assert channel_codes({"email": True, "sms": True}) == ("notices-need-outside-line",)
    assert channel_codes({"email": False}) == channel_codes({"email": True, "pager": False}) == channel_codes({}) == ()


GOOD = ["a@b", "first.reader+ai@hospital.example", "o'neil@x-y.example", f"{'a' * 64}@b.example"]
BAD = ["", "a", "@b", "a@", "a@b@c", "a b@c", "a@b\n", "a\n@b", "a@b\r\nBcc:c@d",
    "<a@b>", "a@b,c@d", "é@b", ".a@b", "a..b@c", "a@-b", "a@b.",
       f"{'a' * 65}@b", f"a@{'b' * 64}", '"a b"@c', "a@[127.0.0.1]", 7, None, ["a@b"]]  # fmt: skip


def test_addresses():
    assert [one for one in GOOD if not is_address(one)] == [one for one in BAD if is_address(one)] == []
    assert wrong_recipients([]) and wrong_recipients(["a@b", 7]) and not wrong_recipients(["a@b"])


def test_hosts():
    good = ["smtp.hospital.example", "localhost", "10.1.2.3", "::1", "2001:db8::25", "smtp"]
    bad = ["", "smtp:25", "a b", "a\n", "-a", "a..b", "a" * 64, "smtp.hospital.example\r\n", "user@host", "[::1]"]
    assert [one for one in good if not is_host(one)] == [one for one in bad if is_host(one)] == []


def test_each_group_that_the_flow_writes_for_is_one_that_a_profile_can_name():
    assert GROUPS == ("radiology",)
