//! Activations on disk: one Arrow file per buffer with one column per site, so that several autoencoders train on one forward pass
//! of the model.

use std::{
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use arrow_array::{Array, ArrayRef, FixedSizeListArray, Float16Array, Float32Array, RecordBatch};
use arrow_ipc::{reader::FileReader, writer::FileWriter};
use arrow_schema::{DataType, Field, Schema};
use fpo_data::{Fingerprint, atomic, hash};
use serde::{Deserialize, Serialize};

use super::{Block, Source};

const MANIFEST: &str = "activations.json";
/// Rows of a record batch.
const ROWS: usize = 65_536;

/// Type of stored activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// 2 bytes per element; magnitudes up to 65,504.
    Float16,
    /// 4 bytes per element.
    #[default]
    Float32,
}

impl Stored {
    const ALL: [Self; 2] = [Self::Float16, Self::Float32];

    const fn name(self) -> &'static str {
        match self {
            Self::Float16 => "float16",
            Self::Float32 => "float32",
        }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Stored {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|stored| stored.name() == text);
        found.ok_or_else(|| {
            format!("no type `{text}`: activations are stored as float16 or float32")
        })
    }
}

/// Description of the shards in a folder.
#[derive(Serialize, Deserialize)]
struct Manifest {
    made_from: Fingerprint,
    #[serde(rename = "precision")]
    stored: Stored,
    sites: Vec<String>,
}

/// A folder of shards.
pub struct Shards {
    folder: PathBuf,
    stored: Stored,
    /// Name and width of each site that is read.
    columns: Vec<(String, usize)>,
    /// The folder also holds other sites, so that no part can be added.
    more: bool,
}

impl Shards {
    /// Opens or creates a folder.
    ///
    /// # Errors
    /// The folder holds activations from other inputs; they are not overwritten.
    pub fn open(
        folder: &Path,
        source: &Source<'_>,
        stored: Stored,
        made_from: Fingerprint,
    ) -> Result<Self> {
        let config = source.model.config();
        let columns: Vec<(String, usize)> =
            source.sites.iter().map(|site| (site.to_string(), site.width(config))).collect();
        let sites: Vec<String> = columns.iter().map(|(name, _)| name.clone()).collect();
        let path = folder.join(MANIFEST);
        let manifest = match path.exists() {
            true => read_manifest(&path, &made_from, &sites)?,
            false => {
                let manifest = Manifest { made_from, stored, sites: sites.clone() };
                let text = serde_json::to_string_pretty(&manifest)? + "\n";
                atomic::write_file(&path, |file| -> Result<()> {
                    Ok(std::io::Write::write_all(file, text.as_bytes())?)
                })?;
                manifest
            }
        };
        let more = manifest.sites != sites;
        Ok(Self { folder: folder.to_owned(), stored: manifest.stored, columns, more })
    }

    fn path(&self, part: usize) -> PathBuf {
        self.folder.join(format!("part-{part:05}.arrow"))
    }

