"""What schemathesis has to know of Tenantry: who may call, what there is to call for, and what a call leaves behind.

Generated ids lead to nothing but 404, and a fuzzer that logs out or deletes its tenant learns nothing more. So there is a
stage: a tenant with a member, documents there and in the trash, an orphaned file, and uploads in parts. Most generated ids are replaced by those of the stage, and
when a call spoils it, the next call gets a new one. Choices are made by what was generated, so a seed repeats them.
"""

import atexit
import collections
import hashlib
import json
import os
import re
import urllib.parse
import zlib

import requests
import schemathesis

URL = os.environ["TENANTRY_URL"]
PASSWORD = "correct horse 1"
EMAILS = {"admin": "ada@example.com", "member": "grace@example.com", "stranger": "edsger@example.com"}
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)

sessions = {}  # by user and what it is for; one that was ended is begun anew
stage = {}  # ids by parameter name; empty when the last call spoiled it
upload_ids = set()  # those of direct uploads
known_ids = set()  # those that an answer named: where a case goes on from one, they stay
answers = collections.Counter()  # by operation and status


def call(method, path, token=None, **arguments):
    """Calls the API beside the fuzzer, and answers the data."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    response = requests.request(method, URL + path, headers=headers, timeout=30, **arguments)
    assert response.ok, f"{method} {path}: {response.text}"
    return response.json()["data"]


def session(user, purpose=""):
    if (user, purpose) not in sessions:
        credentials = {"email": EMAILS[user], "password": PASSWORD}
        sessions[user, purpose] = call("POST", "/api/auth/login", json=credentials)
    return sessions[user, purpose]


def the_stage():
    if not stage:
        token = session("admin")["access_token"]
        tenant = "/api/tenants/" + call("POST", "/api/tenants", token, json={"name": "Acme Corp"})["id"]
        upload = lambda content: call("POST", tenant + "/documents", token, files={"file": ("report.txt", content, "text/plain")})
        orphan, trashed = upload(b"orphaned"), upload(b"trashed")
        for document in orphan, trashed:
            call("DELETE", f"{tenant}/documents/{document['id']}", token)
        call("DELETE", f"{tenant}/documents/trash/{orphan['id']}", token)
        member = call("POST", tenant + "/users", token, json={"email": EMAILS["member"], "role": "user"})
        document = upload(b"The quick brown fox jumps over the lazy dog")
        stage.update(
            tenant_id=tenant.rsplit("/", 1)[1],
            user_id=member["user_id"],
            document_id=document["id"],
            trashed_id=trashed["id"],
            file_id=orphan["file_id"],
        )
    return stage


def direct_upload():
    """A new one, whose only part was sent."""
    token, content = session("admin")["access_token"], os.urandom(8)
    announcement = {"filename": "report.txt", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    begun = call("POST", f"/api/tenants/{the_stage()['tenant_id']}/documents/uploads", token, json=announcement)
    assert requests.put(begun["parts"][0]["url"], data=content, timeout=30).ok
    return begun


def tus_upload():
    headers = {"Authorization": "Bearer " + session("admin")["access_token"], **TUS["POST"]}
    begun = requests.post(f"{URL}/api/tenants/{the_stage()['tenant_id']}/documents/tus", headers=headers, timeout=30)
    assert begun.status_code == 201, begun.text
    return begun.headers["Location"].rsplit("/", 1)[1]


def an_id(case, name):
    path = case.operation.path
    if name == "upload_id":
        return tus_upload() if "/tus/" in path else direct_upload()["upload"]["id"]
    return the_stage()["trashed_id" if name == "document_id" and "/trash/" in path else name]


# What tus has in headers, which no schema can tell; by method.
TUS = {
    "OPTIONS": {},
    "POST": {"Tus-Resumable": "1.0.0", "Upload-Length": "43", "Upload-Metadata": "filename UmVwb3J0LnR4dA=="},
    "HEAD": {"Tus-Resumable": "1.0.0"},
    "PATCH": {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"},
    "DELETE": {"Tus-Resumable": "1.0.0"},
}


def chance(case, one_in):
    """One in so many cases, decided by what was generated."""
    return zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode()) % one_in == 0


def is_valid(case):
    return case.meta is None or case.meta.generation.mode.is_positive


def is_chained(case):
    """A case that goes on where another one ended."""
    return case.meta is not None and case.meta.phase.name.value == "stateful"


def is_arbitrary_id(case, name, value):
    """A well-formed id that leads nowhere, but for one in sixteen, which are to be answered by 404."""
    if not isinstance(value, str) or not UUID.fullmatch(value) or value.endswith("0"):
        return False
    # What is below `documents` is taken for a document's: an upload has an id of its own.
    known = upload_ids if name == "upload_id" else known_ids
    return not (is_chained(case) and value.lower() in known and "/tus/" not in case.operation.path)


@schemathesis.auth(refresh_interval=None)
class Sessions:
    """An admin calls, now and then another member, but not on from what the admin began. What ends a session has one of its own."""

    def get(self, case, _):
        match case.operation.path:
            case "/api/auth/refresh":
                return session("admin", "refresh")["refresh_token"]
            case "/api/auth/logout":
                return session("admin", "logout")["access_token"]
            case _:
                return session("member" if chance(case, 8) and not is_chained(case) else "admin")["access_token"]

    def set(self, case, token, _):
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {token}"}


@schemathesis.hook
def before_init_operation(_, operation):
    answers[operation.label, 0] += 0  # an operation that is never called is missed, too


@schemathesis.hook.apply_to(name="POST /api/tenants/{tenant_id}/documents")
def filter_body(_, body):
    """A form can't send what is no text: an empty list is left out, null is four letters, and so the form would be valid."""
    return not isinstance(body, dict) or all(isinstance(value, (str, bytes)) for value in body.values())


