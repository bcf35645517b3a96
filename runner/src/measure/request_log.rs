//! The raw record: every request with its moments, as CSV. The truth that percentiles are
//! checked against, and for whoever wants to look at single requests.
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

use crate::{machine::limits::step_back, measure::recorder::Sample};

/// Rows that are handed over at once.
const BLOCK: usize = 4096;

/// The columns. Moments are in seconds from the start of the load; empty is what never came.
pub const COLUMNS: &str = "task,outcome,planned,sent,first_byte,first_response,last";

/// One request.
#[derive(Clone, Copy, Debug)]
struct Row {
    task: usize,
    outcome: Outcome,
    sample: Sample,
}

/// Rows of one load thread, and when its load began.
#[derive(Debug)]
pub(crate) struct Block {
    start: Instant,
    rows: Vec<Row>,
}

/// Where a load thread puts its requests.
#[derive(Debug)]
pub(crate) struct RawRecorder {
    rows: Vec<Row>,
    blocks: mpsc::Sender<Block>,
}

impl RawRecorder {
    /// Keeps a request.
    pub(crate) fn record(&mut self, start: Instant, task: usize, outcome: Outcome, sample: Sample) {
        self.rows.push(Row { task, outcome, sample });
        if self.rows.len() >= BLOCK {
            self.flush(start);
        }
    }

    /// Hands over what is kept.
    pub(crate) fn flush(&mut self, start: Instant) {
        let rows = std::mem::replace(&mut self.rows, Vec::with_capacity(BLOCK));
        // A writer that has ended says why when it is asked to finish.
        let _ = self.blocks.send(Block { start, rows });
    }
}

/// A raw record that is being written.
#[derive(Debug)]
pub struct RawRecord {
    blocks: mpsc::Sender<Block>,
    writer: JoinHandle<io::Result<u64>>,
}

impl RawRecord {
    /// Begins a record in a new file. `tasks` are the names, in the plan's order.
    ///
    /// # Errors
    /// When the file or the thread that writes it can't be had.
    pub fn create(path: &Path, tasks: Vec<String>) -> io::Result<Self> {
        let file = File::create(path)?;
        let (blocks, coming) = mpsc::channel();
        let writer = thread::Builder::new().name("raw-record".into()).spawn(move || {
            step_back();
            write(BufWriter::new(file), &tasks, &coming)
        })?;
        Ok(Self { blocks, writer })
    }

    pub(crate) fn recorder(&self) -> RawRecorder {
        RawRecorder { rows: Vec::with_capacity(BLOCK), blocks: self.blocks.clone() }
    }

    /// Waits until all is written, which is once the engine that fills it is gone; how many
    /// requests there were.
    ///
    /// # Errors
    /// When the file could not be written.
    pub fn finish(self) -> io::Result<u64> {
        let Self { blocks, writer } = self;
        drop(blocks);
        writer.join().map_err(|_| io::Error::other("the raw record's writer panicked"))?
    }
}

fn write(
    mut file: impl Write,
    tasks: &[String],
    coming: &mpsc::Receiver<Block>,
) -> io::Result<u64> {
    writeln!(file, "{COLUMNS}")?;
    let (mut line, mut count) = (String::new(), 0);
    while let Ok(Block { start, rows }) = coming.recv() {
        for row in rows {
            line.clear();
            count += 1;
            let task = tasks.get(row.task).map_or("", String::as_str);
            // Names hold neither commas nor quotes.
            let _ = write!(line, "{task},{}", row.outcome.as_str());
            let Sample { planned, sent, first_byte, first, last, connect: _ } = row.sample;
            for moment in [Some(planned), sent, first_byte, first, Some(last)] {
                line.push(',');
                if let Some(moment) = moment {
                    let since = moment.saturating_duration_since(start);
                    let _ = write!(line, "{}.{:09}", since.as_secs(), since.subsec_nanos());
                }
            }
            line.push('\n');
            file.write_all(line.as_bytes())?;
        }
    }
    file.flush()?;
    Ok(count)
}
