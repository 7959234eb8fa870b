//! Who a server says that it is has to be true.

use std::net::TcpStream;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::server::{head, respond};

/// Signs certificates of servers.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server with a certificate for this name.
fn server(name: &str, issuer: &CertifiedIssuer<'static, KeyPair>) -> Server {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let config = Arc::new(config);
    Server::raw(move |stream: &mut TcpStream| {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = StreamOwned::new(connection, stream.try_clone().unwrap());
        if head(&mut stream).is_some() {
            respond(&mut stream, "200 OK", "", "in private");
            stream.conn.send_close_notify();
            let _ = std::io::Write::flush(&mut stream);
        }
    })
}

/// A certificate is trusted if somebody who is trusted has signed it for that name.
#[tokio::test]
async fn a_wrong_certificate_is_refused() {
    let (known, unknown) = (authority(), authority());
    let servers = [server("here.test", &known), server("here.test", &unknown), server("also-here.test", &known)];
    let url = |server: &Server| format!("https://here.test:{}/", server.port());
    let grants =
        || servers.iter().map(|server| HttpGrant::new(url(server).trim_end_matches('/')).private_addresses(true));
    let (host, guest) = built(builder().http_root_certificate(known.der().to_vec()), grants()).await;
    let [right, stranger, misnamed] = &servers;
    assert_eq!(completed(&get(&host, &guest, url(right)).await)["body"], "in private");
    for wrong in [stranger, misnamed] {
        let outcome = get(&host, &guest, url(wrong)).await;
        failed(&outcome, "tls");
        assert_eq!(outcome.effects, []);
    }
    // Nothing but Mozilla's list, if nothing is said.
    let (host, guest) = granting(grants()).await;
    failed(&get(&host, &guest, url(right)).await, "tls");
    let nonsense = builder().http_root_certificate(b"nonsense".to_vec()).build().err().unwrap().to_string();
    assert!(nonsense.contains("DER"), "{nonsense}");
    // What is not TLS.
    let plain = Server::raw(|stream| respond(stream, "200 OK", "", "hello"));
    let grant = HttpGrant::new(format!("https://here.test:{}", plain.port())).private_addresses(true);
    let (host, guest) = granting([grant]).await;
    failed(&get(&host, &guest, format!("https://here.test:{}/", plain.port())).await, "tls");
}
