//! Query, path and header parameters that several operations share.

use domain::{FieldErrors, PageRequest};
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::{error::ApiError, schemas};

/// The page of a list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    /// Page number, from 1.
    #[param(required = false, inline, value_type = schemas::PageNumber)]
    page: Option<i64>,
    /// Items per page.
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

/// Path parameters of a tenant.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents the path; `PathIds` reads it")]
pub(crate) struct TenantPath {
    /// Tenant id.
    tenant_id: Uuid,
}

/// The header that makes a request idempotent.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "documents the header; `idempotency_key` reads it")]
pub(crate) struct Idempotency {
    /// A client-chosen key that makes retries safe: for 24 hours a repeated request gets the original response. 1 to 255 visible
    /// ASCII characters, ideally a UUID.
    #[param(rename = "Idempotency-Key", required = false, min_length = 1, max_length = 255, pattern = r"^[!#-\[\]-~]+$")]
    idempotency_key: String,
}
