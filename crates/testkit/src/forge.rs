//! Forged tokens, as an attacker makes them. Nothing here uses the product's own code.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

use crate::SECRET;

/// Base64url without padding (RFC 7515, section 2).
#[must_use]
pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A JWT with arbitrary header and claims, JSON or not, signed with HMAC-SHA-256.
#[must_use]
pub fn forge(header: &str, claims: &str, key: &[u8]) -> String {
    Forge { header: header.to_owned(), claims: Value::Null, key: key.to_vec() }.sign::<Hmac<Sha256>>(claims)
}

/// A genuine token, decoded to be altered and signed again. Without alterations it stays valid.
#[derive(Clone, Debug)]
pub struct Forge {
    /// The header, verbatim.
    pub header: String,
    /// The claims.
    pub claims: Value,
    /// The signing key.
    pub key: Vec<u8>,
}

impl Forge {
    /// Decodes a token of the app.
    #[must_use]
    pub fn of(token: &str) -> Self {
        let part = |n| BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(n).unwrap()).unwrap();
        let header = String::from_utf8(part(0)).unwrap();
        Self { header, claims: serde_json::from_slice(&part(1)).unwrap(), key: SECRET.to_vec() }
    }

    /// Changes or adds a claim.
    #[must_use]
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims[name] = value.into();
        self
    }

    /// Removes a claim.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.claims.as_object_mut().unwrap().remove(name).expect("the claim exists");
        self
    }

    /// Replaces a part of the header's text.
    #[must_use]
    pub fn header(mut self, from: &str, to: &str) -> Self {
        assert!(self.header.contains(from), "{} has no {from}", self.header);
        self.header = self.header.replacen(from, to, 1);
        self
    }

    /// Sets another signing key.
    #[must_use]
    pub fn key(mut self, key: &[u8]) -> Self {
        self.key = key.to_vec();
        self
    }

    /// The token, signed with HMAC-SHA-256.
    #[must_use]
    pub fn token(&self) -> String {
        self.signed::<Hmac<Sha256>>()
    }

    /// The token, signed with another MAC.
    #[must_use]
    pub fn signed<M: Mac + KeyInit>(&self) -> String {
        self.sign::<M>(&self.claims.to_string())
    }

    fn sign<M: Mac + KeyInit>(&self, claims: &str) -> String {
        let input = format!("{}.{}", base64url(&self.header), base64url(claims));
        let mac = <M as KeyInit>::new_from_slice(&self.key).unwrap().chain_update(&input).finalize();
        format!("{input}.{}", base64url(mac.into_bytes()))
    }
}
