-- Which log this is. A restore of the database takes this row back in time with everything else, so it proves
-- nothing alone: what is compared with it stands outside, in the broker, in the stores and in running processes.
CREATE TABLE IF NOT EXISTS outbox.log_identity (
    one               boolean PRIMARY KEY DEFAULT true CHECK (one),
    log_id            uuid        NOT NULL DEFAULT gen_random_uuid(),  -- a new one after every reconcile
    system_identifier bigint      NOT NULL,                            -- of the cluster: its xids are comparable
    timeline          integer     NOT NULL,                            -- rises when a copy of the cluster is promoted
    halted            text,                                            -- why nothing may run until a reconcile
    cut_at            timestamptz                                      -- generations older than this must not serve
);
INSERT INTO outbox.log_identity (system_identifier, timeline)
SELECT system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer
FROM pg_control_system() ON CONFLICT DO NOTHING;

-- Which topic the offset is of: one that is deleted and made again counts from 0 anew.
ALTER TABLE outbox.checkpoint ADD COLUMN IF NOT EXISTS incarnation text;
