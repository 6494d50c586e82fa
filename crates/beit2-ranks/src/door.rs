//! Where ranks come: connections are questioned on threads of their own, so that nobody holds up anybody.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::hello::{self, Failure, Visitor};

/// Connections that have not proved anything yet; more are turned away.
const STRANGERS: usize = 64;

/// Who came, or who was turned away and why.
pub(crate) type Questioned = Result<Visitor, (SocketAddr, Failure)>;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Where ranks come, and those who have not said yet who they are.
pub(crate) struct Door<'a> {
    listener: &'a TcpListener,
    questioned: (Sender<Questioned>, Receiver<Questioned>),
    strangers: Arc<AtomicUsize>,
}

impl<'a> Door<'a> {
    pub fn open(listener: &'a TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, questioned: channel(), strangers: Arc::default() })
    }

    /// One of whom it is known now who it is. If there is none, lets one in who waits outside.
    pub fn look(&self, token: &str) -> Option<Questioned> {
        if let Ok(known) = self.questioned.1.try_recv() {
            return Some(known);
        }
        match self.listener.accept() {
            Ok((stream, address)) if self.strangers.load(Ordering::Relaxed) < STRANGERS => {
                self.question(stream, address, token.to_owned());
            }
            // Whoever belongs here tries again.
            Ok(_) => {}
            Err(_) => std::thread::sleep(PAUSE),
        }
        None
    }

    /// Asks whoever came who it is, on a thread of its own: it may take its time.
    fn question(&self, stream: TcpStream, address: SocketAddr, token: String) {
        let (questioned, counter) = (self.questioned.0.clone(), self.strangers.clone());
        counter.fetch_add(1, Ordering::Relaxed);
        let work = move || {
            let found = match stream.set_nonblocking(false) {
                Ok(()) => hello::receive(stream, &token),
                Err(error) => Err(error.into()),
            };
            counter.fetch_sub(1, Ordering::Relaxed);
            let _ = questioned.send(found.map_err(|why| (address, why)));
        };
        if std::thread::Builder::new().spawn(work).is_err() {
            self.strangers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
