"""The profile's notifications: whole where they are switched on, each wrong thing named with its line, and what comes of them."""

from pathlib import Path

import pytest

from blocks.mail import notifications
from blocks.profile import load_profile
from rapha.errors import ConfigurationError
from tests.fixtures.profiles import A_FILE, production_text

HOME = Path(__file__).parents[2] / "infra" / "profiles"
DEVELOPMENT, PRODUCTION = ({"RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": value} for value in ("false", "true"))
TEXT = production_text()
PERSONS = "      - reading-room@hospital.example\n      - radiologist-on-call@hospital.example\n"
LOGIN = "    user: rapha\n    password: env:SMTP_PASSWORD\n  recipients:"


def loaded(tmp_path, text, environment=PRODUCTION):
    (tmp_path / "p.yaml").write_text(text)
    return load_profile(tmp_path / "p.yaml", environment)


def refused(tmp_path, old, new):
    assert TEXT.count(old) == 1
    with pytest.raises(ConfigurationError) as wrong:
        loaded(tmp_path, TEXT.replace(old, new))
    return wrong.value


def test_the_production_example_tells_its_persons_in_order(tmp_path):
    by = notifications(loaded(tmp_path, TEXT), {})
    assert by.rules.persons == {"radiology": ("reading-room@hospital.example", "radiologist-on-call@hospital.example")}
    assert by.rules.escalate_after == 900
    assert (by.server.host, by.server.port, by.server.from_address) == ("smtp.hospital.example", 587, "rapha@hospital.example")
    assert (str(by.server.ca_bundle), by.server.user) == (A_FILE, "")


def test_where_e_mail_is_off_there_is_nobody_to_send_with(tmp_path):
    assert notifications(load_profile(HOME / "development.yaml", DEVELOPMENT), {}) is None
    bare = loaded(tmp_path, (HOME / "development.yaml").read_text().partition("notifications:")[0], DEVELOPMENT)
    assert notifications(bare, {}) is None


WRONG = [
    ("      - radiologist-on-call@hospital.example", "      - radiologist on call", "profile-value", "recipients.radiology"),
    ("      - radiologist-on-call@hospital.example", "      - 4711", "profile-value", "recipients.radiology"),
    ("      - radiologist-on-call@hospital.example", '      - "a@b\\r\\nBcc: x@evil"', "profile-value", "recipients.radiology"),
    (PERSONS, "      []\n", "profile-value", "recipients.radiology"),
    ("radiology: #", "radiolgy: #", "profile-unknown-key", "recipients.radiolgy"),
    ("from_address: rapha@hospital.example", "from_address: rapha", "profile-value", "from_address"),
    ("from_address: rapha@hospital.example\n", "enabled: true\n", "profile-repeated-key", "enabled"),
    ("    from_address: rapha@hospital.example\n", "", "profile-missing-key", "from_address"),
    ("    smtp_server: smtp.hospital.example\n", "", "profile-missing-key", "smtp_server"),
    ("smtp_server: smtp.hospital.example", "smtp_server: smtp.hospital.example:25", "profile-value", "smtp_server"),
    ("smtp_server: smtp.hospital.example", "smtp_server: localhost", "profile-host", "smtp_server"),
    ("smtp_server: smtp.hospital.example", "smtp_server: '::1'", "profile-host", "smtp_server"),
    ("smtp_port: 587", "smtp_port: 0", "profile-value", "smtp_port"),
    ("needs_outside_line: false", "needs_outside_line: true", "notices-need-outside-line", "needs_outside_line"),
    ("needs_outside_line: false", "needs_outside_line: perhaps", "profile-type", "needs_outside_line"),
    ("escalate_after_seconds: 900", "escalate_after_seconds: 59", "profile-value", "escalate_after_seconds"),
    ("  recipients:", "    user: rapha\n  recipients:", "profile-missing-key", "user and password"),
    ("  recipients:", LOGIN.replace("env:SMTP_PASSWORD", "hunter2"), "profile-secret-in-clear", "password"),
]


@pytest.mark.parametrize(("old", "new", "code", "named"), WRONG)
def test_one_wrong_thing_is_one_code_that_names_it(tmp_path, old, new, code, named):
    error = refused(tmp_path, old, new)
    assert error.codes == (code,) and named in error.message and "hunter2" not in error.message
    assert "(line " in error.message or code == "profile-missing-key"


def test_who_is_told_and_by_which_line_must_be_said(tmp_path):
    assert refused(
        tmp_path,
        f"    radiology: # one person is told at a time, in this order; after the last, the first again\n{PERSONS}",
        "    {}\n",
    ).codes == ("profile-missing-key",)
    start, end = TEXT.index("    needs_outside_line"), TEXT.index(f"    ca_bundle: {A_FILE} # who")
    with pytest.raises(ConfigurationError) as wrong:
        loaded(tmp_path, TEXT[:start] + TEXT[end:])
    assert wrong.value.codes == ("profile-missing-key",) and "needs_outside_line" in wrong.value.message


def test_a_real_server_is_no_place_for_development(tmp_path):
    text = (HOME / "development.yaml").read_text().partition("notifications:")[0] + TEXT[TEXT.index("notifications:") :]
    with pytest.raises(ConfigurationError) as wrong:
        loaded(tmp_path, text, DEVELOPMENT)
    assert wrong.value.codes == ("profile-host",)
    assert (
        notifications(loaded(tmp_path, text.replace("smtp.hospital.example", "localhost"), DEVELOPMENT), {}).server.host
        == "localhost"
    )


def test_the_login_comes_from_where_it_is_named(tmp_path):
    profile = loaded(tmp_path, TEXT.replace("  recipients:", LOGIN))
    by = notifications(profile, {"SMTP_PASSWORD": "s3cret"})
    assert (by.server.user, by.server.password) == ("rapha", "s3cret") and "s3cret" not in repr(by) + repr(profile)
    for environment, code in (({}, "profile-secret-missing"), ({"SMTP_PASSWORD": "a\nb"}, "mail-login-form")):
        with pytest.raises(ConfigurationError) as wrong:
            notifications(profile, environment)
        assert wrong.value.codes == (code,)
