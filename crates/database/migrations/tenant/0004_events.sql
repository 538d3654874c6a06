-- Events are published in the order of these numbers: what came after another event, knowing of it, has a greater one.
ALTER TABLE outbox ADD COLUMN seq BIGINT NOT NULL DEFAULT 0;
-- Which request it came of, as W3C Trace Context has it.
ALTER TABLE outbox ADD COLUMN traceparent TEXT;
DROP INDEX outbox_unpublished_idx;
CREATE INDEX outbox_unpublished_idx ON outbox (seq, id) WHERE published_at IS NULL;
CREATE INDEX outbox_published_at_idx ON outbox (published_at) WHERE published_at IS NOT NULL;

-- Events that were handled, for those that come again.
CREATE TABLE handled_events (
    event_id UUID NOT NULL PRIMARY KEY,
    handled_at TIMESTAMPTZ NOT NULL
) STRICT;
CREATE INDEX handled_events_handled_at_idx ON handled_events (handled_at);

-- What a file was found to be, once somebody looked into it.
ALTER TABLE files ADD COLUMN detected_mime_type TEXT;
ALTER TABLE files ADD COLUMN processed_at TIMESTAMPTZ;

-- What an auditor wants to know. Nothing in it is ever changed or deleted.
CREATE TABLE audit_log (
    event_id UUID NOT NULL PRIMARY KEY,
    action TEXT NOT NULL,
    user_id UUID,
    occurred_at TIMESTAMPTZ NOT NULL,
    data TEXT NOT NULL
) STRICT;
CREATE INDEX audit_log_occurred_at_idx ON audit_log (occurred_at, event_id);
CREATE INDEX audit_log_action_idx ON audit_log (action, occurred_at, event_id);

--- SQLite
CREATE TRIGGER audit_log_no_update BEFORE UPDATE ON audit_log BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_log_no_delete BEFORE DELETE ON audit_log BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
--- PostgreSQL
CREATE OR REPLACE FUNCTION audit_log_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'restrict_violation'; END $$;
-- Row by row: an INSERT with ON CONFLICT DO UPDATE, which conflicts with nothing, is no update.
CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_log_append_only();
CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log EXECUTE FUNCTION audit_log_append_only();
