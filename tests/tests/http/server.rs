//! Servers: each connection has a thread, and does what the test says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A server that ends with the process.
pub(crate) struct Server {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Reads the head of a request, and then does this.
    pub(crate) fn start(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&heads);
        let server = Self::raw(move |stream| {
            let Some(head) = head(stream) else { return };
            seen.lock().unwrap().push(head.clone());
            answer(&head, stream);
        });
        Self { heads, ..server }
    }

    /// Does this with each connection.
    pub(crate) fn raw(serve: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, serve) = (stream.unwrap(), Arc::clone(&serve));
                thread::spawn(move || serve(&mut stream));
            }
        });
        Self { address, heads: Arc::default() }
    }

    /// Answers 200 with this.
    pub(crate) fn saying(body: &str) -> Self {
        let body = body.to_owned();
        Self::start(move |_, stream| respond(stream, "200 OK", "content-type: text/plain\r\n", &body))
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Where it is by another name.
    pub(crate) fn named(&self, name: &str, path: &str) -> String {
        format!("http://{name}:{}{path}", self.port())
    }

    /// What it was asked, in the order in which it came.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

/// Up to the empty line, if it comes.
pub(crate) fn head(stream: &mut impl Read) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    String::from_utf8(head).ok()
}

/// Whoever asked may have gone away.
pub(crate) fn respond(stream: &mut impl Write, status: &str, headers: &str, body: &str) {
    let length = body.len();
    let _ = write!(stream, "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}");
}

/// Until the other side has closed the connection. Also says how much it has sent before that.
pub(crate) fn until_closed(stream: &mut impl Read) -> usize {
    let (mut bytes, mut buffer) = (0, [0; 4096]);
    while let Ok(more @ 1..) = stream.read(&mut buffer) {
        bytes += more;
    }
    bytes
}
