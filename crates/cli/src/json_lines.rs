//! JSON lines as output.

use std::{io::Write, path::Path};

use anyhow::Result;
use fpo_data::atomic;
use serde::Serialize;

/// Writes one line of JSON per value; on error the file stays as it was.
pub fn write(path: &Path, lines: &[impl Serialize]) -> Result<()> {
    atomic::write_file(path, |file| -> Result<()> {
        for line in lines {
            serde_json::to_writer(&mut *file, line)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })
}
