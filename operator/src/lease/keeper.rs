//! The thread that takes and renews the Lease.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{error::Elapsed, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    LEADER_TIME, RENEW_INTERVAL, REQUEST_TIMEOUT, WAIT_INTERVAL,
    leadership::{Leadership, LeaseState},
    record::{LeaseMemory, Step, lease_number, released},
};
use crate::{clock::now, error::format_error_chain};

/// Time after which a lasting error is logged again.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The Lease, and who takes it.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Name of this replica. Two replicas must never have the same name at the same time.
    pub identity: String,
}

/// The thread that keeps the Lease.
#[derive(Debug)]
pub struct Keeper {
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Gives the Lease up and ends the thread. Waits for it.
    pub async fn release(self) {
        self.stop.cancel();
        // The error is a panic of the thread, which the panic hook has printed.
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}

/// Starts the thread. `connect` makes its client, on the runtime of the thread.
///
/// # Errors
/// Fails if the thread or its runtime can't be created.
pub fn keep_lease(
    settings: LeaseSettings,
    connect: impl FnOnce() -> Result<Client, kube::Error> + Send + 'static,
) -> std::io::Result<(Keeper, Leadership)> {
    let (sender, receiver) = watch::channel(LeaseState::Unknown);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("lease".into()).spawn(move || {
        runtime.block_on(async {
            match connect() {
                Ok(client) => LeaseTask::new(settings, client, sender).run(stopped).await,
                Err(error) => {
                    let error = format_error_chain(&error);
                    tracing::error!(error, "no Kubernetes client for the Lease");
                    // The receiver sees that nobody keeps the Lease.
                    drop(sender);
                }
            }
        });
    })?;
    Ok((Keeper { stop, thread }, Leadership::new(receiver)))
}

/// Reason why the Lease can't be read or written.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout(#[from] Elapsed),
}

/// Limits the time of one request. A write that gets no answer may have been carried out nevertheless; the next read
/// of the Lease shows it.
async fn limited<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, LeaseError> {
    Ok(timeout(REQUEST_TIMEOUT, request).await??)
}

struct LeaseTask {
    leases: Api<Lease>,
    name: String,
    memory: LeaseMemory,
    /// The Lease as this process has last written it.
    own: Option<Lease>,
    state: watch::Sender<LeaseState>,
}

impl LeaseTask {
    fn new(settings: LeaseSettings, client: Client, state: watch::Sender<LeaseState>) -> Self {
        let LeaseSettings { namespace, name, identity } = settings;
        let leases = Api::namespaced(client, &namespace);
        Self { leases, name, memory: LeaseMemory::new(identity), own: None, state }
    }

    /// Keeps the Lease until it is lost or `stop` is cancelled. Then gives it up.
    async fn run(mut self, stop: CancellationToken) {
        let mut logged_at: Option<Instant> = None;
        while !stop.is_cancelled() && *self.state.borrow() != LeaseState::Lost {
            let began = Instant::now();
            let result = tokio::select! {
                result = self.advance() => result,
                () = stop.cancelled() => break,
            };
            match result {
                Ok(()) => logged_at = None,
                Err(error) if logged_at.is_none_or(|at| at.elapsed() > LOG_INTERVAL) => {
                    logged_at = Some(began);
                    let error = format_error_chain(&error);
                    tracing::warn!(error, "the Lease can't be read or written; trying again");
                }
                Err(_) => {}
            }
            let interval = if self.memory.holds() { RENEW_INTERVAL } else { WAIT_INTERVAL };
            tokio::select! {
                () = tokio::time::sleep_until((began + interval).into()) => {}
                () = stop.cancelled() => {}
            }
        }
        self.give_up().await;
    }

