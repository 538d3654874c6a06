//! The XML responses that the client library does not parse.

use domain::{Result, Timestamp};
use serde::Deserialize;

use super::{UnfinishedUpload, requests::unavailable};

/// Any well-formed response.
#[derive(Deserialize)]
pub(super) struct AnyResponse {}

/// A page of ListParts.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PartsPage {
    #[serde(default)]
    pub(super) is_truncated: bool,
    pub(super) next_part_number_marker: Option<String>,
    #[serde(default, rename = "Part")]
    pub(super) parts: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Part {
    pub(super) part_number: u32,
    #[serde(rename = "ETag")]
    pub(super) e_tag: String,
    pub(super) size: u64,
}

/// A page of ListMultipartUploads.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct UploadsPage {
    #[serde(default)]
    pub(super) is_truncated: bool,
    pub(super) next_key_marker: Option<String>,
    pub(super) next_upload_id_marker: Option<String>,
    #[serde(default, rename = "Upload")]
    pub(super) uploads: Vec<UploadEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct UploadEntry {
    key: String,
    upload_id: String,
    initiated: String,
}

impl UploadEntry {
    pub(super) fn parse(self) -> Result<UnfinishedUpload> {
        let began_at: jiff::Timestamp =
            self.initiated.parse().map_err(|error| unavailable(format!("the start time of an upload: {error}")))?;
        Ok(UnfinishedUpload { key: self.key, upload_id: self.upload_id, began_at: Timestamp::from_micros(began_at.as_microsecond()) })
    }
}
