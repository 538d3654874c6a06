-- Whose database this is. Checked whenever a connection is opened.
CREATE TABLE tenant_identity (
    tenant_id UUID NOT NULL PRIMARY KEY
) STRICT;

CREATE TABLE files (
    id UUID NOT NULL PRIMARY KEY,
    md5_hash TEXT NOT NULL CHECK (length(md5_hash) = 32),
    sha256 BYTEA NOT NULL CHECK (length(sha256) = 32),
    s3_path TEXT NOT NULL CHECK (length(s3_path) <= 500),
    file_size BIGINT NOT NULL CHECK (file_size > 0),
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    created_by UUID,
    -- When the collector chose the file for deletion. From then on it is nobody's: no document may refer to it again.
    condemned_at TIMESTAMPTZ,
    CONSTRAINT files_s3_path_key UNIQUE (s3_path)
) STRICT;
CREATE INDEX files_md5_hash_idx ON files (md5_hash);
CREATE INDEX files_created_at_idx ON files (created_at, id);
CREATE INDEX files_condemned_at_idx ON files (condemned_at) WHERE condemned_at IS NOT NULL;
CREATE UNIQUE INDEX files_sha256_file_size_key ON files (sha256, file_size) WHERE condemned_at IS NULL;

CREATE TABLE documents (
    id UUID NOT NULL PRIMARY KEY,
    filename TEXT NOT NULL CHECK (length(filename) BETWEEN 1 AND 255),
    -- The name in lower case, so that a search in any case finds the same on every engine.
    filename_folded TEXT NOT NULL,
    mime_type TEXT NOT NULL CHECK (length(mime_type) <= 100),
    file_id UUID NOT NULL REFERENCES files (id) ON DELETE RESTRICT,
    user_id UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    created_by UUID
) STRICT;
CREATE INDEX documents_filename_idx ON documents (filename);
CREATE INDEX documents_file_id_idx ON documents (file_id);
CREATE INDEX documents_user_id_idx ON documents (user_id);
CREATE INDEX documents_user_id_filename_idx ON documents (user_id, filename);
CREATE INDEX documents_created_at_idx ON documents (created_at, id);

-- An object that is being written and that no file refers to yet.
CREATE TABLE uploads (
    s3_path TEXT NOT NULL PRIMARY KEY CHECK (length(s3_path) <= 500),
    expires_at TIMESTAMPTZ NOT NULL,
    -- When the object was given up. From then on no file may come to refer to it.
    condemned_at TIMESTAMPTZ
) STRICT;
CREATE INDEX uploads_expires_at_idx ON uploads (expires_at);

CREATE TABLE outbox (
    id UUID NOT NULL PRIMARY KEY,
    event_type TEXT NOT NULL,
    tenant_id UUID,
    user_id UUID,
    occurred_at TIMESTAMPTZ NOT NULL,
    data TEXT NOT NULL,
    published_at TIMESTAMPTZ
) STRICT;
CREATE INDEX outbox_unpublished_idx ON outbox (id) WHERE published_at IS NULL;
