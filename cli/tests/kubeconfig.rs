//! The options that choose a cluster, against a server that does not know the kind LoadTest.

#![allow(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::Command,
    sync::mpsc,
};

/// Starts a server that responds to each request as an API server does for an unknown kind. Returns its URL and the first lines
/// of the requests.
fn start_server() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, mut head) = (socket.unwrap(), [0; 4096]);
            let length = socket.read(&mut head).unwrap();
            let line = String::from_utf8_lossy(&head[..length]);
            sender.send(line.lines().next().unwrap_or_default().to_owned()).unwrap();
            let response = "HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 19\r\n\r\n404 page not found\n";
            socket.write_all(response.as_bytes()).unwrap();
        }
    });
    (url, requests)
}

/// Runs the command without a kubeconfig of its own. Returns the exit code and the standard error.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(arguments)
        .env("KUBECONFIG", "/nonexistent/kubeconfig")
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_context_of_a_kubeconfig_is_used() {
    let (url, requests) = start_server();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: other\nusers: [{{name: me, user: {{}}}}]\nclusters:\n- {{name: staging, cluster: {{server: \"{url}\"}}}}\n- {{name: other, cluster: {{server: \"http://127.0.0.1:1\"}}}}\ncontexts:\n- {{name: staging, context: {{cluster: staging, user: me, namespace: shop}}}}\n- {{name: other, context: {{cluster: other, user: me}}}}\n"
    );
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let (code, error) = run(&["list", "--kubeconfig", file, "--context", "staging"]);
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("does not know the kind LoadTest"), "{error}");
    assert!(requests.recv().unwrap().contains("/namespaces/shop/loadtests"));

    let (code, error) =
        run(&["watch", "burst", "--kubeconfig", file, "--context", "staging", "-n", "a"]);
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("does not know the kind LoadTest"), "{error}");
    assert!(requests.recv().unwrap().contains("/namespaces/a/loadtests/burst"));

    let (code, error) = run(&["list", "--kubeconfig", file, "--context", "production"]);
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("kubeconfig can't be used") && error.contains("production"), "{error}");

    let (code, error) = run(&["list", "--kubeconfig", "missing"]);
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("there is no kubeconfig at missing"), "{error}");
}
