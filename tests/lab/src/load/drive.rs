//! The client process.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Error, Result};

use super::http::{Asked, Connection};
use super::{Clients, Counts, FAILURES_TOLD, Failure};

const SHORT: &str = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
const KEEPALIVE: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
const DOWNLOAD: &str = "GET /slow HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\
                        Range: bytes=0-1048575\r\n\r\n";
const DOWNLOAD_BYTES: u64 = 1 << 20;

/// Between two requests of a keep-alive client: its connection is idle most of the time, as real
/// ones are.
const THINKING: Duration = Duration::from_millis(20);

/// Between two connections of a client that opens one for each request: the machine has other
/// things to do as well.
const SHORT_PAUSE: Duration = Duration::from_millis(20);

/// After a failure, so that a refusing service is not asked thousands of times a second.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// Between two reports.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// What all clients share.
struct Work {
    at: Vec<SocketAddr>,
    limit: Duration,
    counts: Mutex<Counts>,
    ends: AtomicBool,
}

/// Has the clients ask until standard input ends; writes the counts, a line of JSON each, to
/// standard output every half second and at the end.
///
/// # Errors
/// When standard output is gone.
pub fn drive(clients: &Clients) -> Result<()> {
    let work = Work {
        at: clients.at.clone(),
        limit: Duration::from_millis(clients.limit_ms),
        counts: Mutex::default(),
        ends: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let start = |count: u32, ask: fn(&Work, usize)| {
            for number in 0..count {
                let work = &work;
                scope.spawn(move || ask(work, number as usize));
            }
        };
        start(clients.short, Work::short);
        start(clients.keepalive, Work::keepalive);
        start(clients.download, Work::download);
        scope.spawn(|| {
            let mut stdin = std::io::stdin();
            while matches!(stdin.read(&mut [0; 64]), Ok(1..)) {}
            work.ends.store(true, Ordering::Relaxed);
        });
        let mut result = Ok(());
        while !work.ends.load(Ordering::Relaxed) && result.is_ok() {
            thread::sleep(REPORT_INTERVAL);
            result = work.report();
        }
        work.ends.store(true, Ordering::Relaxed);
        result
    })?;
    work.report()
}

impl Work {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> Result<()> {
        let line = serde_json::to_string(&*self.counts())?;
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{line}")?;
        Ok(stdout.flush()?)
    }

    fn goes_on(&self) -> bool {
        !self.ends.load(Ordering::Relaxed)
    }

    /// The address of the request of that number.
    fn at(&self, number: usize) -> SocketAddr {
        self.at[number % self.at.len()]
    }

    /// Counts a request.
    fn ended(&self, client: &str, began: (SystemTime, Instant), result: Result<()>) {
        let Err(error) = result else {
            self.counts().requests += 1;
            return;
        };
        let began_us = (began.0.duration_since(UNIX_EPOCH)).map_or(0, micros);
        {
            let mut counts = self.counts();
            counts.requests += 1;
            counts.failed += 1;
            let first = counts.first_failed_us.unwrap_or(began_us);
            counts.first_failed_us = Some(first.min(began_us));
            counts.last_failed_us = counts.last_failed_us.max(Some(began_us));
            if counts.failures.len() < FAILURES_TOLD {
                counts.failures.push(Failure {
                    client: client.into(),
                    began_us,
                    took_us: micros(began.1.elapsed()),
                    error: format!("{error:#}"),
                });
            }
        }
        thread::sleep(AFTER_FAILURE);
    }

    fn one(&self, at: SocketAddr, request: &str, status: u16, length: Option<u64>) -> Result<()> {
        let mut connection = Connection::open(at, self.limit)?;
        match connection.ask(request, status, length) {
            Asked::Answered { .. } => Ok(()),
            Asked::Unanswered(error) | Asked::Failed(error) => Err(error),
        }
    }

    fn short(&self, own: usize) {
        let mut number = own;
        while self.goes_on() {
            let began = (SystemTime::now(), Instant::now());
            let result = self.one(self.at(number), SHORT, 200, None);
            self.ended("short", began, result);
            thread::sleep(SHORT_PAUSE);
            number += 1;
        }
    }

    fn download(&self, own: usize) {
        let mut number = own;
        while self.goes_on() {
            let began = (SystemTime::now(), Instant::now());
            let result = self.one(self.at(number), DOWNLOAD, 206, Some(DOWNLOAD_BYTES));
            self.counts().downloads += 1;
            self.ended("download", began, result);
            number += 1;
        }
    }

    fn keepalive(&self, own: usize) {
        let at = self.at(own);
        let mut open: Option<Connection> = None;
        while self.goes_on() {
            let began = (SystemTime::now(), Instant::now());
            let result = self.on_kept(at, &mut open);
            self.ended("keep-alive", began, result);
            thread::sleep(THINKING);
        }
    }

    fn on_kept(&self, at: SocketAddr, open: &mut Option<Connection>) -> Result<()> {
        let mut first_try: Option<Error> = None;
        loop {
            let mut connection = match open.take() {
                Some(connection) if !connection.is_closed() => connection,
                closed => {
                    self.counts().reopened += u64::from(closed.is_some());
                    Connection::open(at, self.limit)?
                }
            };
            match connection.ask(KEEPALIVE, 200, None) {
                Asked::Answered { closes } => {
                    self.counts().reopened += u64::from(closes);
                    *open = (!closes).then_some(connection);
                    return Ok(());
                }
                Asked::Unanswered(error) if first_try.is_none() => {
                    self.counts().retried += 1;
                    first_try = Some(error);
                }
                Asked::Unanswered(error) | Asked::Failed(error) => return Err(error),
            }
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