@schemathesis.hook
def before_call(_, case, __):
    for name, value in (case.path_parameters or {}).items():
        if name != "key" and is_arbitrary_id(case, name, value):
            case.path_parameters[name] = an_id(case, name)
    if "/documents/tus" in case.operation.path:
        override = {"X-HTTP-Method-Override": "DELETE"} if case.operation.label.startswith("POST") else {}
        case.headers = {**(case.headers or {}), **TUS[case.operation.method.upper()], **override}
    # Any other entity tag is one of a document that was changed since.
    for name in list(case.headers or {}):
        if name.lower() == "if-match":
            case.headers[name] = "*"
    if is_valid(case) and (is_chained(case) or not chance(case, 4)):
        replacement = REPLACEMENTS.get(case.operation.label)
        if replacement:
            replacement(case)


def log_in_as_a_user(case):
    case.body = {"email": EMAILS["admin"], "password": PASSWORD}


def refresh_from_the_body(case):
    if isinstance(case.body, dict) and "refresh_token" in case.body:
        case.body["refresh_token"] = session("admin", "refresh")["refresh_token"]
        case.headers.pop("Authorization", None)


def add_the_stranger(case):
    if "email" in case.body:
        case.body["email"] = EMAILS["stranger"]
    if "user_id" in case.body:
        case.body["user_id"] = session("stranger")["user"]["id"]


def download_the_document(case):
    path = "/api/tenants/{tenant_id}/documents/{document_id}/download?redirect=false".format(**the_stage())
    url = urllib.parse.urlsplit(call("GET", path, session("admin")["access_token"])["url"])
    if not url.path.startswith("/api/objects/"):
        return  # the store's own
    case.path_parameters["key"] = url.path.removeprefix("/api/objects/")
    case.query = dict(urllib.parse.parse_qsl(url.query))


def send_the_part(case):
    url = urllib.parse.urlsplit(direct_upload()["parts"][0]["url"])
    if not url.path.startswith("/api/objects/"):
        return  # the store's own
    tenant_id, upload_id, number = url.path.rsplit("/", 3)[1:]
    case.path_parameters = {"tenant_id": tenant_id, "upload_id": upload_id, "number": int(number)}
    case.query = dict(urllib.parse.parse_qsl(url.query))
    case.body = b"8 bytes."


REPLACEMENTS = {
    "PUT /api/objects/parts/{tenant_id}/{upload_id}/{number}": send_the_part,
    "POST /api/auth/login": log_in_as_a_user,
    "POST /api/auth/refresh": refresh_from_the_body,
    "POST /api/tenants/{tenant_id}/users": add_the_stranger,
    "GET /api/objects/{key}": download_the_document,
}
SPOILING = re.compile(r"DELETE .*|PUT /api/tenants/{tenant_id}(/users/.*)?|POST /api/tenants/{tenant_id}/users|POST .*/trash/.*/restore")


@schemathesis.hook
def after_call(_, case, response):
    label = case.operation.label
    if response.request.method != case.operation.method.upper():
        return
    answers[label, response.status_code] += 1
    named = {id.lower() for id in UUID.findall(response.text)}
    known_ids.update(named)
    if "/uploads" in label:
        upload_ids.update(named)
    if not 200 <= response.status_code < 300:
        return
    if SPOILING.fullmatch(label):
        stage.clear()
    elif label == "POST /api/auth/logout":
        sessions.pop(("admin", "logout"), None)
    elif label == "POST /api/auth/refresh":
        sessions["admin", "refresh"] = response.json()["data"]


def is_filename(text):
    """Whether it is one by the specification itself."""
    schema = requests.get(URL + "/openapi.json", timeout=30).json()["components"]["schemas"]["Filename"]
    return schema["minLength"] <= len(text) <= schema["maxLength"] and re.search(schema["pattern"], text) is not None


@schemathesis.hook
def filter_failure(_, failure, case, response):
    """What is no failure: a deactivated tenant is still there, for its admins, as inactive (nothing else may be used after its
    deletion); a document is not in the trash before it is deleted; and that a filename violates its pattern is at times not so."""
    name, label = type(failure).__name__, case.operation.label
    if name == "UseAfterFree":
        return label != "GET /api/tenants/{tenant_id}" or response.json()["data"]["is_active"]
    if name == "EnsureResourceAvailability":
        return "/documents/trash/{document_id}" not in label
    if name == "AcceptedNegativeData" and label == "POST /api/tenants/{tenant_id}/documents":
        return not ("properties/filename" in str(failure) and is_filename(case.body["filename"]))
    return True


@atexit.register
def report_answers():
    with open(os.environ["TENANTRY_ANSWERS"], "w") as file:
        for (label, status), count in sorted(answers.items()):
            print(label, status, count, sep="\t", file=file)


for email in EMAILS.values():
    call("POST", "/api/auth/register", json={"email": email, "password": PASSWORD, "first_name": "Ada", "last_name": "Lovelace"})
