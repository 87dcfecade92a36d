"""Backups of the log: Avro files with a manifest, written in increments and restored into an empty database."""

from outbox.backup.manifest import Manifest, read_manifest, verify
from outbox.backup.restoring import Restored, restore
from outbox.backup.writing import BackedUp, backup

__all__ = ["BackedUp", "Manifest", "Restored", "backup", "read_manifest", "restore", "verify"]
