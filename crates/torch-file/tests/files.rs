//! Files of PyTorch 2.15, whose values `tests/fixtures/torch-file/generate.py` recorded, and damaged ones.

use std::{collections::BTreeMap, fs, io::Write, path::PathBuf};

use fpo_torch_file::{Dtype, Error, TorchFile, Value};
use proptest::prelude::*;
use serde::Deserialize;
use zip::{ZipArchive, ZipWriter, write::FileOptions};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/torch-file").join(name)
}

#[derive(Deserialize)]
struct Expected {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Oracle: PyTorch's values of the same tensors.
#[test]
fn tensors_are_those_of_pytorch() {
    let text = fs::read_to_string(fixture("expected.json")).unwrap();
    let expected: BTreeMap<String, Expected> = serde_json::from_str(&text).unwrap();
    for name in ["current.pt", "legacy.pt", "protocol_4.pt"] {
        let file = TorchFile::open(&fixture(name)).unwrap();
        let model = file.root().get("model").unwrap().tensors();
        assert_eq!(model.len(), expected.len() + 2, "{name}");
        for (tensor_name, expected) in &expected {
            let tensor = model[tensor_name];
            let count = tensor.elements();
            assert_eq!(tensor.shape(), expected.shape, "{name}: {tensor_name}");
            let values = file.read(tensor, 0..count).unwrap();
            assert_eq!(values, expected.values, "{name}: {tensor_name}");
            // Some of them, and reading again.
            let part = file.read(tensor, count / 3..count).unwrap();
            assert_eq!(part, expected.values[count / 3..], "{name}: {tensor_name}");
            assert!(file.read(tensor, 0..count + 1).is_err());
        }
        assert_eq!(model["double"].dtype(), Dtype::F64);
        assert_eq!(model["bfloat16"].dtype(), Dtype::BF16);
        assert_eq!(model["mask"].dtype(), Dtype::Bool);
        assert_eq!((model["whole"].dtype(), model["whole"].shape()), (Dtype::I64, &[5][..]));
        let message = file.read(model["whole"], 0..5).unwrap_err().to_string();
        assert!(message.contains("I64"), "{message}");
    }
}

/// Oracle: the dictionary in `generate.py`.
#[test]
fn containers_and_scalars_are_those_of_python() {
    for name in ["current.pt", "legacy.pt", "protocol_4.pt"] {
        let file = TorchFile::open(&fixture(name)).unwrap();
        let root = file.root();
        let list = |values: &[Value]| Value::List(values.to_vec());
        let cases = [
            ("step", Value::Int(123_456_789_012)),
            ("epoch", Value::Int(70_000)),
            ("negative", Value::Int(-3)),
            ("rate", Value::Float(1e-3)),
            ("name", Value::Text("résumé".into())),
            ("best", Value::None),
            ("done", Value::Bool(true)),
            ("shape", list(&[Value::Int(3), Value::Int(4)])),
            ("losses", list(&[Value::Float(1.5), Value::Float(1.25)])),
            ("dtype", Value::Text("torch.bfloat16".into())),
        ];
        for (key, expected) in cases {
            assert_eq!(root.get(key), Some(&expected), "{name}");
        }
        let Value::Dict(entries) = root else { panic!("{root:?}") };
        assert_eq!(entries.last(), Some(&(Value::Int(7), Value::Text("seven".into()))));
        let paths = root.tensors();
        assert_eq!(file.read(paths["layers.0.w"], 0..2).unwrap(), [1.0, 1.0]);
        assert!(paths.contains_key("model.weight") && paths.contains_key("layers.1.w"));
    }
}

/// What isn't tensors and containers is refused by its name.
#[test]
fn what_could_run_is_refused_by_name() {
    let cases = [
        ("command.pt", "`posix.system`"),
        ("command_legacy.pt", "`posix.system`"),
        ("module.pt", "`torch.nn.modules.linear.Linear`"),
        ("script.pt", "TorchScript"),
    ];
    for (name, expected) in cases {
        match TorchFile::open(&fixture(name)) {
            Err(error @ Error::Refused { .. }) => {
                assert!(error.to_string().contains(expected), "{name}: {error}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// A file that stops anywhere, or holds something else.
#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.pt");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        TorchFile::open(&path)
    };
    for name in ["current.pt", "legacy.pt"] {
        let whole = fs::read(fixture(name)).unwrap();
        // Zip archives end with their directory. A comment of no bytes is its last part.
        for length in (0..whole.len() - 1).step_by(7) {
            assert!(open(&whole[..length]).is_err(), "{name}: {length} bytes");
        }
    }
    let message = open(b"version https://git-lfs.github.com/spec/v1").unwrap_err().to_string();
    assert!(message.contains("not a file of torch.save"), "{message}");
    assert!(matches!(TorchFile::open(&folder.path().join("none")), Err(Error::Io { .. })));
}

/// The archive of a pickle and one storage.
fn archive(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let mut archive = ZipWriter::new(&mut bytes);
    let stored = FileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in [("a/data.pkl", pickle), ("a/data/0", storage)] {
        archive.start_file(name, stored).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap();
    drop(archive);
    bytes.into_inner()
}

fn open(bytes: &[u8]) -> Result<TorchFile, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    TorchFile::open(file.path())
}

/// Pickles written for the purpose, each an error that says why.
#[test]
fn hostile_pickles_are_errors() {
    let tensor = |sizes: &[u8]| {
        let mut pickle =
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\n"
                .to_vec();
        pickle.extend(b"U\x010U\x03cpuK\x04tQ");
        pickle.extend(sizes);
        pickle.extend(b"tR.");
        pickle
    };
    // Ten levels of lists that hold the level below ten times.
    let mut laughs = b"\x80\x02]q\x00".to_vec();
    for level in 0..10u8 {
        laughs.extend(b"](");
        laughs.extend([b'h', level].repeat(10));
        laughs.extend([b'e', b'q', level + 1]);
    }
    laughs.push(b'.');
    let cases: [(&str, Vec<u8>, &str); 10] = [
        ("fits", tensor(b"K\x00K\x04\x85K\x01\x85"), ""),
        ("too long", tensor(b"K\x00K\x05\x85K\x01\x85"), "doesn't fit"),
        ("too far", tensor(b"K\x01K\x04\x85K\x01\x85"), "doesn't fit"),
        ("negative", tensor(b"J\xff\xff\xff\xff]]"), "expected a size"),
        ("within itself", b"\x80\x02]q\x00h\x00a.".to_vec(), "within themselves"),
        ("too many", laughs, "objects"),
        ("below a mark", b"\x80\x02N(0.".to_vec(), "0x30"),
        ("empty", b"\x80\x02.".to_vec(), "empty stack"),
        (
            "eval",
            b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.".to_vec(),
            "`builtins.eval`",
        ),
        ("new object", b"\x80\x02ccollections\nOrderedDict\n)\x81.".to_vec(), "0x81"),
    ];
    for (name, pickle, expected) in cases {
        let result = open(&archive(&pickle, &[0; 16]));
        match (expected, result) {
            ("", Ok(_)) => {}
            (_, Err(error)) => {
                assert!(
                    !expected.is_empty() && error.to_string().contains(expected),
                    "{name}: {error}"
                );
            }
            (_, Ok(file)) => panic!("{name}: {:?}", file.root()),
        }
    }
    // The storage that the pickle describes has to be in the file.
    let pickle = tensor(b"K\x00K\x04\x85K\x01\x85");
    let message = open(&archive(&pickle, &[0; 15])).unwrap_err().to_string();
    assert!(message.contains("has 15 bytes"), "{message}");
}

/// The pickle of a recorded file, and everything else of it.
fn recorded_pickle() -> Vec<u8> {
    let file = fs::File::open(fixture("current.pt")).unwrap();
    let mut archive = ZipArchive::new(file).unwrap();
    let mut bytes = Vec::new();
    std::io::copy(&mut archive.by_name("current/data.pkl").unwrap(), &mut bytes).unwrap();
    bytes
}

/// Reads all that can be read of what was opened.
fn exhaust(result: Result<TorchFile, Error>) {
    if let Ok(file) = result {
        for tensor in file.root().tensors().values() {
            let _ = file.read(tensor, 0..tensor.elements().min(1000));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever bytes are changed, nothing panics.
    #[test]
    fn changed_files_never_panic(
        name in prop::sample::select(vec!["current.pt", "legacy.pt", "protocol_4.pt"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = fs::read(fixture(name)).unwrap();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        exhaust(open(&bytes));
    }

    /// The same for the pickle alone, in an archive whose sums are right.
    #[test]
    fn changed_pickles_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        removed in 0..4usize,
    ) {
        let mut pickle = recorded_pickle();
        for (place, byte) in changes {
            let place = place.index(pickle.len());
            pickle[place] = byte;
        }
        let cut = cut.index(pickle.len() - removed);
        pickle.drain(cut..cut + removed);
        exhaust(open(&archive(&pickle, &[0; 256])));
    }

    /// And for bytes that are nearly all instructions.
    #[test]
    fn instructions_in_any_order_never_panic(
        pickle in prop::collection::vec(
            prop::sample::select(b"(NKJM\x8aGXU)]}\x85\x86\x87taesuqrhj\x94\x93RbQ\x00\x01\x02c\n.".to_vec()),
            0..200,
        ),
    ) {
        exhaust(open(&archive(&pickle, &[0; 256])));
    }
}
