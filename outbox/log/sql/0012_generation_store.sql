-- In which store a generation was built, by the settings' name of it: a projector whose `store` was changed must not go
-- on in another one, behind checkpoints that are not of what that one holds.
ALTER TABLE outbox.generation ADD COLUMN IF NOT EXISTS store text;
-- Of generations that there are already: where their projector said since that it was at work. If it said nothing, that
-- is not known (NULL), and the first session takes it to be where its settings say.
UPDATE outbox.generation g SET store = p.store FROM outbox.projector p
WHERE p.projector = g.projector AND p.at > g.changed_at AND g.store IS NULL;
