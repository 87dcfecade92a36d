-- Wakes a relay that sleeps, when this transaction commits. A relay sleeps behind an exclusive advisory lock, which
-- it cannot take while a transaction that has been here is open: so whoever writes either finds it asleep, and
-- notifies, or keeps it awake. While there is traffic the relay never sleeps and nobody pays for a notification
-- (those commit one at a time).
CREATE OR REPLACE FUNCTION outbox.wake() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(7299703, 0) THEN
        PERFORM pg_notify('outbox', '');
    END IF;
END $$;

-- One append is one call, in the caller's own transaction.
-- expected: n >= 0 exactly that version (0: the stream must not exist), -1 any, -2 the stream must exist.
-- status: written | repeated (the same ids stand already: their positions) | conflict | duplicate
-- Nothing is raised for a conflict: an exception would abort the transaction of the caller.
--
-- Whoever has (stream, base + 1) in the unique index owns the end of the stream until its transaction is over:
-- all others wait there. outbox.seq is drawn behind that gate, so it rises with the version of every stream.
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
        IF fits THEN
            BEGIN
                WITH written AS (
                    INSERT INTO outbox.event (stream, version, type, id, data, meta)
                    SELECT p_stream, base + n, t, i, d, m::jsonb
                    FROM unnest(p_types, p_ids, p_data, p_meta) WITH ORDINALITY AS r (t, i, d, m, n)
                    ORDER BY n
                    RETURNING event.position
                ), told AS (
                    INSERT INTO outbox.outbox (position) SELECT w.position FROM written w ORDER BY w.position
                )
                SELECT array_agg(w.position ORDER BY w.position) INTO positions FROM written w;
                status := 'written';
                version := base + cardinality(p_ids);
                xid := pg_current_xact_id()::text;
                IF NOT pg_try_advisory_xact_lock_shared(7299703, 0) THEN    -- as outbox.wake() does
                    PERFORM pg_notify('outbox', '');
                END IF;
                RETURN;
            EXCEPTION WHEN unique_violation THEN    -- somebody else got the gate, or an id stands already
                NULL;
            END;
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

-- The same for one event, which most appends are: no arrays, no subtransaction. Whatever is out of the ordinary
-- is left to the function above.
CREATE OR REPLACE FUNCTION outbox.append_one(
    p_stream text, p_expected bigint, p_type text, p_id uuid, p_data bytea, p_meta text,
    OUT status text, OUT version bigint, OUT positions bigint[], OUT xid text
) LANGUAGE plpgsql AS $$
DECLARE
    base    bigint;
    place   bigint;
BEGIN
    base := coalesce((SELECT e.version FROM outbox.event e WHERE e.stream = p_stream
                      ORDER BY e.version DESC LIMIT 1), 0);
    IF p_expected = base OR p_expected = -1 OR (p_expected = -2 AND base > 0) THEN
        INSERT INTO outbox.event (stream, version, type, id, data, meta)
        VALUES (p_stream, base + 1, p_type, p_id, p_data, p_meta::jsonb)
        ON CONFLICT DO NOTHING RETURNING event.position INTO place;
    END IF;
    IF place IS NULL THEN
        SELECT a.status, a.version, a.positions, a.xid INTO status, version, positions, xid
        FROM outbox.append(p_stream, p_expected, ARRAY[p_type], ARRAY[p_id], ARRAY[p_data], ARRAY[p_meta]) a;
        RETURN;
    END IF;
    INSERT INTO outbox.outbox (position) VALUES (place);
    IF NOT pg_try_advisory_xact_lock_shared(7299703, 0) THEN    -- as outbox.wake() does; a call costs more than it
        PERFORM pg_notify('outbox', '');
    END IF;
    status := 'written';
    version := base + 1;
    positions := ARRAY[place];
    xid := pg_current_xact_id()::text;
END $$;
