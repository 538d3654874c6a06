-- Released with 0007, so that programs that know neither refuse the database.
CREATE INDEX documents_outdated_key_idx ON documents (id) WHERE filename_keyed IS NULL OR filename_keyed <> filename;
