//! The inside of a lab's door: runs the commands that come in, as root, in the namespaces asked
//! for.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::command::exit_code;
use crate::topology::Topology;
use crate::wire::{BOOT_FILE, Boot, Frame, MAX_DATA_BYTES, Request, SOCKET_FILE, TerminalSize};
use crate::{SEARCH_PATH, SHARE_DIR};

/// Commands at once; a test that leaks them should fail, not the machine.
const MAX_SESSIONS: usize = 128;

/// What the server writes on the console once it can be reached; the outside waits for it.
pub const READY: &str = "lab: the door is open";

/// How long to wait for the rest of the output after the end of a command.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Serves until the listener fails.
///
/// # Errors
/// When the boot file cannot be read or nothing can be listened on.
pub fn serve() -> Result<()> {
    let boot = fs::read(Path::new(SHARE_DIR).join(BOOT_FILE)).context("cannot read boot file")?;
    let boot: Boot = serde_json::from_slice(&boot).context("cannot read boot file")?;
    let sessions = Arc::new(AtomicUsize::new(0));
    let accept = |descriptor: OwnedFd| {
        let token = boot.token.clone();
        let sessions = Arc::clone(&sessions);
        thread::spawn(move || {
            let mut connection = File::from(descriptor);
            let count = sessions.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = session(&mut connection, &token, count) {
                Frame::Refused(format!("{error:#}"))
                    .write(&mut connection)
                    .ok();
            }
            sessions.fetch_sub(1, Ordering::Relaxed);
        });
    };
    if let Some(port) = boot.port {
        let listener = TcpListener::bind(("0.0.0.0", port))?;
        eprintln!("{READY}");
        for stream in listener.incoming() {
            let stream = stream?;
            stream.set_nodelay(true)?;
            accept(stream.into());
        }
    } else {
        let path = Path::new(SHARE_DIR).join(SOCKET_FILE);
        fs::remove_file(&path).ok();
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        eprintln!("{READY}");
        for stream in listener.incoming() {
            accept(stream?.into());
        }
    }
    Ok(())
}

fn session(connection: &mut File, token: &str, count: usize) -> Result<()> {
    let Some(Frame::Start(request)) = Frame::read(connection)? else {
        bail!("the first frame must say what to run");
    };
    ensure!(
        request.token == token,
        "wrong token: this is another lab's door"
    );
    ensure!(
        count < MAX_SESSIONS,
        "{MAX_SESSIONS} commands are running already"
    );
    let command = prepare(&request)?;
    let running = match request.terminal {
        Some(size) => Running::on_terminal(command, size)?,
        None => Running::on_pipes(command)?,
    };
    running.follow(connection)
}

/// The command in its host's namespaces, with environment and directory set.
fn prepare(request: &Request) -> Result<Command> {
    let mut words: Vec<String> = Vec::new();
    if request.terminal.is_some() {
        // A session of its own with the terminal in control: Ctrl-C then works as everywhere.
        words.extend(["setsid", "--ctty"].map(String::from));
    }
    if let Some(host) = &request.host {
        words.extend(Topology::load()?.host(host)?.enter());
    }
    ensure!(!request.argv.is_empty(), "nothing to run");
    words.extend(request.argv.iter().cloned());
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .current_dir(request.directory.as_deref().unwrap_or("/root"));
    if let Some(host) = &request.host {
        command.env("SWARM_RUN_DIR", format!("/run/swarm/{host}"));
        command.env("SWARM_LAB_HOST", host);
    }
    command.envs(request.env.iter().map(|(name, value)| (name, value)));
    Ok(command)
}

/// A started command and the ends of its pipes.
struct Running {
    child: Child,
    stdin: Option<Box<dyn Write + Send>>,
    outputs: Vec<(Source, Box<dyn Read + Send>)>,
    terminal: Option<File>,
}

/// Makes a data frame of the output it stands for.
type Source = fn(Vec<u8>) -> Frame;

