"""What a text file comes to."""

from __future__ import annotations

from outbox.ingest.text import read_text


def read(source: str | bytes, ext: str = ".md", path: str = "docs/a.md"):
    raw = source if isinstance(source, bytes) else source.encode()
    return read_text(raw, f"text-root/{path}", ext, path=path)


def keys(data) -> list[str]:
    return [part["key"] for part in data["parts"]]


def links(entity, kind: str) -> dict:
    return {link["target"]: link["properties"] for link in entity["links"] if link["kind"] == kind}


def test_markdown_sections_nest_by_level():
    data = read("# Guide\nintro\n## Install\nhow\n### Linux\napt\n## Use\nso\n")
    assert keys(data) == ["guide", "guide/install", "guide/install/linux", "guide/use"]
    assert [p["text"] for p in data["parts"]] == ["intro", "how", "apt", "so"]
    assert list(links(data, "contains")) == ["text-root/docs/a.md#guide"]
    assert list(links(data["parts"][0], "contains")) == [
        "text-root/docs/a.md#guide/install",
        "text-root/docs/a.md#guide/use",
    ]
    assert data["name"] == "Guide"


def test_setext_headings_count_and_headings_in_code_do_not():
    data = read("Top\n===\n\n```\n# not\n```\n\n    # nor this\n\nSub\n---\n> # quoted\n")
    assert keys(data) == ["top", "top/sub"]


def test_repeated_sections_are_numbered():
    assert keys(read("# A\n## B\n## B\n# A\n## B\n")) == ["a", "a/b", "a/b@2", "a@2", "a@2/b"]


def test_front_matter_is_no_heading():
    data = read("---\ntitle: x\n---\n# Real\n")
    assert keys(data) == ["real"]
    assert data["parts"][0]["properties"]["line"] == 4


def test_text_before_the_first_heading_is_the_documents_own():
    assert read("Hello.\n\n# A\nb")["text"] == "Hello."


def test_relative_links_lead_to_the_streams_of_their_files():
    data = read(
        "# A\n[x](b.md) [y](../c.rst#part) [z](../c.rst#other) [up](../../out.md) [w](https://x.y/z.md)"
        " [p](pic.png) [abs](/d.md) [enc](my%20file.txt)\n"
    )
    assert links(data["parts"][0], "links") == {
        "text-root/docs/b.md": {},
        "text-root/c.rst": {"fragments": ["part", "other"]},
        "text-root/docs/my file.txt": {},
    }


def test_a_fragment_of_the_same_document_leads_to_its_section():
    data = read("[go](#part-1) [self](a.md#part)\n\n# Part\n# Part\n")
    assert list(links(data, "links")) == ["text-root/docs/a.md#part@2", "text-root/docs/a.md#part"]


def test_restructured_text_levels_follow_the_order_of_styles():
    data = read("====\nBook\n====\n\nOne\n---\ntext\n\nDeep\n~~~~\n\nTwo\n---\n::\n\n   Not\n   ---\n", ".rst")
    assert keys(data) == ["book", "book/one", "book/one/deep", "book/two"]
    assert [p["properties"]["level"] for p in data["parts"]] == [1, 2, 3, 2]


def test_a_transition_or_a_table_is_no_heading():
    assert keys(read("para\n\n----\n\npara\n\n=== ===\na   b\n=== ===\n1   2\n=== ===\n", ".rst")) == []


def test_plain_text_is_cut_into_runs_of_paragraphs():
    paragraph = "word " * 200
    data = read("\n\n".join([paragraph] * 7), ".txt")
    assert keys(data) == ["1", "2", "3", "4"]
    assert "".join(p["text"] for p in data["parts"]).count("word") == 1_400


def test_bytes_that_are_not_utf8_are_replaced_and_counted():
    data = read(b"# \xff caf\xe9 \xef\xbf\xbd\n", ".md")
    assert data["properties"]["replaced"] == 2
    assert data["parts"][0]["name"] == "� caf� �"


def test_utf16_with_its_mark_is_read():
    data = read("# Käse\n".encode("utf-16"))
    assert data["parts"][0]["name"] == "Käse" and "replaced" not in data["properties"]


def test_nul_is_replaced():
    assert "\x00" not in str(read("a\x00b\n# c\x00d\n"))


def test_windows_line_ends_make_no_difference():
    unix, windows = read("# A\n\nb\n\n## C\n"), read("# A\r\n\r\nb\r\n\r\n## C\r\n")
    assert unix == windows


def test_an_empty_file_has_its_name_as_text():
    assert (read("")["name"], read("")["text"], read("")["parts"]) == ("a.md", "a.md", [])


def test_headings_lose_their_inline_markup():
    assert read("# *The* `code` [link](b.md)\n")["parts"][0]["name"] == "The code link"


def test_a_paragraph_of_unclosed_brackets_is_not_searched_for_ever():
    """Searching it would take markdown-it minutes: the bound on a test's time is what fails here."""
    data = read("# A\n" + "![" * 500_000)
    assert keys(data) == ["a"] and len(data["parts"][0]["text"]) == 20_000
