-- Failed logins in a row. The key is a hash of the typed address, whether or not it has an account, or of the address and a client
-- that is known from an earlier login.
CREATE TABLE login_throttles (
    throttle_key BYTEA NOT NULL PRIMARY KEY CHECK (length(throttle_key) = 32),
    failures BIGINT NOT NULL,
    blocked_until TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
) STRICT;
CREATE INDEX login_throttles_expires_at_idx ON login_throttles (expires_at);

-- Where accounts were logged in to: hashes of the account's address and of the client's.
CREATE TABLE login_sources (
    account BYTEA NOT NULL CHECK (length(account) = 32),
    source BYTEA NOT NULL CHECK (length(source) = 32),
    seen_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT login_sources_pkey PRIMARY KEY (account, source)
) STRICT;
CREATE INDEX login_sources_seen_at_idx ON login_sources (seen_at);
