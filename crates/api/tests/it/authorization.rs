//! Who may do what: every route, asked by everybody, about everything.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use reqwest::{
    Method, RequestBuilder,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::{Value, json};
use testkit::{PASSWORD, Persona, Reply, TestApp};

/// The routes, each followed by what may be asked of it; the columns are [`CALLERS`], the words [`meaning`].
///
/// Tenants are `ours` (where viewer, user and admin are members), `theirs` (where the outsider is admin), `absent`, and
/// `inactive` (with the members of ours). What follows the slash is the document, file or member in the path, or the user to be
/// added.
const TABLE: &str = "
                                                   nobody    viewer    user      admin     outsider  deactivated
GET /
GET /health
GET /health/ready
GET /api/auth/health
GET /api/users/health
GET /api/tenants/health
GET /api/demo/kafka/health
GET /openapi.json
GET /docs/
  -                                                ok        ok        ok        ok        ok        ok
GET /docs
  -                                                see       see       see       see       see       see
GET /api/objects/{key}
  signed                                           ok        ok        ok        ok        ok        ok
  forged                                           signature signature signature signature signature signature

POST /api/auth/register
  -                                                made      made      made      made      made      made
POST /api/auth/login
  -                                                password  ok        ok        ok        ok        password
POST /api/auth/refresh
POST /api/auth/logout
GET /api/users/me
PUT /api/users/me
GET /api/users/me/tenants
GET /api/demo/kafka/consume
POST /api/demo/kafka/produce
GET /api/tenants
  -                                                missing   ok        ok        ok        ok        revoked
POST /api/tenants
  -                                                missing   made      made      made      made      revoked

GET /api/tenants/{tenant_id}
  ours                                             missing   ok        ok        ok        tenant    revoked
  theirs                                           missing   tenant    tenant    tenant    ok        revoked
  absent                                           missing   tenant    tenant    tenant    tenant    revoked
  inactive                                         missing   inactive  inactive  ok        tenant    revoked
PUT /api/tenants/{tenant_id}
  ours                                             missing   role      role      ok        tenant    revoked
  theirs                                           missing   tenant    tenant    tenant    ok        revoked
  absent                                           missing   tenant    tenant    tenant    tenant    revoked
  inactive                                         missing   inactive  inactive  ok        tenant    revoked
DELETE /api/tenants/{tenant_id}
  ours                                             missing   role      role      ok        tenant    revoked
  theirs                                           missing   tenant    tenant    tenant    ok        revoked
  absent                                           missing   tenant    tenant    tenant    tenant    revoked
  inactive                                         missing   inactive  inactive  inactive  tenant    revoked

POST /api/tenants/{tenant_id}/users
  ours/newcomer                                    missing   role      role      made      tenant    revoked
  ours/colleague's                                 missing   role      role      member!   tenant    revoked
  ours/absent                                      missing   role      role      user      tenant    revoked
  ours/deactivated                                 missing   role      role      user      tenant    revoked
  theirs/newcomer                                  missing   tenant    tenant    tenant    made      revoked
  absent/newcomer                                  missing   tenant    tenant    tenant    tenant    revoked
  inactive/newcomer                                missing   inactive  inactive  inactive  tenant    revoked
PUT /api/tenants/{tenant_id}/users/{user_id}
  ours/own                                         missing   role      role      last      tenant    revoked
  ours/colleague's                                 missing   role      role      ok        tenant    revoked
  ours/theirs                                      missing   role      role      member    tenant    revoked
  ours/absent                                      missing   role      role      member    tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    last      revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
DELETE /api/tenants/{tenant_id}/users/{user_id}
  ours/own                                         missing   ok        ok        last      tenant    revoked
  ours/colleague's                                 missing   role      role      ok        tenant    revoked
  ours/theirs                                      missing   role      role      member    tenant    revoked
  ours/absent                                      missing   role      role      member    tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    last      revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked

GET /api/tenants/{tenant_id}/documents
GET /api/tenants/{tenant_id}/documents/health
GET /api/tenants/{tenant_id}/files
GET /api/tenants/{tenant_id}/storage
GET /api/files/{tenant_id}/files
  ours                                             missing   ok        ok        ok        tenant    revoked
  theirs                                           missing   tenant    tenant    tenant    ok        revoked
  absent                                           missing   tenant    tenant    tenant    tenant    revoked
  inactive                                         missing   inactive  inactive  inactive  tenant    revoked
