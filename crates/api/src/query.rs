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
#[expect(dead_code, reason = "documents the path; `Ids` reads it")]
pub(crate) struct TenantPath {
    /// The tenant.
    tenant_id: Uuid,
}
