//! Measures the requests to the API server: errors by code, and when each watch last began.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{MetricType, counter::Counter, family::Family, gauge::ConstGauge},
};
use tower::{Layer, Service};

use crate::clock::observe_response;

/// The code of a request that got no response.
const NO_RESPONSE: &str = "none";

/// Counts of requests to the API server. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct ApiCalls {
    /// Responses with an error, by code, without 404: it is the usual response for an object that does
    /// not exist.
    pub(super) errors: Family<[(&'static str, String); 1], Counter>,
    /// When each watch was last accepted, by path.
    watches: Arc<Mutex<HashMap<String, Instant>>>,
}

impl ApiCalls {
    fn count_error(&self, code: &str) {
        self.errors.get_or_create(&[("code", code.to_owned())]).inc();
    }

    fn record(&self, watched: Option<String>, status: StatusCode) {
        if status.is_success() {
            if let Some(path) = watched {
                self.lock_watches().insert(path, Instant::now());
            }
        } else if status.as_u16() >= 400 && status != StatusCode::NOT_FOUND {
            self.count_error(status.as_str());
        }
    }

    fn lock_watches(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the age of the watch that began longest ago, in seconds. `None` before the first one.
    fn watch_age(&self) -> Option<f64> {
        let oldest = self.lock_watches().values().min().copied()?;
        Some(oldest.elapsed().as_secs_f64())
    }
}

impl Collector for ApiCalls {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(age) = self.watch_age() else { return Ok(()) };
        let help = "Maximum over all watches of the time since the API server last accepted the watch, in seconds";
        let name = "loadtest_operator_watch_age_seconds";
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        prometheus_client::encoding::EncodeMetric::encode(&ConstGauge::new(age), metric)
    }
}

impl<S> Layer<S> for ApiCalls {
    type Service = MeasuredService<S>;

    fn layer(&self, inner: S) -> MeasuredService<S> {
        MeasuredService { inner, calls: self.clone() }
    }
}

/// A service that counts its responses.
#[derive(Clone, Debug)]
pub struct MeasuredService<S> {
    inner: S,
    calls: ApiCalls,
}

impl<S, B, R> Service<Request<B>> for MeasuredService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<R>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        let is_watch = query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1");
        let watched = is_watch.then(|| request.uri().path().to_owned());
        let (response, calls) = (self.inner.call(request), self.calls.clone());
        let sent_at = Instant::now();
        Box::pin(async move {
            let result = response.await;
            match &result {
                Ok(response) => {
                    observe_response(response.headers(), sent_at.elapsed());
                    calls.record(watched, response.status());
                }
                Err(_) => calls.count_error(NO_RESPONSE),
            }
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[tokio::test]
    async fn errors_and_watches_are_measured() {
        let calls = ApiCalls::default();
        let respond = |request: Request<()>| async move {
            let code = request.uri().path().trim_start_matches('/').parse::<u16>();
            let status = code.map_or(StatusCode::OK, |code| StatusCode::from_u16(code).unwrap());
            Ok::<_, Infallible>(Response::builder().status(status).body(()).unwrap())
        };
        let mut service = calls.layer(tower::service_fn(respond));
        for uri in ["/200", "/404", "/429", "/429", "/pods", "/500?watch=true"] {
            service.call(Request::get(uri).body(()).unwrap()).await.unwrap();
        }
        let count = |code: &str| calls.errors.get_or_create(&[("code", code.to_owned())]).get();
        assert_eq!((count("404"), count("429"), count("500")), (0, 2, 1));
        assert_eq!(calls.watch_age(), None);
        service.call(Request::get("/pods?limit=1&watch=true").body(()).unwrap()).await.unwrap();
        assert!(calls.watch_age().unwrap() < 10.0);
    }
}
