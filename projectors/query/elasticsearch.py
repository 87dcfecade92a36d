"""Full-text questions to Elasticsearch.

The user's words go into ``match`` clauses only, which have no syntax to break: every input is searched for
as plain words. Settings are the sink's (see :mod:`projectors.sinks.elasticsearch`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from elasticsearch import Elasticsearch

from projectors.query.protocol import Hit, answering
from projectors.sinks.elasticsearch import index_name
from projectors.sinks.elasticsearch_client import connect, parse, translated
from projectors.sinks.elasticsearch_form import LIVE

WORDS_LENGTH_MAX: Final = 512
"""Characters of a question that count: each word becomes a clause per field, and clauses are bounded."""
HITS_MAX: Final = 10_000
"""Elasticsearch's ``index.max_result_window``."""
SNIPPET_LENGTH: Final = 160
HIGHLIGHTED_LENGTH_MAX: Final = 100_000
"""Characters of a text that are searched for its snippet; without a bound one of 1,000,000 fails the search."""


@contextmanager
def open_reader(projection: str, settings: Mapping[str, Any]) -> Iterator[ElasticsearchReader]:
    """The reader of one projection. Opens no connection yet; raises :class:`~outbox.errors.SettingsError`."""
    with connect(parse(settings)) as client:
        yield ElasticsearchReader(client, projection)


class ElasticsearchReader:
    """A :class:`projectors.query.protocol.TextReader`. Sees what was applied up to the index's last refresh."""

    def __init__(self, client: Elasticsearch, projection: str) -> None:
        self._client = client
        self._projection = projection

    def match(self, generation: str, text: str, limit: int) -> Sequence[Hit]:
        """The documents with any of the words, best first (BM25; a title's word weighs three times a text's).

        Equal scores come in the order of their keys. At most :data:`HITS_MAX`.
        """
        words = _clean(text)
        if not words or limit < 1:
            return []
        return [_hit(found) for found in self._search(generation, words, min(limit, HITS_MAX))]

    def _search(self, generation: str, words: str, limit: int) -> Sequence[Mapping[str, Any]]:
        with answering(), translated(f"search {self._projection}"):
            answer = self._client.search(
                index=index_name(self._projection, generation),
                query=_query(words),
                sort=["_score", "key"],
                size=limit,
                source_includes=["key", "kind", "title", "properties"],
                highlight=_SNIPPET,
                track_total_hits=False,
                allow_partial_search_results=False,
            )
        hits: Sequence[Mapping[str, Any]] = answer["hits"]["hits"]
        return hits


_SNIPPET: Final = {
    "pre_tags": [""],
    "post_tags": [""],
    "max_analyzed_offset": HIGHLIGHTED_LENGTH_MAX,
    "fields": {
        "text": {
            "type": "plain",
            "fragment_size": SNIPPET_LENGTH,
            "number_of_fragments": 1,
            "no_match_size": SNIPPET_LENGTH,
        }
    },
}


def _query(words: str) -> dict[str, Any]:
    """Best field wins (a title that says it all beats many scattered words); an exact key beats everything."""
    fields = ["title^3", "text", "key.words^2"]
    return {
        "bool": {
            "filter": LIVE,
            "should": [
                {"multi_match": {"query": words, "fields": fields, "type": "best_fields", "tie_breaker": 0.3}},
                {"term": {"key": {"value": words, "boost": 10}}},
            ],
            "minimum_should_match": 1,
        }
    }


def _clean(text: str) -> str:
    """Bounded, and without lone surrogates, which are no UTF-8."""
    return text[:WORDS_LENGTH_MAX].encode("utf-8", "replace").decode().strip()


def _hit(found: Mapping[str, Any]) -> Hit:
    source = found["_source"]
    fragments = found.get("highlight", {}).get("text", [])
    return Hit(
        key=source["key"],
        score=found["_score"],
        store="elasticsearch",
        kind=source["kind"],
        title=source["title"],
        snippet=fragments[0] if fragments else "",
        properties=source["properties"],
    )
