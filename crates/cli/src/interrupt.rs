//! Ctrl-C and the request to end (SIGTERM): a training writes a checkpoint first, a chat stops its answer, all else ends at once,
//! without leftovers.

use std::{
    env,
    path::Path,
    process,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use fpo_data::atomic;

use crate::{
    streams::{self, say},
    train::quoted,
    watch,
};

/// What a shell expects of a program that was interrupted.
pub const EXIT_CODE: u8 = 130;

/// The command that continues.
static CONTINUE: OnceLock<String> = OnceLock::new();

/// Says which command continues what is running now.
pub fn continue_with(command: String) {
    let _ = CONTINUE.set(command);
}

/// Says that the same call again continues what is running now.
pub fn continue_with_this_call() {
    let words = env::args_os().skip(1).map(|word| quoted(Path::new(&word)));
    let words: Vec<String> = std::iter::once("fpo".to_owned()).chain(words).collect();
    continue_with(words.join(" "));
}

static ANSWERING: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicBool = AtomicBool::new(false);

/// While it exists, the first Ctrl-C stops an answer instead of ending the program.
pub struct Answering(());

impl Answering {
    /// An answer begins.
    pub fn begin() -> Self {
        STOPPED.store(false, Ordering::SeqCst);
        ANSWERING.store(true, Ordering::SeqCst);
        Self(())
    }

    /// Whether it should stop.
    pub fn is_stopped(&self) -> bool {
        STOPPED.load(Ordering::SeqCst)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        ANSWERING.store(false, Ordering::SeqCst);
    }
}

/// What to do after an interruption.
pub fn advice() -> String {
    match CONTINUE.get() {
        Some(command) => format!("interrupted; to continue:\n  {command}"),
        None => "interrupted".to_owned(),
    }
}

/// Listens from now on. Without the system's support an interruption ends the program as it does any other; a run then continues from
/// its last checkpoint.
#[cfg(unix)]
pub fn listen() {
    use signal_hook::{
        consts::{SIGINT, SIGTERM},
        iterator::Signals,
    };
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    std::thread::spawn(move || {
        let mut asked = false;
        for signal in signals.forever() {
            let answering = signal == SIGINT && ANSWERING.load(Ordering::SeqCst);
            if answering && !STOPPED.swap(true, Ordering::SeqCst) {
                continue;
            }
            if asked || !fpo_device::interrupt::request() {
                end();
            }
            asked = true;
            say!("stops where nothing is lost; once more ends it at once");
        }
    });
}

#[cfg(not(unix))]
pub fn listen() {}

fn end() -> ! {
    watch::leave();
    atomic::remove_temporaries();
    streams::clean();
    say!("{}", advice());
    process::exit(i32::from(EXIT_CODE))
}
