"""An array packed by hand is the array that psycopg would have sent."""

from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer

from outbox.log.array_format import bytea_array, text_array, uuid_array

texts = st.text(st.characters(codec="latin-1", exclude_characters="\0"))


def by_psycopg(items):
    (dumped,) = Transformer().dump_sequence([items], [PyFormat.BINARY])
    return bytes(dumped)


@given(st.lists(st.binary(), min_size=1))
@settings(derandomize=True)
def test_bytes(items):
    assert bytea_array(items) == by_psycopg(items)


@given(st.lists(st.uuids(), min_size=1))
@settings(derandomize=True)
def test_uuids(items):
    assert uuid_array(items) == by_psycopg(items)


@given(st.lists(texts, min_size=1), st.integers(1, 3))
@settings(derandomize=True)
def test_texts_alike_and_different(items, times):
    assert text_array(items * times, "utf-8") == by_psycopg(items * times)


@given(texts)
@settings(derandomize=True)
def test_a_text_is_in_the_clients_encoding(text):
    assert text_array([text], "latin-1").endswith(text.encode("latin-1"))
