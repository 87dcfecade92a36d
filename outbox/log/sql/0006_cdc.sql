-- The relay's second way out: logical replication (relay.engine = 'cdc').

-- Where the cursor stands in the stream of a replication slot. "a" and "b" go on to mean what they mean.
ALTER TABLE outbox.relay_cursor
    ADD COLUMN IF NOT EXISTS slot text,     -- the slot that "lsn" belongs to
    ADD COLUMN IF NOT EXISTS lsn  pg_lsn,   -- of what the slot gives, all that committed before it is published
    ADD COLUMN IF NOT EXISTS part xid8;     -- a large transaction of which the rows up to "last" are published

-- Inserts only: emptying the outbox's ring and erasing an event are no business of the relay's. Parts of the ring
-- appear as the outbox itself. A server with a lower wal_level takes this with a warning, and polls.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'outbox_relay') THEN
        CREATE PUBLICATION outbox_relay FOR TABLE outbox.event, outbox.outbox
            WITH (publish = 'insert', publish_via_partition_root = true);
    END IF;
END $$;
