//! A folder that appears only once everything in it is written, with a fingerprint of what it was made from.

use std::{error::Error, fs};

use fpo_files::{atomic, hash};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("fpo-files-{}", std::process::id()));
    let failed: Result<(), Box<dyn Error>> = atomic::replace_dir(&folder, |output| {
        fs::write(output.join("half.txt"), "half of it")?;
        Err("the disk is full".into())
    });
    println!("{:?}; the folder is there: {}", failed, folder.exists());

    atomic::replace_dir(&folder, |output| -> Result<(), Box<dyn Error>> {
        Ok(fs::write(output.join("whole.txt"), "all of it")?)
    })?;
    println!("{}", hash::hash_folder(&folder)?);
    fs::remove_dir_all(&folder)?;
    Ok(())
}
