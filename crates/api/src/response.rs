//! The one form of every successful response. Schemas keep the names that generated clients know.

use std::borrow::Cow;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response as HttpResponse},
};
use domain::Page;
use serde::{Serialize, Serializer};
use utoipa::{PartialSchema, ToSchema};

use crate::error::ApiError;

/// What a handler answers.
pub(crate) type ApiResult<T> = Result<Response<T>, ApiError>;

/// `{"success": true, "message": "…", "data": …}`
#[derive(Serialize, ToSchema)]
#[schema(as = Answer)]
pub(crate) struct Response<T> {
    #[serde(skip)]
    #[schema(ignore)]
    status: u16,
    /// Always true.
    #[schema(example = true)]
    success: bool,
    /// What was done, for a person.
    message: &'static str,
    /// What was asked for.
    data: T,
}

impl<T> Response<T> {
    /// 200.
    pub(crate) const fn ok(message: &'static str, data: T) -> Self {
        Self { status: 200, success: true, message, data }
    }

    /// 202.
    pub(crate) const fn accepted(message: &'static str, data: T) -> Self {
        Self { status: 202, success: true, message, data }
    }

    /// 201.
    pub(crate) const fn created(message: &'static str, data: T) -> Self {
        Self { status: 201, success: true, message, data }
    }
}

impl<T: Serialize> IntoResponse for Response<T> {
    fn into_response(self) -> HttpResponse {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK);
        let mut response = (status, Json(self)).into_response();
        // What is answered to one caller is no other's.
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

impl<T: Serialize> Response<T> {
    /// The body, to be kept for repetitions of the request.
    pub(crate) fn body(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// An answer that was kept: 201, as everything that is made.
pub(crate) fn created_before(body: String) -> HttpResponse {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (StatusCode::CREATED, headers, body).into_response()
}

/// A page of a list.
#[derive(Serialize, ToSchema)]
pub(crate) struct List<T> {
    items: Vec<T>,
    pagination: Pagination,
}

/// Where in the list the page is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Pagination {
    /// The page's number, from 1.
    #[schema(value_type = u64, minimum = 1, example = 1)]
    page: u32,
    /// How many items a page has at most.
    #[schema(minimum = 1, maximum = 100, example = 20)]
    per_page: u32,
    /// How many items the whole list has.
    #[schema(example = 42)]
    total: u64,
    /// How many pages the whole list has.
    #[schema(example = 3)]
    pages: u64,
}

impl<T> List<T> {
    pub(crate) fn of<D>(page: Page<D>, each: impl FnMut(D) -> T) -> Self {
        let pagination =
            Pagination { page: page.request.page(), per_page: page.request.per_page(), total: page.total, pages: page.pages() };
        Self { items: page.items.into_iter().map(each).collect(), pagination }
    }
}

/// No data: `null`.
#[derive(Serialize)]
pub(crate) struct Empty;

impl PartialSchema for Empty {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::Null).into()
    }
}

impl ToSchema for Empty {
    fn name() -> Cow<'static, str> {
        "Nothing".into()
    }
}

/// A moment, as RFC 3339 in UTC.
#[derive(Clone, Copy)]
pub(crate) struct Timestamp(pub(crate) domain::Timestamp);

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl PartialSchema for Timestamp {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::DateTime)))
            .examples(["2026-11-24T09:30:00.123456Z"])
            .into()
    }
}

impl ToSchema for Timestamp {
    fn name() -> Cow<'static, str> {
        "Moment".into()
    }
}
