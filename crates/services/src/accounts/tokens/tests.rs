use domain::SystemClock;

use super::*;

fn key(byte: u8) -> SecretKey {
    SecretKey::new([byte; 32]).unwrap()
}

fn settings() -> TokenSettings {
    TokenSettings::new(key(1))
}

fn tokens() -> Tokens {
    Tokens::new(settings()).unwrap()
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// The claims of an access token issued now.
fn claims() -> Claims {
    Claims {
        user_id: UserId::generate(&SystemClock),
        session_id: SessionId::generate(&SystemClock),
        token_id: TokenId::generate(&SystemClock),
        issued_at: NOW,
        expires_at: NOW.plus(Duration::from_mins(15)),
    }
}

fn issue(tokens: &Tokens, kind: TokenKind, claims: &Claims) -> String {
    tokens.issue(kind, claims.user_id, claims.session_id, claims.token_id, claims.issued_at).unwrap()
}

fn json(part: &str) -> serde_json::Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[test]
fn an_issued_token_is_accepted_as_its_own_kind_only() {
    let (tokens, claims) = (tokens(), claims());
    let access = issue(&tokens, TokenKind::Access, &claims);
    assert_eq!(tokens.verify(&access, TokenKind::Access, NOW), Ok(claims));
    assert_eq!(tokens.verify(&access, TokenKind::Refresh, NOW), Err(TokenProblem::Invalid));

    let refresh = issue(&tokens, TokenKind::Refresh, &claims);
    let week = Claims { expires_at: NOW.plus(Duration::from_hours(7 * 24)), ..claims };
    assert_eq!(tokens.verify(&refresh, TokenKind::Refresh, NOW), Ok(week));
    assert_eq!(tokens.verify(&refresh, TokenKind::Access, NOW), Err(TokenProblem::Invalid));
}

#[test]
fn the_same_arguments_give_the_same_token() {
    let claims = claims();
    assert_eq!(issue(&tokens(), TokenKind::Refresh, &claims), issue(&tokens(), TokenKind::Refresh, &claims));
    let other = Claims { token_id: TokenId::generate(&SystemClock), ..claims };
    assert_ne!(issue(&tokens(), TokenKind::Refresh, &claims), issue(&tokens(), TokenKind::Refresh, &other));
}

#[test]
fn a_token_has_exactly_the_documented_header_and_claims() {
    let claims = claims();
    let token = issue(&tokens(), TokenKind::Access, &claims);
    let parts: Vec<_> = token.split('.').collect();
    let header = json(parts[0]);
    assert_eq!(header, serde_json::json!({"typ": "JWT", "alg": "HS256", "kid": header["kid"]}));
    assert_eq!(header["kid"].as_str().unwrap().len(), 16);
    assert_eq!(
        json(parts[1]),
        serde_json::json!({
            "iss": "tenantry", "aud": "tenantry", "sub": claims.user_id.to_string(), "jti": claims.token_id.to_string(),
            "sid": claims.session_id.to_string(), "iat": 1_800_000_000, "nbf": 1_800_000_000, "exp": 1_800_000_900, "type": "access",
        })
    );
}

/// The signature is HMAC-SHA-256 over the first two parts (RFC 7515, section 5.1), computed here with another implementation.
#[test]
fn other_implementations_can_verify_our_tokens() {
    use hmac::{Hmac, KeyInit, Mac};

    let token = issue(&tokens(), TokenKind::Access, &claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&[1; 32]).unwrap();
    mac.update(message.as_bytes());
    mac.verify_slice(&URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
}

#[test]
fn a_token_expires_to_the_second() {
    let tokens = tokens();
    let token = issue(&tokens, TokenKind::Access, &claims());
    let end = NOW.plus(Duration::from_mins(15));
    let microsecond = Duration::from_micros(1);
    assert!(tokens.verify(&token, TokenKind::Access, end.minus(microsecond)).is_ok());
    assert_eq!(tokens.verify(&token, TokenKind::Access, end), Err(TokenProblem::Expired));
    assert_eq!(tokens.verify(&token, TokenKind::Access, end.plus(microsecond)), Err(TokenProblem::Expired));
    assert_eq!(tokens.verify(&token, TokenKind::Refresh, end), Err(TokenProblem::Invalid));
}

#[test]
fn clocks_may_differ_by_five_seconds() {
    let tokens = tokens();
    let token = issue(&tokens, TokenKind::Access, &claims());
    assert!(tokens.verify(&token, TokenKind::Access, NOW.minus(Duration::from_secs(5))).is_ok());
    assert_eq!(tokens.verify(&token, TokenKind::Access, NOW.minus(Duration::from_micros(5_000_001))), Err(TokenProblem::Invalid));
}

#[test]
fn keys_can_be_rotated() {
    let claims = claims();
    let old_token = issue(&tokens(), TokenKind::Access, &claims);
    let rotated = Tokens::new(TokenSettings { verifying: vec![key(3), key(1)], ..TokenSettings::new(key(2)) }).unwrap();
    let new_token = issue(&rotated, TokenKind::Access, &claims);
    assert_eq!(rotated.verify(&old_token, TokenKind::Access, NOW), Ok(claims));
    assert_eq!(rotated.verify(&new_token, TokenKind::Access, NOW), Ok(claims));
    assert_eq!(tokens().verify(&new_token, TokenKind::Access, NOW), Err(TokenProblem::Invalid));
    let done = Tokens::new(TokenSettings::new(key(2))).unwrap();
    assert_eq!(done.verify(&old_token, TokenKind::Access, NOW), Err(TokenProblem::Invalid));
}

#[test]
fn issuers_of_any_length_and_character_work() {
    for name in ["x".to_owned(), "\"\\é\u{1F600}/".to_owned(), "\"".repeat(255)] {
        let tokens = Tokens::new(TokenSettings { issuer: name.clone(), audience: name.clone(), ..settings() }).unwrap();
        let claims = claims();
        assert_eq!(tokens.verify(&issue(&tokens, TokenKind::Access, &claims), TokenKind::Access, NOW), Ok(claims), "{name:?}");
    }
}

#[test]
fn tokens_of_another_issuer_or_audience_are_refused() {
    let token = issue(&tokens(), TokenKind::Access, &claims());
    for settings in
        [TokenSettings { issuer: "other".to_owned(), ..settings() }, TokenSettings { audience: "other".to_owned(), ..settings() }]
    {
        assert_eq!(Tokens::new(settings).unwrap().verify(&token, TokenKind::Access, NOW), Err(TokenProblem::Invalid));
    }
}

#[test]
fn unknown_claims_are_ignored() {
    let (tokens, claims) = (tokens(), claims());
    let token = issue(&tokens, TokenKind::Access, &claims);
    let mut payload = json(token.split('.').nth(1).unwrap());
    payload["scope"] = "documents".into();
    let token = tokens.signing.sign(&tokens.signing.header, payload.to_string().as_bytes()).unwrap();
    assert_eq!(tokens.verify(&token, TokenKind::Access, NOW), Ok(claims));
}

#[test]
fn bad_tokens_are_refused() {
    let tokens = Tokens::new(TokenSettings { verifying: vec![key(2)], ..settings() }).unwrap();
    let claims = Claims { issued_at: NOW.minus(Duration::from_mins(1)), expires_at: NOW.plus(Duration::from_mins(14)), ..claims() };
    let good = issue(&tokens, TokenKind::Access, &claims);
    assert_eq!(tokens.verify(&good, TokenKind::Access, NOW), Ok(claims), "the control");

    let bad = forgery::bad_tokens(&tokens, &claims, NOW);
    assert!(bad.len() > 150, "{}", bad.len());
    let verdicts = bad.iter().map(|(what, token)| (what.as_str(), tokens.verify(token, TokenKind::Access, NOW)));
    let not_invalid: Vec<_> = verdicts.filter(|(_, verdict)| *verdict != Err(TokenProblem::Invalid)).collect();
    assert_eq!(
        not_invalid,
        [("exp = 1800000000", Err(TokenProblem::Expired)), ("exp = 1799999999", Err(TokenProblem::Expired))],
        "only a genuine token can be expired"
    );

    for (what, token) in &bad {
        assert!(!token.is_empty() && token.trim() == token && !token.contains(char::is_control), "can't be sent: {what}");
    }
}

#[test]
fn white_space_around_a_token_is_refused() {
    let tokens = tokens();
    let good = issue(&tokens, TokenKind::Access, &claims());
    for bad in [String::new(), format!(" {good}"), format!("{good} "), format!("{good}\n"), format!("{good}\0"), format!("Bearer {good}")] {
        assert_eq!(tokens.verify(&bad, TokenKind::Access, NOW), Err(TokenProblem::Invalid), "{bad:?}");
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    for settings in [
        TokenSettings { issuer: String::new(), ..settings() },
        TokenSettings { audience: "x".repeat(256), ..settings() },
        TokenSettings { audience: "a\nb".to_owned(), ..settings() },
        TokenSettings { access_life: Duration::ZERO, ..settings() },
        TokenSettings { access_life: Duration::from_millis(1500), ..settings() },
        TokenSettings { refresh_life: Duration::from_hours(367 * 24), ..settings() },
    ] {
        assert!(matches!(Tokens::new(settings.clone()), Err(domain::Error::Invalid(_))), "{settings:?}");
    }
    assert!(SecretKey::new([0; 31]).is_err());
    assert!(SecretKey::new([0; 32]).is_ok());
}

#[test]
fn debug_hides_the_keys() {
    let secret = "a secret of more than 32 bytes, really";
    let settings = TokenSettings::new(SecretKey::new(secret).unwrap());
    let text = format!("{settings:?} {:?}", Tokens::new(settings.clone()).unwrap());
    assert!(text.contains("tenantry"));
    assert!(!text.contains("secret of more") && !text.contains(&format!("{:?}", &secret.as_bytes()[..4]).replace(']', "")), "{text}");
}
