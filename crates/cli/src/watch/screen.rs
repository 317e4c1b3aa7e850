//! The terminal that is drawn on, and its keys, through the library that draws the progress bars.
//!
//! `ratatui` comes with backends of its own, but their features would have Burn built another way.

use std::{
    io::{self, Write},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use console::{Key, Term};
use ratatui::{
    Frame, Terminal,
    backend::{Backend, ClearType, WindowSize},
    buffer::Cell,
    layout::{Position, Size},
    style::{Color, Modifier},
};

/// Switches to the terminal's alternate screen and hides the cursor; and back.
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l\u{1b}[2J";
const LEAVE: &str = "\u{1b}[0m\u{1b}[?25h\u{1b}[?1049l";

/// Whether the terminal is taken over.
static OPEN: AtomicBool = AtomicBool::new(false);

/// Gives the terminal back, if it was taken over.
pub fn leave() {
    if OPEN.swap(false, Ordering::SeqCst) {
        // There is nobody left to tell if it fails.
        let _ = Term::stdout().write_str(LEAVE);
    }
}

/// The whole terminal, given back as it was when this is dropped.
pub struct Screen {
    terminal: Terminal<Console>,
    keys: Receiver<io::Result<Key>>,
}

impl Screen {
    /// Takes the terminal over. It has to be read until a key that ends it: only then is it out of the mode in which single keys are
    /// read.
    ///
    /// # Errors
    /// A terminal that can't be written to.
    pub fn open(ends: fn(&Key) -> bool) -> io::Result<Self> {
        let console = Console(Term::buffered_stdout());
        OPEN.store(true, Ordering::SeqCst);
        console.0.write_str(ENTER)?;
        let (sender, keys) = channel();
        thread::spawn(move || {
            loop {
                let key = Term::stdout().read_key_raw();
                let last = !key.as_ref().is_ok_and(|key| !ends(key));
                if sender.send(key).is_err() || last {
                    return;
                }
            }
        });
        Ok(Self { terminal: Terminal::new(console)?, keys })
    }

    /// Draws what has changed.
    ///
    /// # Errors
    /// A terminal that can't be written to.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// The next key, if one comes in time.
    ///
    /// # Errors
    /// A terminal that can't be read.
    pub fn key(&self, within: Duration) -> io::Result<Option<Key>> {
        match self.keys.recv_timeout(within) {
            Ok(key) => key.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A terminal as ratatui writes to it. Dropped, it is the shell's again.
struct Console(Term);

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.0.flush();
        leave();
    }
}

impl Backend for Console {
    type Error = io::Error;

    fn draw<'a, I: Iterator<Item = (u16, u16, &'a Cell)>>(&mut self, cells: I) -> io::Result<()> {
        let mut text = String::new();
        for (x, y, cell) in cells {
            let weight = if cell.modifier.contains(Modifier::BOLD) { ";1" } else { "" };
            let (row, column, colour) = (y + 1, x + 1, code(cell.fg));
            text += &format!("\u{1b}[{row};{column}H\u{1b}[0{weight};{colour}m{}", cell.symbol());
        }
        self.0.write_str(&text)
    }

    fn hide_cursor(&mut self) -> io::Result<()> {
        self.0.hide_cursor()
    }

    fn show_cursor(&mut self) -> io::Result<()> {
        self.0.show_cursor()
    }

    /// It is never shown.
    fn get_cursor_position(&mut self) -> io::Result<Position> {
        Ok(Position::ORIGIN)
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, at: P) -> io::Result<()> {
        let Position { x, y } = at.into();
        self.0.move_cursor_to(x.into(), y.into())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.0.clear_screen()
    }

    /// The whole screen is drawn, so whatever is asked for, all of it may go.
    fn clear_region(&mut self, _region: ClearType) -> io::Result<()> {
        self.clear()
    }

    fn size(&self) -> io::Result<Size> {
        let (rows, columns) = self.0.size();
        Ok(Size::new(columns, rows))
    }

    fn window_size(&mut self) -> io::Result<WindowSize> {
        Ok(WindowSize { columns_rows: self.size()?, pixels: Size::default() })
    }

    fn flush(&mut self) -> io::Result<()> {
        Write::flush(&mut self.0)
    }
}

/// The colours of the view; any other is the terminal's own.
fn code(colour: Color) -> u8 {
    match colour {
        Color::Cyan => 36,
        Color::Yellow => 33,
        Color::DarkGray => 90,
        _ => 39,
    }
}
