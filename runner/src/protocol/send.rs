//! Sends one HTTP request of a user, over HTTP/1.1 or HTTP/2, and reads the head of its response.

use std::{
    ops::ControlFlow,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::BytesMut;

use crate::{
    failure::{ErrorKind, Failure},
    measure::in_flight::{InFlightRequest, RequestPhase},
    prepare::{check::HeaderField, request::EncodedRequest},
    protocol::{
        chat::event_stream::AfterEvent,
        connection_pool::{Connection, ConnectionPool, ConnectionSlot},
        content_encoding::{BodyDecoder, ContentEncoding},
        http1::{self, BodyEnd, BodyFraming, BodyReader, Http1Connection, ResponseHead},
        http2::{Http2Connection, Http2Response},
        send_error::SendError,
    },
};

/// How often a request may be sent, as long as the target has not processed it.
const MAX_ATTEMPTS: u32 = 4;

/// Maximum time to read the body of a response that failed. Some targets never end it.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// A response with a body that is not read yet.
pub(super) enum IncomingResponse<'a> {
    Http1(&'a mut Http1Connection, ResponseHead),
    Http2(Http2Response),
}

/// The head of a response, apart from its connection.
enum ReceivedHead {
    Http1(ResponseHead),
    Http2(Http2Response),
}

impl IncomingResponse<'_> {
    pub(super) const fn status(&self) -> u16 {
        match self {
            Self::Http1(_, head) => head.status,
            Self::Http2(response) => response.status,
        }
    }

    const fn framing(&self) -> Option<BodyFraming> {
        match self {
            Self::Http1(_, head) => Some(head.framing),
            Self::Http2(_) => None,
        }
    }

    pub(super) const fn encoding(&self) -> ContentEncoding {
        match self {
            Self::Http1(_, head) => head.encoding,
            Self::Http2(response) => response.encoding,
        }
    }

    pub(super) fn take_headers(&mut self) -> Vec<HeaderField> {
        match self {
            Self::Http1(_, head) => std::mem::take(&mut head.headers),
            Self::Http2(response) => std::mem::take(&mut response.headers),
        }
    }

    /// Reads the body as it was sent, until it ends or `on_data` stops. Returns the time of the
    /// last byte that was read.
    pub(super) async fn read_raw_body(
        self,
        buffer: &mut BytesMut,
        mut on_data: impl FnMut(&[u8], Instant) -> AfterEvent,
    ) -> Result<Instant, Failure> {
        match self {
            Self::Http1(open, head) => {
                let Http1Connection { stream, stats, is_used_up, unread_body, .. } = open;
                // Before the body is read completely, no other request can be sent.
                *is_used_up = true;
                let mut body = BodyReader::new(&head);
                let on_piece = |data: &[u8]| on_data(data, stats.last_read.get());
                let end = http1::read_body(stream, buffer, &mut body, on_piece).await?;
                *is_used_up = match end {
                    BodyEnd::Complete { has_surplus } => has_surplus || !head.keep_alive,
                    BodyEnd::Stopped => {
                        *unread_body = Some(body);
                        !head.keep_alive
                    }
                };
                // Surplus bytes must not become a part of the next response.
                buffer.clear();
                Ok(stats.last_read.get())
            }
            // The future is boxed because its state is large, and users of HTTP/1.1 don't need it.
            Self::Http2(response) => Box::pin(response.read_body(on_data)).await,
        }
    }

    /// Reads the decoded body, until it ends or `on_data` stops. Returns the time of the last byte
    /// that was read.
    pub(super) async fn read_decoded_body(
        self,
        buffer: &mut BytesMut,
        mut on_data: impl FnMut(&[u8], Instant) -> AfterEvent,
    ) -> Result<Instant, Failure> {
        let mut decoder = BodyDecoder::new(self.encoding());
        let mut is_stopped = false;
        let decode = |data: &[u8], at| {
            let flow = decoder.decode(data, |plain| on_data(plain, at))?;
            is_stopped = flow.is_break();
            Ok(flow)
        };
        let last = self.read_raw_body(buffer, decode).await?;
        if !is_stopped {
            let _ = decoder.finish(|plain| on_data(plain, last))?;
        }
        Ok(last)
    }

    /// Reads the body and drops it. Returns the time of its last byte.
    pub(super) async fn skip_body(self, buffer: &mut BytesMut) -> Result<Instant, Failure> {
        self.read_raw_body(buffer, |_, _| Ok(ControlFlow::Continue(()))).await
    }

    /// Reads the body of a response that failed, and returns its first bytes, decoded. Fails if the body breaks off, or
    /// does not end in time; the bytes that came before are returned all the same.
    pub(super) async fn read_start_of_body(
        self,
        buffer: &mut BytesMut,
        length: usize,
    ) -> (Vec<u8>, Result<(), Failure>) {
        let mut decoder = BodyDecoder::new(self.encoding());
        let mut start = Vec::new();
        let mut is_decoded = true;
        let on_data = |data: &[u8], _| {
            if is_decoded && start.len() < length {
                let keep = |plain: &[u8]| {
                    let room = length.saturating_sub(start.len());
                    start.extend_from_slice(&plain[..plain.len().min(room)]);
                    Ok(ControlFlow::Continue(()))
                };
                // The body only explains a failure, so one that can't be decoded is left out.
                is_decoded = decoder.decode(data, keep).is_ok();
            }
            Ok(ControlFlow::Continue(()))
        };
        let read = tokio::time::timeout(ERROR_BODY_TIMEOUT, self.read_raw_body(buffer, on_data));
        let result = read.await.map_or_else(
            |_| Err(Failure::new(ErrorKind::TimeoutBody, "its rest did not come within 1 s")),
            |read| read.map(drop),
        );
        if is_decoded && result.is_ok() {
            let _ = decoder.finish(|plain| {
                start.extend_from_slice(plain);
                Ok(ControlFlow::Continue(()))
            });
        }
        start.truncate(length);
        (start, result)
    }
}

