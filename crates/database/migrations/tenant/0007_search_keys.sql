-- What searches compare (NFKC_Casefold), and the name that it was computed from: a program that does not know the key changes the
-- name alone, and the key counts no longer. Then, and for documents that were there before, filename_folded counts, until the
-- collector has computed the key.
ALTER TABLE documents ADD COLUMN filename_key TEXT;
ALTER TABLE documents ADD COLUMN filename_keyed TEXT;
