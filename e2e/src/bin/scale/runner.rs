//! Runners that are only pretended: they answer the operator with real expositions of numbers that grow with
//! the time of the load, and make none.

use std::{
    collections::HashMap,
    convert::Infallible,
    io::Write,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use loadtest_core::{
    control::{self, HISTORY_HEADER, HistoryReply, StartOrder, path},
    metrics::{
        Format, Identity, LatencyMetric, Outcome, RunnerHistory, RunnerMetrics, RunnerState,
    },
    plan::Plan,
};
use serde_json::json;
use tokio::{net::TcpListener, sync::OnceCell};

/// Names of the tasks of every pretended run.
pub(crate) const TASKS: [&str; 4] = ["ask", "code", "search", "summary"];
/// Requests of each task in a second, on each runner.
const REQUESTS_PER_SECOND: u64 = 10;
/// Latencies of chat requests: the metric, and its median in seconds.
const LATENCIES: [(LatencyMetric, f64, u64); 6] = [
    (LatencyMetric::ResponseTime, 2.0, 1),
    (LatencyMetric::ServiceTime, 2.0, 1),
    (LatencyMetric::TimeToFirstByte, 0.2, 1),
    (LatencyMetric::TimeToFirstToken, 0.25, 1),
    (LatencyMetric::TimeToFirstResponse, 0.3, 1),
    (LatencyMetric::InterTokenLatency, 0.02, 40),
];
/// Minimum time between two steps of a history.
const MIN_STEP: Duration = Duration::from_millis(200);

/// One pretended runner.
struct Runner {
    name: String,
    namespace: String,
    metrics: RunnerMetrics,
    history: RunnerHistory,
    created_at: Instant,
    /// Length of the load.
    length: Duration,
    started: Option<Instant>,
    stopped: bool,
    random: u64,
}

impl Runner {
    fn of_pod(pod: &Pod, length: Duration) -> Result<Self> {
        let label = |name: &str| pod.labels().get(name).cloned().with_context(|| name.to_owned());
        let identity = Identity {
            run_uid: label("loadtest.cell0.io/uid")?,
            index: label(control::INDEX_LABEL)?.parse()?,
            pod_uid: pod.uid().context("no UID")?,
        };
        Ok(Self {
            name: pod.name_any(),
            namespace: pod.namespace().context("no namespace")?,
            history: RunnerHistory::new(identity.clone(), None),
            random: u64::from(identity.index).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            metrics: RunnerMetrics { identity, ..RunnerMetrics::default() },
            created_at: Instant::now(),
            length,
            started: None,
            stopped: false,
        })
    }

    /// Seconds of load so far.
    fn elapsed(&self) -> f64 {
        let Some(at) = self.started else { return 0.0 };
        if self.stopped {
            return self.metrics.metrics.elapsed_seconds;
        }
        Instant::now().saturating_duration_since(at).min(self.length).as_secs_f64()
    }

    /// Lets the numbers grow until now.
    fn advance(&mut self) -> Result<()> {
        let Some(at) = self.started else { return Ok(()) };
        let elapsed = self.elapsed();
        let is_over = self.stopped || Instant::now() >= at + self.length;
        let is_recent = self
            .history
            .recorded_at()
            .is_some_and(|last| self.created_at.elapsed().saturating_sub(last) < MIN_STEP);
        if self.metrics.state.is_final() || (is_recent && !is_over) {
            return Ok(());
        }
        let before = self.metrics.metrics.elapsed_seconds;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the seconds of a load are few"
        )]
        let whole = |seconds: f64| (seconds * REQUESTS_PER_SECOND as f64) as u64;
        let requests = whole(elapsed) - whole(before);
        for name in TASKS {
            for _ in 0..requests {
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Between half and twice the median.
                let share = (self.random >> 33) as f64 / f64::from(u32::MAX >> 1);
                let factor = (share * 2.0 - 1.0).exp2();
                let task = self.metrics.metrics.tasks.entry(name.into()).or_default();
                for (metric, median, count) in LATENCIES {
                    let samples = task.latencies.get_mut(metric, Outcome::Success);
                    samples.record(median * factor, count);
                }
            }
            let task = self.metrics.metrics.tasks.entry(name.into()).or_default();
            task.requests[Outcome::Success.index()] += requests;
            task.successes_in_load += requests;
            task.sent_bytes += requests * 400;
            *task.statuses.entry("200".into()).or_default() += requests;
        }
        let metrics = &mut self.metrics.metrics;
        metrics.schedule_lag.record(0.000_1, requests);
        metrics.event_loop_lag.record(0.000_1, requests);
        metrics.elapsed_seconds = elapsed;
        metrics.user_seconds = elapsed * 10.0;
        metrics.users = if is_over { 0 } else { 10 };
        metrics.users_peak = 10;
        metrics.busy_seconds = elapsed * 0.1;
        self.metrics.state = if is_over { RunnerState::Done } else { RunnerState::Running };
        self.history.record(&self.metrics, self.created_at.elapsed())?;
        Ok(())
    }
}

