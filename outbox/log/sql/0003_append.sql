-- One append is one call, in the caller's own transaction.
-- expected: n >= 0 exactly that version (0: the stream must not exist), -1 any, -2 the stream must exist.
-- status: written | repeated (the same ids stand already: their positions) | conflict | duplicate
-- Nothing is raised for a conflict: an exception would abort the transaction of the caller.

-- Writes the batch after version "base". The first row is the gate: whoever gets (stream, base + 1) owns the
-- end of the stream until its transaction ends, so the other rows cannot collide, and outbox.seq (drawn after
-- the gate) rises with the version. NULL: somebody else got the gate.
CREATE OR REPLACE FUNCTION outbox.write_batch(
    p_stream text, p_base bigint, p_types text[], p_ids uuid[], p_data bytea[], p_meta text[]
) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    gate bigint;
    rest bigint[];
BEGIN
    INSERT INTO outbox.event (stream, version, type, id, data, meta)
    VALUES (p_stream, p_base + 1, p_types[1], p_ids[1], p_data[1], p_meta[1]::jsonb)
    ON CONFLICT DO NOTHING RETURNING position INTO gate;
    IF gate IS NULL THEN
        RETURN NULL;
    END IF;
    IF cardinality(p_ids) = 1 THEN
        INSERT INTO outbox.outbox (position) VALUES (gate);
        RETURN ARRAY[gate];
    END IF;
    WITH written AS (
        INSERT INTO outbox.event (stream, version, type, id, data, meta)
        SELECT p_stream, p_base + 1 + n, t, i, d, m::jsonb
        FROM unnest(p_types[2:], p_ids[2:], p_data[2:], p_meta[2:]) WITH ORDINALITY AS r (t, i, d, m, n)
        ORDER BY n
        RETURNING position, version
    )
    SELECT array_agg(position ORDER BY version) INTO rest FROM written;
    rest := gate || rest;
    INSERT INTO outbox.outbox (position) SELECT unnest(rest);
    RETURN rest;
END $$;

CREATE OR REPLACE FUNCTION outbox.append(
    p_stream text, p_expected bigint, p_types text[], p_ids uuid[], p_data bytea[], p_meta text[],
    OUT status text, OUT version bigint, OUT positions bigint[], OUT xid text
) LANGUAGE plpgsql AS $$
DECLARE
    base  bigint;
    fits  boolean;
    found record;
    own   xid8 := pg_current_xact_id_if_assigned();     -- before anything is tried here
BEGIN
    LOOP
        base := coalesce((SELECT e.version FROM outbox.event e WHERE e.stream = p_stream
                          ORDER BY e.version DESC LIMIT 1), 0);
        fits := p_expected = base OR p_expected = -1 OR (p_expected = -2 AND base > 0);
        IF fits AND cardinality(p_ids) = 1 THEN
            positions := outbox.write_batch(p_stream, base, p_types, p_ids, p_data, p_meta);
        ELSIF fits THEN
            BEGIN
                positions := outbox.write_batch(p_stream, base, p_types, p_ids, p_data, p_meta);
            EXCEPTION WHEN unique_violation THEN    -- an id of the batch stands elsewhere: undo the gate too
                positions := NULL;
            END;
        END IF;
        IF positions IS NOT NULL THEN
            status := 'written';
            version := base + cardinality(p_ids);
            xid := pg_current_xact_id()::text;
            RETURN;
        END IF;
        -- Not written: said before, said elsewhere, a conflict, or a race that was lost.
        SELECT count(DISTINCT e.stream) AS streams, min(e.stream) AS stream, array_agg(e.id ORDER BY e.version) AS ids,
               array_agg(e.position ORDER BY e.version) AS positions, min(e.version) AS first, max(e.version) AS last,
               (array_agg(e.xid ORDER BY e.xid DESC))[1] AS xid
        INTO found FROM outbox.event e WHERE e.id = ANY (p_ids);
        IF found.ids = p_ids AND found.streams = 1 AND found.stream = p_stream
           AND found.last - found.first + 1 = cardinality(p_ids)
           AND (p_expected < 0 OR found.first = p_expected + 1) THEN
            status := 'repeated';
            version := found.last;
            positions := found.positions;
            -- Whoever waits for this must wait for the transaction that wrote the events, and for what else was
            -- written in this one.
            xid := greatest(own, found.xid)::text;
            RETURN;
        ELSIF found.ids IS NOT NULL THEN
            status := 'duplicate';
            version := base;
            RETURN;
        ELSIF NOT fits THEN
            status := 'conflict';
            version := base;
            RETURN;
        ELSIF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
            -- The winner is outside this transaction's snapshot: looking again would never end.
            RAISE EXCEPTION 'could not serialize access due to a concurrent append'
                USING ERRCODE = 'serialization_failure';
        END IF;
    END LOOP;
END $$;
