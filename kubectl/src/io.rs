//! Where a verb reads and prints, so that a test can stand in for the terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The three standard streams of one run.
#[derive(Clone)]
pub struct Io {
    out: Sink,
    err: Sink,
    stdin: Arc<Mutex<Box<dyn Read + Send>>>,
    /// stdout is a terminal that shows colours.
    pub color: bool,
    /// stdin is a terminal.
    pub stdin_is_terminal: bool,
}

type Sink = Arc<Mutex<Box<dyn Write + Send>>>;

/// What a test's run has printed.
#[derive(Clone, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// The text so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.0)).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Io {
    /// The process's own streams.
    pub fn process() -> Self {
        let color = io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        Io {
            out: sink(io::stdout()),
            err: sink(io::stderr()),
            stdin: Arc::new(Mutex::new(Box::new(io::stdin()))),
            color,
            stdin_is_terminal: io::stdin().is_terminal(),
        }
    }

    /// Streams in memory: what is read, and what was printed to stdout and stderr.
    pub fn memory(input: &str) -> (Self, Captured, Captured) {
        let (out, err) = (Captured::default(), Captured::default());
        let io = Io {
            out: sink(out.clone()),
            err: sink(err.clone()),
            stdin: Arc::new(Mutex::new(Box::new(io::Cursor::new(input.to_owned())))),
            color: false,
            stdin_is_terminal: false,
        };
        (io, out, err)
    }

    /// Prints to stdout, as it is. A reader that went away ends the process quietly.
    pub fn print(&self, text: impl AsRef<[u8]>) {
        write_or_exit(&self.out, text.as_ref());
    }

    /// Prints a line to stdout.
    pub fn line(&self, text: impl AsRef<str>) {
        self.print(format!("{}\n", text.as_ref()));
    }

    /// Prints a line to stderr.
    pub fn note(&self, text: impl AsRef<str>) {
        self.print_err(format!("{}\n", text.as_ref()));
    }

    /// Prints to stderr, as it is.
    pub fn print_err(&self, text: impl AsRef<[u8]>) {
        // A closed stderr leaves nobody to tell.
        let _ = lock(&self.err).write_all(text.as_ref());
    }

    /// All of stdin.
    pub fn read_stdin(&self) -> io::Result<String> {
        let mut text = String::new();
        lock(&self.stdin).read_to_string(&mut text)?;
        Ok(text)
    }
}

fn sink(w: impl Write + Send + 'static) -> Sink {
    Arc::new(Mutex::new(Box::new(w)))
}

fn lock<T: ?Sized>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_or_exit(out: &Sink, bytes: &[u8]) {
    let mut out = lock(out);
    let written = out.write_all(bytes).and_then(|()| out.flush());
    if let Err(e) = written
        && e.kind() == io::ErrorKind::BrokenPipe
    {
        // As a shell's SIGPIPE would: `rkubectl get pods | head -1` is no failure.
        std::process::exit(141);
    }
}
