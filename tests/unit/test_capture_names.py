"""Names of captured things: one row, one stream; one change, one id; for good."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.capture import names
from outbox.capture.settings import CaptureSettings
from outbox.capture.source import NAME, Names
from outbox.errors import SettingsError
from outbox.event import check_stream

KEYS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40), min_size=2, max_size=2)


@given(KEYS, KEYS)
def test_two_rows_never_share_a_stream(one, other):
    assert (names.stream("t", one) == names.stream("t", other)) == (one == other)


@given(KEYS)
def test_every_key_names_a_stream_that_owns_its_parts(key):
    stream = check_stream(names.stream("t", key))
    assert "#" not in stream  # behind it a record's part would begin


def test_a_key_longer_than_a_name_may_be_is_named_by_its_digest():
    long = names.stream("t", ["x" * 1_022]), names.stream("t", ["x" * 1_023]), names.stream("t", ["x" * 1_024])
    assert len(long[0]) == 1_024
    assert len(set(long)) == 3
    assert all(check_stream(name).startswith("t-") for name in long)
    assert names.stream("t", ["%~"]) == "t-%25~"


def test_plain_keys_are_written_as_they_are():
    assert names.stream("orders", ["42"]) == "orders-42"
    assert names.stream("orders", ["a b", "ä"]) == "orders-a b,ä"
    assert names.stream("orders", ["a,b#c%", "\n"]) == "orders-a%2Cb%23c%25,%0A"


def test_ids_never_change():
    # The log holds them for good, and what is read again is known by them.
    assert names.change_id("1/2/capture", 3, 4) == uuid.UUID("c3b15001-0478-52fe-b216-a11fcf670b28")
    assert names.member_id("1/2/capture", 3, 0, "t-1") != names.member_id("1/2/capture", 3, 1, "t-1")


def test_a_category_is_the_table_with_its_schema_if_that_is_not_public():
    assert names.category("public", "orders") == "orders"
    assert names.category("sales", "orders") == "sales.orders"
    with pytest.raises(SettingsError, match="ASCII letters"):
        names.category("public", "my-orders")


@pytest.mark.parametrize("name", ["", "Upper", "a-b", "x" * 21])
def test_a_capture_whose_name_cannot_name_a_slot_is_refused(name):
    with pytest.raises(SettingsError, match="capture name"):
        CaptureSettings(name=name)


def test_the_longest_name_of_a_slot_fits_postgresql():
    assert NAME.endswith("{1,20}")
    assert len(Names(f"outbox_capture_12345678_{'x' * 20}").slot(10**9)) <= 63
