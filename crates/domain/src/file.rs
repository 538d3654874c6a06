//! Stored content.

use crate::{FileId, TenantId, Timestamp, UserId};

/// Stored content of a tenant. Immutable; the same content is stored once per tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its identifier.
    pub id: FileId,
    /// What it contains, by hash.
    pub hash: ContentHash,
    /// Where the object is: see [`object_key`].
    pub object_key: String,
    /// Bytes, more than 0.
    pub size: u64,
    /// When it was stored.
    pub created_at: Timestamp,
    /// When its row was last changed.
    pub updated_at: Timestamp,
    /// Who uploaded it first.
    pub created_by: Option<UserId>,
    /// What it is by its first bytes, whatever it was said to be; absent while nobody has looked.
    pub detected_mime_type: Option<String>,
}

/// Both hashes of a content. SHA-256 is what deduplication trusts; MD5 names the object and is kept for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentHash {
    /// MD5 (RFC 1321): can be forged, so nothing is decided by it.
    pub md5: [u8; 16],
    /// SHA-256 (FIPS 180-4).
    pub sha256: [u8; 32],
}

impl ContentHash {
    /// The MD5 as 32 hex digits in lower case.
    #[must_use]
    pub fn md5_hex(&self) -> String {
        hex(&self.md5)
    }

    /// The SHA-256 as 64 hex digits in lower case.
    #[must_use]
    pub fn sha256_hex(&self) -> String {
        hex(&self.sha256)
    }

    /// The SHA-256 that these 64 hex digits stand for.
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

    /// The MD5 that these 32 hex digits stand for.
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

/// How a file is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUsage {
    /// The file.
    pub file: File,
    /// How many documents have it as their content or had it, in the trash or not; a file that none refers to is orphaned.
    pub document_count: u64,
}

/// What the keys of all of a tenant's objects begin with: `tenants/{tenant_id}`.
#[must_use]
pub fn object_prefix(tenant_id: TenantId) -> String {
    format!("tenants/{tenant_id}")
}

/// The key of a file's object: `tenants/{tenant_id}/files/{md5[0..2]}/{md5[2..4]}/{md5}_{file_id}`. It holds a fresh file id,
/// so a key is never used twice.
#[must_use]
pub fn object_key(tenant_id: TenantId, hash: &ContentHash, file_id: FileId) -> String {
    let md5 = hash.md5_hex();
    format!("{}/files/{}/{}/{md5}_{file_id}", object_prefix(tenant_id), &md5[0..2], &md5[2..4])
}
