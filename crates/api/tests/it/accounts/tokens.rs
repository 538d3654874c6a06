//! Tokens that are not ours, no longer good, or good for something else. Every one is refused.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use domain::Clock;
use hmac::Hmac;
use reqwest::{Method, RequestBuilder, header};
use serde_json::{Value, json};
use sha2::{Sha384, Sha512};
use testkit::{Forge, Persona, Reply, SECRET, TestApp, base64url, forge};

const INVALID: &str = "invalid_token";
const EXPIRED: &str = "token_expired";
const REVOKED: &str = "token_revoked";
const MISSING: &str = "missing_token";

/// A token, what is wrong with it, and the error code that it gets.
type BadToken = (String, String, &'static str);

/// What can be wrong with a token of either kind, made from a genuine one.
fn bad_tokens(genuine: &str, other: &str, of_other_kind: &str, now: i64) -> Vec<BadToken> {
    let forged = Forge::of(genuine);
    let is_access = forged.claims["type"] == "access";
    let parts: Vec<&str> = genuine.split('.').collect();
    let [header, claims, signature] = [parts[0], parts[1], parts[2]];
    let mut bad: Vec<BadToken> = Vec::new();
    let mut add = |what: &str, token: String, code| bad.push((what.to_owned(), token, code));

    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let unsigned = forged.clone().header("HS256", alg);
        add(&format!("alg {alg:?}, signed"), unsigned.token(), INVALID);
        add(&format!("alg {alg:?}, not signed"), format!("{}.{claims}.", base64url(&unsigned.header)), INVALID);
    }
    for alg in ["RS256", "ES256", "PS256", "EdDSA", "hs256"] {
        add(&format!("alg {alg}, with our MAC"), forged.clone().header("HS256", alg).token(), INVALID);
    }
    add("alg HS384", forged.clone().header("HS256", "HS384").signed::<Hmac<Sha384>>(), INVALID);
    add("alg HS512", forged.clone().header("HS256", "HS512").signed::<Hmac<Sha512>>(), INVALID);
    add("alg HS256, but HS512", forged.signed::<Hmac<Sha512>>(), INVALID);

    add("an empty signature", format!("{header}.{claims}."), INVALID);
    add("no signature", format!("{header}.{claims}"), INVALID);
    add("a truncated signature", genuine[..genuine.len() - 1].to_owned(), INVALID);
    add("half a signature", genuine[..genuine.len() - 22].to_owned(), INVALID);
    for (part, from) in [("header", 0), ("claims", header.len() + 1), ("signature", header.len() + claims.len() + 2)] {
        for at in [0, 5, 20] {
            add(&format!("character {at} of the {part} changed"), with_bit_flipped(genuine, from + at), INVALID);
        }
    }
    add("the spare bits of the signature's last character set", with_spare_bit_set(genuine), INVALID);
    add("another token's signature", format!("{header}.{claims}.{}", other.rsplit('.').next().unwrap()), INVALID);

    add("another key", forged.clone().key(b"a secret of another instance, 32 bytes or more").token(), INVALID);
    add("an empty key", forged.clone().key(b"").token(), INVALID);
    add("a key cut by a byte", forged.clone().key(&SECRET[..SECRET.len() - 1]).token(), INVALID);

    let kid = serde_json::from_str::<Value>(&forged.header).unwrap()["kid"].as_str().unwrap().to_owned();
    add("an unknown kid", forged.clone().header(&kid, "000000000000").token(), INVALID);
    add("another key with its own kid", forged.clone().header(&kid, "ffffffffffff").key(b"another key").token(), INVALID);
    add("a kid that is a path", forged.clone().header(&kid, "../../dev/null").key(b"").token(), INVALID);
    add("no kid", forged.clone().header(&format!(",\"kid\":\"{kid}\""), "").token(), INVALID);
    for planted in [
        r#""crit":["exp"],"#,
        r#""jku":"https://example.com/keys","#,
        r#""jwk":{"kty":"oct","k":""},"#,
        r#""x5u":"https://example.com/cert","#,
        r#""cty":"JWT","#,
        r#""alg":"none","#,
    ] {
        add(&format!("{planted} in the header"), forged.clone().header("{", &format!("{{{planted}")).token(), INVALID);
    }
    add("a header in other words", forged.clone().header("{", "{ ").token(), INVALID);

    for claim in ["iss", "aud", "sub", "jti", "sid", "iat", "nbf", "exp", "type"] {
        add(&format!("no {claim}"), forged.clone().without(claim).token(), INVALID);
        for value in [json!(null), json!(""), json!([]), json!({}), json!(true)] {
            add(&format!("{claim} {value}"), forged.clone().claim(claim, value).token(), INVALID);
        }
    }
    for (claim, values) in [
        ("iss", json!(["somebody else", "tenantry ", "Tenantry", ["tenantry"]])),
        ("aud", json!(["another service", ["another service"], ["tenantry"], ["another service", "yet another"]])),
        ("type", json!(["refresh ", "ACCESS", "id", 1])),
        ("sub", json!(["admin", "0", 1, "' OR 1=1 --", "01900000-0000-7000-8000-00000000000g"])),
        ("sid", json!(["x", 1])),
        ("jti", json!(["x", 1])),
        ("iat", json!([now + 3600, (now as f64) + 0.5, "1700000000", 1e30])),
        ("nbf", json!([now + 3600, 1.5, "0", -1e30])),
        ("exp", json!([now as f64 + 900.5, 1e30, u64::MAX, -1, 0, i64::MIN, "9999999999"])),
    ] {
        for value in values.as_array().unwrap() {
            add(&format!("{claim} {value}"), forged.clone().claim(claim, value.clone()).token(), INVALID);
        }
    }
    let lifetime = |iat: i64, exp: i64| forged.clone().claim("iat", iat).claim("nbf", iat).claim("exp", exp).token();
    add("expired a second ago", lifetime(now - 900, now - 1), EXPIRED);
    add("expires now", lifetime(now - 900, now), EXPIRED);
    add("expired long ago", lifetime(1, 2), EXPIRED);
    add("from the future", lifetime(now + 60, now + 900), INVALID);
    add("over before it began", lifetime(now, now - 1), INVALID);

    add("the other kind of token", of_other_kind.to_owned(), INVALID);
    let disguised = forged.clone().claim("type", if is_access { "refresh" } else { "access" });
    add("the other type, with our MAC", disguised.token(), INVALID);

    add("a token in a token", forge(&forged.header, genuine, SECRET), INVALID);
    add("a token as a JSON string", forge(&forged.header, &json!(genuine).to_string(), SECRET), INVALID);
    add("claims that are no JSON", forge(&forged.header, "sub=admin", SECRET), INVALID);
    add("claims that are no object", forge(&forged.header, "[]", SECRET), INVALID);
    add("no claims", forge(&forged.header, "", SECRET), INVALID);
    add("empty claims", forge(&forged.header, "{}", SECRET), INVALID);
    let twice = forged.claims.to_string().replacen('{', r#"{"sub":"01900000-0000-7000-8000-000000000000","#, 1);
    add("sub twice", forge(&forged.header, &twice, SECRET), INVALID);
    let twice = forged.claims.to_string().replacen('}', r#","exp":9999999999}"#, 1);
    add("exp twice", forge(&forged.header, &twice, SECRET), INVALID);
    add("something after the claims", forge(&forged.header, &format!("{}{{}}", forged.claims), SECRET), INVALID);
    let not_utf8 = format!("{header}.{}", base64url(b"{\"iss\":\"\xff\"}"));
    add("claims that are not UTF-8", format!("{not_utf8}.{signature}"), INVALID);

    for (what, token) in [
        ("a dot at the end", format!("{genuine}.")),
        ("a dot at the front", format!(".{genuine}")),
        ("five parts, as JWE has", format!("{genuine}.{claims}.{signature}")),
        ("two dots between", genuine.replacen('.', "..", 1)),
        ("only dots", "..".to_owned()),
        ("no dot", "token".to_owned()),
        ("padding", format!("{genuine}=")),
        ("padding in the claims", format!("{header}.{claims}==.{signature}")),
        ("whitespace in it", format!("{header}. {claims}.{signature}")),
        ("a tab in it", format!("{header}.\t{claims}.{signature}")),
        ("quotes around it", format!("\"{genuine}\"")),
        ("percent-encoding", genuine.replacen('.', "%2E", 1)),
        ("no ASCII", format!("{header}.{claims}.{signature}é")),
        ("no ASCII at all", "токен.токен.токен".to_owned()),
        ("too long", format!("{genuine}{}", "A".repeat(4096))),
        ("too long claims", forged.clone().claim("unknown", "x".repeat(4096)).token()),
    ] {
        add(what, token, INVALID);
    }
    // One whose signature differs in the two alphabets; whose does not would stay as it is.
    let standard = (0..).map(|n| forged.clone().claim("iat", now - n).token()).find(|token| token.contains(['-', '_'])).unwrap();
    add("the alphabet of ordinary base64", standard.replace('-', "+").replace('_', "/"), INVALID);
    bad
}

/// The token with one bit of its `at`-th character flipped, which leaves it base64url.
fn with_bit_flipped(token: &str, at: usize) -> String {
    let is_base64url = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let mut bytes = token.as_bytes().to_vec();
    let flipped = (0..7).map(|bit| bytes[at] ^ (1 << bit)).find(|byte| is_base64url(*byte));
    bytes[at] = flipped.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// The token with other characters and the same bytes: a signature of 32 bytes leaves its last character two bits.
fn with_spare_bit_set(token: &str) -> String {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = token.split_at(token.len() - 1);
    let value = ALPHABET.find(last).unwrap();
    assert_eq!(value % 4, 0);
    format!("{rest}{}", &ALPHABET[value + 1..value + 2])
}

/// Fails unless the answer is 401 with the code and the challenge that belongs to it (RFC 6750, section 3).
#[track_caller]
fn assert_refused(what: &str, reply: &Reply, code: &str) {
    let challenge = if code == MISSING { "Bearer" } else { "Bearer error=\"invalid_token\"" };
    let found = (reply.status.as_u16(), reply.code(), reply.header("www-authenticate"));
    assert_eq!(found, (401, code, challenge), "{what}");
}

fn with_authorization(request: RequestBuilder, value: &str) -> RequestBuilder {
    // As bytes: what is no ASCII is to arrive all the same.
    request.header(header::AUTHORIZATION, header::HeaderValue::from_bytes(value.as_bytes()).unwrap())
}

async fn me(stranger: &Persona, authorization: &str) -> Reply {
    Reply::to(with_authorization(stranger.request(Method::GET, "/api/users/me"), authorization)).await
}

async fn refresh_by_header(stranger: &Persona, token: &str) -> Reply {
    Reply::to(with_authorization(stranger.request(Method::POST, "/api/auth/refresh"), &format!("Bearer {token}"))).await
}

async fn refresh_by_body(stranger: &Persona, token: &str) -> Reply {
    stranger.post("/api/auth/refresh", &json!({ "refresh_token": token })).await
}

#[tokio::test]
async fn bad_access_tokens_are_refused() {
    let app = TestApp::new().await;
    let (alice, stranger) = (app.user("alice").await, app.stranger());
    let (access, refresh) = (alice.access_token.clone().unwrap(), alice.refresh_token.clone().unwrap());
    let other = app.user("bob").await.access_token.unwrap();
    let bad = bad_tokens(&access, &other, &refresh, app.clock().now().seconds());
    assert!(bad.len() >= 40, "{}", bad.len());
    for (what, token, code) in bad {
        assert_refused(&what, &me(&stranger, &format!("Bearer {token}")).await, code);
    }
    // The control: made by the same code, with nothing wrong with it.
    let control = Forge::of(&access);
    assert_eq!(control.token().split('.').next(), access.split('.').next());
    for good in [control.token(), control.claim("jti", "01900000-0000-7000-8000-000000000000").token(), access] {
        me(&stranger, &format!("Bearer {good}")).await.expect(200);
    }
}

#[tokio::test]
async fn bad_refresh_tokens_are_refused() {
    let app = TestApp::new().await;
    let (alice, stranger) = (app.user("alice").await, app.stranger());
    let (access, refresh) = (alice.access_token.clone().unwrap(), alice.refresh_token.clone().unwrap());
    let other = app.user("bob").await.refresh_token.unwrap();
    for (what, token, code) in bad_tokens(&refresh, &other, &access, app.clock().now().seconds()) {
        assert_refused(&what, &refresh_by_header(&stranger, &token).await, code);
        assert_refused(&what, &refresh_by_body(&stranger, &token).await, code);
    }
    // None of them has done the session any harm.
    me(&stranger, &format!("Bearer {access}")).await.expect(200);
    let next = refresh_by_body(&stranger, &Forge::of(&refresh).token()).await.expect(200);
    refresh_by_header(&stranger, &Forge::of(next.data()["refresh_token"].as_str().unwrap()).token()).await.expect(200);
}

#[tokio::test]
async fn a_token_of_our_own_is_refused_where_it_does_not_belong() {
    let app = TestApp::new().await;
    let (alice, bob, stranger) = (app.user("alice").await, app.user("bob").await, app.stranger());
    let [of_alice, of_bob] = [&alice, &bob].map(|user| Forge::of(user.access_token.as_ref().unwrap()));
    let unknown = "01900000-0000-7000-8000-000000000000";
    for (what, token) in [
        ("alice in bob's session", of_alice.clone().claim("sid", of_bob.claims["sid"].clone())),
        ("bob in alice's session", of_alice.clone().claim("sub", of_bob.claims["sub"].clone())),
        ("no such session", of_alice.clone().claim("sid", unknown)),
        ("no such user", of_alice.clone().claim("sub", unknown)),
    ] {
        assert_refused(what, &me(&stranger, &format!("Bearer {}", token.token())).await, REVOKED);
        let refresh = token.claim("type", "refresh").token();
        assert_refused(what, &refresh_by_body(&stranger, &refresh).await, REVOKED);
    }
    // A refresh token that was never handed out, in a session that lives: whoever has the key is a thief.
    let made_up = of_alice.clone().claim("type", "refresh").claim("jti", unknown).token();
    assert_refused("made-up jti", &refresh_by_body(&stranger, &made_up).await, "token_reused");
    assert_refused("the session after that", &alice.get("/api/users/me").await, REVOKED);

    let of_ended = app.user("carol").await;
    of_ended.post("/api/auth/logout", &json!({})).await.expect(200);
    let of_deactivated = app.user("dave").await;
    app.services().operator.set_user_active(of_deactivated.id.parse().unwrap(), false).await.unwrap();
    for user in [of_ended, of_deactivated] {
        assert_refused("ended", &user.get("/api/users/me").await, REVOKED);
        assert_refused("ended", &refresh_by_body(&stranger, user.refresh_token.as_ref().unwrap()).await, REVOKED);
    }
    bob.get("/api/users/me").await.expect(200);
}

#[tokio::test]
async fn only_one_bearer_token_in_the_header_is_understood() {
    let app = TestApp::new().await;
    let (alice, stranger) = (app.user("alice").await, app.stranger());
    let token = alice.access_token.clone().unwrap();
    for value in [
        "",
        "Bearer",
        &token,
        &format!("Basic {token}"),
        "Basic YWxpY2VAZXhhbXBsZS5jb206Y29ycmVjdCBob3JzZSAx",
        &format!("Token {token}"),
        &format!("JWT {token}"),
        &format!("Bearer:{token}"),
        &format!("Bearer={token}"),
        &format!("Bearer\t{token}"),
        &format!("Bearer Bearer {token}"),
        &format!("Bearer {token}, Bearer {token}"),
        &format!("Bearer {token} {token}"),
        &format!("Bearer {token};"),
        &format!("Bearer token={token}"),
        &format!("Bëarer {token}"),
        "Digest username=\"alice\"",
        "Negotiate abc",
    ] {
        assert_refused(value, &me(&stranger, value).await, INVALID);
    }
    for second in [format!("Bearer {token}"), "Basic YTpi".to_owned(), String::new()] {
        let twice = alice.request(Method::GET, "/api/users/me").header(header::AUTHORIZATION, second);
        assert_refused("two headers", &Reply::to(twice).await, INVALID);
    }
    assert_refused("no header", &stranger.get("/api/users/me").await, MISSING);
    assert_refused("in the query", &stranger.get(&format!("/api/users/me?access_token={token}")).await, MISSING);
    let in_cookie = stranger.request(Method::GET, "/api/users/me").header(header::COOKIE, format!("access_token={token}"));
    assert_refused("in a cookie", &Reply::to(in_cookie).await, MISSING);
    // The name of the scheme is of no case (RFC 9110, section 11.1).
    for scheme in ["Bearer", "bearer", "BEARER"] {
        me(&stranger, &format!("{scheme} {token}")).await.expect(200);
    }
}

/// What the challenge says of each problem is in the table; this one is about its absence from everything else.
#[tokio::test]
async fn only_401_carries_a_challenge() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let replies = [alice.get("/api/users/me").await, alice.get("/api/nowhere").await, alice.get("/api/tenants?page=0").await];
    for reply in replies {
        assert_eq!(reply.header("www-authenticate"), "", "{}", reply.status);
    }
}
