CREATE TABLE users (
    id UUID NOT NULL PRIMARY KEY,
    first_name TEXT NOT NULL CHECK (length(first_name) BETWEEN 1 AND 100),
    last_name TEXT NOT NULL CHECK (length(last_name) BETWEEN 1 AND 100),
    email TEXT NOT NULL CHECK (length(email) <= 255),
    password_hash TEXT NOT NULL CHECK (length(password_hash) <= 255),
    is_active BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    created_by UUID,
    CONSTRAINT users_email_key UNIQUE (email)
) STRICT;
CREATE INDEX users_email_is_active_idx ON users (email, is_active);

CREATE TABLE tenants (
    id UUID NOT NULL PRIMARY KEY,
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    server TEXT NOT NULL,
    database_name TEXT NOT NULL CHECK (length(database_name) <= 63),
    provisioning TEXT NOT NULL CHECK (provisioning IN ('reserved', 'creating', 'migrating', 'active', 'failed', 'deleting')),
    schema_version BIGINT NOT NULL,
    -- Since when nobody is let into its database, because a migration of it failed.
    quarantined_at TIMESTAMPTZ,
    is_active BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    created_by UUID,
    CONSTRAINT tenants_database_name_key UNIQUE (database_name)
) STRICT;
CREATE INDEX tenants_unfinished_idx ON tenants (updated_at) WHERE provisioning <> 'active';
CREATE INDEX tenants_schema_version_idx ON tenants (schema_version);

-- The last attempt to migrate each tenant's database.
CREATE TABLE tenant_migrations (
    tenant_id UUID NOT NULL PRIMARY KEY REFERENCES tenants (id) ON DELETE CASCADE,
    -- The schema's version that it was to have, and the one that it had.
    wanted_version BIGINT NOT NULL,
    from_version BIGINT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('migrated', 'failed', 'postponed')),
    -- What went wrong, when something did.
    error TEXT,
    began_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ NOT NULL
) STRICT;
CREATE INDEX tenant_migrations_unsettled_idx ON tenant_migrations (tenant_id) WHERE outcome <> 'migrated';

-- Databases that were made before the tenants that will have them.
CREATE TABLE spare_databases (
    -- The id that the tenant will have.
    tenant_id UUID NOT NULL PRIMARY KEY,
    server TEXT NOT NULL,
    -- Which schema it has: one of another program's is of no use.
    schema_digest TEXT NOT NULL,
    -- False while it is being made.
    is_ready BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
) STRICT;
CREATE INDEX spare_databases_server_idx ON spare_databases (server, created_at);

-- What one instance at a time may do, until when.
CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    holder UUID NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
) STRICT;

-- What stays of a tenant that was deleted for good.
CREATE TABLE tenant_tombstones (
    tenant_id UUID NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    server TEXT NOT NULL,
    database_name TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    deleted_at TIMESTAMPTZ NOT NULL,
    deleted_by UUID
) STRICT;
CREATE INDEX tenant_tombstones_deleted_at_idx ON tenant_tombstones (deleted_at);

CREATE TABLE user_tenant_associations (
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    tenant_id UUID NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('admin', 'user', 'viewer')),
    joined_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT user_tenant_associations_pkey PRIMARY KEY (user_id, tenant_id)
) STRICT;
CREATE INDEX user_tenant_associations_tenant_id_idx ON user_tenant_associations (tenant_id, joined_at);

CREATE TABLE sessions (
    id UUID NOT NULL PRIMARY KEY,
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    refresh_id UUID NOT NULL,
    refresh_issued_at TIMESTAMPTZ NOT NULL,
    previous_refresh_id UUID,
    expires_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL
) STRICT;
CREATE INDEX sessions_user_id_idx ON sessions (user_id);
CREATE INDEX sessions_expires_at_idx ON sessions (expires_at);

-- Whatever changes what somebody may do (a session's end, a role, a tenant's state) is numbered here in the order of the
-- commits, so that every instance learns of it by asking for what came after the last number it saw.
CREATE TABLE access_version (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    version BIGINT NOT NULL
) STRICT;
INSERT INTO access_version (id, version) VALUES (1, 0);
CREATE TABLE access_changes (
    version BIGINT NOT NULL PRIMARY KEY,
    subject UUID NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL
) STRICT;

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
