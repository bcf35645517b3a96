//! HTTP requests of one user, over HTTP/1.1 or HTTP/2.

use std::{
    borrow::Cow,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::BytesMut;

use crate::{
    failure::{ErrorKind, Failure},
    measure::in_flight::{InFlightRequest, RequestPhase},
    prepare::{
        chat_task::PreparedChat,
        check::{HeaderField, PreparedCheck, evaluate_checks},
        http_task::PreparedHttp,
        request::EncodedRequest,
    },
    protocol::{
        chat::{ChatReader, ChatResponse},
        connection_pool::{Connection, ConnectionPool, ConnectionSlot},
        gzip::BodyDecoder,
        http1::{self, Http1Connection, ResponseHead},
        http2::{Http2Connection, Http2Response, SendError},
    },
};

/// Maximum length of a body that is checked. Checks run on the load thread and delay its other
/// users.
const MAX_CHECKED_BODY: usize = 1 << 20;

/// A response with a body that is not read yet.
enum IncomingResponse<'a> {
    Http1(&'a mut Http1Connection, ResponseHead),
    Http2(Http2Response),
}

impl IncomingResponse<'_> {
    const fn status(&self) -> u16 {
        match self {
            Self::Http1(_, head) => head.status,
            Self::Http2(response) => response.status,
        }
    }

    const fn is_gzip(&self) -> bool {
        match self {
            Self::Http1(_, head) => head.is_gzip,
            Self::Http2(response) => response.is_gzip,
        }
    }

    fn take_headers(&mut self) -> Vec<HeaderField> {
        match self {
            Self::Http1(_, head) => std::mem::take(&mut head.headers),
            Self::Http2(response) => std::mem::take(&mut response.headers),
        }
    }

    /// Reads the body as it was sent. Returns the time of its last byte.
    async fn read_raw_body(
        self,
        buffer: &mut BytesMut,
        mut on_data: impl FnMut(&[u8], Instant) -> Result<(), Failure>,
    ) -> Result<Instant, Failure> {
        match self {
            Self::Http1(Http1Connection { stream, stats, is_used_up, has_unread_body }, head) => {
                // Before the body is read completely, no other request can be sent.
                (*is_used_up, *has_unread_body) = (true, true);
                let on_piece = |data: &[u8]| on_data(data, stats.last_read.get());
                let surplus = http1::read_body(stream, buffer, &head, on_piece).await?;
                (*is_used_up, *has_unread_body) = (surplus || !head.keep_alive, false);
                // Surplus bytes must not become a part of the next response.
                buffer.clear();
                Ok(stats.last_read.get())
            }
            // The future is boxed because its state is large, and users of HTTP/1.1 don't need it.
            Self::Http2(response) => Box::pin(response.read_body(on_data)).await,
        }
    }

    /// Reads the decoded body. Returns the time of its last byte.
    async fn read_decoded_body(
        self,
        buffer: &mut BytesMut,
        mut on_data: impl FnMut(&[u8], Instant) -> Result<(), Failure>,
    ) -> Result<Instant, Failure> {
        let mut decoder = BodyDecoder::new(self.is_gzip());
        let last = self
            .read_raw_body(buffer, |data, at| decoder.decode(data, |plain| on_data(plain, at)))
            .await?;
        decoder.finish(|plain| on_data(plain, last))?;
        Ok(last)
    }
}

