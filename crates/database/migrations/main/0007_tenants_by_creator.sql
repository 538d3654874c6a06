-- For the limit of tenants per user.
CREATE INDEX tenants_created_by_idx ON tenants (created_by);
CREATE INDEX tenants_name_is_active_idx ON tenants (name, is_active);
