-- What an operator gave up for a projector is known by stream and version. A stream that was erased by law may begin
-- anew, and then has another event under that version, which nobody gave up; and the error may quote what was erased.
CREATE OR REPLACE FUNCTION outbox.forget_erased() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM outbox.skipped s USING gone g WHERE s.stream = g.stream AND s.version = g.version;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER forget_erased AFTER DELETE ON outbox.event
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION outbox.forget_erased();
-- Those of streams that were erased before this was known.
DELETE FROM outbox.skipped s
WHERE NOT EXISTS (SELECT FROM outbox.event e WHERE e.stream = s.stream AND e.version = s.version);
