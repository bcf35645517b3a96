//! `loadtest run --url`: builds a LoadTest of one task from options, without a file.

use serde_json::{Map, Value, json};
use url::Url;

use crate::arguments::RequestArguments;

/// Name of the LoadTest that is built from options.
const NAME: &str = "command-line";
/// Users of a closed load without `--users`.
const DEFAULT_USERS: u32 = 1;
/// Duration without `--run-time`.
const DEFAULT_DURATION: &str = "10s";
/// Path of chat requests without a path in the URL.
const CHAT_PATH: &str = "/v1/chat/completions";
/// Bounds of the users of an open load without `--users`: as many as answers of one second need.
const ARRIVAL_USERS: (f64, f64) = (10.0, 10_000.0);

/// Builds the LoadTest. `users`, spawn rate and duration are set later, as for a file; here they get
/// their defaults.
///
/// # Errors
/// When an option is invalid or missing; the error names it.
pub(crate) fn build_test(request: &RequestArguments, users: Option<u32>) -> Result<Value, String> {
    let RequestArguments { url, rate, chat, message, method, data, header } = request;
    let Some(url) = url else {
        return Err("give a FILE, or --url with the address to test".to_owned());
    };
    let parsed = Url::parse(url).map_err(|error| {
        format!("--url {url:?}: {error}; write for example http://localhost:18800/health")
    })?;
    let is_web_socket = match parsed.scheme() {
        "http" | "https" => false,
        "ws" | "wss" => true,
        other => {
            return Err(format!(
                "--url {url:?}: {other} is not http, https, ws or wss; write http://{url} if you mean that"
            ));
        }
    };
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(
            "--url: credentials in a URL would be printed; use -H 'authorization: …'".to_owned()
        );
    }
    let base = &url[..url.len() - path_of(url, &parsed).len()];
    let path = path_of(url, &parsed);
    let path = path.split('#').next().unwrap_or_default();
    let headers = read_headers(header)?;
    if is_web_socket && chat.is_some() {
        return Err("--chat needs an http or https URL".to_owned());
    }
    if (is_web_socket || chat.is_some()) && (method.is_some() || data.is_some()) {
        return Err(
            "-X and -d are for http requests: use --message for a chat or a WebSocket".to_owned()
        );
    }
    let absolute =
        |path: &str| if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let task = if is_web_socket {
        let messages = if message.is_empty() { vec!["ping".to_owned()] } else { message.clone() };
        json!({"name": "websocket", "webSocket": {"path": absolute(path), "send": messages, "replies": 1}})
    } else if let Some(model) = chat {
        let messages = if message.is_empty() { vec!["Hello".to_owned()] } else { message.clone() };
        let path = if path.is_empty() || path == "/" { CHAT_PATH } else { path };
        json!({"name": "chat", "chat": {"path": path, "models": [model], "messages": messages, "stream": true}})
    } else {
        if !message.is_empty() {
            return Err("--message is for --chat and for WebSockets: use -d for the body of an http request".to_owned());
        }
        let body = data.as_deref().map(read_data).transpose()?;
        let default = if body.is_some() { "POST" } else { "GET" };
        let method = method.as_deref().unwrap_or(default).to_uppercase();
        let mut http = json!({"method": method, "path": absolute(path)});
        if let Some(body) = body {
            http["body"] = body.into();
        }
        json!({"name": "request", "http": http})
    };
    let mut target = Map::new();
    target.insert(if is_web_socket { "webSocket" } else { "http" }.into(), base.into());
    if !headers.is_empty() {
        target.insert("headers".into(), headers.into());
    }
    Ok(json!({
        "apiVersion": format!("{}/v1alpha1", loadtest_core::resource::GROUP),
        "kind": "LoadTest",
        "metadata": {"name": NAME},
        "spec": {
            "target": target,
            "load": build_load(rate.as_deref(), users)?,
            "scenario": {"tasks": [task]},
        },
    }))
}

fn build_load(rate: Option<&str>, users: Option<u32>) -> Result<Value, String> {
    let Some(rate) = rate else {
        let users = users.unwrap_or(DEFAULT_USERS);
        return Ok(json!({"users": users, "spawnRate": users, "duration": DEFAULT_DURATION}));
    };
    let number = rate.strip_suffix("/s").unwrap_or(rate).parse::<f64>().ok();
    let number = number.filter(|number| number.is_finite() && *number > 0.0).ok_or_else(|| {
        format!("--rate {rate:?} is not a rate: write a number per second, such as 200/s")
    })?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the number is within ARRIVAL_USERS"
    )]
    let enough = number.ceil().clamp(ARRIVAL_USERS.0, ARRIVAL_USERS.1) as u32;
    Ok(json!({
        "arrivalRate": rate,
        "maxUsers": users.unwrap_or(enough),
        "duration": DEFAULT_DURATION,
    }))
}

