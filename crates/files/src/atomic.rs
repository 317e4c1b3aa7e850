//! Atomic writes of files and folders.
//!
//! Content goes to a temporary neighbour, which is flushed to disk and renamed. A reader, or a run restarted after a crash, sees
//! either the old content or the new, never a part of it. What isn't a regular file, such as a pipe or `/dev/stdout`, can't be replaced:
//! it is written into.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Why a file or folder could not be written or read. Whatever was there before is untouched.
#[derive(Debug, thiserror::Error)]
#[error("{}: can't {action}{}", path.display(), advice(source))]
pub struct AtomicError {
    /// The file or folder.
    pub path: PathBuf,
    /// What was attempted, as in "can't …".
    pub action: &'static str,
    /// The I/O error.
    pub source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; the disk is full: free some space and try again",
        io::ErrorKind::QuotaExceeded => {
            "; the disk quota is used up: free some space and try again"
        }
        io::ErrorKind::PermissionDenied => "; this user has no permission to write there",
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is read-only",
        _ => "",
    }
}

/// Adds the path and the attempted action to an I/O error.
pub fn context<T>(
    path: &Path,
    action: &'static str,
    result: io::Result<T>,
) -> Result<T, AtomicError> {
    result.map_err(|source| AtomicError { path: path.to_owned(), action, source })
}

/// Temporary files and folders that exist now.
static TEMPORARIES: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A temporary file or folder of this process, for as long as it is one.
struct Temporary(PathBuf);

