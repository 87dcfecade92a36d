-- Ids of the events that were erased by law. Whoever holds one of them (a broker, a store, a backup) asks the log for
-- it, and must be able to tell an event that was erased from one that the log lost by going back.
CREATE TABLE IF NOT EXISTS outbox.erased (
    id uuid        PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- With the rights of the owner: who may delete events may do nothing else here.
CREATE OR REPLACE FUNCTION outbox.note_erased() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO outbox.erased (id) SELECT id FROM gone ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER note_erased AFTER DELETE ON outbox.event
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION outbox.note_erased();