/// All pretended runners, by the addresses of their pods.
#[derive(Clone)]
pub(crate) struct Runners {
    client: Client,
    by_address: Arc<Mutex<HashMap<IpAddr, Arc<Mutex<Runner>>>>>,
    /// Addresses that do not answer.
    dead: Arc<Mutex<Vec<IpAddr>>>,
    /// Lengths of the loads, by the names of their `ConfigMap`s.
    lengths: Arc<Mutex<HashMap<String, Arc<OnceCell<Duration>>>>>,
    /// Addresses whose pods are being looked up.
    searches: Arc<Mutex<HashMap<IpAddr, Arc<tokio::sync::Mutex<()>>>>>,
    /// Number of times when all runners were forgotten.
    generation: Arc<AtomicU64>,
}

type Reply = Response<Full<Bytes>>;

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runners {
    /// Serves the runners of all pods whose addresses lead to this machine.
    pub(crate) async fn serve(client: Client) -> Result<Self> {
        let runners = Self {
            client,
            by_address: Arc::default(),
            dead: Arc::default(),
            lengths: Arc::default(),
            searches: Arc::default(),
            generation: Arc::default(),
        };
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, control::PORT)).await?;
        let server = runners.clone();
        tokio::spawn(async move {
            loop {
                let socket = match listener.accept().await {
                    Ok((socket, _)) => socket,
                    Err(error) => {
                        // The figures of a trial without runners would be wrong, so it must be seen.
                        let _ = writeln!(std::io::stderr(), "runners: no connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let Ok(address) = socket.local_addr() else { continue };
                let server = server.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        let server = server.clone();
                        async move {
                            let result = server.respond(address.ip(), request).await;
                            let failed = |error| {
                                let text = format!("{error:#}\n");
                                reply(StatusCode::INTERNAL_SERVER_ERROR, text)
                            };
                            Ok::<_, Infallible>(result.unwrap_or_else(failed))
                        }
                    });
                    // The operator may close the connection at any time.
                    let _ =
                        http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Ok(runners)
    }

    /// Forgets all runners. Later pods get their addresses.
    pub(crate) fn forget_all(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        lock(&self.by_address).clear();
        lock(&self.dead).clear();
    }

    /// Returns the time between the first and the last start of the runners of a test, on their common clock.
    pub(crate) fn start_skew(&self, run_uid: &str) -> Option<Duration> {
        let runners = lock(&self.by_address);
        let starts: Vec<Instant> = runners
            .values()
            .filter_map(|runner| {
                let runner = lock(runner);
                let is_of_run = runner.metrics.identity.run_uid == run_uid;
                is_of_run.then_some(runner.started).flatten()
            })
            .collect();
        Some(*starts.iter().max()? - *starts.iter().min()?)
    }

    /// Lets some runners of a test never answer again.
    pub(crate) fn kill(&self, run_uid: &str, count: usize) {
        let runners = lock(&self.by_address);
        let of_run =
            runners.iter().filter(|(_, runner)| lock(runner).metrics.identity.run_uid == run_uid);
        lock(&self.dead).extend(of_run.map(|(address, _)| *address).take(count));
    }

    async fn respond(&self, address: IpAddr, request: Request<Incoming>) -> Result<Reply> {
        if lock(&self.dead).contains(&address) {
            std::future::pending::<()>().await;
        }
        let asked_at = Instant::now();
        let (head, body) = request.into_parts();
        let asked = head.uri.path().to_owned();
        let runner = self.find(address, asked == path::READINESS || asked == path::START).await?;
        match asked.as_str() {
            path::START => {
                let order: StartOrder = serde_json::from_slice(&body.collect().await?.to_bytes())?;
                let at = Instant::now() + Duration::from_secs_f64(order.in_seconds.max(0.0));
                let started = &mut lock(&runner).started;
                *started = Some(started.map_or(at, |earlier| earlier.min(at)));
                Ok(reply(StatusCode::NO_CONTENT, ""))
            }
            path::STOP => {
                let mut runner = lock(&runner);
                runner.advance()?;
                runner.stopped = true;
                Ok(reply(StatusCode::NO_CONTENT, ""))
            }
            path::RELEASE => {
                let client = self.client.clone();
                tokio::spawn(async move { end_pod(client, &runner).await });
                Ok(reply(StatusCode::NO_CONTENT, ""))
            }
            path::HISTORY => {
                let mut runner = lock(&runner);
                runner.advance()?;
                let query = head.uri.query().unwrap_or_default();
                let after = query.split('&').find_map(|pair| pair.strip_prefix("after="));
                let body = runner.history.encode_after(after.unwrap_or("0").parse()?)?;
                let about = HistoryReply {
                    identity: runner.metrics.identity.clone(),
                    elapsed_seconds: runner.elapsed(),
                    work_seconds: asked_at.elapsed().as_secs_f64(),
                };
                let mut reply = reply(StatusCode::OK, body);
                let headers = reply.headers_mut();
                headers.insert("content-type", Format::Protobuf.content_type().parse()?);
                headers.insert(HISTORY_HEADER, about.to_string().parse()?);
                Ok(reply)
            }
            path::ERRORS => Ok(reply(StatusCode::OK, "[]")),
            _ => Ok(reply(StatusCode::OK, "ok\n")),
        }
    }

    /// Returns the runner with an address. Addresses are used again, so a runner that is `new` replaces one that
    /// has ended.
    async fn find(&self, address: IpAddr, new: bool) -> Result<Arc<Mutex<Runner>>> {
        if let Some(runner) = self.find_known(address, new) {
            return Ok(runner);
        }
        // The search goes on if the operator gives the request up.
        let runners = self.clone();
        let search = tokio::spawn(async move {
            let generation = runners.generation.load(Ordering::Acquire);
            let search = Arc::clone(lock(&runners.searches).entry(address).or_default());
            let _only_search = search.lock().await;
            match runners.find_known(address, new) {
                Some(runner) => Ok(runner),
                None => runners.look_up(address, generation).await,
            }
        });
        search.await?
    }

    fn find_known(&self, address: IpAddr, new: bool) -> Option<Arc<Mutex<Runner>>> {
        let known = lock(&self.by_address).get(&address).cloned();
        known.filter(|runner| !(new && lock(runner).metrics.state.is_final()))
    }

    /// Reads the pod with an address, and keeps its runner unless all runners are forgotten meanwhile.
    async fn look_up(&self, address: IpAddr, generation: u64) -> Result<Arc<Mutex<Runner>>> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        // From the cache of the API server, because all runners of a test ask at the same time.
        let selector = ListParams::default().match_any().fields(&format!("status.podIP={address}"));
        let pods = pods.list(&selector).await?.items;
        let is_alive = |pod: &&Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
        };
        let pod = pods.iter().find(is_alive).context("no pod has this address")?;
        let runner = Arc::new(Mutex::new(Runner::of_pod(pod, self.load_length(pod).await?)?));
        let mut by_address = lock(&self.by_address);
        if self.generation.load(Ordering::Acquire) == generation {
            by_address.insert(address, Arc::clone(&runner));
        }
        Ok(runner)
    }
}

