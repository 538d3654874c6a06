//! Signed URLs for stores that have none: whoever has one may download one object, for a time.

use domain::{Denial, Error, Result, TenantId, Timestamp, UploadId, UserId};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::Presentation;

/// What a signed URL allows: every field is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedDownload {
    /// The object that may be downloaded.
    pub key: String,
    /// How it presents itself.
    pub presentation: Presentation,
    /// The second since 1970-01-01T00:00:00Z from which on it may not be any more.
    pub expires: i64,
}

/// A part of an upload that a signed URL lets in: every field is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPart {
    /// Whose upload it is part of.
    pub tenant_id: TenantId,
    /// Which upload.
    pub upload_id: UploadId,
    /// Who was given the URL.
    pub user_id: UserId,
    /// The part's number, from 1.
    pub number: u32,
    /// Its first byte's place in the content.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
    /// The second since 1970-01-01T00:00:00Z from which on it is not let in any more.
    pub expires: i64,
}

/// Signs and verifies downloads and parts of uploads with HMAC-SHA-256 (RFC 2104). Nothing is stored: every instance that has the same secret
/// accepts the same URLs.
#[derive(Clone)]
pub struct UrlSigner {
    keyed: Hmac<Sha256>,
}

impl UrlSigner {
    /// A signer whose key is derived from the server's secret, so that no signature of another purpose passes here.
    #[must_use]
    pub fn new(server_secret: &[u8]) -> Self {
        Self { keyed: hmac(&derive_key(server_secret, b"tenantry signed download v1")) }
    }

    /// The signature of a download, in hexadecimal.
    #[must_use]
    pub fn sign(&self, download: &SignedDownload) -> String {
        hex::encode(self.mac(download).finalize().into_bytes())
    }

    /// Checks a signature and that the time is not over.
    ///
    /// # Errors
    /// [`Denial::BadSignature`]
    pub fn verify(&self, download: &SignedDownload, signature: &str, now: Timestamp) -> Result<()> {
        let genuine = hex::decode(signature).is_ok_and(|signature| self.mac(download).verify_slice(&signature).is_ok());
        if genuine && now.seconds() < download.expires { Ok(()) } else { Err(Error::Forbidden(Denial::BadSignature)) }
    }

    /// The signature of a part, in hexadecimal.
    #[must_use]
    pub fn sign_part(&self, part: &SignedPart) -> String {
        hex::encode(self.mac_of_part(part).finalize().into_bytes())
    }

    /// Checks the signature of a part and that its time is not over.
    ///
    /// # Errors
    /// [`Denial::BadSignature`]
    pub fn verify_part(&self, part: &SignedPart, signature: &str, now: Timestamp) -> Result<()> {
        let genuine = hex::decode(signature).is_ok_and(|signature| self.mac_of_part(part).verify_slice(&signature).is_ok());
        if genuine && now.seconds() < part.expires { Ok(()) } else { Err(Error::Forbidden(Denial::BadSignature)) }
    }

    fn mac_of_part(&self, part: &SignedPart) -> Hmac<Sha256> {
        // All of fixed length but the first, which no download begins with.
        let mut mac = self.keyed.clone().chain_update(3_u64.to_be_bytes()).chain_update(b"PUT");
        for id in [part.tenant_id.uuid(), part.upload_id.uuid(), part.user_id.uuid()] {
            mac.update(id.as_bytes());
        }
        for number in [u64::from(part.number), part.offset, part.size] {
            mac.update(&number.to_be_bytes());
        }
        mac.update(&part.expires.to_be_bytes());
        mac
    }

    fn mac(&self, SignedDownload { key, presentation, expires }: &SignedDownload) -> Hmac<Sha256> {
        let Presentation { content_type, content_disposition } = presentation;
        let mut mac = self.keyed.clone();
        for field in ["GET", key, content_type, content_disposition] {
            // With its length before it, no field can lend bytes to the next.
            mac.update(&(field.len() as u64).to_be_bytes());
            mac.update(field.as_bytes());
        }
        mac.update(&expires.to_be_bytes());
        mac
    }
}

/// HKDF-SHA-256 (RFC 5869) without salt, for one key of 32 bytes.
fn derive_key(secret: &[u8], label: &[u8]) -> [u8; 32] {
    let extracted = hmac(&[]).chain_update(secret).finalize().into_bytes();
    hmac(&extracted).chain_update(label).chain_update([1]).finalize().into_bytes().into()
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
fn hmac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("a key of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn download() -> SignedDownload {
        SignedDownload {
            key: "tenants/t/files/ab/cd/abcd_f".to_owned(),
            presentation: Presentation { content_type: "text/plain".to_owned(), content_disposition: "inline; filename=\"a\"".to_owned() },
            expires: 1_000,
        }
    }

    fn seconds(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn a_signature_holds_until_it_expires() {
        let signer = UrlSigner::new(b"secret");
        let signature = signer.sign(&download());
        assert!(signer.verify(&download(), &signature, seconds(999)).is_ok());
        assert!(UrlSigner::new(b"secret").verify(&download(), &signature, seconds(999)).is_ok());
        for now in [1_000, 1_001] {
            let refused = signer.verify(&download(), &signature, seconds(now));
            assert!(matches!(refused, Err(Error::Forbidden(Denial::BadSignature))), "{now}");
        }
    }

    #[test]
    fn whatever_is_changed_breaks_the_signature() {
        let signer = UrlSigner::new(b"secret");
        let signature = signer.sign(&download());
        let refused = |download: &SignedDownload, signature: &str| signer.verify(download, signature, seconds(0)).is_err();
        let changes: [fn(&mut SignedDownload); 5] = [
            |download| download.key.push('0'),
            |download| download.presentation.content_type = "text/html".to_owned(),
            |download| download.presentation.content_disposition.clear(),
            |download| download.expires += 1,
            // The same bytes, with the border between two fields moved.
            |download| {
                let moved = download.key.pop().unwrap();
                download.presentation.content_type.insert(0, moved);
            },
        ];
        for change in changes {
            let mut changed = download();
            change(&mut changed);
            assert!(refused(&changed, &signature), "{changed:?}");
        }
        let mut forged = signature.clone();
        forged.replace_range(..1, if signature.starts_with('0') { "1" } else { "0" });
        for forged in ["", "00", "not hexadecimal", &signature[2..], &format!("{signature}00"), &forged] {
            assert!(refused(&download(), forged), "{forged}");
        }
        assert!(UrlSigner::new(b"other").verify(&download(), &signature, seconds(0)).is_err());
    }

    #[test]
    fn keys_are_derived_as_in_rfc_5869() {
        // Test case 3: no salt, no info.
        let key = derive_key(&[0x0b; 22], b"");
        assert_eq!(hex::encode(key), "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d");
    }
}
