//! Crashes in logins and refreshes.

use reqwest::{Method, RequestBuilder};
use serde_json::json;
use testkit::Reply;

use crate::scene::{Scene, repeatedly};

/// A login.
pub(crate) const LOG_IN: &[&str] = &["login.committing", "login.committed"];
/// A refresh of a session.
pub(crate) const REFRESH: &[&str] = &["refresh.committing", "refresh.committed"];

fn refresh(scene: &Scene, token: &str) -> RequestBuilder {
    scene.server().stranger().with_token(token).request(Method::POST, "/api/auth/refresh")
}

#[test]
fn a_crash_in_a_login_or_a_refresh_keeps_sessions_usable() {
    repeatedly(async || {
        let mut scene = Scene::new().await;
        for failpoint in LOG_IN {
            scene
                .crash(failpoint, |scene| {
                    let credentials = json!({ "email": scene.alice.email, "password": "correct horse 1" });
                    scene.server().stranger().request(Method::POST, "/api/auth/login").json(&credentials)
                })
                .await;
            // The old session is alive, and a new login succeeds.
            scene.alice.get("/api/users/me").await.expect(200);
            scene.alice = scene.alice.logged_in().await;
        }
        for failpoint in REFRESH {
            let token = scene.alice.refresh_token.clone().unwrap();
            scene.crash(failpoint, |scene| refresh(scene, &token)).await;
            // The client retries with its token, and gets a valid pair.
            let pair = Reply::to(refresh(&scene, &token)).await.expect(200);
            let pair = Reply::to(refresh(&scene, pair.data()["refresh_token"].as_str().unwrap())).await.expect(200);
            scene.alice.access_token = Some(pair.data()["access_token"].as_str().unwrap().to_owned());
            scene.alice.refresh_token = Some(pair.data()["refresh_token"].as_str().unwrap().to_owned());
            scene.alice.get("/api/users/me").await.expect(200);
        }
        scene.stop().await;
    });
}
