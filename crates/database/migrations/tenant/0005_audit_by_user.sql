-- For those who ask what somebody did. A migration apart from the one before it for a reason: programs that publish no events
-- in order would number theirs 0. A program serves schemas up to one past its own, so they stay out; and this one needs the
-- numbers, so it serves none before them.
CREATE INDEX audit_log_user_id_idx ON audit_log (user_id, occurred_at, event_id);
