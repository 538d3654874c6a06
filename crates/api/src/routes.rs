//! The routes of the API: its table of contents.

use axum::middleware;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    App,
    accounts::{sessions, users},
    documents::{direct_uploads, documents, files, trash, tus, versions},
    events::{audit, demo},
    health, openapi,
    tenants::{members, tenants},
};

/// The routes of the API, except signed object URLs.
pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(health::root))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::auth_health))
        .routes(routes!(health::users_health))
        .routes(routes!(health::tenants_health))
        .routes(routes!(health::documents_health))
        .routes(routes!(demo::produce))
        .routes(routes!(demo::consume))
        .routes(routes!(demo::demo_health))
        .routes(routes!(users::register))
        .routes(routes!(sessions::log_in))
        .routes(routes!(sessions::refresh))
        .routes(routes!(sessions::log_out))
        .routes(routes!(users::get_me, users::update_me))
        .routes(routes!(tenants::list_my_tenants))
        .routes(routes!(tenants::list_tenants, tenants::create_tenant))
        .routes(routes!(tenants::get_tenant, tenants::update_tenant, tenants::delete_tenant))
        .routes(routes!(tenants::get_storage))
        .routes(routes!(members::add_member))
        .routes(routes!(members::change_role, members::remove_member))
        .routes(routes!(documents::list_documents, documents::upload_document))
        .routes(routes!(documents::get_document, documents::update_document, documents::delete_document))
        .routes(routes!(documents::download_document))
        .routes(routes!(versions::replace_content))
        .routes(routes!(versions::list_versions))
        .routes(routes!(versions::download_version))
        .routes(routes!(versions::restore_version))
        .routes(routes!(direct_uploads::begin_upload))
        .routes(routes!(direct_uploads::get_upload, direct_uploads::abort_upload))
        .routes(routes!(direct_uploads::complete_upload))
        .merge(tus_routes())
        .routes(routes!(audit::list_audit))
        .routes(routes!(trash::list_trash, trash::empty_trash))
        .routes(routes!(trash::purge_document))
        .routes(routes!(trash::restore_document))
        .routes(routes!(files::list_files))
        .routes(routes!(files::get_file, files::delete_file))
}

fn tus_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(tus::describe_tus, tus::begin_tus))
        .routes(routes!(tus::find_tus, tus::append_tus, tus::end_tus, tus::override_tus))
        .layer(middleware::from_fn(tus::adapt_response))
}
