//! The handshake that turns an HTTP connection into a WebSocket (RFC 6455, 4.1).
//!
//! The handshake of the library has two problems: its 4 KiB buffer stays allocated for the whole
//! session, and it accepts a `Connection` header only with a single value. So this module runs the
//! handshake with parts of the library.

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

use crate::{net::stream::MeteredStream, prepare::websocket_task::PreparedWebSocket};

/// Maximum length of the response to a handshake.
const MAX_HEAD: usize = 64 << 10;
/// Size of the read buffer of a session. The default of the library is 128 KiB per socket,
/// allocated at connect.
const READ_SIZE: usize = 1 << 10;

/// Asks for the upgrade. Returns a session when the target agrees.
///
/// # Errors
/// When the connection fails or ends, and when the response is not a valid agreement.
pub(crate) async fn upgrade_connection(
    mut stream: MeteredStream,
    prepared: &PreparedWebSocket,
) -> Result<WebSocketStream<MeteredStream>, Error> {
    let mut request = Request::new(());
    *request.uri_mut() = prepared.uri.clone();
    let headers = request.headers_mut();
    headers.clone_from(&prepared.headers);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::try_from(generate_key())?);
    let (bytes, key) = generate_request(request)?;
    stream.write_all(&bytes).await?;
    stream.flush().await?;

    let mut read = BytesMut::with_capacity(READ_SIZE);
    let response = loop {
        if let Some((length, response)) = Response::try_parse(&read)? {
            read.advance(length);
            // An interim response (such as 103 Early Hints) precedes the final response.
            let status = response.status();
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                continue;
            }
            break response;
        }
        if read.len() > MAX_HEAD {
            let (size, max_size) = (read.len(), MAX_HEAD);
            return Err(CapacityError::MessageTooLong { size, max_size }.into());
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(ProtocolError::HandshakeIncomplete.into());
        }
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::Http(response.into()));
    }
    check_response(response.headers(), &prepared.headers, &derive_accept_key(key.as_bytes()))?;
    // Messages that arrived with the response.
    let rest = read.to_vec();
    let config = WebSocketConfig::default().read_buffer_size(READ_SIZE).write_buffer_size(0);
    Ok(WebSocketStream::from_partially_read(stream, rest, Role::Client, Some(config)).await)
}

/// Checks that the headers of a response agree to the request.
fn check_response(
    response: &HeaderMap,
    request: &HeaderMap,
    key: &str,
) -> Result<(), ProtocolError> {
    if !has_token(response, &header::UPGRADE, "websocket") {
        return Err(ProtocolError::MissingUpgradeWebSocketHeader);
    }
    if !has_token(response, &header::CONNECTION, "upgrade") {
        return Err(ProtocolError::MissingConnectionUpgradeHeader);
    }
    if response.get(header::SEC_WEBSOCKET_ACCEPT).is_none_or(|accept| accept != key) {
        return Err(ProtocolError::SecWebSocketAcceptKeyMismatch);
    }
    let protocol = &header::SEC_WEBSOCKET_PROTOCOL;
    let error = match response.get(protocol).map(|chosen| chosen.to_str().unwrap_or("")) {
        None => request.contains_key(protocol).then_some(SubProtocolError::NoSubProtocol),
        Some(_) if !request.contains_key(protocol) => {
            Some(SubProtocolError::ServerSentSubProtocolNoneRequested)
        }
        // Names of subprotocols are case-sensitive.
        Some(chosen) => (!list_elements(request, protocol).any(|name| name == chosen))
            .then_some(SubProtocolError::InvalidSubProtocol),
    };
    error.map_or(Ok(()), |error| Err(ProtocolError::SecWebSocketSubProtocolError(error)))
}

/// Returns the elements of a header that is a list.
fn list_elements<'a>(
    headers: &'a HeaderMap,
    name: &'a header::HeaderName,
) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    list_elements(headers, name).any(|element| element.eq_ignore_ascii_case(token))
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

    /// Checks a response to a request for the subprotocols `chat` and `bin`.
    fn check_changed_response(change: impl FnOnce(&mut HeaderMap)) -> Result<(), ProtocolError> {
        let mut response = headers(&[
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", "key"),
            ("sec-websocket-protocol", "chat"),
        ]);
        change(&mut response);
        check_response(&response, &headers(&[("sec-websocket-protocol", "bin, chat")]), "key")
    }

    fn set_header(name: &'static str, value: &'static str) -> impl FnOnce(&mut HeaderMap) {
        move |headers| {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }

    #[test]
    fn valid_responses_are_accepted_in_every_spelling() {
        for change in [
            set_header("upgrade", "WebSocket"),
            set_header("connection", "keep-alive, Upgrade"),
            set_header("sec-websocket-protocol", "bin"),
        ] {
            check_changed_response(change).unwrap();
        }
    }

    #[test]
    fn invalid_responses_fail_with_the_cause() {
        use ProtocolError::{
            MissingConnectionUpgradeHeader, MissingUpgradeWebSocketHeader,
            SecWebSocketAcceptKeyMismatch, SecWebSocketSubProtocolError,
        };
        assert_eq!(
            check_changed_response(set_header("upgrade", "h2c")),
            Err(MissingUpgradeWebSocketHeader)
        );
        assert_eq!(
            check_changed_response(set_header("connection", "close")),
            Err(MissingConnectionUpgradeHeader)
        );
        assert_eq!(
            check_changed_response(set_header("sec-websocket-accept", "KEY")),
            Err(SecWebSocketAcceptKeyMismatch)
        );
        let error = SecWebSocketSubProtocolError;
        assert_eq!(
            check_changed_response(set_header("sec-websocket-protocol", "Chat")),
            Err(error(SubProtocolError::InvalidSubProtocol))
        );
        let remove_protocol = |headers: &mut HeaderMap| {
            headers.remove("sec-websocket-protocol");
        };
        assert_eq!(
            check_changed_response(remove_protocol),
            Err(error(SubProtocolError::NoSubProtocol))
        );
        let response = headers(&[
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", "key"),
            ("sec-websocket-protocol", "chat"),
        ]);
        assert_eq!(
            check_response(&response, &HeaderMap::new(), "key"),
            Err(error(SubProtocolError::ServerSentSubProtocolNoneRequested))
        );
    }
}
