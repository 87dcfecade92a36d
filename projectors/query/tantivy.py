"""Full-text questions to the embedded index, scored by BM25, a title's words counting threefold.

The question is taken apart into words by the index's own rules and nothing in it is syntax. Settings are the
sink's (:mod:`projectors.sinks.tantivy`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import tantivy

from projectors.query.protocol import Hit, answering
from projectors.sinks.tantivy import rebuilt
from projectors.sinks.tantivy_shelf import Shelf, open_shelf, schema, told_apart

STORE: Final = "tantivy"
TITLE_WEIGHT: Final = 3.0
SNIPPET_CHARACTERS: Final = 160
HITS_MAX: Final = 10_000
"""The most a question gives back, whatever the limit asked for."""
QUESTION_CHARACTERS: Final = 10_000
WORDS_MAX: Final = 64
"""What is beyond these is left out of a question: each word costs a walk through two posting lists."""
WORD_BYTES: Final = 40
"""The index leaves longer words out (its ``default`` tokenizer)."""

_SCHEMA: Final = schema()
_LIVE: Final = tantivy.Query.const_score_query(tantivy.Query.term_query(_SCHEMA, "live", True), 0.0)
_WORDS: Final = (
    tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    .filter(tantivy.Filter.remove_long(WORD_BYTES))
    .filter(tantivy.Filter.lowercase())
    .build()
)


class TantivyReader:
    """A :class:`projectors.query.protocol.TextReader`; may be asked by several threads."""

    def __init__(self, shelf: Shelf, projection: str) -> None:
        self._shelf = shelf
        self._projection = projection

    def match(self, generation: str, text: str, limit: int) -> Sequence[Hit]:
        words = _words(text)
        if limit < 1 or not words:
            return []
        query = _any_of(words)
        searcher = self._searcher(generation)
        with told_apart():
            wanted = tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, _LIVE)])
            found = searcher.search(wanted, limit=min(limit, HITS_MAX), count=False).hits
            snippets = tantivy.SnippetGenerator.create(searcher, query, _SCHEMA, "text")
            snippets.set_max_num_chars(SNIPPET_CHARACTERS)
            hits = [_hit(searcher.doc(address), score, snippets) for score, address in found]
        return sorted(hits, key=lambda hit: (-hit.score, hit.key))

    def _searcher(self, generation: str) -> Any:
        with answering():
            return self._shelf.index(self._projection, generation).searcher()


@contextmanager
def open_reader(projection: str, settings: Mapping[str, Any]) -> Iterator[TantivyReader]:
    """A reader of one projection; sinks and readers of one process share the open indexes."""
    with open_shelf(projection, settings) as shelf:
        yield TantivyReader(shelf, projection)


def _words(text: str) -> list[str]:
    text = text[:QUESTION_CHARACTERS].encode(errors="ignore").decode()  # a lone surrogate is in no document
    return list(dict.fromkeys(_WORDS.analyze(text)))[:WORDS_MAX]


def _any_of(words: Sequence[str]) -> Any:
    either = []
    for word in words:
        title = tantivy.Query.term_query(_SCHEMA, "title", word)
        either.append((tantivy.Occur.Should, tantivy.Query.boost_query(title, TITLE_WEIGHT)))
        either.append((tantivy.Occur.Should, tantivy.Query.term_query(_SCHEMA, "text", word)))
    return tantivy.Query.boolean_query(either)


def _hit(document: Any, score: float, snippets: Any) -> Hit:
    record, _ = rebuilt(document)
    snippet = snippets.snippet_from_doc(document).fragment() or record.text[:SNIPPET_CHARACTERS]
    return Hit(record.key, score, STORE, record.kind, record.title, snippet, record.properties)