impl Running {
    fn on_pipes(mut command: Command) -> Result<Self> {
        command.process_group(0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut command)?;
        let mut outputs: Vec<(Source, Box<dyn Read + Send>)> = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            outputs.push((Frame::Stdout, Box::new(pipe)));
        }
        if let Some(pipe) = child.stderr.take() {
            outputs.push((Frame::Stderr, Box::new(pipe)));
        }
        let stdin = child
            .stdin
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn Write + Send>);
        Ok(Self {
            child,
            stdin,
            outputs,
            terminal: None,
        })
    }

    /// Takes the command whole: as long as it exists it holds the terminal's far end open, and the
    /// near end sees no end of output.
    fn on_terminal(mut command: Command, size: TerminalSize) -> Result<Self> {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let OpenptyResult { master, slave } = openpty(&size, None).context("no terminal left")?;
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave.try_clone()?);
        let child = spawn(&mut command)?;
        let master = File::from(master);
        Ok(Self {
            child,
            stdin: Some(Box::new(master.try_clone()?)),
            outputs: vec![(Frame::Stdout, Box::new(master.try_clone()?))],
            terminal: Some(File::from(slave)),
        })
    }

    /// Carries input, output and signals until the command ends or the outside goes away.
    fn follow(mut self, connection: &mut File) -> Result<()> {
        let group = Pid::from_raw(self.child.id().cast_signed());
        let has_ended = Arc::new(AtomicBool::new(false));
        let writer = Arc::new(Mutex::new(connection.try_clone()?));
        // The slave end stays open here only for resizing, through its path.
        let terminal = self
            .terminal
            .take()
            .and_then(|slave| nix::unistd::ttyname(slave).ok());
        let (done, drained) = mpsc::sync_channel(2);
        let outputs = std::mem::take(&mut self.outputs);
        let count = outputs.len();
        for (source, pipe) in outputs {
            let (writer, done) = (Arc::clone(&writer), done.clone());
            thread::spawn(move || {
                pump(source, pipe, &writer);
                done.send(()).ok();
            });
        }
        let input = connection.try_clone()?;
        let (stdin, ended) = (self.stdin.take(), Arc::clone(&has_ended));
        thread::spawn(move || {
            receive(input, stdin, group, terminal.as_deref(), &ended);
            if !ended.load(Ordering::SeqCst) {
                // The outside is gone: nobody is left to see the end.
                killpg(group, Signal::SIGKILL).ok();
            }
        });
        let status = self.child.wait()?;
        has_ended.store(true, Ordering::SeqCst);
        for _ in 0..count {
            drained.recv_timeout(DRAIN_DEADLINE).ok();
        }
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        Frame::Exit(exit_code(status)).write(&mut *writer).ok();
        Ok(())
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .spawn()
        .with_context(|| format!("cannot run {program}"))
}

fn pump(source: Source, mut pipe: Box<dyn Read + Send>, writer: &Mutex<File>) {
    let mut buffer = vec![0; MAX_DATA_BYTES];
    // A terminal's reading end gives an error, not an end, when the last writer is gone.
    while let Ok(length @ 1..) = pipe.read(&mut buffer) {
        let frame = source(buffer[..length].to_vec());
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        if frame.write(&mut *writer).is_err() {
            return;
        }
    }
}

/// Handles what the outside sends; returns when it closed the connection.
fn receive(
    mut input: File,
    mut stdin: Option<Box<dyn Write + Send>>,
    group: Pid,
    terminal: Option<&Path>,
    has_ended: &AtomicBool,
) {
    while let Ok(Some(frame)) = Frame::read(&mut input) {
        if has_ended.load(Ordering::SeqCst) {
            return;
        }
        match frame {
            Frame::Stdin(bytes) => {
                // A command that closed its input is no reason to stop listening for signals.
                if stdin
                    .as_mut()
                    .is_some_and(|pipe| pipe.write_all(&bytes).is_err())
                {
                    stdin = None;
                }
            }
            Frame::StdinEnd => stdin = None,
            Frame::Signal(number) => {
                if let Ok(signal) = Signal::try_from(number) {
                    killpg(group, signal).ok();
                }
            }
            Frame::Resize(size) => {
                if let Some(terminal) = terminal {
                    resize(terminal, size);
                }
            }
            _ => return,
        }
    }
}

fn resize(terminal: &Path, size: TerminalSize) {
    let (rows, columns) = (size.rows.to_string(), size.columns.to_string());
    let mut command = Command::new("stty");
    command
        .arg("-F")
        .arg(terminal)
        .args(["rows", &rows, "cols", &columns]);
    command.status().ok();
}
