//! TLS to hosts: certificates are checked against Mozilla's list, and those that the embedder adds.
//!
//! Invariant: nothing of one connection is known to the next one, so that calls of different agents cannot be told to be of
//! one host by what they resume.

use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::Error;

use super::connections::Stream;

/// `roots`: certificates in DER that are trusted beside those of the list.
pub(super) fn connector(roots: Vec<Vec<u8>>) -> Result<TlsConnector, rustls::Error> {
    let mut trusted = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for root in roots {
        trusted.add(CertificateDer::from(root))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(trusted).with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// `host`: a name, or an address without brackets.
pub(super) async fn connect(connector: &TlsConnector, host: &str, stream: Stream) -> Result<TlsStream<Stream>, Error> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
    connector.connect(name, stream).await.map_err(|error| told(&error).unwrap_or(Error::TlsProtocolError))
}

/// What TLS says about an error of the connection, if it is one of TLS.
pub(super) fn told(error: &io::Error) -> Option<Error> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::InvalidCertificate(_) => Some(Error::TlsCertificateError),
        rustls::Error::AlertReceived(alert) => Some(Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: alert.as_str().map(str::to_owned),
        }),
        _ => Some(Error::TlsProtocolError),
    }
}
