//! Tokens that must be refused: what an attacker would try, and what only a careless issuer would sign.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{Timestamp, TokenKind};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Map, Value, json};

use super::{Claims, Tokens};

/// Bad access tokens, each with its defect. Most differ in a single point from the valid token with the given claims; those that only
/// the holder of the key could create are signed with it. `now` should be the time at which they are verified, or shortly before it.
///
/// All can be sent in a header field unchanged: they begin and end with a visible character and contain no control characters.
pub(super) fn bad_tokens(tokens: &Tokens, claims: &Claims, now: Timestamp) -> Vec<(String, String)> {
    let forger = Forger::new(tokens, claims);
    [forger.encodings(), forger.signatures(), forger.headers(), forger.claims(now)].into_iter().flatten().collect()
}

type BadTokens = Vec<(String, String)>;

struct Forger<'a> {
    tokens: &'a Tokens,
    /// The valid header as JSON.
    header: Map<String, Value>,
    /// The valid claims as JSON.
    payload: Map<String, Value>,
    /// The valid token, and its encoded parts.
    token: String,
    parts: [String; 3],
}

impl<'a> Forger<'a> {
    fn new(tokens: &'a Tokens, claims: &Claims) -> Self {
        let token = tokens
            .issue(TokenKind::Access, claims.user_id, claims.session_id, claims.token_id, claims.issued_at)
            .expect("the valid token is signed");
        let parts: [String; 3] =
            token.split('.').map(str::to_owned).collect::<Vec<_>>().try_into().expect("the valid token has three parts");
        let json = |part: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(part).expect("the part is base64url");
            serde_json::from_slice(&bytes).expect("the part is a JSON object")
        };
        Self { tokens, header: json(&parts[0]), payload: json(&parts[1]), token, parts }
    }

    /// Malformed.
    fn encodings(&self) -> BadTokens {
        let [header, payload, signature] = &self.parts;
        let token = &self.token;
        let header_json = Value::from(self.header.clone()).to_string();
        let payload_json = Value::from(self.payload.clone()).to_string();
        // Seven question marks encode to an underscore at any position.
        let note = Value::from(self.with("note", json!("???????"))).to_string();
        let in_standard_alphabet = encode(&note).replace('_', "/").replace('-', "+");
        let mut bad = named([
            ("a word", "undefined".to_owned()),
            ("only dots", "..".to_owned()),
            ("header only", header.clone()),
            ("no signature part", format!("{header}.{payload}")),
            ("empty header", format!(".{payload}.{signature}")),
            ("empty payload", format!("{header}..{signature}")),
            ("dot in front", format!(".{token}")),
            ("dot at the end", format!("{token}.")),
            ("fourth part", format!("{token}.{signature}")),
            ("five parts, like a JWE", format!("{header}.{payload}.{signature}.{payload}.{signature}")),
            ("parts in another order", format!("{payload}.{header}.{signature}")),
            ("cut in half", token[..token.len() / 2].to_owned()),
            ("last character missing", token[..token.len() - 1].to_owned()),
            ("something appended", format!("{token}A")),
            ("sent twice", format!("{token}{token}")),
            ("sent twice as a list", format!("{token}, {token}")),
            ("space in the payload", format!("{header}. {payload}.{signature}")),
            ("space before the signature", format!("{header}.{payload}. {signature}")),
            ("in quotes", format!("\"{token}\"")),
            ("percent-encoded dots", token.replace('.', "%2E")),
            ("padded signature", format!("{token}=")),
            ("padded header", self.signed_raw(&format!("{header}="), payload)),
            ("header with a space, encoded anew", self.signed_raw(&encode(&format!("{header_json} ")), payload)),
            ("signature in the standard base64 alphabet", format!("{header}.{payload}.{}/+", &signature[..41])),
            ("padded payload", self.signed_raw(header, &format!("{payload}="))),
            ("payload in the standard base64 alphabet", self.signed_raw(header, &in_standard_alphabet)),
            ("payload not encoded", self.signed_raw(header, &payload_json)),
            ("payload of invalid UTF-8", self.signed_raw(header, &URL_SAFE_NO_PAD.encode(b"{\"iss\":\"\xff\"}"))),
            ("not ASCII", format!("{header}.{payload}é.{signature}")),
            ("look-alike letter", token.replacen('e', "е", 1)),
            ("too long", self.signed(&self.header, &self.with("note", json!("x".repeat(super::MAX_TOKEN_BYTES))))),
            ("far too long", "A".repeat(7000)),
            ("a thousand dots", ".".repeat(1000)),
        ]);
        for (part, text) in ["header", "payload", "signature"].into_iter().zip(&self.parts) {
            for position in [0, text.len() / 2, text.len() - 1] {
                bad.push((format!("{part} changed at character {position}"), token.replacen(text, &altered(text, position), 1)));
            }
        }
        bad
    }

    /// Unsigned, signed with another key, or signed with another algorithm.
    fn signatures(&self) -> BadTokens {
        let [header, payload, signature] = &self.parts;
        let message = format!("{header}.{payload}");
        let with = |signature: &str| format!("{message}.{signature}");
        let by = |key: &[u8], algorithm| format!("{message}.{}", sign(&message, key, algorithm));
        let own_key = self.tokens.signing.signing.as_bytes();
        let mut bad = named([
            ("empty signature", with("")),
            ("signature of zeros", with(&URL_SAFE_NO_PAD.encode([0; 32]))),
            ("first half of the signature", with(&signature[..signature.len() / 2])),
            ("one byte of signature", with(&signature[..2])),
            ("signature of the payload alone", with(&sign(payload, own_key, Algorithm::HS256))),
            ("signature in hexadecimal", with(&hex::encode(signature))),
            ("signed with the empty key", by(b"", Algorithm::HS256)),
            ("signed with another key", by(&[7; 32], Algorithm::HS256)),
            ("signed with a well-known key", by(b"your-256-bit-secret", Algorithm::HS256)),
            ("signed with the key's own identifier", by(self.header["kid"].to_string().as_bytes(), Algorithm::HS256)),
            ("signed with our key and HMAC-SHA-384", by(own_key, Algorithm::HS384)),
            ("signed with our key and HMAC-SHA-512", by(own_key, Algorithm::HS512)),
        ]);
        let admin = encode(&Value::from(self.with("sub", json!("00000000-0000-7000-8000-000000000000"))).to_string());
        bad.push(("another user under the same signature".to_owned(), format!("{header}.{admin}.{signature}")));
        bad
    }

    /// With a header that differs from ours. All are signed with our key, either with the algorithm of the header or with ours.
    fn headers(&self) -> BadTokens {
        let own_key = self.tokens.signing.signing.as_bytes();
        let payload = &self.parts[1];
        let mut bad = BadTokens::new();
        for algorithm in
            ["none", "None", "NONE", "nOnE", "", "hs256", "HS256 ", "HS384", "HS512", "RS256", "ES256", "PS256", "EdDSA", "dir"]
        {
            let header = encode(&self.header_with("alg", json!(algorithm)));
            bad.push((format!("algorithm {algorithm:?}, not signed"), format!("{header}.{payload}.")));
            bad.push((format!("algorithm {algorithm:?}, signed with HMAC-SHA-256"), self.signed_raw(&header, payload)));
        }
        for (name, algorithm) in [("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)] {
            let message = format!("{}.{payload}", encode(&self.header_with("alg", json!(name))));
            bad.push((format!("algorithm {name}, signed accordingly"), format!("{message}.{}", sign(&message, own_key, algorithm))));
        }
        for (name, value) in [
            ("alg", json!(null)),
            ("alg", json!(["HS256"])),
            ("typ", json!("JWE")),
            ("typ", json!("at+jwt")),
            ("typ", json!(null)),
            ("cty", json!("JWT")),
            ("kid", json!("")),
            ("kid", json!(null)),
            ("kid", json!("0000000000000000")),
            ("kid", json!("../../../../dev/null")),
            ("kid", json!("' UNION SELECT 'key")),
            ("kid", json!([self.header["kid"]])),
            ("crit", json!(["exp"])),
            ("crit", json!([])),
            ("b64", json!(false)),
            ("jku", json!("https://attacker.example/keys.json")),
            ("jwk", json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode([7; 32])})),
            ("x5u", json!("https://attacker.example/cert.pem")),
            ("x5c", json!(["MIIB"])),
            ("x5t", json!("AAAA")),
            ("zip", json!("DEF")),
            ("enc", json!("A256GCM")),
        ] {
            bad.push((format!("header {name} = {value}"), self.signed_raw(&encode(&self.header_with(name, value)), payload)));
        }
        for name in self.header.keys() {
            let mut header = self.header.clone();
            header.remove(name);
            bad.push((format!("header without {name}"), self.signed(&header, &self.payload)));
        }
        let attackers_key = [7; 32];
        let embedded = encode(&self.header_with("jwk", json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(attackers_key)})));
        let message = format!("{embedded}.{payload}");
        bad.push((
            "signed with the key in its header".to_owned(),
            format!("{message}.{}", sign(&message, &attackers_key, Algorithm::HS256)),
        ));
        let header = Value::from(self.header.clone()).to_string();
        for (what, header) in [
            ("header is an array", "[]".to_owned()),
            ("header is null", "null".to_owned()),
            ("header is no JSON", "header".to_owned()),
            ("header names the algorithm twice", header.replacen('{', "{\"alg\":\"none\",", 1)),
        ] {
            bad.push((what.to_owned(), self.signed_raw(&encode(&header), payload)));
        }
        for older in &self.tokens.verifying {
            bad.push(("a previous key's header, signed with the current key".to_owned(), self.signed_raw(&older.header, payload)));
        }
        bad
    }

    /// Signed with our key, with wrong claims.
    fn claims(&self, now: Timestamp) -> BadTokens {
        let mut bad = BadTokens::new();
        for name in self.payload.keys() {
            let mut payload = self.payload.clone();
            payload.remove(name);
            bad.push((format!("without {name}"), self.signed(&self.header, &payload)));
            for value in [json!(null), json!(""), json!(true), json!({}), json!([]), json!([self.payload[name]]), json!(0.5)] {
                bad.push((format!("{name} = {value}"), self.signed(&self.header, &self.with(name, value))));
            }
            let renamed =
                Value::from(self.payload.clone()).to_string().replacen(&format!("\"{name}\""), &format!("\"{}\"", name.to_uppercase()), 1);
            bad.push((format!("{name} in capitals"), self.signed_raw(&self.parts[0], &encode(&renamed))));
            let twice = Value::from(self.payload.clone()).to_string().replacen('{', &format!("{{\"{name}\":{},", self.payload[name]), 1);
            bad.push((format!("{name} twice"), self.signed_raw(&self.parts[0], &encode(&twice))));
        }

        let at = |moment: Timestamp| json!(moment.seconds());
        let (hour, year) = (Duration::from_hours(1), Duration::from_hours(366 * 24));
        for (name, value) in [
            ("iss", json!("another-service")),
            ("iss", json!(format!("{} ", self.tokens.issuer))),
            ("iss", json!(self.tokens.issuer.to_uppercase())),
            ("aud", json!("another-service")),
            ("aud", json!(["another-service"])),
            ("aud", json!(["another-service", self.tokens.audience])),
            ("type", json!(TokenKind::Refresh.as_str())),
            ("type", json!("Access")),
            ("type", json!("id")),
            ("sub", json!("admin")),
            ("sub", json!(1)),
            ("sub", json!("' OR 1=1 --")),
            ("sub", json!("018f0000-0000-7000-8000-00000000000")),
            ("sid", json!("018f0000-0000-7000-8000-00000000000g")),
            ("jti", json!("018f0000")),
            ("exp", at(now)),
            ("exp", at(now.minus(Duration::from_secs(1)))),
            ("exp", at(now.minus(year))),
            ("exp", json!(0)),
            ("exp", json!(-1)),
            ("exp", json!(i64::MIN)),
            ("exp", json!(i64::MAX)),
            ("exp", json!(u64::MAX)),
            ("exp", json!(1e300)),
            ("exp", json!(now.plus(hour).seconds().to_string())),
            ("exp", json!(now.plus(hour).seconds() as f64)),
            ("exp", at(now.plus(year).plus(year))),
            ("exp", json!("tomorrow")),
            ("nbf", at(now.plus(hour))),
            ("nbf", json!(i64::MAX)),
            ("nbf", json!(now.seconds().to_string())),
            ("iat", at(now.plus(hour))),
            ("iat", json!(i64::MIN)),
            ("iat", json!(i64::MAX)),
            ("iat", json!(now.seconds() as f64)),
        ] {
            bad.push((format!("{name} = {value}"), self.signed(&self.header, &self.with(name, value))));
        }

        let mut not_yet_issued = self.with("iat", at(now.plus(hour)));
        not_yet_issued.insert("exp".to_owned(), at(now.plus(hour).plus(hour)));
        bad.push(("issued in an hour, valid from now".to_owned(), self.signed(&self.header, &not_yet_issued)));

        let values: Vec<_> = ["iss", "aud", "sub", "jti", "sid", "iat", "nbf", "exp", "type"].map(|name| self.payload[name].clone()).into();
        let json = Value::from(self.payload.clone()).to_string();
        for (what, payload) in [
            ("payload is empty", String::new()),
            ("payload is an empty object", "{}".to_owned()),
            ("payload is an array of the values", Value::from(values).to_string()),
            ("payload is a string", Value::from(json.as_str()).to_string()),
            ("payload is null", "null".to_owned()),
            ("payload is no JSON", json.replace('"', "'")),
            ("payload is cut off", json[..json.len() - 1].to_owned()),
            ("payload with trailing data", format!("{json}{{}}")),
            ("payload is another token", self.token.clone()),
            ("payload is nested deeply", format!("{}{}", "[".repeat(500), "]".repeat(500))),
        ] {
            bad.push((what.to_owned(), self.signed_raw(&self.parts[0], &encode(&payload))));
        }
        bad
    }

    fn with(&self, claim: &str, value: Value) -> Map<String, Value> {
        let mut payload = self.payload.clone();
        payload.insert(claim.to_owned(), value);
        payload
    }

    fn header_with(&self, name: &str, value: Value) -> String {
        let mut header = self.header.clone();
        header.insert(name.to_owned(), value);
        Value::from(header).to_string()
    }

    /// Signed with our key. A header equal to ours keeps our encoding.
    fn signed(&self, header: &Map<String, Value>, payload: &Map<String, Value>) -> String {
        let header = if *header == self.header { self.parts[0].clone() } else { encode(&Value::from(header.clone()).to_string()) };
        self.signed_raw(&header, &encode(&Value::from(payload.clone()).to_string()))
    }

    /// Any parts, signed with our key.
    fn signed_raw(&self, header: &str, payload: &str) -> String {
        let message = format!("{header}.{payload}");
        format!("{message}.{}", sign(&message, self.tokens.signing.signing.as_bytes(), Algorithm::HS256))
    }
}