/// Sends a request on the connection of the slot, or on a new one, and reads the head of the
/// response.
///
/// The target may have closed a kept connection meanwhile. If nothing of the request could be
/// written, a new connection replaces it. That is not a failure of the target.
async fn send_request<'a>(
    slot: &'a mut ConnectionSlot,
    pool: &ConnectionPool,
    request: &EncodedRequest,
    keep_headers: bool,
    buffer: &mut BytesMut,
    in_flight: &InFlightRequest,
) -> Result<IncomingResponse<'a>, Failure> {
    if slot.connection.as_mut().is_some_and(|open| !open.can_send()) {
        slot.discard();
    }
    let mut early_write = None;
    if let Some(Connection::Http1(open)) = &mut slot.connection {
        let was_unsent = in_flight.sent_at().is_none();
        in_flight.mark_sent();
        let before = open.stats.bytes_sent.get();
        let written = http1::write_request(&mut open.stream, &request.bytes).await;
        // Once a byte is written, the target may process the request, so it must not be sent again.
        early_write = Some(written).filter(|w| w.is_ok() || open.stats.bytes_sent.get() > before);
        if early_write.is_none() {
            slot.discard();
            if was_unsent {
                in_flight.clear_sent();
            }
        }
    }
    // For HTTP/2, tries again when the target has not processed the request.
    for is_last_attempt in [false, false, true] {
        if slot.connection.is_none() {
            in_flight.enter_phase(RequestPhase::Connecting);
            // The future is boxed because connections are opened rarely, and an idle user should
            // not hold its state.
            Box::pin(slot.open_connection(pool, in_flight)).await?;
        }
        let Some(Connection::Http2(connection)) = &slot.connection else { break };
        let connection = Rc::clone(connection);
        match Box::pin(send_http2(&connection, request, keep_headers, in_flight)).await {
            Ok(response) => return Ok(IncomingResponse::Http2(response)),
            Err(SendError::Unsent(_)) if !is_last_attempt => {
                connection.stop_sending();
                slot.discard();
            }
            // The next attempt waits for a stream, because the limit of the target is known now.
            Err(SendError::Refused(_)) if !is_last_attempt => {}
            Err(
                SendError::Unsent(failure)
                | SendError::Refused(failure)
                | SendError::Failed(failure),
            ) => return Err(failure),
        }
    }
    let Some(Connection::Http1(open)) = &mut slot.connection else {
        return Err(Failure::new(ErrorKind::Connect, "no connection"));
    };
    let written = if let Some(written) = early_write {
        written
    } else {
        in_flight.mark_sent();
        http1::write_request(&mut open.stream, &request.bytes).await
    };
    let stats = &open.stats;
    let on_read = || {
        in_flight.mark_first_byte(stats.last_read.get());
        in_flight.enter_phase(RequestPhase::ReadingBody);
    };
    let read =
        http1::read_head(&mut open.stream, buffer, request.is_head, keep_headers, on_read).await;
    let head = match written {
        Ok(()) => read?,
        // A target may respond before it has read the whole request, and close.
        Err(failure) => {
            open.is_used_up = true;
            let mut head = read.map_err(|_| failure)?;
            head.keep_alive = false;
            head
        }
    };
    Ok(IncomingResponse::Http1(open, head))
}

async fn send_http2(
    connection: &Http2Connection,
    request: &EncodedRequest,
    keep_headers: bool,
    in_flight: &InFlightRequest,
) -> Result<Http2Response, SendError> {
    let not_prepared = || Failure::new(ErrorKind::Protocol, "request was not prepared for HTTP/2");
    let request = request.http2.as_deref().ok_or_else(|| SendError::Failed(not_prepared()))?;
    in_flight.enter_phase(RequestPhase::AwaitingStream);
    let permit = connection.acquire_stream().await;
    if !connection.can_send() {
        let message = "connection ended before it accepted the request";
        return Err(SendError::Unsent(Failure::new(ErrorKind::Reset, message)));
    }
    let was_unsent = in_flight.sent_at().is_none();
    in_flight.mark_sent();
    let result = connection
        .send_request(permit, request, keep_headers, |at| in_flight.mark_first_byte(at))
        .await;
    match &result {
        Ok(_) => in_flight.enter_phase(RequestPhase::ReadingBody),
        Err(SendError::Unsent(_) | SendError::Refused(_)) if was_unsent => in_flight.clear_sent(),
        Err(_) => {}
    }
    result
}

fn is_expected_status(prepared: &PreparedHttp, status: u16) -> bool {
    if prepared.expected_statuses.is_empty() {
        status < 400
    } else {
        prepared.expected_statuses.contains(&status)
    }
}

fn unexpected_status(prepared: &PreparedHttp, status: u16) -> Failure {
    Failure::new(ErrorKind::Http(status), format!("{} returned status {status}", prepared.name))
}

