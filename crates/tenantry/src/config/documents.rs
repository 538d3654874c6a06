//! The limits of uploads and downloads.

use std::time::Duration;

use super::{ConfigError, Settings, values, variables};

/// The longest that a signed download URL may be valid: what Amazon's Signature Version 4 allows, so that every object
/// store can keep it.
const LONGEST_DOWNLOAD: u64 = 7 * 24 * 60 * 60;

/// The longest that garbage may be kept: ten years.
const LONGEST_GRACE: u64 = 10 * 365 * 24 * 60 * 60;

/// The limits of uploads and downloads.
#[derive(Clone, Debug)]
pub struct Documents {
    /// The largest upload, in bytes.
    pub max_upload_bytes: u64,
    /// How long a signed download URL is valid.
    pub download_url_expires: Duration,
    /// How long a file is kept that no document refers to.
    pub garbage_grace: Duration,
}

impl Documents {
    pub(super) fn read(settings: &Settings) -> Result<Self, ConfigError> {
        Ok(Self {
            max_upload_bytes: settings.get(&variables::MAX_UPLOAD_BYTES, values::bytes)?,
            download_url_expires: settings.get(&variables::DOWNLOAD_URL_EXPIRES, values::seconds(LONGEST_DOWNLOAD))?,
            garbage_grace: Duration::from_secs(settings.get(&variables::GARBAGE_GRACE, values::number(0..=LONGEST_GRACE))?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Workplace, problem};

    #[test]
    fn sizes_may_have_units() {
        for (text, bytes) in [("1", 1), ("100MB", 100_000_000), ("100MiB", 104_857_600), ("2 kib", 2_048), ("1GB", 1_000_000_000)] {
            assert_eq!(Workplace::new().load(&[("MAX_UPLOAD_BYTES", text)]).unwrap().documents.max_upload_bytes, bytes, "{text}");
        }
        for text in ["", "0", "-1", "1.5MB", "MB", "100 apples", "18446744073709551615kB"] {
            assert!(problem(&[("MAX_UPLOAD_BYTES", text)]).starts_with("MAX_UPLOAD_BYTES must be a number of bytes"), "{text}");
        }
    }

    #[test]
    fn no_url_outlives_seven_days() {
        assert!(problem(&[("DOWNLOAD_URL_EXPIRES", "604801")]).contains("from 1 to 604800 (seconds)"));
    }
}
