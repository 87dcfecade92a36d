-- Capture of ordinary tables: their committed changes become events (outbox capture).

-- One row a capture: a slot of the database whose tables are captured, and how far the log has what it gives. The
-- position moves in the transaction that appends the events, and only for the epoch that leads.
CREATE TABLE IF NOT EXISTS outbox.capture (
    name   text   PRIMARY KEY,
    source text   NOT NULL,             -- system identifier and oid of the database captured
    epoch  bigint NOT NULL DEFAULT 0,
    slot   text,                        -- null: none yet
    lsn    pg_lsn,                      -- every transaction that committed before it is in the log
    at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS outbox.captured (
    category text    PRIMARY KEY,       -- of the streams; a table has one capture, a category one table
    capture  text    NOT NULL REFERENCES outbox.capture ON DELETE CASCADE,
    relation oid     NOT NULL,          -- names may change
    name     text    NOT NULL,          -- schema and table, when it was first captured
    key      text[]  NOT NULL,
    state    text    NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'changed', 'streaming')),
    columns  jsonb,                     -- the columns described last, as [[name, type], ...]
    shape    bigint  NOT NULL DEFAULT 0,
    print    text,                      -- of what in the catalog calls for another look at all rows
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (capture, relation)
);
