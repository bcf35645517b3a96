//! Who waits for whom when many tests are to be reconciled.

use super::*;

/// Maximum number of tests without load that are reconciled at the same time.
const WITHOUT_LOAD: usize = 16;
/// Maximum number of tests of an earlier process that are taken over at the same time.
const TAKEOVERS: usize = 8;

#[tokio::test]
async fn waiting_tests_take_turns_and_one_under_load_does_not_wait() {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let context = Arc::new(context_with(Client::new(service, "default")));
    let begin = |name: &str, mut object: Value| {
        object["metadata"]["name"] = json!(name);
        object["metadata"]["uid"] = json!(format!("uid-of-{name}"));
        let guard: DeserializeGuard<LoadTest> = serde_json::from_value(object).unwrap();
        tokio::spawn(reconcile(Arc::new(guard), Arc::clone(&context)));
    };
    let waiting: Vec<String> = (0..40).map(|index| format!("idle-{index}")).collect();
    waiting.iter().for_each(|name| begin(name, test_with_status(Value::Null)));
    let mut next_name = async || {
        let (request, send) = handle.next_request().await.unwrap();
        (request.uri().path().rsplit('/').next().unwrap().to_owned(), send)
    };
    let mut unanswered = Vec::new();
    for name in &waiting[..WITHOUT_LOAD] {
        let (found, send) = next_name().await;
        assert_eq!(found, *name);
        unanswered.push(send);
    }
    // The API server leaves all of them without an answer.
    let loaded: Vec<String> = (0..20).map(|index| format!("loaded-{index}")).collect();
    let phases = ["Starting", "Running", "Stopping"].into_iter().cycle();
    loaded.iter().zip(phases).for_each(|(name, phase)| begin(name, test_in_phase(phase)));
    let mut taken_over = Vec::new();
    for name in &loaded[..TAKEOVERS] {
        let (found, send) = next_name().await;
        assert_eq!(found, *name);
        taken_over.push(send);
    }
    for (name, send) in waiting[WITHOUT_LOAD..].iter().zip(unanswered) {
        let (_, body) = not_found();
        let body = Body::from(serde_json::to_vec(&body).unwrap());
        send.send_response(Response::builder().status(404).body(body).unwrap());
        assert_eq!(next_name().await.0, *name);
    }
}
