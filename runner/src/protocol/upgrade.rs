//! The handshake that makes an HTTP connection a WebSocket (RFC 6455, section 4.1).
//!
//! The library's own keeps its 4 KiB of handshake as the session's read buffer, for as long as
//! that lives, and takes no `Connection` header but the bare word. Its parts are used here.

use bytes::{Buf, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error,
        error::{CapacityError, ProtocolError, SubProtocolError},
        handshake::{
            client::{Response, generate_key, generate_request},
            derive_accept_key,
            machine::TryParse,
        },
        protocol::{Role, WebSocketConfig},
    },
};

use crate::{net::stream::Wire, prepare::PreparedWebSocket};

/// Bytes of the longest answer to a handshake.
const MAX_HEAD: usize = 64 << 10;
/// Bytes a session reads at once. The library's own default is 128 KiB a socket, taken when it
/// connects.
const READ: usize = 1 << 10;

/// Asks for the upgrade, and has a session when the target agrees.
///
/// # Errors
/// When the connection fails or ends, and when the target says no, or something other than yes.
pub(crate) async fn upgrade(
    mut wire: Wire,
    prepared: &PreparedWebSocket,
) -> Result<WebSocketStream<Wire>, Error> {
    let mut request = Request::new(());
    *request.uri_mut() = prepared.uri.clone();
    let headers = request.headers_mut();
    headers.clone_from(&prepared.headers);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::try_from(generate_key())?);
    let (bytes, key) = generate_request(request)?;
    wire.write_all(&bytes).await?;
    wire.flush().await?;

    let mut read = BytesMut::with_capacity(READ);
    let answer = loop {
        if let Some((size, answer)) = Response::try_parse(&read)? {
            read.advance(size);
            // Others may say that they are not done yet (103, Early Hints).
            let status = answer.status();
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                continue;
            }
            break answer;
        }
        if read.len() > MAX_HEAD {
            let (size, max_size) = (read.len(), MAX_HEAD);
            return Err(CapacityError::MessageTooLong { size, max_size }.into());
        }
        if wire.read_buf(&mut read).await? == 0 {
            return Err(ProtocolError::HandshakeIncomplete.into());
        }
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::Http(answer.into()));
    }
    accept(answer.headers(), &prepared.headers, &derive_accept_key(key.as_bytes()))?;
    // Messages that came with the answer.
    let rest = read.to_vec();
    let config = WebSocketConfig::default().read_buffer_size(READ).write_buffer_size(0);
    Ok(WebSocketStream::from_partially_read(wire, rest, Role::Client, Some(config)).await)
}

/// Whether the header fields of an answer agree to what was asked.
fn accept(answer: &HeaderMap, asked: &HeaderMap, key: &str) -> Result<(), ProtocolError> {
    if !has_token(answer, &header::UPGRADE, "websocket") {
        return Err(ProtocolError::MissingUpgradeWebSocketHeader);
    }
    if !has_token(answer, &header::CONNECTION, "upgrade") {
        return Err(ProtocolError::MissingConnectionUpgradeHeader);
    }
    if answer.get(header::SEC_WEBSOCKET_ACCEPT).is_none_or(|accept| accept != key) {
        return Err(ProtocolError::SecWebSocketAcceptKeyMismatch);
    }
    let protocol = &header::SEC_WEBSOCKET_PROTOCOL;
    let wrong = match answer.get(protocol).map(|chosen| chosen.to_str().unwrap_or("")) {
        None => asked.contains_key(protocol).then_some(SubProtocolError::NoSubProtocol),
        Some(_) if !asked.contains_key(protocol) => {
            Some(SubProtocolError::ServerSentSubProtocolNoneRequested)
        }
        // Names of subprotocols are compared to the letter.
        Some(chosen) => (!tokens(asked, protocol).any(|name| name == chosen))
            .then_some(SubProtocolError::InvalidSubProtocol),
    };
    wrong.map_or(Ok(()), |wrong| Err(ProtocolError::SecWebSocketSubProtocolError(wrong)))
}

/// The elements of a header field that is a list.
fn tokens<'a>(
    headers: &'a HeaderMap,
    name: &'a header::HeaderName,
) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|element| element.eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    /// What comes of an answer, to someone who asked for the subprotocols `chat` and `bin`.
    fn outcome(change: impl FnOnce(&mut HeaderMap)) -> Result<(), ProtocolError> {
        let mut answer = headers(&[
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", "key"),
            ("sec-websocket-protocol", "chat"),
        ]);
        change(&mut answer);
        accept(&answer, &headers(&[("sec-websocket-protocol", "bin, chat")]), "key")
    }

    fn set(name: &'static str, value: &'static str) -> impl FnOnce(&mut HeaderMap) {
        move |headers| {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }

    #[test]
    fn an_answer_that_agrees_is_taken_however_it_is_written() {
        for change in [
            set("upgrade", "WebSocket"),
            set("connection", "keep-alive, Upgrade"),
            set("sec-websocket-protocol", "bin"),
        ] {
            outcome(change).unwrap();
        }
    }

    #[test]
    fn an_answer_that_does_not_agree_fails_with_what_is_wrong() {
        use ProtocolError::{
            MissingConnectionUpgradeHeader, MissingUpgradeWebSocketHeader,
            SecWebSocketAcceptKeyMismatch, SecWebSocketSubProtocolError,
        };
        assert_eq!(outcome(set("upgrade", "h2c")), Err(MissingUpgradeWebSocketHeader));
        assert_eq!(outcome(set("connection", "close")), Err(MissingConnectionUpgradeHeader));
        assert_eq!(outcome(set("sec-websocket-accept", "KEY")), Err(SecWebSocketAcceptKeyMismatch));
        let wrong = SecWebSocketSubProtocolError;
        assert_eq!(
            outcome(set("sec-websocket-protocol", "Chat")),
            Err(wrong(SubProtocolError::InvalidSubProtocol))
        );
        let none = |headers: &mut HeaderMap| {
            headers.remove("sec-websocket-protocol");
        };
        assert_eq!(outcome(none), Err(wrong(SubProtocolError::NoSubProtocol)));
        let answer = headers(&[
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", "key"),
            ("sec-websocket-protocol", "chat"),
        ]);
        assert_eq!(
            accept(&answer, &HeaderMap::new(), "key"),
            Err(wrong(SubProtocolError::ServerSentSubProtocolNoneRequested))
        );
    }
}