    fn schema(&self) -> Arc<Schema> {
        let fields = self.columns.iter().map(|(name, width)| {
            let list = DataType::FixedSizeList(self.item(), *width as i32);
            Field::new(name, list, false)
        });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    fn item(&self) -> Arc<Field> {
        let number = match self.stored {
            Stored::Float16 => DataType::Float16,
            Stored::Float32 => DataType::Float32,
        };
        Arc::new(Field::new("item", number, false))
    }

    /// Writes a part atomically, then a file with its hash.
    pub fn write(&self, part: usize, blocks: &[Block]) -> Result<()> {
        if self.more {
            bail!(
                "{} is incomplete: finish training all of its sites first, or choose another folder",
                self.folder.display()
            );
        }
        let (path, schema) = (self.path(part), self.schema());
        let rows = blocks.first().map_or(0, Block::tokens);
        atomic::write_file(&path, |file| -> Result<()> {
            let mut writer = FileWriter::try_new(file, &schema)?;
            for start in (0..rows).step_by(ROWS) {
                let rows = start..(start + ROWS).min(rows);
                let columns: Result<Vec<ArrayRef>> =
                    blocks.iter().map(|block| self.column(block, rows.clone())).collect();
                writer.write(&RecordBatch::try_new(schema.clone(), columns?)?)?;
            }
            Ok(writer.finish()?)
        })
        .with_context(|| format!("writing {}", path.display()))?;
        let digest = hash::hash_file(&path)?;
        atomic::write_file(&path.with_extension("blake3"), |file| -> Result<()> {
            Ok(std::io::Write::write_all(file, digest.as_bytes())?)
        })
    }

    fn column(&self, block: &Block, rows: std::ops::Range<usize>) -> Result<ArrayRef> {
        let values = &block.values[rows.start * block.width..rows.end * block.width];
        let numbers: ArrayRef = match self.stored {
            Stored::Float32 => Arc::new(Float32Array::from(values.to_vec())),
            Stored::Float16 => {
                let half: Vec<half::f16> = values.iter().map(|&x| half::f16::from_f32(x)).collect();
                if half.iter().any(|x| !x.is_finite()) {
                    bail!(
                        "an activation exceeds the range of float16; store activations as float32"
                    );
                }
                Arc::new(Float16Array::from(half))
            }
        };
        let width = block.width as i32;
        Ok(Arc::new(FixedSizeListArray::try_new(self.item(), width, numbers, None)?))
    }

    /// Reads a part; `None` if it isn't completely written.
    pub fn read(&self, part: usize) -> Result<Option<Vec<Block>>> {
        let path = self.path(part);
        let Ok(digest) = fs::read_to_string(path.with_extension("blake3")) else { return Ok(None) };
        // Validates the whole file before Arrow parses it.
        if hash::hash_file(&path)? != digest {
            bail!("{} is damaged; delete it to recreate it", path.display());
        }
        let file = File::open(&path).with_context(|| format!("reading {}", path.display()))?;
        let reader = FileReader::try_new(file, None)
            .with_context(|| format!("reading {}", path.display()))?;
        let schema = reader.schema();
        let find = |(name, _): &(String, usize)| {
            let found = schema.index_of(name).ok();
            let expected = self.schema();
            let found =
                found.filter(|&at| expected.field_with_name(name).ok() == Some(schema.field(at)));
            found.with_context(|| {
                format!("{}: no column `{name}` of the right type", path.display())
            })
        };
        let at: Vec<usize> = self.columns.iter().map(find).collect::<Result<_>>()?;
        let mut blocks: Vec<Block> = Vec::new();
        blocks
            .extend(self.columns.iter().map(|(_, width)| Block { values: vec![], width: *width }));
        for batch in reader {
            let batch = batch.with_context(|| format!("reading {}", path.display()))?;
            for (block, &at) in blocks.iter_mut().zip(&at) {
                append(&mut block.values, batch.column(at).as_ref())
                    .with_context(|| format!("{}: unexpected column", path.display()))?;
            }
        }
        Ok(Some(blocks))
    }
}

/// Reads the manifest and checks that the shards come from the same inputs and include the sites.
fn read_manifest(path: &Path, made_from: &Fingerprint, sites: &[String]) -> Result<Manifest> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let manifest: Manifest =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let differences: Vec<String> =
        made_from.differences(&manifest.made_from).into_iter().map(|d| d.item).collect();
    if !differences.is_empty() {
        bail!(
            "{} belongs to activations with another {}; delete its folder or choose another",
            path.display(),
            differences.join(", ")
        );
    }
    // With a limit on norms, the positions depend on the sites: an outlier at one site is left out at all.
    let independent = made_from.0.get("max_norm").is_none_or(|limit| limit == "None");
    let among = independent && sites.iter().all(|site| manifest.sites.contains(site));
    if manifest.sites != sites && !among {
        bail!(
            "{} belongs to activations of {}, not of {}",
            path.display(),
            manifest.sites.join(", "),
            sites.join(", ")
        );
    }
    Ok(manifest)
}

fn append(values: &mut Vec<f32>, column: &dyn Array) -> Option<()> {
    let list = column.as_any().downcast_ref::<FixedSizeListArray>()?;
    let numbers = list.values().as_any();
    if let Some(numbers) = numbers.downcast_ref::<Float32Array>() {
        values.extend_from_slice(numbers.values());
    } else {
        let numbers = numbers.downcast_ref::<Float16Array>()?;
        values.extend(numbers.values().iter().map(|x| x.to_f32()));
    }
    Some(())
}
