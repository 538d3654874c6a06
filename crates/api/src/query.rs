//! Queries that several lists have in common.

use domain::{FieldErrors, PageRequest};
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::{error::ApiError, schemas};

/// Which page of a list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    /// The page's number, from 1.
    #[param(required = false, inline, value_type = schemas::PageNumber)]
    page: Option<i64>,
    /// How many items a page has.
    #[param(required = false, inline, value_type = schemas::PerPage)]
    per_page: Option<i64>,
}

impl PageQuery {
    pub(crate) fn parse(&self) -> Result<PageRequest, ApiError> {
        let mut errors = FieldErrors::default();
        let request = PageRequest::parse(self.page, self.per_page, &mut errors);
        errors.check()?;
        Ok(request)
    }
}

/// A tenant in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents the path; `PathIds` reads it")]
pub(crate) struct TenantPath {
    /// The tenant.
    tenant_id: Uuid,
}

/// The header that makes a request be done once.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "documents the header; `idempotency_key` reads it")]
pub(crate) struct Idempotency {
    /// A name for the request, to send it again after a failure without doing it twice: for 24 hours the same answer is given
    /// again. 1 to 255 visible ASCII characters, best a UUID.
    #[param(
        rename = "Idempotency-Key",
        required = false,
        min_length = 1,
        max_length = 255,
        pattern = r"^[!#-\[\]-~]+$",
        example = "8e03978e-40d5-43e8-bc93-6894a57f9324"
    )]
    idempotency_key: String,
}
