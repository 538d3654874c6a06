//! Access and refresh tokens: JSON Web Tokens (RFC 7519) of one fixed form, verified as RFC 8725 recommends.

#[cfg(test)]
mod forgery;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, iter, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{SessionId, TextProblem, Timestamp, TokenId, TokenKind, TokenProblem, UserId};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The only algorithm that signs tokens, and the only one accepted.
const ALGORITHM: Algorithm = Algorithm::HS256;

/// The longest token accepted for verification, in bytes. Issued tokens have about 430.
const MAX_TOKEN_BYTES: usize = 2048;

/// The longest issuer and audience, in bytes. Even with both at this limit, every issued token stays below [`MAX_TOKEN_BYTES`].
const MAX_NAME_BYTES: usize = 255;

/// The longest lifetime of a token.
const MAX_LIFETIME: Duration = Duration::from_hours(366 * 24);

/// The lifetime of a device token.
const DEVICE_LIFE: Duration = Duration::from_hours(180 * 24);

/// The clock skew between instances within which one accepts tokens that another has just issued.
const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// How tokens are issued, and which are accepted.
#[derive(Clone, Debug)]
pub struct TokenSettings {
    /// `iss`: 1 to 255 bytes, no control characters.
    pub issuer: String,
    /// `aud`: 1 to 255 bytes, no control characters.
    pub audience: String,
    /// The lifetime of an access token: whole seconds, from one second to 366 days.
    pub access_life: Duration,
    /// The lifetime of a refresh token: whole seconds, from one second to 366 days.
    pub refresh_life: Duration,
    /// The key that signs new tokens.
    pub signing: SecretKey,
    /// Previous keys, whose tokens are still accepted.
    pub verifying: Vec<SecretKey>,
}

impl TokenSettings {
    /// The defaults: issuer and audience `tenantry`, access tokens for 15 minutes, refresh tokens for 7 days, no previous keys.
    #[must_use]
    pub fn new(signing: SecretKey) -> Self {
        Self {
            issuer: "tenantry".to_owned(),
            audience: "tenantry".to_owned(),
            access_life: Duration::from_mins(15),
            refresh_life: Duration::from_hours(7 * 24),
            signing,
            verifying: Vec::new(),
        }
    }
}

/// A key that signs tokens. Its `Debug` output hides it, and its memory is cleared on drop.
#[derive(Clone, Debug)]
pub struct SecretKey(SecretSlice<u8>);

impl SecretKey {
    /// The minimum length of a key: the length of the hash (RFC 7518, section 3.2).
    pub const MIN_BYTES: usize = 32;

    /// A key of exactly these bytes.
    ///
    /// # Errors
    /// When there are fewer than [`MIN_BYTES`](Self::MIN_BYTES).
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, TextProblem> {
        let bytes = SecretSlice::from(bytes.into());
        if bytes.expose_secret().len() < Self::MIN_BYTES { Err("must be at least 32 bytes") } else { Ok(Self(bytes)) }
    }
}

/// The claims of a verified token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The user (`sub`).
    pub user_id: UserId,
    /// The session (`sid`).
    pub session_id: SessionId,
    /// The token itself (`jti`).
    pub token_id: TokenId,
    /// The start of its validity (`iat`, `nbf`), to the second.
    pub issued_at: Timestamp,
    /// The end of its validity (`exp`), to the second.
    pub expires_at: Timestamp,
}

/// Issues and verifies tokens.
#[derive(Debug)]
pub struct Tokens {
    issuer: String,
    audience: String,
    access_life: Duration,
    refresh_life: Duration,
    signing: Key,
    verifying: Vec<Key>,
}

impl Tokens {
    /// Validates the settings and prepares the keys.
    ///
    /// # Errors
    /// `Invalid` with the setting that is out of range.
    pub fn new(settings: TokenSettings) -> domain::Result<Self> {
        let TokenSettings { issuer, audience, access_life, refresh_life, signing, verifying } = settings;
        for (setting, name) in [("issuer", &issuer), ("audience", &audience)] {
            if !(1..=MAX_NAME_BYTES).contains(&name.len()) || name.contains(char::is_control) {
                return Err(domain::Error::invalid(setting, "must be 1 to 255 bytes without control characters"));
            }
        }
        for (setting, life) in [("access_life", access_life), ("refresh_life", refresh_life)] {
            if !(Duration::from_secs(1)..=MAX_LIFETIME).contains(&life) || life.subsec_nanos() > 0 {
                return Err(domain::Error::invalid(setting, "must be a whole number of seconds, up to 366 days"));
            }
        }
        let verifying = verifying.iter().map(Key::new).collect();
        Ok(Self { issuer, audience, access_life, refresh_life, signing: Key::new(&signing), verifying })
    }

