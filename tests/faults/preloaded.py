"""What the server of forks imports once, so that no process of a run has to. None of it starts a thread."""

import signal

import chromadb  # noqa: F401
import confluent_kafka  # noqa: F401
import confluent_kafka.admin  # noqa: F401
import elasticsearch  # noqa: F401
import neo4j  # noqa: F401

import outbox.broker.confluent  # noqa: F401
import outbox.broker.confluent_transactions  # noqa: F401
import outbox.broker.local  # noqa: F401
import outbox.cli.commands  # noqa: F401
import outbox.cli.main  # noqa: F401
import projectors.cli.commands  # noqa: F401
import projectors.operations  # noqa: F401
import projectors.sinks.chroma  # noqa: F401
import projectors.sinks.elasticsearch  # noqa: F401
import projectors.sinks.neo4j  # noqa: F401
import projectors.sinks.postgres  # noqa: F401
import tests.faults.launch  # noqa: F401
import tests.faults.projection  # noqa: F401
import tests.faults.proxy  # noqa: F401
import tests.faults.writer  # noqa: F401

# Measuring coverage puts a handler here, which the forks would have before their own: who waits until a process
# heeds SIGTERM must not take the one for the other.
signal.signal(signal.SIGTERM, signal.SIG_DFL)
