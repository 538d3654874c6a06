-- What a tenant may store. Absent: what the settings say. Negative: without limit.
ALTER TABLE tenants ADD COLUMN max_bytes BIGINT;
ALTER TABLE tenants ADD COLUMN max_documents BIGINT;

-- Requests that are done once, however often they are sent, with their answers.
CREATE TABLE idempotency_keys (
    user_id UUID NOT NULL,
    idempotency_key TEXT NOT NULL CHECK (length(idempotency_key) <= 255),
    -- What was asked for: another request with the same key is refused.
    fingerprint BYTEA NOT NULL CHECK (length(fingerprint) = 32),
    -- What was made.
    resource_id UUID NOT NULL,
    -- Absent while it is being made.
    answer TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (user_id, idempotency_key)
) STRICT;
CREATE INDEX idempotency_keys_created_at_idx ON idempotency_keys (created_at);