fn named<const N: usize>(bad: [(&str, String); N]) -> BadTokens {
    bad.into_iter().map(|(what, token)| (what.to_owned(), token)).collect()
}

fn encode(json: &str) -> String {
    URL_SAFE_NO_PAD.encode(json)
}

/// The text with a different character of the same alphabet at this position.
fn altered(text: &str, position: usize) -> String {
    let other = |c: char| if c == 'A' { 'Q' } else { 'A' };
    text.char_indices().map(|(at, c)| if at == position { other(c) } else { c }).collect()
}

fn sign(message: &str, key: &[u8], algorithm: Algorithm) -> String {
    crypto::sign(message.as_bytes(), &EncodingKey::from_secret(key), algorithm).expect("HMAC accepts every key")
}

#[cfg(test)]
mod tests {
    use domain::{SessionId, SystemClock, TokenId, UserId};

    use super::*;
    use crate::{SecretKey, TokenSettings};

    #[test]
    fn the_forger_signs_valid_tokens_when_nothing_is_changed() {
        let now = Timestamp::from_seconds(1_800_000_000);
        let tokens = Tokens::new(TokenSettings::new(SecretKey::new([1; 32]).unwrap())).unwrap();
        let claims = Claims {
            user_id: UserId::generate(&SystemClock),
            session_id: SessionId::generate(&SystemClock),
            token_id: TokenId::generate(&SystemClock),
            issued_at: now,
            expires_at: now.plus(tokens.life(TokenKind::Access)),
        };
        let forger = Forger::new(&tokens, &claims);
        for token in [
            forger.token.clone(),
            forger.signed(&forger.header, &forger.payload),
            forger.signed(&forger.header, &forger.with("note", json!("x"))),
            forger.signed(&forger.header, &forger.with("exp", json!(now.seconds() + 1))),
            forger.signed_raw(&forger.parts[0], &forger.parts[1]),
        ] {
            assert!(tokens.verify(&token, TokenKind::Access, now).is_ok(), "{token}");
        }
    }
}