/// Runs one HTTP request. Returns the time of the last byte of its response.
pub(crate) async fn perform_http(
    slot: &mut ConnectionSlot,
    pool: &ConnectionPool,
    prepared: &PreparedHttp,
    buffer: &mut BytesMut,
    in_flight: &InFlightRequest,
) -> Result<Instant, Failure> {
    if !prepared.checks.is_empty() || prepared.redirects.is_some() {
        return Box::pin(perform_checked_http(slot, pool, prepared, buffer, in_flight)).await;
    }
    let response = send_request(slot, pool, &prepared.request, false, buffer, in_flight).await?;
    let status = response.status();
    let last = response.read_raw_body(buffer, |_, _| Ok(())).await?;
    if is_expected_status(prepared, status) {
        Ok(last)
    } else {
        Err(unexpected_status(prepared, status))
    }
}

/// Runs one HTTP request with redirects and checks.
async fn perform_checked_http(
    slot: &mut ConnectionSlot,
    pool: &ConnectionPool,
    prepared: &PreparedHttp,
    buffer: &mut BytesMut,
    in_flight: &InFlightRequest,
) -> Result<Instant, Failure> {
    let mut redirects = prepared.redirects.clone();
    let mut request = Cow::Borrowed(&prepared.request);
    let reads_body = prepared.checks.iter().any(PreparedCheck::reads_body);
    loop {
        let mut response = send_request(slot, pool, &request, true, buffer, in_flight).await?;
        let (status, headers) = (response.status(), response.take_headers());
        let location = headers.iter().find(|(name, _)| name == "location");
        let is_redirect = location.is_some() && matches!(status, 301 | 302 | 303 | 307 | 308);
        let is_followed = is_redirect && redirects.is_some();
        let mut body = Vec::new();
        let last = if reads_body && !is_followed && is_expected_status(prepared, status) {
            let on_data = |data: &[u8], _| {
                if body.len() + data.len() > MAX_CHECKED_BODY {
                    let message = "body is over 1 MiB, too large for checks";
                    return Err(Failure::new(ErrorKind::CheckBody, message));
                }
                body.extend_from_slice(data);
                Ok(())
            };
            response.read_decoded_body(buffer, on_data).await?
        } else {
            response.read_raw_body(buffer, |_, _| Ok(())).await?
        };
        if let (Some(redirects), Some((_, to)), true) = (&mut redirects, location, is_followed) {
            request = Cow::Owned(redirects.follow(status, &String::from_utf8_lossy(to))?);
            continue;
        }
        if !is_expected_status(prepared, status) {
            return Err(unexpected_status(prepared, status));
        }
        evaluate_checks(&prepared.checks, &headers, &body)?;
        return Ok(last);
    }
}

/// Runs one chat completion. Returns the time of the last byte, and the response. Calls
/// `on_token_gap` with each time between two tokens.
pub(crate) async fn perform_chat(
    slot: &mut ConnectionSlot,
    pool: &ConnectionPool,
    prepared: &PreparedChat,
    body: usize,
    buffer: &mut BytesMut,
    in_flight: &InFlightRequest,
    mut on_token_gap: impl FnMut(Duration),
) -> Result<(Instant, ChatResponse), Failure> {
    let request = prepared.requests.get(body).unwrap_or(&prepared.http.request);
    let response = send_request(slot, pool, request, false, buffer, in_flight).await?;
    let status = response.status();
    if !is_expected_status(&prepared.http, status) {
        response.read_raw_body(buffer, |_, _| Ok(())).await?;
        return Err(unexpected_status(&prepared.http, status));
    }
    let mut reader = ChatReader::new(prepared.stream);
    let read = response.read_decoded_body(buffer, |data, at| {
        reader.read_bytes(data, at, &mut on_token_gap)?;
        reader.first_token().into_iter().for_each(|at| in_flight.mark_first_token(at));
        Ok(())
    });
    let last = read.await.map_err(|failure| match failure.kind {
        // A stream that has begun and then breaks off was cut, in the middle of a chunk as well as
        // between events.
        ErrorKind::Reset if prepared.stream => Failure { kind: ErrorKind::StreamCut, ..failure },
        _ => failure,
    })?;
    let response = reader.finish(last)?;
    in_flight.mark_first_token(response.first_token);
    Ok((last, response))
}