/// Sends a request on the connection of the slot, or on a new one, and reads the head of the
/// response.
///
/// The target may have closed a kept connection meanwhile. If it can't have processed the request,
/// or if the request may be processed twice, a new connection sends it again, as browsers do.
pub(super) async fn send_request<'a>(
    slot: &'a mut ConnectionSlot,
    pool: &ConnectionPool,
    request: &EncodedRequest,
    keep_headers: bool,
    buffer: &mut BytesMut,
    in_flight: &InFlightRequest,
) -> Result<IncomingResponse<'a>, Failure> {
    pool.prepare_reuse(slot, request.is_idempotent, buffer).await;
    let mut attempt = 1;
    let (head, is_kept) = loop {
        let is_kept = slot.connection.is_some();
        if !is_kept {
            in_flight.enter_phase(RequestPhase::Connecting);
            // The future is boxed because connections are opened rarely, and an idle user should
            // not hold its state.
            Box::pin(slot.open_connection(pool, in_flight)).await?;
        }
        let was_sent = in_flight.sent_at().is_some();
        let result = match &mut slot.connection {
            Some(Connection::Http1(open)) => {
                let exchanged = send_http1(open, request, keep_headers, buffer, in_flight).await;
                exchanged.map(ReceivedHead::Http1)
            }
            Some(Connection::Http2(open)) => {
                let open = Rc::clone(open);
                let sent = Box::pin(send_http2(&open, request, keep_headers, in_flight)).await;
                sent.map(ReceivedHead::Http2)
            }
            None => Err(SendError::Failed(Failure::new(ErrorKind::Connect, "no connection"))),
        };
        let error = match result {
            Ok(head) => break (head, is_kept),
            Err(error) => error,
        };
        if is_kept && matches!(error, SendError::Ended(_) | SendError::Missed(_)) {
            pool.note_ended_connection();
        }
        let may_repeat = request.is_idempotent || matches!(error, SendError::Missed(_));
        let is_last_attempt = attempt == MAX_ATTEMPTS;
        attempt += 1;
        match error {
            SendError::Unsent(_) if (is_kept || pool.speaks_http2()) && !is_last_attempt => {
                slot.stop_sending();
                slot.discard();
                if !was_sent {
                    in_flight.clear_sent();
                }
            }
            // The next attempt waits for a stream, because the limit of the target is known now.
            SendError::Refused(_) if !is_last_attempt => {
                if !was_sent {
                    in_flight.clear_sent();
                }
                in_flight.count_resend();
            }
            // A new connection that the target closes at once is a failure.
            SendError::Ended(_) | SendError::Missed(_)
                if may_repeat && is_kept && !is_last_attempt =>
            {
                slot.stop_sending();
                slot.discard();
                in_flight.count_resend();
            }
            SendError::Ended(failure) | SendError::Missed(failure) if is_kept => {
                let message =
                    format!("kept connection ended before the response began: {}", failure.message);
                return Err(Failure::new(ErrorKind::StaleConnection, message));
            }
            error if is_kept => return Err(error.into_failure()),
            error => return Err(pool.explain_failure(error.into_failure())),
        }
    };
    pool.note_response(is_kept);
    let response = match (&mut slot.connection, head) {
        (Some(Connection::Http1(open)), ReceivedHead::Http1(head)) => {
            IncomingResponse::Http1(open, head)
        }
        (_, ReceivedHead::Http2(response)) => IncomingResponse::Http2(response),
        (_, ReceivedHead::Http1(_)) => {
            return Err(Failure::new(ErrorKind::Connect, "no connection"));
        }
    };
    if response.status() == 101 {
        let message = "target switched to another protocol (status 101), which was not asked for";
        return Err(Failure::new(ErrorKind::Protocol, message));
    }
    in_flight.note_head(response.status(), response.framing());
    Ok(response)
}

