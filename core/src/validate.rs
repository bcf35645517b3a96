//! What schema and CEL can't say about a spec, or only an API server checks. Pure.

use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::resource::LoadTestSpec;

/// A ConfigMap holds 1 MiB in all; the plan leaves room for the rest of the object.
pub const MAX_PLAN_BYTES: usize = 900 * 1024;

/// One thing wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, as a path from the object's root.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Everything wrong with a spec that the API server let pass.
pub fn problems(spec: &LoadTestSpec) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, task) in spec.scenario.tasks.iter().enumerate() {
        if spec.scenario.tasks[..index].iter().any(|other| other.name == task.name) {
            problems.push(Problem {
                field: format!("spec.scenario.tasks[{index}].name"),
                message: format!("{:?} is taken by another task: rename one", task.name),
            });
        }
    }
    for (index, task) in spec.scenario.tasks.iter().enumerate() {
        let checks = task.http.iter().flat_map(|http| http.checks.iter().enumerate());
        let paths = checks.filter_map(|(at, check)| Some((at, check.json_path.as_ref()?)));
        problems.extend(paths.filter_map(|(at, path)| {
            let error = serde_json_path::JsonPath::parse(path).err()?;
            Some(Problem {
                field: format!("spec.scenario.tasks[{index}].http.checks[{at}].jsonPath"),
                message: format!("{path:?} is not a JSONPath such as $.data[0].id: {error}"),
            })
        }));
    }
    let urls = [("http", &spec.target.http), ("webSocket", &spec.target.web_socket)];
    for (name, url) in urls.into_iter().filter_map(|(name, url)| Some((name, url.as_ref()?))) {
        if let Some(port) = port_of(url).filter(|port| !(1..=65535).contains(port)) {
            problems.push(Problem {
                field: format!("spec.target.{name}"),
                message: format!("{url:?} has port {port}: ports are 1 to 65535"),
            });
        }
    }
    if let Some(bundle) = spec.target.tls.as_ref().and_then(|tls| tls.ca_bundle.as_ref())
        && !holds_certificates(bundle)
    {
        problems.push(Problem {
            field: "spec.target.tls.caBundle".into(),
            message: "holds no certificate that can be read: want PEM, as from openssl x509".into(),
        });
    }
    let parts = (&spec.target, &spec.load, &spec.scenario, &spec.thresholds);
    // A spec is plain data: it always has a JSON form.
    let bytes = serde_json::to_vec(&parts).map_or(usize::MAX, |json| json.len());
    if bytes > MAX_PLAN_BYTES {
        problems.push(Problem {
            field: "spec.scenario".into(),
            message: format!(
                "{} KiB are more than the {} KiB that fit into a ConfigMap: use fewer or shorter bodies and messages",
                bytes / 1024,
                MAX_PLAN_BYTES / 1024
            ),
        });
    }
    problems
}

/// The port that a URL names.
fn port_of(url: &str) -> Option<u64> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let (_, port) = authority.rsplit_once(':')?;
    // The last colon of a bare IPv6 address is none before a port.
    port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().unwrap_or(u64::MAX))
}

fn holds_certificates(pem: &str) -> bool {
    let mut read = CertificateDer::pem_slice_iter(pem.as_bytes()).peekable();
    read.peek().is_some() && read.all(|certificate| certificate.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    #[test]
    fn the_designs_example_has_no_problem() {
        assert_eq!(problems(&spec()), []);
    }

    #[test]
    fn a_port_that_is_none_is_refused() {
        let mut spec = spec();
        for (url, good) in [
            ("http://cell0:188000", false),
            ("http://cell0:0", false),
            ("http://cell0:18800/base:99999", true),
            ("http://[fd00::1]:80", true),
            ("http://cell0", true),
        ] {
            spec.target.http = Some(url.into());
            assert_eq!(problems(&spec).is_empty(), good, "{url}");
        }
    }

    #[test]
    fn a_json_path_that_is_none_is_refused() {
        let mut spec = spec();
        let check = |path: &str| crate::resource::Check {
            json_path: Some(path.into()),
            ..crate::resource::Check::default()
        };
        let http = spec.scenario.tasks[1].http.as_mut().unwrap();
        http.checks = vec![check("$.data[0].id"), check("$.data[")];
        let found = problems(&spec);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].field, "spec.scenario.tasks[1].http.checks[1].jsonPath");
    }

    #[test]
    fn a_bundle_without_certificates_is_refused() {
        let mut spec = spec();
        let pem = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        spec.target.tls = Some(crate::resource::Tls {
            ca_bundle: Some(pem.into()),
            ..crate::resource::Tls::default()
        });
        assert_eq!(problems(&spec)[0].field, "spec.target.tls.caBundle");
    }

    #[test]
    fn two_tasks_of_one_name_are_refused() {
        let mut spec = spec();
        spec.scenario.tasks[2].name = "chat".into();
        assert_eq!(problems(&spec)[0].field, "spec.scenario.tasks[2].name");
    }

    #[test]
    fn a_spec_that_fits_no_config_map_is_refused() {
        let mut spec = spec();
        let mut task = spec.scenario.tasks[1].clone();
        task.http.as_mut().unwrap().body = Some("x".repeat(60_000));
        spec.scenario.tasks = (0..20)
            .map(|i| {
                task.name = format!("task-{i}");
                task.clone()
            })
            .collect();
        assert_eq!(problems(&spec)[0].field, "spec.scenario");
    }
}
