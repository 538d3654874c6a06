//! The demo of the event bus, without a broker.

use serde_json::json;
use testkit::TestApp;

const PRODUCE: &str = "/api/demo/kafka/produce";
const CONSUME: &str = "/api/demo/kafka/consume";

#[tokio::test(flavor = "multi_thread")]
async fn published_messages_are_received_newest_first() {
    let app = TestApp::new().await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let empty = alice.get(CONSUME).await.expect(200);
    assert_eq!(empty.data(), &json!({ "bus": "in-process", "status": "up", "messages": [] }));
    for n in 0..60 {
        let sent = alice.post(PRODUCE, &json!({ "topic": "demo.a", "message": { "n": n }, "key": "k" })).await.expect(200);
        assert_eq!((&sent.data()["topic"], &sent.data()["status"]), (&json!("demo.a"), &json!("published")));
    }
    bob.post(PRODUCE, &json!({ "topic": "demo.b", "message": {} })).await.expect(200);
    let received = bob.get(CONSUME).await.expect(200).data()["messages"].clone();
    assert_eq!(received.as_array().unwrap().len(), 10);
    assert_eq!((&received[0]["topic"], &received[0]["key"], &received[0]["message"]), (&json!("demo.b"), &json!(null), &json!({})));
    assert_eq!((&received[1]["key"], &received[1]["message"]), (&json!("k"), &json!({ "n": 59 })));
    let most = bob.get(&format!("{CONSUME}?limit=50")).await.expect(200);
    assert_eq!(most.data()["messages"].as_array().unwrap().len(), 50);
    assert_eq!(app.stranger().get("/api/demo/kafka/health").await.expect(200).data(), &json!({ "status": "healthy", "bus": "in-process" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_demo_topics_are_accepted() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    for topic in ["", "demo.", "audit.log", "demo", "xdemo.a", "demo.a b", "demo.ä", &format!("demo.{}", "a".repeat(60))] {
        alice.post(PRODUCE, &json!({ "topic": topic, "message": {} })).await.expect_error(400, "validation_failed");
    }
    for body in [
        json!({}),
        json!({ "topic": "demo.a" }),
        json!({ "topic": "demo.a", "message": [] }),
        json!({ "topic": "demo.a", "message": {}, "x": 1 }),
    ] {
        alice.post(PRODUCE, &body).await.expect(400);
    }
    for limit in ["0", "51", "x"] {
        alice.get(&format!("{CONSUME}?limit={limit}")).await.expect(400);
    }
}
