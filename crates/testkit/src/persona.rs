//! Personas: users of the app over HTTP.

use reqwest::{
    Client, Method, RequestBuilder, StatusCode,
    header::{HeaderMap, HeaderName},
    multipart::{Form, Part},
};
use serde_json::{Value, json};

/// The password of every persona.
pub const PASSWORD: &str = "correct horse 1";

/// A user, with or without an account and a session.
#[derive(Clone, Debug)]
pub struct Persona {
    base: String,
    client: Client,
    /// Empty for a stranger.
    pub id: String,
    /// Empty for a stranger.
    pub email: String,
    /// The access token, if there is a session.
    pub access_token: Option<String>,
    /// The refresh token, if there is a session.
    pub refresh_token: Option<String>,
}

impl Persona {
    /// A client without an account, for the app with this base URL.
    #[must_use]
    pub fn stranger(base: String, client: Client) -> Self {
        Self { base, client, id: String::new(), email: String::new(), access_token: None, refresh_token: None }
    }

    /// Registers a new user at the stranger's app and logs in: `name@example.com`.
    pub async fn registered(stranger: &Self, name: &str) -> Self {
        let email = format!("{name}@example.com");
        let registration = json!({ "email": email, "password": PASSWORD, "first_name": name, "last_name": "Example" });
        let registered = stranger.post("/api/auth/register", &registration).await.expect(StatusCode::CREATED);
        let mut persona = stranger.clone();
        persona.id = registered.id();
        persona.email = email;
        persona.logged_in().await
    }

    /// The same user with a new session.
    pub async fn logged_in(&self) -> Self {
        let credentials = json!({ "email": self.email, "password": PASSWORD });
        let login = self.post("/api/auth/login", &credentials).await.expect(StatusCode::OK);
        let token = |name: &str| Some(login.data()[name].as_str().unwrap().to_owned());
        Self { access_token: token("access_token"), refresh_token: token("refresh_token"), ..self.clone() }
    }

    /// The same user with another access token.
    #[must_use]
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self { access_token: Some(token.into()), ..self.clone() }
    }

    /// The same user without a token.
    #[must_use]
    pub fn without_token(&self) -> Self {
        Self { access_token: None, ..self.clone() }
    }

    /// The same user at another instance.
    #[must_use]
    pub fn at(&self, app: &crate::TestApp) -> Self {
        self.at_base(format!("http://{}", app.address()))
    }

    /// The same user at the app with this base URL.
    #[must_use]
    pub fn at_base(&self, base: impl Into<String>) -> Self {
        Self { base: base.into(), ..self.clone() }
    }

    /// A request with the access token, if there is one, to be filled and sent.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.base) };
        let request = self.client.request(method, url);
        match &self.access_token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Reply {
        Reply::to(self.request(Method::GET, path)).await
    }

    /// POST with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        Reply::to(self.request(Method::POST, path).json(body)).await
    }

    /// PUT with a JSON body.
    pub async fn put(&self, path: &str, body: &Value) -> Reply {
        Reply::to(self.request(Method::PUT, path).json(body)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Reply {
        Reply::to(self.request(Method::DELETE, path)).await
    }

    /// Creates a tenant. Returns its id.
    pub async fn creates_tenant(&self, name: &str) -> String {
        self.post("/api/tenants", &json!({ "name": name })).await.expect(StatusCode::CREATED).id()
    }

    /// Adds a user to a tenant as a member.
    pub async fn invites(&self, who: &Self, tenant: &str, role: &str) {
        let member = json!({ "user_id": who.id, "role": role });
        self.post(&format!("/api/tenants/{tenant}/users"), &member).await.expect(StatusCode::CREATED);
    }

    /// Uploads a document of type text/plain.
    pub async fn uploads(&self, tenant: &str, filename: &str, content: impl Into<Vec<u8>>) -> Reply {
        let part = Part::bytes(content.into()).file_name(filename.to_owned()).mime_str("text/plain").unwrap();
        self.uploads_form(tenant, Form::new().part("file", part)).await
    }

    /// Uploads a document with a custom form.
    pub async fn uploads_form(&self, tenant: &str, form: Form) -> Reply {
        Reply::to(self.request(Method::POST, &format!("/api/tenants/{tenant}/documents")).multipart(form)).await
    }

    /// Downloads a document's content from its signed URL, which needs no token.
    pub async fn downloads(&self, tenant: &str, document: &str) -> Vec<u8> {
        let path = format!("/api/tenants/{tenant}/documents/{document}/download?redirect=false");
        let url = self.get(&path).await.expect(StatusCode::OK).data()["url"].as_str().unwrap().to_owned();
        self.without_token().get(&url).await.expect(StatusCode::OK).bytes
    }
}

/// A response of the app.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, as bytes.
    pub bytes: Vec<u8>,
    /// Its body as JSON; null if it is not JSON.
    pub json: Value,
}

impl Reply {
    /// Sends a request and reads the response.
    pub async fn to(request: RequestBuilder) -> Self {
        let response = request.send().await.expect("the app responds");
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.expect("the response is complete").to_vec();
        let json = serde_json::from_slice(&bytes).unwrap_or_default();
        Self { status, headers, bytes, json }
    }

    /// Asserts the status.
    #[track_caller]
    pub fn expect(self, status: impl TryInto<StatusCode>) -> Self {
        let Ok(status) = status.try_into() else { panic!("not a status code") };
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        self
    }

    /// Asserts the status and the error code.
    #[track_caller]
    pub fn expect_error(self, status: u16, code: &str) -> Self {
        let reply = self.expect(status);
        assert_eq!(reply.code(), code, "{}", reply.json);
        assert_eq!(reply.json["success"], false);
        assert!(reply.headers.contains_key("x-request-id"));
        reply
    }

    /// The reply without the headers that differ between any two replies by design, for byte-wise comparison.
    #[must_use]
    pub fn without_id_and_date(&self) -> String {
        let mut headers = self.headers.clone();
        headers.remove("date").expect("a date");
        headers.remove("x-request-id").expect("a request id");
        format!("{} {headers:?} {}", self.status, String::from_utf8_lossy(&self.bytes))
    }

    /// The `data` of the response.
    #[must_use]
    pub fn data(&self) -> &Value {
        &self.json["data"]
    }

    /// The `id` in the `data`.
    #[must_use]
    pub fn id(&self) -> String {
        self.data()["id"].as_str().expect("the data has an id").to_owned()
    }

    /// The items of a list.
    #[must_use]
    pub fn items(&self) -> &[Value] {
        self.data()["items"].as_array().expect("the data is a list")
    }

    /// The error code; empty after a success.
    #[must_use]
    pub fn code(&self) -> &str {
        self.json["error"]["code"].as_str().unwrap_or_default()
    }

    /// The error messages of a field.
    #[must_use]
    pub fn problems(&self, field: &str) -> String {
        self.json["error"]["details"][field].to_string()
    }

    /// A header's value; empty if it is absent.
    #[must_use]
    pub fn header(&self, name: impl Into<&'static str>) -> &str {
        let name = HeaderName::from_static(name.into());
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}
