"""What the server of forks imports once, so that no process of a run has to. None of it starts a thread."""

import signal

import chromadb  # noqa: F401
import confluent_kafka
import confluent_kafka.admin  # noqa: F401
import elasticsearch  # noqa: F401
import neo4j  # noqa: F401

import outbox.broker.confluent
import outbox.broker.confluent_transactions
import outbox.broker.local
import outbox.cli.commands
import outbox.cli.main  # noqa: F401
import projectors.cli.commands
import projectors.operations
import projectors.sinks.chroma
import projectors.sinks.elasticsearch
import projectors.sinks.neo4j
import projectors.sinks.postgres  # noqa: F401
import tests.faults.launch
import tests.faults.projection
import tests.faults.proxy
import tests.faults.writer  # noqa: F401

# Measuring coverage puts a handler here, which the forks would have before their own: who waits until a process
# heeds SIGTERM must not take the one for the other.
signal.signal(signal.SIGTERM, signal.SIG_DFL)
