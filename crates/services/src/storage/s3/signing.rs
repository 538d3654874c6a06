//! Signed URLs that accept a body of one size only.

use domain::{Error, Result};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use url::{Position, Url};

const SIGNED_HEADERS: &str = "content-length;host";

/// Signs a signed URL for PUT again, with the length of the body, which the client library refuses to sign. Implements "Authenticating
/// Requests: Using Query Parameters" of Amazon S3 (Signature Version 4).
pub(super) fn bind_length(url: &Url, size: u64, secret: &str) -> Result<String> {
    let query = unsigned_query(url);
    let parameter = |name| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default();
    let (date, credential) = (parameter("X-Amz-Date"), parameter("X-Amz-Credential"));
    let (_, scope) = credential.split_once('/').ok_or_else(|| Error::internal("a signed URL without a credential"))?;
    let (path, host) = (url.path(), &url[Position::BeforeHost..Position::AfterPort]);
    let request = format!("PUT\n{path}\n{query}\ncontent-length:{size}\nhost:{host}\n\n{SIGNED_HEADERS}\nUNSIGNED-PAYLOAD");
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex::encode(Sha256::digest(request)));
    let key = scope.split('/').try_fold(format!("AWS4{secret}").into_bytes(), |key, part| mac(&key, part))?;
    let signature = hex::encode(mac(&key, &to_sign)?);
    Ok(format!("{}?{query}&X-Amz-Signature={signature}", &url[..Position::AfterPath]))
}

/// The sorted query of a signed URL without its signature, and with the headers to sign.
fn unsigned_query(url: &Url) -> String {
    let is_replaced = |pair: &&str| pair.starts_with("X-Amz-Signature=") || pair.starts_with("X-Amz-SignedHeaders=");
    let signed_headers = format!("X-Amz-SignedHeaders={}", SIGNED_HEADERS.replace(';', "%3B"));
    let mut query: Vec<&str> = url.query().unwrap_or_default().split('&').filter(|pair| !is_replaced(pair)).collect();
    query.push(&signed_headers);
    query.sort_unstable();
    query.join("&")
}

fn mac(key: &[u8], text: &str) -> Result<Vec<u8>> {
    let mac = Hmac::<Sha256>::new_from_slice(key).map_err(Error::internal)?;
    Ok(mac.chain_update(text).finalize().into_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: rusty-s3 0.11, `UploadPart` with the header `content-length`, with and without a session token.
    #[test]
    fn the_signature_is_that_of_another_implementation() {
        const URL: &str = "http://127.0.0.1:9000/documents/tenants/a/files/ab_1?X-Amz-Algorithm=AWS4-HMAC-SHA256\
            &X-Amz-Credential=AKIDEXAMPLE%2F20260102%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20260102T030405Z&X-Amz-Expires=3600";
        let cases = [
            ("", "99944365d70c552daf3cacf688fb2459af85b186642b12b09075cefa633cf992"),
            ("&X-Amz-Security-Token=a%2Ftoken%2B%3D", "1c483ddebcc51dd12ca0e1856969421c89cb404bbb48f8e61afbcaab5fecde17"),
        ];
        for (token, signature) in cases {
            let url = |headers, signature| {
                format!("{URL}{token}&X-Amz-SignedHeaders={headers}&partNumber=2&uploadId=upload-1&X-Amz-Signature={signature}")
            };
            let bound = bind_length(&url("host", "of-host-only").parse().unwrap(), 5_242_880, "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
            assert_eq!(bound.unwrap(), url("content-length%3Bhost", signature));
        }
    }
}
