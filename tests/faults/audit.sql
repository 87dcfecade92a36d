-- The tests' own observers inside PostgreSQL. They know nothing of the product but its tables.
CREATE TABLE business (id uuid PRIMARY KEY);

CREATE SCHEMA audit;
CREATE TABLE audit.cursor (n bigserial PRIMARY KEY, name text, backend integer, epoch bigint);
CREATE TABLE audit.lowered (n bigserial PRIMARY KEY, what text, before bigint, after bigint);

CREATE FUNCTION audit.moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit.cursor (name, backend, epoch) VALUES (NEW.name, pg_backend_pid(), NEW.epoch);
    RETURN NEW;
END $$;
CREATE TRIGGER moved AFTER INSERT OR UPDATE ON outbox.relay_cursor FOR EACH ROW EXECUTE FUNCTION audit.moved();

CREATE FUNCTION audit.checkpointed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit.lowered (what, before, after)
    VALUES (format('checkpoint %s/%s of %s %s', NEW.topic, NEW.partition, NEW.projector, NEW.generation),
            OLD."offset", NEW."offset");
    RETURN NEW;
END $$;
CREATE TRIGGER lowered AFTER UPDATE ON outbox.checkpoint FOR EACH ROW
    WHEN (NEW."offset" < OLD."offset" AND NEW.incarnation IS NOT DISTINCT FROM OLD.incarnation) EXECUTE FUNCTION audit.checkpointed();

CREATE FUNCTION audit.written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit.lowered (what, before, after)
    VALUES (format('record %s in %s', NEW.key, TG_TABLE_NAME), OLD.version, NEW.version);
    RETURN NEW;
END $$;
CREATE FUNCTION audit.watch() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE made record;
BEGIN
    FOR made IN SELECT object_identity AS name FROM pg_event_trigger_ddl_commands()
                WHERE object_type = 'table' AND schema_name = 'outbox_rows' LOOP
        EXECUTE format('CREATE TRIGGER lowered AFTER UPDATE ON %s FOR EACH ROW WHEN (NEW.version < OLD.version)'
                       ' EXECUTE FUNCTION audit.written()', made.name);
    END LOOP;
END $$;
CREATE EVENT TRIGGER watch ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION audit.watch();
