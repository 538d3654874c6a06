//! Signed URLs of our own API, for stores without signed URLs: each permits one download or one upload of a part, for a limited time.

use domain::{Denial, Error, Result, TenantId, Timestamp, UploadId, UserId};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::ContentHeaders;

/// A download permitted by a signed URL. Every field is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedDownload {
    /// The key of the object.
    pub key: String,
    /// The content headers of the response.
    pub headers: ContentHeaders,
    /// When the permission expires, in seconds since 1970-01-01T00:00:00Z.
    pub expires: i64,
}

/// The upload of a part permitted by a signed URL. Every field is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPart {
    /// The tenant of the upload.
    pub tenant_id: TenantId,
    /// The multipart upload.
    pub upload_id: UploadId,
    /// The user who requested the URL.
    pub user_id: UserId,
    /// The part number, from 1.
    pub number: u32,
    /// The offset of the part in the content.
    pub offset: u64,
    /// The size of the part in bytes.
    pub size: u64,
    /// When the permission expires, in seconds since 1970-01-01T00:00:00Z.
    pub expires: i64,
}

/// Signs and verifies downloads and part uploads with HMAC-SHA-256 (RFC 2104). Nothing is stored: all instances with the same secret
/// accept the same URLs.
#[derive(Clone)]
pub struct UrlSigner {
    keyed: Hmac<Sha256>,
}

impl UrlSigner {
    /// A signer with a key derived from the server's secret, so that a signature made for another purpose is never valid here.
    #[must_use]
    #[expect(clippy::expect_used, reason = "HMAC accepts keys of any length")]
    pub fn new(server_secret: &[u8]) -> Self {
        let key = derive_key(server_secret, b"tenantry signed download v1");
        Self { keyed: Hmac::new_from_slice(&key).expect("a key of any length") }
    }

    /// The signature of a download, in hexadecimal.
    #[must_use]
    pub fn sign(&self, download: &SignedDownload) -> String {
        hex::encode(self.mac(download).finalize().into_bytes())
    }

    /// Verifies the signature of a download and that it has not expired.
    ///
    /// # Errors
    /// [`Denial::BadSignature`]
    pub fn verify(&self, download: &SignedDownload, signature: &str, now: Timestamp) -> Result<()> {
        verify(self.mac(download), signature, download.expires, now)
    }

    /// The signature of a part, in hexadecimal.
    #[must_use]
    pub fn sign_part(&self, part: &SignedPart) -> String {
        hex::encode(self.mac_of_part(part).finalize().into_bytes())
    }

    /// Verifies the signature of a part and that it has not expired.
    ///
    /// # Errors
    /// [`Denial::BadSignature`]
    pub fn verify_part(&self, part: &SignedPart, signature: &str, now: Timestamp) -> Result<()> {
        verify(self.mac_of_part(part), signature, part.expires, now)
    }

    fn mac_of_part(&self, part: &SignedPart) -> Hmac<Sha256> {
        // After the method, which distinguishes it from every download, all fields have a fixed length.
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

    fn mac(&self, SignedDownload { key, headers, expires }: &SignedDownload) -> Hmac<Sha256> {
        let ContentHeaders { content_type, content_disposition } = headers;
        let mut mac = self.keyed.clone();
        for field in ["GET", key, content_type, content_disposition] {
            // The length before each field fixes the boundaries between the fields.
            mac.update(&(field.len() as u64).to_be_bytes());
            mac.update(field.as_bytes());
        }
        mac.update(&expires.to_be_bytes());
        mac
    }
}

fn verify(mac: Hmac<Sha256>, signature: &str, expires: i64, now: Timestamp) -> Result<()> {
    let is_genuine = hex::decode(signature).is_ok_and(|signature| mac.verify_slice(&signature).is_ok());
    if is_genuine && now.seconds() < expires { Ok(()) } else { Err(Error::Forbidden(Denial::BadSignature)) }
}

/// A key for one purpose, by HKDF-SHA-256 (RFC 5869) without salt.
#[expect(clippy::expect_used, reason = "one hash of output is always available")]
fn derive_key(secret: &[u8], purpose: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(None, secret).expand(purpose, &mut key).expect("HKDF-SHA-256 derives up to 255 times 32 bytes");
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn download() -> SignedDownload {
        SignedDownload {
            key: "tenants/t/files/ab/cd/abcd_f".to_owned(),
            headers: ContentHeaders { content_type: "text/plain".to_owned(), content_disposition: "inline; filename=\"a\"".to_owned() },
            expires: 1_000,
        }
    }

    fn seconds(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn a_signature_is_valid_until_it_expires() {
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
    fn any_change_invalidates_the_signature() {
        let signer = UrlSigner::new(b"secret");
        let signature = signer.sign(&download());
        let refused = |download: &SignedDownload, signature: &str| signer.verify(download, signature, seconds(0)).is_err();
        let changes: [fn(&mut SignedDownload); 5] = [
            |download| download.key.push('0'),
            |download| download.headers.content_type = "text/html".to_owned(),
            |download| download.headers.content_disposition.clear(),
            |download| download.expires += 1,
            // The same bytes, with the boundary between two fields moved.
            |download| {
                let moved = download.key.pop().unwrap();
                download.headers.content_type.insert(0, moved);
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