impl Runners {
    /// Returns the length of the load that the plan of a runner asks for.
    async fn load_length(&self, pod: &Pod) -> Result<Duration> {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let name =
            volumes.filter_map(|volume| volume.config_map.as_ref()).map(|map| &map.name).next();
        let name = name.context("the pod has no plan")?;
        let length = Arc::clone(lock(&self.lengths).entry(name.clone()).or_default());
        let read = async || -> Result<Duration> {
            let namespace = pod.namespace().context("no namespace")?;
            let config_maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &namespace);
            let data = config_maps.get(name).await?.data.unwrap_or_default();
            let plan: Plan =
                serde_json::from_str(data.get(control::PLAN_FILE).context("no plan")?)?;
            Ok(plan.test.load.duration().to_std())
        };
        Ok(*length.get_or_try_init(read).await?)
    }
}

/// Ends the pod of a runner as the kubelet would.
async fn end_pod(client: Client, runner: &Mutex<Runner>) {
    let (name, namespace) = {
        let runner = lock(runner);
        (runner.name.clone(), runner.namespace.clone())
    };
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let container = json!({
        "name": control::CONTAINER, "image": "loadtest-runner", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 0, "reason": "Completed"}},
    });
    let status = json!({"status": {
        "phase": "Succeeded", "containerStatuses": [container],
        "conditions": [{"type": "Ready", "status": "False"}],
    }});
    // The test may be deleted already.
    let _ = pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await;
}
