"""Every version of every server, in one place.

`JARS` says what Maven brings for a start without Docker; `IMAGES` what Compose and testcontainers run. The two name
the same releases, so that a test passes against the one if it passes against the other. `docker-compose.yml` cannot
import this file: a test holds them equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KAFKA: Final = "4.1.1"
NEO4J: Final = "2026.08.1"
ELASTICSEARCH: Final = "9.5.3"
CHROMA: Final = "1.5.9"
POSTGRES_MAJOR: Final = 18
PGVECTOR: Final = "0.8.1"

JAVA_MINIMUM: Final = 21
"""Elasticsearch 9 and Neo4j 2026 are compiled for Java 21; Kafka 4 would do with 17."""

MAVEN_DEPENDENCY_PLUGIN: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1"


@dataclass(frozen=True, slots=True)
class Jars:
    """The Maven coordinates (`group:artifact:version`) that make up one server."""

    name: str
    version: str
    coordinates: tuple[str, ...]


JARS: Final[dict[str, Jars]] = {
    "kafka": Jars("kafka", KAFKA, (f"org.apache.kafka:kafka_2.13:{KAFKA}", "org.slf4j:slf4j-simple:1.7.36")),
    "neo4j": Jars("neo4j", NEO4J, (f"org.neo4j:neo4j:{NEO4J}",)),
    "elasticsearch": Jars(
        "elasticsearch",
        ELASTICSEARCH,
        (
            f"org.elasticsearch:elasticsearch:{ELASTICSEARCH}",
            f"org.elasticsearch.plugin:transport-netty4:{ELASTICSEARCH}",
            "org.eclipse.jdt:ecj:3.46.100",
        ),
    ),
}

IMAGES: Final[dict[str, str]] = {
    "postgres": f"pgvector/pgvector:{PGVECTOR}-pg{POSTGRES_MAJOR}",
    "kafka": f"apache/kafka:{KAFKA}",
    "neo4j": f"neo4j:{NEO4J}",
    "elasticsearch": f"elasticsearch:{ELASTICSEARCH}",
    "chroma": f"chromadb/chroma:{CHROMA}",
}
