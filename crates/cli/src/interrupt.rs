//! Ctrl-C and the request to end (SIGTERM): a training writes a checkpoint first, all else ends at once, without leftovers.

use std::{process, sync::OnceLock};

use fpo_data::atomic;

use crate::{
    streams::{self, say},
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
        for _ in signals.forever() {
            if asked || !fpo_device::interrupt::request() {
                end();
            }
            asked = true;
            say!("stops after this step, with a checkpoint; once more ends it at once");
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
