//! The tensors in a file of `torch.save`: names, types and shapes. Nothing in the file is run.

use std::{error::Error, path::Path};

use fpo_torch_file::TorchFile;

fn main() -> Result<(), Box<dyn Error>> {
    let recorded =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/torch-file/current.pt");
    let path = std::env::args().nth(1).unwrap_or_else(|| recorded.to_owned());
    let file = TorchFile::open(Path::new(&path))?;
    for (name, tensor) in file.root().tensors() {
        println!("{name}: {tensor:?}");
    }
    Ok(())
}