impl Temporary {
    fn new(path: &Path) -> Self {
        let mut all = TEMPORARIES.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        TEMPORARIES.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Removes what this process has begun to write, for a process that ends before it has finished.
pub fn remove_temporaries() {
    for path in &*TEMPORARIES.lock().unwrap_or_else(PoisonError::into_inner) {
        // What can't be removed is left behind, as after a kill.
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

/// The target of a temporary neighbour, by its name: `report.html` for `.report.html.x3Fq9Z`.
pub fn temporary_of(name: &str) -> Option<&str> {
    let (target, random) = name.strip_prefix('.')?.rsplit_once('.')?;
    let random = random.strip_prefix("old-").unwrap_or(random);
    let is_random = random.len() == 6 && random.bytes().all(|b| b.is_ascii_alphanumeric());
    (is_random && !target.is_empty()).then_some(target)
}

/// Where the content of a file goes.
enum Destination {
    /// A file that is replaced, or created.
    File(PathBuf),
    /// Something that is written into: a pipe, a terminal, a device. Whoever opens a pipe is waited for.
    Stream(PathBuf),
}

impl Destination {
    /// Follows symbolic links, so that a link stays one.
    fn of(path: &Path) -> io::Result<Self> {
        const LONGEST: usize = 40;
        let mut path = path.to_owned();
        for _ in 0..LONGEST {
            // These name what a process has open, whatever it is.
            if path == Path::new("/dev/stdout") || path.starts_with("/proc/self/fd") {
                return Ok(Self::Stream(path));
            }
            // What can't be looked at is refused where it is written.
            let Ok(found) = fs::symlink_metadata(&path) else { break };
            if found.is_symlink() {
                let target = fs::read_link(&path)?;
                path = path.parent().map_or_else(|| target.clone(), |parent| parent.join(&target));
            } else if found.is_file() || found.is_dir() {
                break;
            } else {
                return Ok(Self::Stream(path));
            }
        }
        Ok(Self::File(path))
    }
}

/// Opens something that is written into. Standard output is shared rather than opened again, which would write over what a shell has
/// already put into the file behind it.
fn open_stream(path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    if path == Path::new("/dev/stdout") || path == Path::new("/proc/self/fd/1") {
        use std::os::fd::AsFd;
        return Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?));
    }
    fs::OpenOptions::new().append(true).open(path)
}

/// Writes a file atomically. Creates its parent folder if needed. A symbolic link is followed; what isn't a regular file is written
/// into.
///
/// # Errors
/// The error of `write`, or an [`AtomicError`]; the file at `path` is then unchanged.
pub fn write_file<T, E: From<AtomicError>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<T, E>,
) -> Result<T, E> {
    match context(path, "open it", Destination::of(path))? {
        Destination::File(path) => replace_file(&path, write),
        Destination::Stream(stream) => {
            let file = context(path, "open it", open_stream(&stream))?;
            let mut writer = BufWriter::with_capacity(1 << 16, file);
            let value = write(&mut writer)?;
            context(path, "write", writer.flush())?;
            Ok(value)
        }
    }
}

/// Whether [`write_file`] could write there now, for programs that find out before the work. Nothing is left, and no pipe is opened.
///
/// # Errors
/// A folder in its place, or one that can't be written to.
pub fn check_file(path: &Path) -> Result<(), AtomicError> {
    if let Destination::File(path) = context(path, "open it", Destination::of(path))? {
        if path.is_dir() {
            return context(&path, "write", Err(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        // Folders that are missing would be made in the first that isn't.
        let parent = parent_of(&path);
        let found = parent.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
        let temporary = beside(&path, 0o666, "", |new| new.tempfile_in(found));
        context(&path, "create a temporary file next to it", temporary)?;
    }
    Ok(())
}

fn replace_file<T, E: From<AtomicError>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<T, E>,
) -> Result<T, E> {
    let parent = prepare_parent(path)?;
    let temporary = context(
        path,
        "create a temporary file next to it",
        beside(path, 0o666, "", |new| new.tempfile_in(&parent)),
    )?;
    let _listed = Temporary::new(temporary.path());
    let mut writer =
        BufWriter::with_capacity(1 << 20, context(path, "write", temporary.as_file().try_clone())?);
    let value = write(&mut writer)?;
    context(path, "write", writer.flush())?;
    context(path, "flush it to disk", temporary.as_file().sync_all())?;
    context(
        path,
        "rename the finished file",
        temporary.persist(path).map_err(|error| error.error),
    )?;
    context(path, "flush its folder to disk", sync_dir(&parent))?;
    Ok(value)
}

/// Creates or replaces a folder atomically: `fill` writes into an empty folder next to it.
///
/// An existing folder at `path` is moved aside and removed once the new one is in place. (A crash between the two renames leaves
/// the complete old folder next to the target, as `.NAME.old-…`.)
///
/// # Errors
/// The error of `fill`, or an [`AtomicError`]; the folder at `path` is then unchanged.
pub fn replace_dir<T, E: From<AtomicError>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let parent = prepare_parent(path)?;
    let temporary = context(
        path,
        "create a temporary folder next to it",
        beside(path, 0o777, "", |new| new.tempdir_in(&parent)),
    )?;
    let _listed = Temporary::new(temporary.path());
    let value = fill(temporary.path())?;
    context(path, "flush it to disk", sync_tree(temporary.path()))?;

    let aside = context(
        path,
        "create a temporary folder next to it",
        beside(path, 0o777, "old-", |new| new.tempdir_in(&parent)),
    )?;
    let old = aside.path().join("replaced");
    let moved = match fs::rename(path, &old) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(source) => {
            return Err(AtomicError {
                path: path.to_owned(),
                action: "move the old folder aside",
                source,
            }
            .into());
        }
    };
    if let Err(source) = fs::rename(temporary.path(), path) {
        if moved && fs::rename(&old, path).is_err() {
            // Neither rename worked: leave the old content where the user can find it.
            let _kept = aside.keep();
        }
        return Err(AtomicError {
            path: path.to_owned(),
            action: "rename the finished folder",
            source,
        }
        .into());
    }
    // Its content is at `path` now, so there is nothing to remove.
    let _moved = temporary.keep();
    context(path, "flush its folder to disk", sync_dir(&parent))?;
    Ok(value)
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn prepare_parent(path: &Path) -> Result<PathBuf, AtomicError> {
    let parent = parent_of(path);
    context(path, "create its parent folder", fs::create_dir_all(&parent))?;
    Ok(parent)
}

/// Creates a hidden neighbour of the target, named `.NAME.{note}…`.
///
/// `mode` is narrowed by the user's `umask`; tempfile's own default would lock other users out of the result.
fn beside<T>(
    path: &Path,
    mode: u32,
    note: &str,
    create: impl FnOnce(&tempfile::Builder<'_, '_>) -> io::Result<T>,
) -> io::Result<T> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.{note}");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    create(&builder)
}

/// Flushes every file and folder of a tree to disk.
fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else if entry.file_type()?.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(folder)
}

