-- Exactly once (relay.delivery = 'exactly_once'): the broker's last transaction names the step that it was.

-- Counts the pages published. A note in the broker with the next number is of a page that is published and not yet
-- written down here.
ALTER TABLE outbox.relay_cursor ADD COLUMN IF NOT EXISTS step bigint NOT NULL DEFAULT 0;

-- The local broker's side: one note a name, written in the transaction that publishes. The epoch rises with every
-- publisher that takes the name over, and fences those before it.
CREATE TABLE IF NOT EXISTS outbox.broker_note (
    name  text COLLATE "C" PRIMARY KEY,
    epoch bigint NOT NULL,
    note  bytea
) WITH (fillfactor = 50);
