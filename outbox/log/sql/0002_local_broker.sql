-- The local broker: topics, partitions and consumer groups inside PostgreSQL, for the embedded mode.
CREATE SCHEMA IF NOT EXISTS outbox;

CREATE TABLE IF NOT EXISTS outbox.broker_topic (
    topic_id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic      text COLLATE "C" NOT NULL UNIQUE,
    partitions integer NOT NULL CHECK (partitions > 0)
);

-- A row is locked while its partition is published to: so offsets have no gaps, and whoever sees one offset
-- sees all below it. Updated with every publish; the free space keeps those updates inside the page (HOT).
CREATE TABLE IF NOT EXISTS outbox.broker_partition (
    topic_id    integer NOT NULL REFERENCES outbox.broker_topic,
    partition   integer NOT NULL,
    next_offset bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (topic_id, partition)
) WITH (fillfactor = 50);

-- A ring of 8 parts of 262,144 messages each. Messages are only inserted; a part whose messages are all older
-- than what is to be kept is truncated. Offsets are unique by the lock above: a unique index over the parts
-- would have to hold the part's key.
CREATE SEQUENCE IF NOT EXISTS outbox.broker_message_seq;
CREATE TABLE IF NOT EXISTS outbox.broker_message (
    seq       bigint  NOT NULL DEFAULT nextval('outbox.broker_message_seq'),
    "offset"  bigint  NOT NULL,
    topic_id  integer NOT NULL,
    partition integer NOT NULL,
    key       bytea   NOT NULL,
    value     bytea,
    headers   bytea   NOT NULL      -- a JSON object; values are bytes written as Latin-1
) PARTITION BY LIST (((seq / 262144) % 8));
DO $$
BEGIN
    FOR part IN 0..7 LOOP
        EXECUTE format('CREATE TABLE IF NOT EXISTS outbox.broker_message_%s PARTITION OF outbox.broker_message'
                       ' FOR VALUES IN (%s)', part, part);
        -- Insert-only, and emptied as a whole: nothing to vacuum but the visibility map, which nobody reads.
        EXECUTE format('ALTER TABLE outbox.broker_message_%s SET (autovacuum_vacuum_insert_threshold = -1)', part);
    END LOOP;
END $$;
CREATE INDEX IF NOT EXISTS broker_message_place ON outbox.broker_message (topic_id, partition, "offset");

-- A member is alive while beat_at is recent by this database's clock.
CREATE TABLE IF NOT EXISTS outbox.broker_member (
    grp     text COLLATE "C" NOT NULL,
    member  uuid NOT NULL,
    topics  text[] NOT NULL,
    beat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (grp, member)
) WITH (fillfactor = 50);

-- Who reads a partition for a group. The epoch rises with every change of hands: a member that was paused and
-- wakes up reads nothing under its old one. committed is for people's eyes.
CREATE TABLE IF NOT EXISTS outbox.broker_lease (
    grp       text COLLATE "C" NOT NULL,
    topic_id  integer NOT NULL REFERENCES outbox.broker_topic,
    partition integer NOT NULL,
    member    uuid,
    epoch     bigint NOT NULL DEFAULT 1,
    committed bigint,
    PRIMARY KEY (grp, topic_id, partition)
) WITH (fillfactor = 50);