    /// Renews the Lease, takes it, or reads which replica holds it.
    async fn advance(&mut self) -> Result<(), LeaseError> {
        // A holder knows what the API server has, unless somebody has changed it.
        let found = match self.own.take() {
            Some(own) => Some(own),
            None => limited(self.leases.get_opt(&self.name)).await?,
        };
        let step = self.memory.next_step(&self.name, found.as_ref(), Instant::now(), now());
        let sent_at = Instant::now();
        let parameters = PostParams::default();
        let written = match step {
            Step::Create(lease) => limited(self.leases.create(&parameters, &lease)).await,
            Step::Replace(lease) => {
                limited(self.leases.replace(&self.name, &parameters, &lease)).await
            }
            Step::Wait => {
                self.state.send_replace(LeaseState::Waiting);
                return Ok(());
            }
            Step::Lost => {
                tracing::error!("another replica has taken the Lease");
                self.state.send_replace(LeaseState::Lost);
                return Ok(());
            }
        };
        match written {
            Ok(lease) => {
                let number = lease_number(&lease);
                if !self.memory.holds() {
                    tracing::info!(number, "this replica leads");
                }
                self.memory.note_held(&lease);
                self.own = Some(lease);
                let until = Some(sent_at + LEADER_TIME);
                self.state.send_replace(LeaseState::Held { number, until });
                Ok(())
            }
            // Another replica was faster, or somebody has changed or deleted the Lease. The next read shows
            // which.
            Err(LeaseError::Api(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                tracing::debug!(code = status.code, "the Lease has changed");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the Lease up if this process holds it.
    async fn give_up(self) {
        if *self.state.borrow() == LeaseState::Lost || !self.memory.holds() {
            return;
        }
        let own = match self.own {
            Some(own) => Some(own),
            // The last renewal was cut short.
            None => limited(self.leases.get_opt(&self.name)).await.ok().flatten(),
        };
        let Some(own) = own.filter(|lease| self.memory.is_held(lease)) else { return };
        let (lease, parameters) = (released(&own), PostParams::default());
        match limited(self.leases.replace(&self.name, &parameters, &lease)).await {
            Ok(_) => tracing::info!("the Lease is released"),
            Err(error) => {
                let error = format_error_chain(&error);
                tracing::warn!(error, "the Lease can't be released; it ends by itself");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower_test::mock::Handle;

    use super::*;

    type Server = Handle<Request<Body>, Response<Body>>;

    fn task_and_server() -> (LeaseTask, watch::Receiver<LeaseState>, Server) {
        let (service, server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let settings = LeaseSettings {
            namespace: "system".into(),
            name: "operator".into(),
            identity: "a".into(),
        };
        let (sender, receiver) = watch::channel(LeaseState::Unknown);
        (LeaseTask::new(settings, Client::new(service, "system"), sender), receiver, server)
    }

    fn lease(holder: &str, version: &str, transitions: i32) -> Value {
        json!({
            "metadata": {"name": "operator", "resourceVersion": version, "creationTimestamp": "1970-01-01T00:00:01Z"},
            "spec": {"holderIdentity": holder, "leaseTransitions": transitions, "leaseDurationSeconds": 8},
        })
    }

    fn refusal(code: u16) -> (u16, Value) {
        let reason = if code == 404 { "NotFound" } else { "Conflict" };
        (code, json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code}))
    }

    /// Lets the task advance once. Returns its requests: method, and the resource version that it sent.
    async fn advance(
        task: &mut LeaseTask,
        server: &mut Server,
        responses: Vec<(u16, Value)>,
    ) -> Vec<(String, Value)> {
        let serve = async {
            let mut requests = Vec::new();
            for (code, body) in responses {
                let (request, reply) = server.next_request().await.unwrap();
                let method = request.method().to_string();
                let sent = request.into_body().collect_bytes().await.unwrap();
                let sent: Value = serde_json::from_slice(&sent).unwrap_or_default();
                requests.push((method, sent["metadata"]["resourceVersion"].clone()));
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                let code = StatusCode::from_u16(code).unwrap();
                reply.send_response(Response::builder().status(code).body(body).unwrap());
            }
            requests
        };
        let (advanced, requests) = tokio::join!(task.advance(), serve);
        advanced.unwrap();
        requests
    }

    #[tokio::test]
    async fn a_lease_is_created_renewed_and_lost() {
        let (mut task, state, mut server) = task_and_server();
        let requests =
            advance(&mut task, &mut server, vec![refusal(404), (201, lease("a", "1", 0))]);
        assert_eq!(requests.await, [("GET".into(), Value::Null), ("POST".into(), Value::Null)]);
        let held = |state: &watch::Receiver<LeaseState>| match *state.borrow() {
            LeaseState::Held { number, until } => (number, until),
            other => panic!("{other:?}"),
        };
        let (number, until) = held(&state);
        assert_eq!(number, 100_000);
        // A renewal is one request, with the version of the last write.
        let requests = advance(&mut task, &mut server, vec![(200, lease("a", "2", 0))]).await;
        assert_eq!(requests, [("PUT".into(), json!("1"))]);
        assert!(held(&state).1 > until);
        // Another replica has taken the Lease: the next look shows it.
        let requests = advance(&mut task, &mut server, vec![refusal(409)]).await;
        assert_eq!(requests, [("PUT".into(), json!("2"))]);
        assert_eq!(held(&state).0, number);
        let requests = advance(&mut task, &mut server, vec![(200, lease("b", "3", 1))]).await;
        assert_eq!(requests, [("GET".into(), Value::Null)]);
        assert_eq!(*state.borrow(), LeaseState::Lost);
    }

    #[tokio::test]
    async fn a_lease_of_another_replica_is_left_alone() {
        let (mut task, state, mut server) = task_and_server();
        let requests = advance(&mut task, &mut server, vec![(200, lease("b", "3", 1))]).await;
        assert_eq!(requests, [("GET".into(), Value::Null)]);
        assert_eq!(*state.borrow(), LeaseState::Waiting);
        // Only a replica that holds the Lease gives it up.
        task.give_up().await;
    }

    #[tokio::test]
    async fn a_lease_is_given_up_with_its_version() {
        let (mut task, _state, mut server) = task_and_server();
        advance(&mut task, &mut server, vec![(200, lease("", "3", 1)), (200, lease("a", "4", 2))])
            .await;
        let serve = async {
            let (request, reply) = server.next_request().await.unwrap();
            let sent = request.into_body().collect_bytes().await.unwrap();
            let sent: Value = serde_json::from_slice(&sent).unwrap();
            let body = Body::from(serde_json::to_vec(&sent).unwrap());
            reply.send_response(Response::new(body));
            sent
        };
        let ((), sent) = tokio::join!(task.give_up(), serve);
        assert_eq!(sent["metadata"]["resourceVersion"], "4");
        assert!(sent["spec"]["holderIdentity"].is_null(), "{sent}");
        assert_eq!(sent["spec"]["leaseTransitions"], 2);
    }
}
