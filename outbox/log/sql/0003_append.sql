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
    found_streams text[];
    found_ids uuid[];
    found_last bigint;
BEGIN
    xid := pg_current_xact_id()::text;
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
            RETURN;
        END IF;
        -- Not written: said before, said elsewhere, a conflict, or a race that was lost.
        SELECT array_agg(DISTINCT e.stream), array_agg(e.id ORDER BY e.version),
               array_agg(e.position ORDER BY e.version), max(e.version)
        INTO found_streams, found_ids, positions, found_last
        FROM outbox.event e WHERE e.id = ANY (p_ids);
        IF found_ids = p_ids AND found_streams = ARRAY[p_stream]
           AND (p_expected < 0 OR found_last = p_expected + cardinality(p_ids)) THEN
            status := 'repeated';
            version := found_last;
            RETURN;
        END IF;
        positions := NULL;
        IF found_ids IS NOT NULL THEN
            status := 'duplicate';
            version := base;
            RETURN;
        ELSIF NOT fits THEN
            status := 'conflict';
            version := base;
            RETURN;
        END IF;
    END LOOP;
END $$;