/// Path, query and fragment of a URL, as they were written.
fn path_of<'a>(url: &'a str, parsed: &Url) -> &'a str {
    let after_scheme = parsed.scheme().len() + "://".len();
    let rest = url.get(after_scheme..).unwrap_or_default();
    rest.find(['/', '?', '#']).map_or("", |at| &rest[at..])
}

/// The body of `-d`: the text itself, or after `@` the content of a file.
fn read_data(data: &str) -> Result<String, String> {
    match data.strip_prefix('@') {
        None => Ok(data.to_owned()),
        Some(path) => std::fs::read_to_string(path).map_err(|error| format!("-d {data}: {error}")),
    }
}

fn read_headers(headers: &[String]) -> Result<Map<String, Value>, String> {
    let header = |text: &String| {
        let (name, value) = text.split_once(':').ok_or_else(|| {
            format!("-H {text:?} is not a header: write for example 'accept: text/html'")
        })?;
        Ok((name.trim().to_owned(), value.trim().into()))
    };
    let headers = headers.iter().map(header).collect::<Result<Vec<(String, Value)>, String>>()?;
    let mut map = Map::new();
    for (name, value) in headers {
        if map.keys().any(|other: &String| other.eq_ignore_ascii_case(&name)) {
            return Err(format!("-H: header {name} is given twice"));
        }
        map.insert(name, value);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(url: &str) -> RequestArguments {
        RequestArguments { url: Some(url.to_owned()), ..RequestArguments::default() }
    }

    #[test]
    fn a_url_becomes_one_task() {
        let test =
            build_test(&request("http://localhost:18800/health?full=1#top"), Some(50)).unwrap();
        let spec = &test["spec"];
        assert_eq!(spec["target"], json!({"http": "http://localhost:18800"}));
        assert_eq!(spec["load"], json!({"users": 50, "spawnRate": 50, "duration": "10s"}));
        let http = &spec["scenario"]["tasks"][0]["http"];
        assert_eq!(http, &json!({"method": "GET", "path": "/health?full=1"}));
        let test = build_test(&request("https://example.com"), None).unwrap();
        assert_eq!(test["spec"]["scenario"]["tasks"][0]["http"]["path"], "/");
        let test = build_test(&request("https://example.com?q=1"), None).unwrap();
        assert_eq!(test["spec"]["scenario"]["tasks"][0]["http"]["path"], "/?q=1");
    }

    #[test]
    fn options_are_those_of_curl() {
        let request = RequestArguments {
            data: Some("{\"a\":1}".into()),
            header: vec!["Content-Type: application/json".into()],
            ..request("http://localhost/x")
        };
        let spec = build_test(&request, None).unwrap()["spec"].take();
        let http = &spec["scenario"]["tasks"][0]["http"];
        assert_eq!(http, &json!({"method": "POST", "path": "/x", "body": "{\"a\":1}"}));
        assert_eq!(spec["target"]["headers"], json!({"Content-Type": "application/json"}));
    }

    #[test]
    fn chats_and_web_sockets_have_messages() {
        let chat = RequestArguments { chat: Some("m".into()), ..request("http://localhost:8000") };
        let spec = build_test(&chat, None).unwrap()["spec"].take();
        assert_eq!(spec["scenario"]["tasks"][0]["chat"]["path"], CHAT_PATH);
        let socket =
            RequestArguments { message: vec!["hi".into()], ..request("ws://localhost:1/s") };
        let spec = build_test(&socket, None).unwrap()["spec"].take();
        assert_eq!(spec["target"], json!({"webSocket": "ws://localhost:1"}));
        assert_eq!(spec["scenario"]["tasks"][0]["webSocket"]["send"], json!(["hi"]));
    }

    #[test]
    fn a_rate_gets_enough_users() {
        let of = |rate: &str, users| {
            let request = RequestArguments { rate: Some(rate.into()), ..request("http://a") };
            build_test(&request, users).map(|test| test["spec"]["load"]["maxUsers"].clone())
        };
        assert_eq!(of("200/s", None), Ok(json!(200)));
        assert_eq!(of("2", None), Ok(json!(10)));
        assert_eq!(of("200/s", Some(7)), Ok(json!(7)));
        for rate in ["fast", "nan", "inf", "-5", "0"] {
            assert!(of(rate, None).unwrap_err().contains("such as 200/s"), "{rate}");
        }
    }

    #[test]
    fn a_header_is_given_once() {
        let header = vec!["cookie: a=1".to_owned(), "Cookie: b=2".to_owned()];
        let error = build_test(&RequestArguments { header, ..request("http://a") }, None);
        assert!(error.unwrap_err().contains("Cookie is given twice"));
    }

    #[test]
    fn wrong_options_are_named() {
        let no_url = RequestArguments::default();
        assert!(build_test(&no_url, None).unwrap_err().contains("give a FILE, or --url"));
        for (url, message) in [
            ("localhost:18800", "is not http, https, ws or wss"),
            ("/health", "relative URL"),
            ("http://me:secret@host/", "credentials in a URL"),
        ] {
            let error = build_test(&request(url), None).unwrap_err();
            assert!(error.contains(message) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
