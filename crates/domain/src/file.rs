//! Stored content.

use crate::{FileId, TenantId, Timestamp, UserId};

/// Stored content of a tenant. Immutable; identical content is stored once per tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its identifier.
    pub id: FileId,
    /// The hashes of its content.
    pub hash: ContentHash,
    /// The key of its object: see [`object_key`].
    pub object_key: String,
    /// Its size in bytes, greater than 0.
    pub size: u64,
    /// When it was stored.
    pub created_at: Timestamp,
    /// When its row was last changed.
    pub updated_at: Timestamp,
    /// Who uploaded it first.
    pub created_by: Option<UserId>,
    /// The media type detected from its first bytes, whatever the client declared; absent until the file is processed.
    pub detected_mime_type: Option<String>,
}

/// Both hashes of some content. Deduplication trusts SHA-256; MD5 is part of the object key and is kept for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentHash {
    /// MD5 (RFC 1321). It can be forged, so no decision depends on it.
    pub md5: [u8; 16],
    /// SHA-256 (FIPS 180-4).
    pub sha256: [u8; 32],
}

impl ContentHash {
    /// The MD5 as 32 lowercase hex digits.
    #[must_use]
    pub fn md5_hex(&self) -> String {
        hex(&self.md5)
    }

    /// The SHA-256 as 64 lowercase hex digits.
    #[must_use]
    pub fn sha256_hex(&self) -> String {
        hex(&self.sha256)
    }

    /// Parses a SHA-256 of 64 hex digits.
    #[must_use]
    pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
        let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let half = |text: &str| u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes);
        let (first, second) = if is_hex { text.split_at(32) } else { return None };
        let mut sha256 = [0; 32];
        sha256[..16].copy_from_slice(&half(first)?);
        sha256[16..].copy_from_slice(&half(second)?);
        Some(sha256)
    }

    /// Parses an MD5 of 32 hex digits.
    #[must_use]
    pub fn parse_md5(text: &str) -> Option<[u8; 16]> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)).flatten()
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|nibble| char::from(DIGITS[usize::from(nibble)])).collect()
}

/// A file with its reference count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUsage {
    /// The file.
    pub file: File,
    /// The number of document versions, current and former, that refer to it, those in the trash included. A file without
    /// references is orphaned.
    pub document_count: u64,
}

/// The key prefix of all of a tenant's objects: `tenants/{tenant_id}`.
#[must_use]
pub fn object_prefix(tenant_id: TenantId) -> String {
    format!("tenants/{tenant_id}")
}

/// The key of a file's object: `tenants/{tenant_id}/files/{md5[0..2]}/{md5[2..4]}/{md5}_{file_id}`. It contains a new file id, so
/// a key is never reused.
#[must_use]
pub fn object_key(tenant_id: TenantId, hash: &ContentHash, file_id: FileId) -> String {
    let md5 = hash.md5_hex();
    format!("{}/files/{}/{}/{md5}_{file_id}", object_prefix(tenant_id), &md5[0..2], &md5[2..4])
}