    /// Signs a token. With unchanged settings, the same arguments give the same token, so a token can be issued again without being
    /// stored.
    ///
    /// # Errors
    /// `Internal` when the cryptographic library fails.
    pub fn issue(&self, kind: TokenKind, user: UserId, session: SessionId, id: TokenId, issued_at: Timestamp) -> domain::Result<String> {
        let issued_at = issued_at.seconds();
        let payload = Payload {
            iss: Cow::Borrowed(&self.issuer),
            aud: Cow::Borrowed(&self.audience),
            sub: user.into(),
            jti: id.into(),
            sid: session.into(),
            iat: issued_at,
            nbf: issued_at,
            exp: issued_at.saturating_add_unsigned(self.life(kind).as_secs()),
            kind: Cow::Borrowed(kind.as_str()),
        };
        let payload = serde_json::to_vec(&payload).map_err(domain::Error::internal)?;
        self.signing.sign(&self.signing.header, &payload)
    }

    /// The claims of a token that we issued, of this kind, valid at `now`. `exp` is exact; `nbf` and `iat` may lie up to 5 seconds in
    /// the future. Unknown claims are ignored (RFC 7519, section 4). The caller checks whether the session is still active.
    ///
    /// # Errors
    /// `Expired` for a genuine token past its time, `Invalid` for everything else.
    pub fn verify(&self, token: &str, kind: TokenKind, now: Timestamp) -> Result<Claims, TokenProblem> {
        let payload = self.authenticate(token).ok_or(TokenProblem::Invalid)?;
        let claims = self.read(&payload, kind, now).ok_or(TokenProblem::Invalid)?;
        if claims.expires_at <= now { Err(TokenProblem::Expired) } else { Ok(claims) }
    }

    /// The lifetime of a token of this kind.
    #[must_use]
    pub fn life(&self, kind: TokenKind) -> Duration {
        match kind {
            TokenKind::Access => self.access_life,
            TokenKind::Refresh => self.refresh_life,
            TokenKind::Device => DEVICE_LIFE,
        }
    }

    /// The payload of a token that one of our keys signed. Nothing is decoded before the signature is verified.
    fn authenticate(&self, token: &str) -> Option<Vec<u8>> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (message, signature) = token.rsplit_once('.')?;
        let (header, payload) = message.split_once('.')?;
        // All tokens of a key have the same header, so there is nothing to parse: a header that names another algorithm or an unknown
        // key, or contains `crit`, `jwk`, `jku` or `x5u`, is not ours.
        let key = iter::once(&self.signing).chain(&self.verifying).find(|key| key.header == header)?;
        let is_authentic = crypto::verify(signature, message.as_bytes(), &key.verifying, ALGORITHM).ok()?;
        if is_authentic { URL_SAFE_NO_PAD.decode(payload).ok() } else { None }
    }

    /// The claims of an authentic payload of this kind that is meant for us and whose time has begun. It may have expired.
    fn read(&self, payload: &[u8], kind: TokenKind, now: Timestamp) -> Option<Claims> {
        // Serde would also accept an array of the right length.
        if !payload.starts_with(b"{") {
            return None;
        }
        let payload: Payload<'_> = serde_json::from_slice(payload).ok()?;
        let is_meant = payload.iss == self.issuer && payload.aud == self.audience && payload.kind == kind.as_str();
        let has_begun = payload.iat.max(payload.nbf) <= now.plus(CLOCK_SKEW).seconds();
        let life = Duration::from_secs(payload.exp.checked_sub(payload.iat)?.try_into().ok()?);
        (is_meant && has_begun && !life.is_zero() && life <= MAX_LIFETIME).then(|| Claims {
            user_id: payload.sub.into(),
            session_id: payload.sid.into(),
            token_id: payload.jti.into(),
            issued_at: Timestamp::from_seconds(payload.iat),
            expires_at: Timestamp::from_seconds(payload.exp),
        })
    }
}

/// A key with the header of its tokens.
#[derive(Debug)]
struct Key {
    /// The encoded header of every token that this key signs.
    header: String,
    signing: EncodingKey,
    verifying: DecodingKey,
}

impl Key {
    fn new(key: &SecretKey) -> Self {
        let key = key.0.expose_secret();
        // The key id reveals no more about the key than the signature of any token.
        let id = Sha256::new().chain_update("tenantry token key").chain_update(key).finalize();
        let header = format!(r#"{{"typ":"JWT","alg":"HS256","kid":"{}"}}"#, hex::encode(&id[..8]));
        Self { header: URL_SAFE_NO_PAD.encode(header), signing: EncodingKey::from_secret(key), verifying: DecodingKey::from_secret(key) }
    }

    fn sign(&self, header: &str, payload: &[u8]) -> domain::Result<String> {
        let mut token = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
        let signature = crypto::sign(token.as_bytes(), &self.signing, ALGORITHM).map_err(domain::Error::internal)?;
        token.push('.');
        token.push_str(&signature);
        Ok(token)
    }
}

/// The claims as signed: all required, each of one type.
#[derive(Serialize, Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    iss: Cow<'a, str>,
    #[serde(borrow)]
    aud: Cow<'a, str>,
    sub: Uuid,
    jti: Uuid,
    sid: Uuid,
    iat: i64,
    nbf: i64,
    exp: i64,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
}
