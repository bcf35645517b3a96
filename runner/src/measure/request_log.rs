//! The request log: every request with its times, as CSV. It holds the exact values that
//! percentiles can be checked against, and shows single requests.
//!
//! Load threads fill blocks of rows; a thread of its own writes them.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Instant,
};

use loadtest_core::metrics::Outcome;

use crate::{machine::limits::lower_priority, measure::recorder::RequestTimes};

/// Number of rows that a load thread hands over at once.
const ROWS_PER_BLOCK: usize = 4096;

/// One request.
#[derive(Clone, Copy, Debug)]
struct Row {
    task: usize,
    outcome: Outcome,
    times: RequestTimes,
}

/// Rows of one load thread, and the start of its load.
#[derive(Debug)]
struct RowBlock {
    start: Instant,
    rows: Vec<Row>,
}

/// The end of a request log that a load thread writes to.
#[derive(Debug)]
pub(crate) struct RequestLogSender {
    rows: Vec<Row>,
    blocks: mpsc::Sender<RowBlock>,
}

impl RequestLogSender {
    /// Adds a request.
    pub(crate) fn push(
        &mut self,
        start: Instant,
        task: usize,
        outcome: Outcome,
        times: RequestTimes,
    ) {
        self.rows.push(Row { task, outcome, times });
        if self.rows.len() >= ROWS_PER_BLOCK {
            self.flush(start);
        }
    }

    /// Hands over all rows.
    pub(crate) fn flush(&mut self, start: Instant) {
        let rows = std::mem::replace(&mut self.rows, Vec::with_capacity(ROWS_PER_BLOCK));
        // A writer that has failed reports its error in `RequestLog::finish`.
        let _ = self.blocks.send(RowBlock { start, rows });
    }
}

/// A request log that is being written.
#[derive(Debug)]
pub struct RequestLog {
    blocks: mpsc::Sender<RowBlock>,
    writer: JoinHandle<io::Result<u64>>,
}

impl RequestLog {
    /// The columns. Times are in seconds since the start of the load; a time that does not exist is
    /// empty.
    pub const COLUMNS: &str =
        "task,outcome,planned,sent,first_byte,first_token,first_response,last";

    /// Creates a request log in a new file. `tasks` are the names of the tasks, in the plan's order.
    ///
    /// # Errors
    /// When the system refuses the file or the thread that writes it.
    pub fn create(path: &Path, tasks: Vec<String>) -> io::Result<Self> {
        let file = File::create(path)?;
        let (blocks, receiver) = mpsc::channel();
        let writer = thread::Builder::new().name("request-log".into()).spawn(move || {
            lower_priority();
            write_rows(BufWriter::new(file), &tasks, &receiver)
        })?;
        Ok(Self { blocks, writer })
    }

    pub(crate) fn new_sender(&self) -> RequestLogSender {
        RequestLogSender { rows: Vec::with_capacity(ROWS_PER_BLOCK), blocks: self.blocks.clone() }
    }

    /// Waits until everything is written, and returns the number of requests. The engine that
    /// writes to this log must be dropped before.
    ///
    /// # Errors
    /// When the file could not be written.
    pub fn finish(self) -> io::Result<u64> {
        let Self { blocks, writer } = self;
        drop(blocks);
        writer.join().map_err(|_| io::Error::other("the writer of the request log panicked"))?
    }
}

fn write_rows(
    mut file: impl Write,
    tasks: &[String],
    blocks: &mpsc::Receiver<RowBlock>,
) -> io::Result<u64> {
    writeln!(file, "{}", RequestLog::COLUMNS)?;
    let (mut line, mut count) = (String::new(), 0);
    while let Ok(RowBlock { start, rows }) = blocks.recv() {
        for row in rows {
            line.clear();
            count += 1;
            let task = tasks.get(row.task).map_or("", String::as_str);
            // Names of tasks hold no commas and no quotes.
            let _ = write!(line, "{task},{}", row.outcome.as_str());
            let RequestTimes {
                planned, sent, first_byte, first_token, first_content, last, ..
            } = row.times;
            for time in [Some(planned), sent, first_byte, first_token, first_content, Some(last)] {
                line.push(',');
                if let Some(time) = time {
                    let since_start = time.saturating_duration_since(start);
                    let (seconds, nanos) = (since_start.as_secs(), since_start.subsec_nanos());
                    let _ = write!(line, "{seconds}.{nanos:09}");
                }
            }
            line.push('\n');
            file.write_all(line.as_bytes())?;
        }
    }
    file.flush()?;
    Ok(count)
}