POST /api/tenants/{tenant_id}/documents
POST /api/tenants/{tenant_id}/documents/uploads
POST /api/tenants/{tenant_id}/documents/tus
  ours                                             missing   role      made      made      tenant    revoked
  theirs                                           missing   tenant    tenant    tenant    made      revoked
  absent                                           missing   tenant    tenant    tenant    tenant    revoked
  inactive                                         missing   inactive  inactive  inactive  tenant    revoked
GET /api/tenants/{tenant_id}/documents/{document_id}
  ours/own                                         missing   ok        ok        ok        tenant    revoked
  ours/colleague's                                 missing   ok        ok        ok        tenant    revoked
  ours/theirs                                      missing   document  document  document  tenant    revoked
  ours/absent                                      missing   document  document  document  tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    ok        revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
GET /api/tenants/{tenant_id}/documents/{document_id}/download
  ours/own                                         missing   found     found     found     tenant    revoked
  ours/colleague's                                 missing   found     found     found     tenant    revoked
  ours/theirs                                      missing   document  document  document  tenant    revoked
  ours/absent                                      missing   document  document  document  tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    found     revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
GET /api/tenants/{tenant_id}/documents/{document_id}/versions/{version}/download
  ours/own                                         missing   found     found     found     tenant    revoked
  ours/colleague's                                 missing   found     found     found     tenant    revoked
  ours/theirs                                      missing   document  document  document  tenant    revoked
  ours/absent                                      missing   document  document  document  tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    found     revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
GET /api/tenants/{tenant_id}/documents/{document_id}/versions
  ours/own                                         missing   ok        ok        ok        tenant    revoked
  ours/colleague's                                 missing   ok        ok        ok        tenant    revoked
  ours/theirs                                      missing   document  document  document  tenant    revoked
  ours/absent                                      missing   document  document  document  tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    ok        revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
PUT /api/tenants/{tenant_id}/documents/{document_id}/content
  ours/own                                         missing   role      ok        ok        tenant    revoked
  ours/colleague's                                 missing   role      owner     ok        tenant    revoked
  ours/theirs                                      missing   role      document  document  tenant    revoked
  ours/absent                                      missing   role      document  document  tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    ok        revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
GET /api/tenants/{tenant_id}/documents/uploads/{upload_id}
DELETE /api/tenants/{tenant_id}/documents/uploads/{upload_id}
HEAD /api/tenants/{tenant_id}/documents/tus/{upload_id}
  ours/own                                         missing   role      ok        ok        tenant    revoked
  ours/colleague's                                 missing   role      upload    upload    tenant    revoked
  ours/absent                                      missing   role      upload    upload    tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    ok        revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
POST /api/tenants/{tenant_id}/documents/uploads/{upload_id}/complete
  ours/own                                         missing   role      parts     parts     tenant    revoked
  ours/colleague's                                 missing   role      upload    upload    tenant    revoked
  ours/absent                                      missing   role      upload    upload    tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    parts     revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
PATCH /api/tenants/{tenant_id}/documents/tus/{upload_id}
DELETE /api/tenants/{tenant_id}/documents/tus/{upload_id}
POST /api/tenants/{tenant_id}/documents/tus/{upload_id}
  ours/own                                         missing   role      none      none      tenant    revoked
  ours/colleague's                                 missing   role      upload    upload    tenant    revoked
  ours/absent                                      missing   role      upload    upload    tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    none      revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
OPTIONS /api/tenants/{tenant_id}/documents/tus
  ours                                             none      none      none      none      none      none
PUT /api/objects/parts/{tenant_id}/{upload_id}/{number}
  ours/signed                                      ok        ok        ok        ok        ok        ok
  ours/forged                                      signature signature signature signature signature signature
GET /api/tenants/{tenant_id}/audit
  ours                                             missing   role      role      ok        tenant    revoked
  theirs                                           missing   tenant    tenant    tenant    ok        revoked
  absent                                           missing   tenant    tenant    tenant    tenant    revoked
  inactive                                         missing   inactive  inactive  inactive  tenant    revoked
GET /api/tenants/{tenant_id}/documents/trash
  ours                                             missing   role      ok        ok        tenant    revoked
  theirs                                           missing   tenant    tenant    tenant    ok        revoked
  absent                                           missing   tenant    tenant    tenant    tenant    revoked
  inactive                                         missing   inactive  inactive  inactive  tenant    revoked