async fn send_http1(
    open: &mut Http1Connection,
    request: &EncodedRequest,
    keep_headers: bool,
    buffer: &mut BytesMut,
    in_flight: &InFlightRequest,
) -> Result<ResponseHead, SendError> {
    in_flight.mark_sent();
    let before = open.stats.bytes_sent.get();
    let received = open.stats.bytes_received.get();
    let socket_bytes_before = open.stats.socket_bytes_sent.get();
    let written = http1::write_request(&mut open.stream, &request.bytes).await;
    let written = match written {
        // Once a byte is written, the target may process the request.
        Err(failure) if open.stats.bytes_sent.get() == before => {
            return Err(SendError::Unsent(failure));
        }
        written => written,
    };
    let stats = &open.stats;
    let on_begin = || {
        in_flight.mark_first_byte(stats.last_read.get());
        in_flight.enter_phase(RequestPhase::ReadingBody);
    };
    let read =
        http1::read_head(&mut open.stream, buffer, request.is_head, keep_headers, on_begin).await;
    let has_response = open.stats.bytes_received.get() > received;
    match (written, read) {
        (Ok(()), Ok(head)) => Ok(head),
        // A target may respond before it has read the whole request, and close.
        (Err(_), Ok(mut head)) => {
            open.is_used_up = true;
            head.keep_alive = false;
            Ok(head)
        }
        (Err(failure), Err(_)) | (Ok(()), Err(failure)) => {
            if has_response || failure.kind != ErrorKind::Reset {
                return Err(SendError::Failed(failure));
            }
            // A request that may be sent twice needs no proof.
            let must_know = !request.is_idempotent;
            if must_know && open.stream.was_closed_after(socket_bytes_before).await {
                return Err(SendError::Missed(failure));
            }
            Err(SendError::Ended(failure))
        }
    }
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
    in_flight.mark_sent();
    let result = connection
        .send_request(permit, request, keep_headers, |at| in_flight.mark_first_byte(at))
        .await;
    if result.is_ok() {
        in_flight.enter_phase(RequestPhase::ReadingBody);
    }
    result
}
