//! Tokens made by hand, as an attacker makes them: nothing here is the product's own code.

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

/// A JWT of any header and claims, JSON or not, signed with HMAC over SHA-256.
#[must_use]
pub fn forge(header: &str, claims: &str, key: &[u8]) -> String {
    Forge { header: header.to_owned(), claims: Value::Null, key: key.to_vec() }.sign::<Hmac<Sha256>>(claims)
}

/// A genuine token taken apart, to be changed and put together again. Unchanged, it is good.
#[derive(Clone, Debug)]
pub struct Forge {
    /// The header as it was written.
    pub header: String,
    /// The claims.
    pub claims: Value,
    /// What signs it.
    pub key: Vec<u8>,
}

impl Forge {
    /// Takes a token of the app apart.
    #[must_use]
    pub fn of(token: &str) -> Self {
        let part = |n| BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(n).unwrap()).unwrap();
        let header = String::from_utf8(part(0)).unwrap();
        Self { header, claims: serde_json::from_slice(&part(1)).unwrap(), key: SECRET.to_vec() }
    }

    /// With a claim changed or added.
    #[must_use]
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims[name] = value.into();
        self
    }

    /// Without a claim.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.claims.as_object_mut().unwrap().remove(name).expect("the claim is there");
        self
    }

    /// With a part of the header's text replaced.
    #[must_use]
    pub fn header(mut self, from: &str, to: &str) -> Self {
        assert!(self.header.contains(from), "{} has no {from}", self.header);
        self.header = self.header.replacen(from, to, 1);
        self
    }

    /// With another key.
    #[must_use]
    pub fn key(mut self, key: &[u8]) -> Self {
        self.key = key.to_vec();
        self
    }

    /// Put together with HMAC over SHA-256.
    #[must_use]
    pub fn token(&self) -> String {
        self.signed::<Hmac<Sha256>>()
    }

    /// Put together with another MAC.
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