DELETE /api/tenants/{tenant_id}/documents/trash
  ours                                             missing   role      role      ok        tenant    revoked
  theirs                                           missing   tenant    tenant    tenant    ok        revoked
  absent                                           missing   tenant    tenant    tenant    tenant    revoked
  inactive                                         missing   inactive  inactive  inactive  tenant    revoked
POST /api/tenants/{tenant_id}/documents/trash/{document_id}/restore
DELETE /api/tenants/{tenant_id}/documents/trash/{document_id}
  ours/own-trashed                                 missing   role      ok        ok        tenant    revoked
  ours/colleague's-trashed                         missing   role      owner     ok        tenant    revoked
  ours/colleague's                                 missing   role      document  document  tenant    revoked
  ours/theirs-trashed                              missing   role      document  document  tenant    revoked
  ours/absent                                      missing   role      document  document  tenant    revoked
  theirs/theirs-trashed                            missing   tenant    tenant    tenant    ok        revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
POST /api/tenants/{tenant_id}/documents/{document_id}/versions/{version}/restore
PUT /api/tenants/{tenant_id}/documents/{document_id}
DELETE /api/tenants/{tenant_id}/documents/{document_id}
  ours/own                                         missing   role      ok        ok        tenant    revoked
  ours/colleague's                                 missing   role      owner     ok        tenant    revoked
  ours/theirs                                      missing   document  document  document  tenant    revoked
  ours/absent                                      missing   document  document  document  tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    ok        revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked

GET /api/tenants/{tenant_id}/files/{file_id}
GET /api/files/{tenant_id}/files/{file_id}
  ours/colleague's                                 missing   ok        ok        ok        tenant    revoked
  ours/orphaned                                    missing   ok        ok        ok        tenant    revoked
  ours/theirs                                      missing   file      file      file      tenant    revoked
  ours/absent                                      missing   file      file      file      tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    ok        revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
DELETE /api/tenants/{tenant_id}/files/{file_id}
DELETE /api/files/{tenant_id}/files/{file_id}
  ours/colleague's                                 missing   role      role      in_use    tenant    revoked
  ours/orphaned                                    missing   role      role      ok        tenant    revoked
  ours/theirs                                      missing   role      role      file      tenant    revoked
  ours/absent                                      missing   role      role      file      tenant    revoked
  theirs/theirs                                    missing   tenant    tenant    tenant    in_use    revoked
  absent/own                                       missing   tenant    tenant    tenant    tenant    revoked
  inactive/own                                     missing   inactive  inactive  inactive  tenant    revoked
";

/// The status and the error code that a word of the table stands for.
fn meaning(word: &str) -> (u16, &'static str) {
    match word {
        "ok" => (200, ""),
        "made" => (201, ""),
        "none" => (204, ""),
        "found" => (302, ""),
        "see" => (303, ""),
        "missing" => (401, "missing_token"),
        "revoked" => (401, "token_revoked"),
        "password" => (401, "invalid_credentials"),
        "role" => (403, "insufficient_role"),
        "owner" => (403, "not_owner"),
        "inactive" => (403, "tenant_inactive"),
        "signature" => (403, "invalid_signature"),
        "tenant" => (404, "tenant_not_found"),
        "user" => (404, "user_not_found"),
        "member" => (404, "member_not_found"),
        "document" => (404, "document_not_found"),
        "file" => (404, "file_not_found"),
        "upload" => (404, "upload_not_found"),
        "parts" => (400, "validation_failed"),
        "member!" => (409, "already_member"),
        "last" => (409, "last_admin"),
        "in_use" => (409, "file_in_use"),
        _ => panic!("the table's word {word} has no meaning"),
    }
}

