-- As in tenants' databases. What was there before goes first, in the order of its ids.
ALTER TABLE outbox ADD COLUMN seq BIGINT NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN traceparent TEXT;
DROP INDEX outbox_unpublished_idx;
CREATE INDEX outbox_unpublished_idx ON outbox (seq) WHERE published_at IS NULL;
CREATE INDEX outbox_unpublished_tenant_idx ON outbox (tenant_id, seq, id) WHERE published_at IS NULL;
CREATE INDEX outbox_published_at_idx ON outbox (published_at) WHERE published_at IS NOT NULL;

-- Tenants in whose outbox there may be something unpublished. Marked before it is written, cleared when all is published.
CREATE TABLE dirty_tenants (
    tenant_id UUID NOT NULL PRIMARY KEY,
    marked_at TIMESTAMPTZ NOT NULL
) STRICT;
CREATE INDEX dirty_tenants_marked_at_idx ON dirty_tenants (marked_at);
-- Nobody has marked any so far.
INSERT INTO dirty_tenants (tenant_id, marked_at) SELECT id, created_at FROM tenants;

CREATE TABLE handled_events (
    event_id UUID NOT NULL PRIMARY KEY,
    handled_at TIMESTAMPTZ NOT NULL
) STRICT;
CREATE INDEX handled_events_handled_at_idx ON handled_events (handled_at);

-- Events that could not be handled, until somebody decides what becomes of them.
CREATE TABLE dead_letters (
    event_id UUID NOT NULL PRIMARY KEY,
    event_type TEXT NOT NULL,
    tenant_id UUID,
    user_id UUID,
    occurred_at TIMESTAMPTZ NOT NULL,
    data TEXT NOT NULL,
    traceparent TEXT,
    -- What went wrong the last time, and how often it was tried.
    error TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    parked_at TIMESTAMPTZ NOT NULL
) STRICT;
CREATE INDEX dead_letters_parked_at_idx ON dead_letters (parked_at, event_id);

-- What an auditor wants to know of the platform, and of tenants that are no more.
CREATE TABLE audit_log (
    event_id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID,
    action TEXT NOT NULL,
    user_id UUID,
    occurred_at TIMESTAMPTZ NOT NULL,
    data TEXT NOT NULL
) STRICT;
CREATE INDEX audit_log_occurred_at_idx ON audit_log (occurred_at, event_id);

--- SQLite
CREATE TRIGGER audit_log_no_update BEFORE UPDATE ON audit_log BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_log_no_delete BEFORE DELETE ON audit_log BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
--- PostgreSQL
CREATE OR REPLACE FUNCTION audit_log_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'restrict_violation'; END $$;
CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_log_append_only();
CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log EXECUTE FUNCTION audit_log_append_only();
