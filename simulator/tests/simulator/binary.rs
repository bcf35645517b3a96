//! The program: its exit codes, its log and its shutdown.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

fn start_simulator(options: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_cell0-simulator"))
        .args(["--address", "127.0.0.1", "--http-port", "0", "--websocket-port", "0"])
        .args(["--control-port", "0"])
        .args(options)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn read_log_line(log: &mut impl BufRead) -> Value {
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn signals_stop_the_simulator_at_once_with_exit_code_0() {
    for signal in ["-TERM", "-INT"] {
        let mut child = start_simulator(&["--threads", "1", "--chat-latency", "200ms"]);
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let listening = read_log_line(&mut log);
        assert_eq!(listening["fields"]["message"], "listening");
        let address = listening["fields"]["http"].as_str().unwrap();
        let mut idle = TcpStream::connect(address).unwrap();
        idle.write_all(b"GET /health HTTP/1.1\r\nhost: s\r\n\r\n").unwrap();
        let mut response = [0; 12];
        idle.read_exact(&mut response).unwrap();
        assert_eq!(&response, b"HTTP/1.1 200");

        let signaled = Instant::now();
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let status = child.wait().unwrap();
        assert!(signaled.elapsed() < Duration::from_secs(10));
        assert_eq!(status.code(), Some(0));
        assert_eq!(read_log_line(&mut log)["fields"]["message"], "stopping");
        let served = read_log_line(&mut log);
        assert_eq!(
            (&served["fields"]["received"], &served["fields"]["run"]),
            (&1.into(), &"".into())
        );
    }
}

#[test]
fn invalid_settings_give_exit_code_2_and_name_the_field() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"chat: {errors: {rate: 150%}}\n").unwrap();
    let file = file.path().to_str().unwrap();
    for (options, word) in [
        (["--settings", file], "chat.errors.rate is 150%"),
        (["--health-latency", "soon"], "soon"),
        (["--settings", "/no/such/file"], "/no/such/file"),
    ] {
        let output = start_simulator(&options).wait_with_output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(word), "{message}");
    }
}