/// Routes that the specification leaves out.
const UNDOCUMENTED: [&str; 6] = [
    "GET /openapi.json",
    "GET /docs",
    "GET /docs/",
    "GET /api/files/{tenant_id}/files",
    "GET /api/files/{tenant_id}/files/{file_id}",
    "DELETE /api/files/{tenant_id}/files/{file_id}",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallerName {
    Nobody,
    Viewer,
    User,
    Admin,
    Outsider,
    Deactivated,
}

use CallerName::{Admin, Deactivated, Nobody, Outsider, User, Viewer};

/// The table's columns.
const CALLERS: [CallerName; 6] = [Nobody, Viewer, User, Admin, Outsider, Deactivated];

/// A line of the table, for one route.
struct Row {
    route: &'static str,
    target: &'static str,
    expected: Vec<&'static str>,
}

fn rows() -> Vec<Row> {
    let (mut routes, mut rows) = (Vec::new(), Vec::new());
    let mut in_targets = true;
    for line in TABLE.lines().skip(2).filter(|line| !line.is_empty()) {
        let Some(target_line) = line.strip_prefix("  ") else {
            if std::mem::take(&mut in_targets) {
                routes.clear();
            }
            routes.push(line);
            continue;
        };
        in_targets = true;
        let mut words = target_line.split_whitespace();
        let target = words.next().unwrap();
        let expected: Vec<_> = words.collect();
        assert_eq!(expected.len(), CALLERS.len(), "{line}");
        rows.extend(routes.iter().map(|route| Row { route, target, expected: expected.clone() }));
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_may_do_what_the_table_says_and_nothing_else() {
    let world = World::new().await;
    let mut wrong = Vec::new();
    // To whom a tenant is not there: by route, what was answered.
    let mut unknown_tenant: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for Row { route, target, expected } in rows() {
        for (caller, word) in CALLERS.into_iter().zip(expected) {
            let reply = world.ask(caller, route, target).await;
            let found = (reply.status.as_u16(), reply.code());
            // The answer to HEAD has no body to name the error in.
            let expected = if route.starts_with("HEAD") { (meaning(word).0, "") } else { meaning(word) };
            if found != expected {
                wrong.push(format!("{route}, {caller:?}, {target}: {found:?} instead of {expected:?}"));
            }
            if reply.code() == "tenant_not_found" {
                unknown_tenant.entry(route).or_default().insert(reply.without_id_and_date());
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // A tenant of others answers as one that is not there, to the byte.
    assert!(unknown_tenant.len() > 15);
    for (route, answers) in unknown_tenant {
        assert_eq!(answers.len(), 1, "{route}: {answers:?}");
    }
}

#[test]
fn the_table_has_every_route() {
    let specification: Value = serde_json::from_str(&api::specification()).unwrap();
    let difference = compare(&specification, &rows());
    assert!(difference.is_empty(), "{difference:?}");
}

#[test]
fn a_route_that_is_missing_on_either_side_is_noticed() {
    let mut specification: Value = serde_json::from_str(&api::specification()).unwrap();
    specification["paths"]["/api/tenants/{tenant_id}/secrets"]["get"] = json!({ "summary": "planted" });
    specification["paths"]["/health"]["delete"] = json!({ "summary": "planted" });
    let of_logout = specification["paths"].as_object_mut().unwrap().remove("/api/auth/logout");
    assert!(of_logout.is_some());
    let expected = [
        "not in the specification: POST /api/auth/logout",
        "not in the table: DELETE /health",
        "not in the table: GET /api/tenants/{tenant_id}/secrets",
    ];
    assert_eq!(compare(&specification, &rows()), expected);
}

/// In what specification and table differ.
fn compare(specification: &Value, rows: &[Row]) -> Vec<String> {
    let paths = specification["paths"].as_object().unwrap();
    let methods = |(path, item): (&String, &Value)| -> Vec<String> {
        let methods = item.as_object().unwrap().keys().filter(|key| Method::from_bytes(key.to_uppercase().as_bytes()).is_ok());
        methods.map(|method| format!("{} {path}", method.to_uppercase())).collect()
    };
    let specified: BTreeSet<String> = paths.iter().flat_map(methods).chain(UNDOCUMENTED.map(str::to_owned)).collect();
    let tested: BTreeSet<String> = rows.iter().map(|row| row.route.to_owned()).collect();
    let unspecified = tested.difference(&specified).map(|route| format!("not in the specification: {route}"));
    let untested = specified.difference(&tested).map(|route| format!("not in the table: {route}"));
    unspecified.chain(untested).collect()
}

/// What the table does not have is not there: no path of it knows another method.
#[tokio::test]
async fn no_path_knows_a_method_that_the_table_lacks() {
    let world = World::new().await;
    let routes: BTreeSet<&str> = rows().iter().map(|row| row.route).collect();
    let paths: BTreeSet<&str> = routes.iter().map(|route| route.split_once(' ').unwrap().1).collect();
    for path in paths {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "TRACE"] {
            if !routes.contains(format!("{method} {path}").as_str()) {
                let filled = path.replace("{tenant_id}", &world.ours).replace("{key}", "x").replace(['{', '}'], "");
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                let reply = Reply::to(world.admin.request(method.clone(), &filled)).await;
                assert_eq!((reply.status.as_u16(), reply.code()), (405, "method_not_allowed"), "{method} {path}");
            }
        }
    }
}

/// Everybody and everything that the table speaks of.
struct World {
    app: TestApp,
    viewer: Persona,
    user: Persona,
    admin: Persona,
    outsider: Persona,
    deactivated: Persona,
    colleague: Persona,
    ours: String,
    theirs: String,
    inactive: String,
    /// A document that the colleague owns, in the inactive tenant.
    inactive_document: Value,
}

/// Eight bytes that nobody has.
fn announcement() -> Value {
    json!({ "filename": "a.txt", "size": 8, "sha256": hex(&domain::random_bytes::<32>()) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tus_headers() -> HeaderMap {
    [(HeaderName::from_static("tus-resumable"), HeaderValue::from_static("1.0.0"))].into_iter().collect()
}

fn appending(request: RequestBuilder) -> RequestBuilder {
    let request = request.headers(tus_headers()).header("upload-offset", "0");
    request.header("content-type", "application/offset+octet-stream").body("uploaded")
}

/// An id of nothing.
const ABSENT: &str = "01900000-0000-7000-8000-000000000000";

impl World {
    async fn new() -> Self {
        let app = TestApp::builder().objects_as_files().trash_retention(Duration::from_secs(3600)).start().await;
        let [viewer, user, admin] = [app.user("viewer").await, app.user("user").await, app.user("admin").await];
        let [outsider, deactivated, colleague] = [app.user("outsider").await, app.user("deactivated").await, app.user("colleague").await];
        let (ours, inactive) = (admin.creates_tenant("Ours").await, admin.creates_tenant("Inactive").await);
        for tenant in [&ours, &inactive] {
            admin.invites(&viewer, tenant, "viewer").await;
            for member in [&user, &deactivated, &colleague] {
                admin.invites(member, tenant, "user").await;
            }
        }
        let theirs = outsider.creates_tenant("Theirs").await;
        let inactive_document = colleague.uploads(&inactive, "inactive.txt", "inactive").await.expect(201).data().clone();
        admin.delete(&format!("/api/tenants/{inactive}")).await.expect(200);
        app.services().operator.set_user_active(deactivated.id.parse().unwrap(), false).await.unwrap();
        Self { app, viewer, user, admin, outsider, deactivated, colleague, ours, theirs, inactive, inactive_document }
    }

    /// The caller, with a session for this question alone where it may end.
    async fn caller(&self, name: CallerName, route: &str) -> Persona {
        let persona = match name {
            Nobody => self.app.stranger(),
            Viewer => self.viewer.clone(),
            User => self.user.clone(),
            Admin => self.admin.clone(),
            Outsider => self.outsider.clone(),
            Deactivated => self.deactivated.clone(),
        };
        let ends = ["POST /api/auth/logout", "POST /api/auth/refresh"].contains(&route);
        if ends && ![Nobody, Deactivated].contains(&name) { persona.logged_in().await } else { persona }
    }

    async fn ask(&self, name: CallerName, route: &str, target: &str) -> Reply {
        let caller = self.caller(name, route).await;
        let (method, path) = route.split_once(' ').unwrap();
        let path = if path.contains("{number}") {
            self.part_url(target).await
        } else if path.contains("{key}") {
            self.object_url(target).await
        } else {
            self.fill(path, name, &caller, target).await
        };
        // Who wants a session's next tokens shows no access token.
        let sender = if route == "POST /api/auth/refresh" { caller.without_token() } else { caller.clone() };
        let request = sender.request(Method::from_bytes(method.as_bytes()).unwrap(), &path);
        let request = match route {
            "POST /api/auth/register" => request.json(&self.registration()),
            "POST /api/auth/login" => request.json(&json!({ "email": caller.email, "password": PASSWORD })),
            "POST /api/auth/refresh" => match &caller.refresh_token {
                Some(token) => request.json(&json!({ "refresh_token": token })),
                None => request,
            },
            "POST /api/demo/kafka/produce" => request.json(&json!({ "topic": "demo.a", "message": {} })),
            "PUT /api/users/me" => request.json(&json!({ "last_name": "Example" })),
            "POST /api/tenants" | "PUT /api/tenants/{tenant_id}" => request.json(&json!({ "name": "Tenant" })),
            "POST /api/tenants/{tenant_id}/users" => request.json(&json!({ "user_id": self.candidate(target).await, "role": "viewer" })),
            "PUT /api/tenants/{tenant_id}/users/{user_id}" => request.json(&json!({ "role": "user" })),
            "POST /api/tenants/{tenant_id}/documents" => {
                let part = reqwest::multipart::Part::text("uploaded").file_name("a.txt");
                request.multipart(reqwest::multipart::Form::new().part("file", part))
            }
            "POST /api/tenants/{tenant_id}/documents/uploads" => request.json(&announcement()),
            "POST /api/tenants/{tenant_id}/documents/tus" => {
                request.headers(tus_headers()).header("upload-length", "8").header("upload-metadata", "filename YS50eHQ=")
            }
            "PATCH /api/tenants/{tenant_id}/documents/tus/{upload_id}" => appending(request),
            "POST /api/tenants/{tenant_id}/documents/tus/{upload_id}" => appending(request).header("x-http-method-override", "PATCH"),
            route if route.contains("documents/tus") => request.headers(tus_headers()),
            "PUT /api/objects/parts/{tenant_id}/{upload_id}/{number}" => request.body("uploaded"),
            "PUT /api/tenants/{tenant_id}/documents/{document_id}/content" => request.body("replaced"),
            "PUT /api/tenants/{tenant_id}/documents/{document_id}" => request.json(&json!({ "filename": "renamed.txt" })),
            _ => request,
        };
        let reply = Reply::to(request).await;
        if reply.status.is_success() {
            self.restore(route, target, &caller).await;
        }
        reply
    }

    /// Undoes what would change the answers to later questions.
    async fn restore(&self, route: &str, target: &str, caller: &Persona) {
        if route == "DELETE /api/tenants/{tenant_id}" {
            let path = format!("/api/tenants/{}", self.tenant(target));
            caller.put(&path, &json!({ "is_active": true })).await.expect(200);
        }
        if route == "DELETE /api/tenants/{tenant_id}/users/{user_id}" && target == "ours/own" {
            let role = if caller.id == self.viewer.id { "viewer" } else { "user" };
            self.admin.invites(caller, &self.ours, role).await;
        }
        if route == "DELETE /api/tenants/{tenant_id}/users/{user_id}" && target == "ours/colleague's" {
            self.admin.invites(&self.colleague, &self.ours, "user").await;
        }
    }

    fn tenant(&self, target: &str) -> &str {
        match target.split('/').next().unwrap() {
            "ours" => &self.ours,
            "theirs" => &self.theirs,
            "inactive" => &self.inactive,
            "absent" => ABSENT,
            _ => panic!("the table's tenant of {target} is not known"),
        }
    }

    async fn fill(&self, path: &str, name: CallerName, caller: &Persona, target: &str) -> String {
        let mut path = path.to_owned();
        if path.contains("{tenant_id}") {
            path = path.replace("{tenant_id}", self.tenant(target));
        }
        path = path.replace("{version}", "1");
        let what = target.split('/').nth(1).unwrap_or_default();
        if path.contains("{user_id}") {
            path = path.replace("{user_id}", self.member(what, caller));
        }
        if path.contains("{upload_id}") {
            path = path.replace("{upload_id}", &self.upload(what, name, path.contains("/tus")).await);
        }
        if path.contains("{document_id}") {
            path = path.replace("{document_id}", &self.document(what, target, name).await.0);
        }
        if path.contains("{file_id}") {
            path = path.replace("{file_id}", &self.document(what, target, name).await.1);
        }
        path
    }

    fn member<'a>(&'a self, what: &str, caller: &'a Persona) -> &'a str {
        match what {
            "own" if !caller.id.is_empty() => &caller.id,
            "colleague's" => &self.colleague.id,
            "theirs" => &self.outsider.id,
            _ => ABSENT,
        }
    }

    /// A document and its file, new for the question.
    async fn document(&self, what: &str, target: &str, caller: CallerName) -> (String, String) {
        let ids = |document: &Value| (document["id"].as_str().unwrap().to_owned(), document["file_id"].as_str().unwrap().to_owned());
        if target.starts_with("inactive") {
            return ids(&self.inactive_document);
        }
        if let Some(what) = what.strip_suffix("-trashed") {
            let tenant = if what == "theirs" { &self.theirs } else { &self.ours };
            let document = Box::pin(self.document(what, target, caller)).await;
            let owner = if what == "theirs" { &self.outsider } else { &self.admin };
            owner.delete(&format!("/api/tenants/{tenant}/documents/{}", document.0)).await.expect(200);
            return document;
        }
        let content = domain::random_bytes::<16>();
        let upload = async |who: &Persona, tenant| ids(who.uploads(tenant, "new.txt", content).await.expect(201).data());
        match (what, caller) {
            ("absent", _) => (ABSENT.to_owned(), ABSENT.to_owned()),
            ("theirs", _) => upload(&self.outsider, &self.theirs).await,
            // Somebody who could upload once.
            ("own", Viewer) => {
                let path = format!("/api/tenants/{}/users/{}", self.ours, self.viewer.id);
                self.admin.put(&path, &json!({ "role": "user" })).await.expect(200);
                let document = upload(&self.viewer, &self.ours).await;
                self.admin.put(&path, &json!({ "role": "viewer" })).await.expect(200);
                document
            }
            ("own", User) => upload(&self.user, &self.ours).await,
            ("own", Admin) => upload(&self.admin, &self.ours).await,
            ("orphaned", _) => {
                let (document, file) = upload(&self.colleague, &self.ours).await;
                for path in ["documents", "documents/trash"] {
                    self.colleague.delete(&format!("/api/tenants/{}/{path}/{document}", self.ours)).await.expect(200);
                }
                (document, file)
            }
            _ => upload(&self.colleague, &self.ours).await,
        }
    }

    /// An upload in parts, new for the question.
    async fn upload(&self, what: &str, caller: CallerName, by_tus: bool) -> String {
        let (who, tenant) = match (what, caller) {
            ("absent", _) | (_, Nobody | Viewer | Deactivated) => return ABSENT.to_owned(),
            ("theirs", _) => (&self.outsider, &self.theirs),
            ("own", User) => (&self.user, &self.ours),
            ("own", Admin) => (&self.admin, &self.ours),
            _ => (&self.colleague, &self.ours),
        };
        if by_tus {
            let request = who.request(Method::POST, &format!("/api/tenants/{tenant}/documents/tus")).headers(tus_headers());
            let begun = Reply::to(request.header("upload-length", "8").header("upload-metadata", "filename YS50eHQ=")).await.expect(201);
            return begun.header("location").rsplit('/').next().unwrap().to_owned();
        }
        let begun = who.post(&format!("/api/tenants/{tenant}/documents/uploads"), &announcement()).await.expect(201);
        begun.data()["upload"]["id"].as_str().unwrap().to_owned()
    }

    /// The path and query of a part of an upload, as they were signed or not.
    async fn part_url(&self, target: &str) -> String {
        let begun = self.colleague.post(&format!("/api/tenants/{}/documents/uploads", self.ours), &announcement()).await.expect(201);
        let url = begun.data()["parts"][0]["url"].as_str().unwrap().to_owned();
        if target == "ours/signed" { url } else { url.replace("signature=", "signature=00") }
    }

    /// Who is to become a member.
    async fn candidate(&self, target: &str) -> String {
        match target.split('/').nth(1).unwrap() {
            "newcomer" => self.app.stranger().post("/api/auth/register", &self.registration()).await.expect(201).id(),
            "colleague's" => self.colleague.id.clone(),
            "deactivated" => self.deactivated.id.clone(),
            _ => ABSENT.to_owned(),
        }
    }

    fn registration(&self) -> Value {
        let name = u64::from_ne_bytes(domain::random_bytes());
        json!({ "email": format!("{name}@example.com"), "password": PASSWORD, "first_name": "New", "last_name": "Comer" })
    }

    /// The path and query of a document's content, as they were signed or not.
    async fn object_url(&self, target: &str) -> String {
        let (document, _) = self.document("colleague's", "ours", Nobody).await;
        let path = format!("/api/tenants/{}/documents/{document}/download", self.ours);
        let url = self.admin.get(&path).await.expect(302).header("location").to_owned();
        if target == "signed" { url } else { url.replace("signature=", "signature=00") }
    }
}
