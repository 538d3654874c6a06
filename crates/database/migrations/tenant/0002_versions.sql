-- Versions and trash. A document's row tells of its current content; former contents have rows of their own.
ALTER TABLE documents ADD COLUMN version BIGINT NOT NULL DEFAULT 1;
-- Since when, and by whom, it has this content; absent for the first, which came with the document.
ALTER TABLE documents ADD COLUMN content_at TIMESTAMPTZ;
ALTER TABLE documents ADD COLUMN content_by UUID;
-- Since when it is in the trash, and who put it there.
ALTER TABLE documents ADD COLUMN deleted_at TIMESTAMPTZ;
ALTER TABLE documents ADD COLUMN deleted_by UUID;
DROP INDEX documents_created_at_idx;
CREATE INDEX documents_created_at_idx ON documents (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX documents_deleted_at_idx ON documents (deleted_at, id) WHERE deleted_at IS NOT NULL;

CREATE TABLE document_versions (
    document_id UUID NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    version BIGINT NOT NULL CHECK (version > 0),
    mime_type TEXT NOT NULL CHECK (length(mime_type) <= 100),
    file_id UUID NOT NULL REFERENCES files (id) ON DELETE RESTRICT,
    created_at TIMESTAMPTZ NOT NULL,
    created_by UUID,
    CONSTRAINT document_versions_pkey PRIMARY KEY (document_id, version)
) STRICT;
CREATE INDEX document_versions_file_id_idx ON document_versions (file_id);

-- What uploads under way may come to take of the tenant's quota.
ALTER TABLE uploads ADD COLUMN reserved_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE uploads ADD COLUMN reserved_documents BIGINT NOT NULL DEFAULT 0;

-- Uploads that come in parts, over more than one request.
CREATE TABLE staged_uploads (
    id UUID NOT NULL PRIMARY KEY,
    protocol TEXT NOT NULL CHECK (protocol IN ('direct', 'tus')),
    state TEXT NOT NULL CHECK (state IN ('open', 'completing', 'completed', 'failed')),
    user_id UUID NOT NULL,
    filename TEXT NOT NULL CHECK (length(filename) BETWEEN 1 AND 255),
    mime_type TEXT NOT NULL CHECK (length(mime_type) <= 100),
    file_size BIGINT NOT NULL CHECK (file_size > 0),
    -- What the client said of it, as it said it.
    metadata TEXT NOT NULL CHECK (length(metadata) <= 4096),
    -- What the content is said to be; checked before it is believed.
    sha256 BYTEA CHECK (length(sha256) = 32),
    md5_hash TEXT CHECK (length(md5_hash) = 32),
    -- How much of it is here and durable.
    received_bytes BIGINT NOT NULL,
    -- Where the storage gathers the parts by itself, and under which name.
    s3_path TEXT CHECK (length(s3_path) <= 500),
    storage_upload_id TEXT,
    part_size BIGINT NOT NULL,
    -- What became of it.
    document_id UUID,
    deduplicated BOOLEAN NOT NULL,
    failure TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
) STRICT;
CREATE INDEX staged_uploads_expires_at_idx ON staged_uploads (expires_at);

-- Their parts that are objects of their own.
CREATE TABLE staged_parts (
    upload_id UUID NOT NULL REFERENCES staged_uploads (id) ON DELETE CASCADE,
    -- The first byte's place in the content.
    part_offset BIGINT NOT NULL,
    part_size BIGINT NOT NULL CHECK (part_size > 0),
    s3_path TEXT NOT NULL CHECK (length(s3_path) <= 500),
    CONSTRAINT staged_parts_pkey PRIMARY KEY (upload_id, part_offset),
    CONSTRAINT staged_parts_s3_path_key UNIQUE (s3_path)
) STRICT;

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