/// Flushes a folder's entries to disk. Only Unix supports it, and only Unix needs it.
fn sync_dir(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(path: &Path) -> AtomicError {
        AtomicError {
            path: path.to_owned(),
            action: "write",
            source: io::ErrorKind::StorageFull.into(),
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/file");
        for content in ["one", "two"] {
            let length = write_file(&path, |file| {
                context(&path, "write", file.write_all(content.as_bytes()))?;
                Ok::<_, AtomicError>(content.len())
            });
            assert_eq!(length.unwrap(), 3);
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        let failed: Result<(), AtomicError> = write_file(&path, |file| {
            context(&path, "write", file.write_all(b"half"))?;
            Err(refuse(&path))
        });
        let error = failed.unwrap_err().to_string();
        assert!(error.contains("file: can't write; the disk is full"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(names(path.parent().unwrap()), ["file"], "no leftovers");
    }

    #[test]
    fn a_check_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["new", "new/deeper/file"] {
            check_file(&folder.path().join(name)).unwrap();
        }
        let error = check_file(folder.path()).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::IsADirectory, "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let file = folder.path().join("file");
        fs::write(&file, "old").unwrap();
        check_file(&file).unwrap();
        assert!(check_file(&file.join("below")).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"old");
    }

    #[test]
    fn a_folder_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/stage");
        let write = |new: &Path, name: &str| {
            fs::create_dir(new.join("inner")).unwrap();
            fs::write(new.join("inner").join(name), name).unwrap();
        };
        for name in ["one", "two"] {
            replace_dir(&path, |new| {
                write(new, name);
                Ok::<_, AtomicError>(())
            })
            .unwrap();
            assert_eq!(names(&path.join("inner")), [name]);
        }
        let failed: Result<(), AtomicError> = replace_dir(&path, |new| {
            write(new, "three");
            Err(refuse(&path))
        });
        assert!(failed.is_err());
        assert_eq!(names(&path.join("inner")), ["two"]);
        assert_eq!(names(path.parent().unwrap()), ["stage"], "no leftovers");
    }

    #[test]
    #[cfg(unix)]
    fn links_stay_links_and_pipes_are_written_into() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, content: &str| {
            write_file(&path(name), |file| {
                context(&path(name), "write", file.write_all(content.as_bytes()))
            })
            .unwrap();
        };
        fs::write(path("file"), "old").unwrap();
        for (link, target) in [("link", "file"), ("chain", "link"), ("dangling", "new")] {
            std::os::unix::fs::symlink(target, path(link)).unwrap();
        }
        write("chain", "through two links");
        write("dangling", "created");
        assert_eq!(fs::read_to_string(path("file")).unwrap(), "through two links");
        assert_eq!(fs::read_to_string(path("new")).unwrap(), "created");
        for link in ["link", "chain", "dangling"] {
            assert!(fs::symlink_metadata(path(link)).unwrap().is_symlink(), "{link}");
        }

        let made = std::process::Command::new("mkfifo").arg(path("pipe")).status();
        assert!(made.unwrap().success());
        let pipe = path("pipe");
        let reader = std::thread::spawn(move || fs::read_to_string(pipe).unwrap());
        write("pipe", "piped");
        assert_eq!(reader.join().unwrap(), "piped");
        assert!(!fs::metadata(path("pipe")).unwrap().is_file(), "the pipe was replaced");
        write_file(Path::new("/dev/null"), |_| Ok::<_, AtomicError>(())).unwrap();
    }

    #[test]
    fn temporaries_are_known_by_their_names() {
        for (name, target) in [
            (".report.html.x3Fq9Z", Some("report.html")),
            (".sft.old-AbCdE1", Some("sft")),
            (".step-00000100.000000", Some("step-00000100")),
            ("report.html", None),
            (".lock", None),
            (".config.backups", None),
            ("..x3Fq9Z", None),
            (".sft.x3Fq9!", None),
        ] {
            assert_eq!(temporary_of(name), target, "{name}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_file(&path, |_| {
            let listed = names(folder.path());
            assert_eq!(listed.len(), 1);
            assert_eq!(temporary_of(&listed[0]), Some("file"));
            Ok::<_, AtomicError>(())
        })
        .unwrap();
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    #[cfg(unix)]
    fn the_umask_decides_who_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (plain, atomic) = (folder.path().join("plain"), folder.path().join("atomic"));
        fs::write(&plain, "").unwrap();
        write_file(&atomic, |_| Ok::<_, AtomicError>(())).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&plain), mode(&atomic));
    }

    #[test]
    fn an_unwritable_place_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let below: Result<(), AtomicError> = write_file(&file.join("below"), |_| Ok(()));
        let error = below.unwrap_err();
        assert!(error.to_string().contains("below: can't create its parent folder"), "{error}");
        let onto: Result<(), AtomicError> = write_file(folder.path(), |_| Ok(()));
        assert!(onto.unwrap_err().to_string().contains("can't rename the finished file"));
    }
}
