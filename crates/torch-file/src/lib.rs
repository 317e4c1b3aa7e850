//! Files of `torch.save` (`pytorch_model.bin`, `.pt`, `.pth`), read without Python.
//!
//! Such a file is a zip archive with the elements of every tensor and one pickle, which says how objects are made of them; files
//! from before PyTorch 1.6 hold the same one after the other. A pickle is a program: Python's own reader calls whatever function
//! it names. The machine here knows how to build tensors, dictionaries, lists, text and numbers, and that is all it
//! can do.
//!
//! # Invariants
//! * Nothing in a file is run or looked up. Every function and class other than those of tensors is refused by its name.
//! * Any bytes end in a value or an error, with memory and time in proportion to a bounded pickle.
//! * Elements stay in the file, which is memory-mapped, until [`TorchFile::read`] asks for some of them. A tensor that was made
//!   lies within its storage.
//! * Knows no model and no other crate of the workspace.

mod archive;
mod legacy;
mod pickle;
mod tensor;
mod value;

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use thiserror::Error;

pub use crate::{
    tensor::{Dtype, Tensor},
    value::Value,
};

/// Why a file wasn't read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system's answer.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A damaged file, or one of another kind.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A pickle that does more than building tensors and containers.
    #[error(
        "{}: the pickle asks for {what}, which is refused: unpickling can run code. Read are tensors, dictionaries, lists, text \
         and numbers; save those alone, as torch.save(model.state_dict(), …) does, or as safetensors",
        path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// The function, class or instruction.
        what: String,
    },
}

/// What went wrong in a part of a file, before its path is added.
#[derive(Debug)]
pub(crate) enum Problem {
    Damaged(String),
    Refused(String),
}

impl Problem {
    fn at(self, path: &Path) -> Error {
        let path = path.to_owned();
        match self {
            Self::Damaged(message) => Error::Format { path, message },
            Self::Refused(what) => Error::Refused { path, what },
        }
    }
}

/// An open file and the objects in it.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    map: Mmap,
    root: Value,
}

impl TorchFile {
    /// Opens a file of either layout and builds its objects. Elements of tensors are not read yet.
    ///
    /// # Errors
    /// A file that can't be read, is damaged or of another kind, or whose pickle asks for anything but tensors and containers.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is only read. If the file shrinks meanwhile, the process ends, as with every program that maps
        // checkpoints.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let root = parse(&map).map_err(|problem| problem.at(path))?;
        Ok(Self { path: path.to_owned(), map, root })
    }

    /// The object that was saved: usually a dictionary from parameters' names to tensors.
    pub fn root(&self) -> &Value {
        &self.root
    }

    /// Some elements of a tensor of this file, given by their positions in the flattened tensor, in float32. Their pages are
    /// released, so that the file is never in memory a second time; reading them again goes to the disk.
    ///
    /// # Errors
    /// Elements that aren't floating-point numbers, or positions beyond the tensor.
    pub fn read(&self, tensor: &Tensor, places: Range<usize>) -> Result<Vec<f32>, Error> {
        let values = tensor.floats(&self.map, places);
        self.release(tensor.bytes());
        values.map_err(|message| Error::Format { path: self.path.clone(), message })
    }

    fn release(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        if bytes.end <= self.map.len() {
            let advice = UncheckedAdvice::DontNeed;
            // SAFETY: the map is a read-only view of a file, so its pages can be read again.
            let _ = unsafe { self.map.unchecked_advise_range(advice, bytes.start, bytes.len()) };
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }
}

fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    if bytes.starts_with(b"PK\x03\x04") {
        return archive::parse(bytes);
    }
    if bytes.starts_with(&legacy::MAGIC) {
        return legacy::parse(bytes);
    }
    Err(Problem::Damaged(
        "not a file of torch.save: neither a zip archive nor its older layout".into(),
    ))
}
