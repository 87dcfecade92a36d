"""The readers on arbitrary input: they raise nothing but UnreadableFile, and the log takes what they give."""

from __future__ import annotations

import io
from encodings.aliases import aliases

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox.codec import default_registry
from outbox.ingest.errors import UnreadableFile
from outbox.ingest.python import read_python
from outbox.ingest.text import read_text
from schemas import FOLDER

SCHEMA = fastavro.schema.load_schema(str(FOLDER / "entity.upserted.v1.avsc"))

SNIPPETS = st.sampled_from(
    [
        "def ",
        "class ",
        "async ",
        "f",
        "A",
        "(",
        ")",
        ":",
        "\n",
        "\n ",
        "\n  ",
        "self",
        ".",
        ",",
        "=",
        "1",
        "'''",
        '"',
        "\\ud800",
        "\\x00",
        "@",
        "import ",
        "from ",
        "global f",
        "*",
        "**",
        "lambda ",
        "# coding: utf-7\n",
        "# coding: latin-1\n",
        "\r",
        "\x0c",
        "\ufeff",
        "é",
        "# ",
        "## ",
        "===",
        "---\n",
        "```",
        "[a](",
        "b.md#",
        ")",
        "    ",
        "> ",
        "<!--",
        "%ff",
        "//",
    ]
)
SOUP = st.lists(SNIPPETS, max_size=60).map(lambda pieces: "".join(pieces).encode("utf-8"))
ANY = st.binary(max_size=400) | SOUP | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))


def check(data) -> None:
    fastavro.schemaless_writer(io.BytesIO(), SCHEMA, data, strict=True)
    default_registry().encode("entity.upserted", data)
    keys = [part["key"] for part in data["parts"]]
    assert len(keys) == len(set(keys))
    for entity in (data, *data["parts"]):
        edges = [(link["kind"], link["target"]) for link in entity["links"]]
        assert len(edges) == len(set(edges))


@given(ANY, st.sampled_from(["", "m", "a.b.c"]), st.booleans())
@settings(max_examples=600, deadline=None)
def test_python_of_any_bytes_is_read_or_unreadable(source, module, is_package):
    try:
        data = read_python(source, module, is_package, stream="python-x")
    except UnreadableFile as error:
        assert "\n" not in str(error)
    else:
        check(data)


@given(ANY, st.sampled_from([".md", ".rst", ".txt", ".markdown"]))
@settings(max_examples=600, deadline=None)
def test_text_of_any_bytes_is_read(source, ext):
    check(read_text(source, f"text-root/a/b{ext}", ext))


@pytest.mark.parametrize("encoding", sorted({*aliases.values(), "undefined", "idna", "unicode_escape", "rot13"}))
def test_every_declared_encoding_is_read_or_unreadable(encoding):
    try:
        check(read_python(f"# coding: {encoding}\n'''x+2AA-\\ud800'''\ndef f(): pass\n".encode(), "m"))
    except UnreadableFile as error:
        assert str(error)
