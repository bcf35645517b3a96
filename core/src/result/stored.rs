//! A result as the objects of a cluster hold it: JSON, compressed, in parts. Pure.

use std::io::Read;

use flate2::read::MultiGzDecoder;
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};

use super::{
    document::{FORMAT_VERSION, RunResult},
    kind::{LoadTestResult, MAX_PARTS},
    resume::ResumeState,
};

mod write;

pub use write::{PackedRunner, ResultToStore};

/// Maximum size of a document in bytes. A person who may write results could fill the memory of a reader.
const MAX_DOCUMENT_BYTES: usize = 32 << 20;

/// The document in the data of [`LoadTestResult`]s.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct StoredResult {
    /// The result.
    pub result: RunResult,
    /// The state with which the operator goes on after a restart; `None` if another version wrote it in a
    /// form that this one can't read.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "read_resume")]
    pub resume: Option<ResumeState>,
}

/// Reports need only the result.
fn read_resume<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ResumeState>, D::Error> {
    let found = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(found.and_then(|found| serde_json::from_value(found).ok()))
}

/// The version of a document, which is read before anything else.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Versioned {
    result: Version,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Version {
    version: u64,
}

/// Why a stored result can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoredResultError {
    /// The objects are not those of one complete result.
    #[error("{found} of {wanted} parts of the result are there")]
    Parts {
        /// Number of parts that belong together.
        found: usize,
        /// Number of parts of the result.
        wanted: usize,
    },
    /// The data is not gzip.
    #[error("the data of the result is not gzip")]
    Compression(#[source] std::io::Error),
    /// The document is larger than that of any test.
    #[error("the result is larger than {} MiB", MAX_DOCUMENT_BYTES >> 20)]
    TooLarge,
    /// The document can't be read.
    #[error("the data of the result is not a result: {path}")]
    Document {
        /// Path of the field that can't be read.
        path: String,
        /// The error in the field.
        #[source]
        source: serde_json::Error,
    },
    /// Another version of the program wrote the document.
    #[error("the result has version {found}, and this program reads version {FORMAT_VERSION}")]
    Version {
        /// The version of the document; zero if it has none.
        found: u64,
    },
    /// The document can't be written.
    #[error("the result can't be written as JSON")]
    Write(#[source] serde_json::Error),
}

impl StoredResult {
    /// The compressed document; see [`ResultToStore::into_parts`].
    ///
    /// # Errors
    /// When the document can't be written as JSON, which no value here makes happen.
    pub fn into_parts(self) -> Result<Vec<Vec<u8>>, StoredResultError> {
        ResultToStore::from(self).into_parts()
    }

    /// Reads the document of a result from its objects: the first one, and the others in any order.
    /// Objects of other revisions are ignored.
    ///
    /// # Errors
    /// When a part is missing, or when the data can't be read.
    pub fn from_objects(
        first: &LoadTestResult,
        others: &[LoadTestResult],
    ) -> Result<Self, StoredResultError> {
        let wanted = first.parts.clamp(1, MAX_PARTS);
        let mut bytes = Vec::new();
        for part in 0..wanted {
            let is_next = |object: &&LoadTestResult| {
                object.part == part
                    && object.revision == first.revision
                    && object.parts == first.parts
                    && object.test.uid == first.test.uid
            };
            let found = std::iter::once(first).chain(others).find(is_next);
            let Some(LoadTestResult { data: ByteString(data), .. }) = found else {
                let (found, wanted) = (part as usize, wanted as usize);
                return Err(StoredResultError::Parts { found, wanted });
            };
            bytes.extend_from_slice(data);
        }
        Self::decompress(&bytes)
    }

    fn decompress(bytes: &[u8]) -> Result<Self, StoredResultError> {
        let mut json = Vec::new();
        let mut decoder = MultiGzDecoder::new(bytes).take(MAX_DOCUMENT_BYTES as u64 + 1);
        decoder.read_to_end(&mut json).map_err(StoredResultError::Compression)?;
        if json.len() > MAX_DOCUMENT_BYTES {
            return Err(StoredResultError::TooLarge);
        }
        let document = |path: String, source| StoredResultError::Document { path, source };
        let Versioned { result: Version { version: found } } =
            serde_json::from_slice(&json).map_err(|source| document("data".to_owned(), source))?;
        if found != u64::from(FORMAT_VERSION) {
            return Err(StoredResultError::Version { found });
        }
        let mut deserializer = serde_json::Deserializer::from_slice(&json);
        serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| document(error.path().to_string(), error.into_inner()))
    }
}

#[cfg(test)]
mod tests;
