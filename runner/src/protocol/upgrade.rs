//! The handshake that turns an HTTP/1.1 connection into a WebSocket (RFC 6455, 4.1).

use std::{
    hash::{BuildHasher, RandomState},
    ops::ControlFlow,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use crate::{
    failure::{ErrorKind, Failure},
    net::stream::MeteredStream,
    prepare::{check::HeaderField, websocket_task::PreparedWebSocket},
    protocol::{
        content_encoding::BodyDecoder,
        http1::{BodyReader, ResponseHead, read_body, read_head, write_request},
        target_words::{MAX_ERROR_BODY, describe_status, with_words},
        websocket::frames::FrameReader,
        websocket::stream::WebSocket,
    },
};

/// The text that a target appends to the key of a handshake (RFC 6455, 1.3).
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Maximum time to wait for the body of a response that refuses the upgrade.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(200);

/// Asks for the upgrade. Returns a session when the target agrees.
///
/// # Errors
/// When the connection fails or ends, and when the response is not a valid agreement.
pub(crate) async fn upgrade_connection(
    mut stream: MeteredStream,
    prepared: &PreparedWebSocket,
) -> Result<WebSocket, Failure> {
    let key = new_key();
    let end = format!("Sec-WebSocket-Key: {key}\r\n\r\n");
    let request = [&prepared.upgrade_request, end.as_bytes()].concat();
    write_request(&mut stream, &request).await?;

    let mut buffer = BytesMut::new();
    let head = read_head(&mut stream, &mut buffer, false, true, || ()).await?;
    if head.status != 101 {
        let described = describe_status(head.status, &head.headers);
        let body = read_refusal(&mut stream, &mut buffer, &head).await;
        let message = with_words(format!("the handshake got {described}"), &body);
        return Err(Failure::new(ErrorKind::Http(head.status), message));
    }
    check_agreement(&head.headers, &prepared.subprotocols, &accept_key(&key))
        .map_err(|problem| Failure::new(ErrorKind::Protocol, problem))?;
    let deflate = agreed_compression(&head.headers)
        .map_err(|problem| Failure::new(ErrorKind::Protocol, problem))?;
    // Messages that arrived with the response. The copy is as small as they are: the buffer itself
    // would stay allocated for the whole session.
    let rest = BytesMut::from(&buffer[..]);
    Ok(WebSocket::new(stream, rest, FrameReader::new(deflate), new_mask_seed()))
}

/// Returns the first bytes of the body of a response that refuses the upgrade. A body that does not
/// end is not waited for.
async fn read_refusal(
    stream: &mut MeteredStream,
    buffer: &mut BytesMut,
    head: &ResponseHead,
) -> Vec<u8> {
    let mut body = BodyReader::new(head);
    let mut decoder = BodyDecoder::new(head.encoding);
    let mut start = Vec::new();
    let on_data = |data: &[u8]| {
        decoder.decode(data, |plain| {
            start.extend_from_slice(plain);
            let is_enough = start.len() >= MAX_ERROR_BODY;
            Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
    };
    // What has come is shown, whatever happens to the rest.
    let _ =
        tokio::time::timeout(REFUSAL_TIMEOUT, read_body(stream, buffer, &mut body, on_data)).await;
    start
}

/// Returns a random number.
fn new_mask_seed() -> u32 {
    let [.., a, b, c, d] = RandomState::new().hash_one(0_u8).to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// Returns whether the target compresses its messages, and then whether each message starts with an
/// empty window (RFC 7692, 7.1).
///
/// # Errors
/// The problem, in words, when the target chose an extension that was not offered.
fn agreed_compression(headers: &[HeaderField]) -> Result<Option<bool>, String> {
    let Some(chosen) = values_of(headers, "sec-websocket-extensions").next() else {
        return Ok(None);
    };
    let mut parts = chosen.split(';').map(str::trim);
    if parts.next() != Some("permessage-deflate") {
        return Err(format!("the target chose the extension {chosen:?}, which was not offered"));
    }
    Ok(Some(parts.any(|part| part == "server_no_context_takeover")))
}

/// Returns a random key: 16 bytes in base64.
fn new_key() -> String {
    // Every `RandomState` has its own random seed, so hashes of a constant are random numbers.
    let random = RandomState::new();
    STANDARD.encode([0, 1].map(|half: u8| random.hash_one(half).to_ne_bytes()).concat())
}

/// Returns the value of `Sec-WebSocket-Accept` that agrees to a key.
fn accept_key(key: &str) -> String {
    let text = format!("{key}{KEY_SUFFIX}");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// Checks that the headers of a response agree to the request.
///
/// # Errors
/// The problem, in words.
fn check_agreement(
    headers: &[HeaderField],
    subprotocols: &[String],
    accept_key: &str,
) -> Result<(), String> {
    for (name, token) in [("upgrade", "websocket"), ("connection", "upgrade")] {
        let mut elements = values_of(headers, name).flat_map(|value| value.split(','));
        if !elements.any(|element| element.trim().eq_ignore_ascii_case(token)) {
            let found = values_of(headers, name).next().unwrap_or_default();
            return Err(format!("the response has {name}: {found:?}, not {token:?}"));
        }
    }
    let accepted = values_of(headers, "sec-websocket-accept").next().unwrap_or_default();
    if accepted != accept_key {
        return Err("sec-websocket-accept of the response does not match the key".to_owned());
    }
    // Names of subprotocols are case-sensitive.
    match values_of(headers, "sec-websocket-protocol").next() {
        None if subprotocols.is_empty() => Ok(()),
        None => Err(format!("the target chose none of the subprotocols {subprotocols:?}")),
        Some(chosen) if subprotocols.iter().any(|name| name == chosen) => Ok(()),
        Some(chosen) => {
            Err(format!("the target chose the subprotocol {chosen:?} of {subprotocols:?}"))
        }
    }
}

/// Returns the values of a header that are text.
fn values_of<'a>(headers: &'a [HeaderField], name: &'a str) -> impl Iterator<Item = &'a str> {
    let values = headers.iter().filter(move |(key, _)| key == name);
    values.filter_map(|(_, value)| std::str::from_utf8(value).ok()).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a response to a request for the subprotocols `bin` and `chat`. The response has one
    /// header that differs from a valid response.
    fn check_changed(name: &str, value: &str) -> Result<(), String> {
        let headers = [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", "key"),
            ("sec-websocket-protocol", "chat"),
        ];
        let changed = |(key, valid): (&str, &str)| {
            let value = if key == name { value } else { valid };
            (!value.is_empty()).then(|| (key.to_owned(), value.as_bytes().to_vec()))
        };
        let headers: Vec<_> = headers.into_iter().filter_map(changed).collect();
        check_agreement(&headers, &["bin".to_owned(), "chat".to_owned()], "key")
    }

    #[test]
    fn every_key_is_new_and_has_16_bytes() {
        assert_ne!(new_key(), new_key());
        assert_eq!(STANDARD.decode(new_key()).unwrap().len(), 16);
    }

    #[test]
    fn accept_key_is_that_of_the_rfc() {
        // RFC 6455, 1.3.
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn valid_responses_are_accepted_in_every_spelling() {
        for (name, value) in [
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-protocol", "bin"),
        ] {
            check_changed(name, value).unwrap();
        }
    }

    #[test]
    fn invalid_responses_fail_with_the_cause() {
        for (name, value, cause) in [
            ("upgrade", "h2c", "upgrade: \"h2c\", not \"websocket\""),
            ("upgrade", "", "upgrade: \"\", not"),
            ("connection", "close", "connection: \"close\", not \"upgrade\""),
            ("sec-websocket-accept", "KEY", "sec-websocket-accept of the response"),
            ("sec-websocket-protocol", "Chat", "chose the subprotocol \"Chat\""),
            ("sec-websocket-protocol", "", "chose none of the subprotocols"),
        ] {
            let problem = check_changed(name, value).unwrap_err();
            assert!(problem.contains(cause), "{problem}");
        }
        let unasked = [
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-accept", "key"),
            ("sec-websocket-protocol", "chat"),
        ];
        let unasked = unasked.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        assert!(check_agreement(&unasked, &[], "key").unwrap_err().contains("\"chat\" of []"));
    }
}
