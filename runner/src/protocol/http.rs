//! HTTP requests and chat completions of one user: what is sent, and whether the response is a
//! success.

use std::{borrow::Cow, ops::ControlFlow, time::Instant};

use bytes::BytesMut;

use crate::{
    failure::{ErrorKind, Failure},
    measure::in_flight::InFlightRequest,
    prepare::{
        chat_task::PreparedChat,
        check::{HeaderField, PreparedCheck, evaluate_checks},
        http_task::PreparedHttp,
    },
    protocol::{
        chat::{ChatReader, ChatResponse},
        connection_pool::{ConnectionPool, ConnectionSlot},
        send::{IncomingResponse, send_request},
        target_words::{MAX_ERROR_BODY, describe_status, with_words},
    },
};

/// Maximum length of a body that is checked. Checks run on the load thread and delay its other
/// users.
const MAX_CHECKED_BODY: usize = 16 << 20;

fn is_expected_status(prepared: &PreparedHttp, status: u16) -> bool {
    if prepared.expected_statuses.is_empty() {
        status < 400
    } else {
        prepared.expected_statuses.contains(&status)
    }
}

/// Reads the body of a response with an unexpected status, and returns the failure in the words of
/// the target.
async fn read_unexpected(
    response: IncomingResponse<'_>,
    headers: &[HeaderField],
    prepared: &PreparedHttp,
    buffer: &mut BytesMut,
) -> Failure {
    let status = response.status();
    let message = format!("{} returned {}", prepared.name, describe_status(status, headers));
    let message = match response.read_start_of_body(buffer, MAX_ERROR_BODY).await {
        (body, Err(failure)) if body.is_empty() => {
            format!("{message}, and its body broke off: {}", failure.message)
        }
        (body, _) => with_words(message, &body),
    };
    Failure::new(ErrorKind::Http(status), message)
}

/// Returns a `Location` as text. Bytes that are not ASCII are percent-encoded, as browsers do it, whatever their charset.
fn location_text(location: &[u8]) -> String {
    let mut text = String::with_capacity(location.len());
    for byte in location {
        if byte.is_ascii() {
            text.push(char::from(*byte));
        } else {
            text += &format!("%{byte:02X}");
        }
    }
    text
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
    let mut response =
        send_request(slot, pool, &prepared.request, false, buffer, in_flight).await?;
    if is_expected_status(prepared, response.status()) {
        return response.skip_body(buffer).await;
    }
    let headers = response.take_headers();
    Err(Box::pin(read_unexpected(response, &headers, prepared, buffer)).await)
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
    loop {
        let mut response = send_request(slot, pool, &request, true, buffer, in_flight).await?;
        let (status, headers) = (response.status(), response.take_headers());
        let location = headers.iter().find(|(name, _)| name == "location");
        let is_redirect = matches!(status, 301 | 302 | 303 | 307 | 308);
        if let (Some(redirects), Some((_, to)), true) = (&mut redirects, location, is_redirect) {
            response.skip_body(buffer).await?;
            request = Cow::Owned(redirects.follow(status, &location_text(to))?);
            in_flight.restart_first_byte();
            continue;
        }
        if !is_expected_status(prepared, status) {
            return Err(read_unexpected(response, &headers, prepared, buffer).await);
        }
        if !prepared.checks.iter().any(PreparedCheck::reads_body) {
            let last = response.skip_body(buffer).await?;
            evaluate_checks(&prepared.checks, &headers, &[])?;
            return Ok(last);
        }
        let encoding = response.encoding();
        let mut body = Vec::new();
        let on_data = |data: &[u8], _| {
            if body.len() + data.len() > MAX_CHECKED_BODY {
                let message = "body is over 16 MiB, the limit of the load generator for checks";
                return Err(Failure::new(ErrorKind::SizeLimit, message));
            }
            body.extend_from_slice(data);
            Ok(ControlFlow::Continue(()))
        };
        let last = response.read_decoded_body(buffer, on_data).await?;
        encoding.check_readable()?;
        evaluate_checks(&prepared.checks, &headers, &body)
            .map_err(|failure| encoding.explain_failure(failure))?;
        return Ok(last);
    }
}

/// Runs one chat completion. Returns the time of the last byte, and the response.
pub(crate) async fn perform_chat(
    slot: &mut ConnectionSlot,
    pool: &ConnectionPool,
    prepared: &PreparedChat,
    body: usize,
    buffer: &mut BytesMut,
    in_flight: &InFlightRequest,
) -> Result<(Instant, ChatResponse), Failure> {
    let request = prepared.requests.get(body).unwrap_or(&prepared.http.request);
    let mut response = send_request(slot, pool, request, false, buffer, in_flight).await?;
    if !is_expected_status(&prepared.http, response.status()) {
        let headers = response.take_headers();
        return Err(read_unexpected(response, &headers, &prepared.http, buffer).await);
    }
    if prepared.stream {
        response.encoding().check_streamable()?;
    }
    let encoding = response.encoding();
    let mut reader = ChatReader::new(prepared.stream);
    let read = response.read_decoded_body(buffer, |data, at| {
        let flow = reader.read_bytes(data, at)?;
        let (first_token, first_content) = reader.first_tokens();
        first_token.into_iter().for_each(|at| in_flight.mark_first_token(at));
        first_content.into_iter().for_each(|at| in_flight.mark_first_content(at));
        if reader.has_finish_reason() {
            in_flight.note_finish_reason();
        }
        Ok(flow)
    });
    let last = match read.await {
        Ok(last) => last,
        Err(failure) if failure.kind == ErrorKind::Reset => {
            // A stream that has begun and then breaks off was cut, in the middle of a chunk as well as
            // between events.
            let kind = if prepared.stream { ErrorKind::StreamCut } else { ErrorKind::Reset };
            return Err(reader.failure_of_early_end(Failure { kind, ..failure }, Instant::now()));
        }
        Err(failure) => return Err(encoding.explain_failure(failure)),
    };
    let response = reader.finish(last).map_err(|failure| encoding.explain_failure(failure))?;
    response.first_token.into_iter().for_each(|at| in_flight.mark_first_token(at));
    response.first_content.into_iter().for_each(|at| in_flight.mark_first_content(at));
    Ok((last, response))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_keep_their_bytes() {
        assert_eq!(location_text(b"/gr\xf6\xdfe?q=1"), "/gr%F6%DFe?q=1");
        assert_eq!(location_text("/größe".as_bytes()), "/gr%C3%B6%C3%9Fe");
    }
}
