-- Since when nobody may write to the tenant's database, because it is moving to another server.
ALTER TABLE tenants ADD COLUMN writes_paused_at TIMESTAMPTZ;

-- Tenants' databases that are moving to another server, or have left a former one behind.
CREATE TABLE tenant_moves (
    tenant_id UUID NOT NULL PRIMARY KEY REFERENCES tenants (id) ON DELETE CASCADE,
    from_server TEXT NOT NULL,
    to_server TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('copying', 'paused', 'abandoned', 'switched', 'kept')),
    began_at TIMESTAMPTZ NOT NULL
) STRICT;
