-- What the projectors remember: generations, checkpoints, dead letters.

-- Which generations of a projector's records exist in its store; at most one of them serves.
CREATE TABLE IF NOT EXISTS outbox.generation (
    projector  text        NOT NULL,
    generation text        NOT NULL,
    state      text        NOT NULL CHECK (state IN ('building', 'serving', 'retired')),
    progress   text,                    -- building: the last stream that is loaded
    records    bigint      NOT NULL DEFAULT 0,
    made_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (projector, generation)
);
CREATE UNIQUE INDEX IF NOT EXISTS generation_serving ON outbox.generation (projector) WHERE state = 'serving';

-- Everything below "offset" is applied, durably, in the store.
CREATE TABLE IF NOT EXISTS outbox.checkpoint (
    projector  text        NOT NULL,
    generation text        NOT NULL,
    topic      text        NOT NULL,
    partition  integer     NOT NULL,
    "offset"   bigint      NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (projector, generation, topic, partition),
    -- A process that still works on a dropped generation is stopped here.
    FOREIGN KEY (projector, generation) REFERENCES outbox.generation ON DELETE CASCADE
) WITH (fillfactor = 50);

-- A stream whose event cannot be applied; its later events wait in the log. Version 0: a message that is no event
-- came under this key; it holds up nothing.
CREATE TABLE IF NOT EXISTS outbox.dead_letter (
    projector  text        NOT NULL,
    generation text        NOT NULL,
    stream     text        COLLATE "C" NOT NULL,
    version    bigint      NOT NULL,    -- the first event that is not applied
    type       text        NOT NULL,
    error      text        NOT NULL,
    attempts   integer     NOT NULL DEFAULT 1,
    retry      boolean     NOT NULL DEFAULT false,  -- somebody asked to try it again
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (projector, generation, stream),
    FOREIGN KEY (projector, generation) REFERENCES outbox.generation ON DELETE CASCADE
);

-- Events that an operator has given up for one projector: its folds pass over them, in every generation.
CREATE TABLE IF NOT EXISTS outbox.skipped (
    projector  text        NOT NULL,
    stream     text        COLLATE "C" NOT NULL,
    version    bigint      NOT NULL,
    type       text        NOT NULL,
    error      text        NOT NULL,    -- why it was parked
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (projector, stream, version)
);

-- A projector says that it is alive and how its store fares.
CREATE TABLE IF NOT EXISTS outbox.projector (
    projector  text        PRIMARY KEY,
    store      text        NOT NULL,
    health     text        NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
