//! `fpo activations`: the activations at a site for every token, in a safetensors file.

use std::{
    io::Write,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use burn::tensor::{Int, Tensor, TensorData};
use clap::Args;
use fpo_data::atomic;
use fpo_transformer::{LanguageModel, Site};
use serde_json::json;

use crate::{
    loaded::{ModelFolder, PlacementArgs},
    streams,
    terminal::reporter,
    tokens::{Sequence, TokenArgs},
};

/// Writes a model's activations at one site, for every token of a file
///
/// The output is a safetensors file with one row per token, in the order of the data and without padding.
/// With n tokens in total it holds
///   activations  float32 [n, width]  activations at the site
///   tokens       int64   [n]         token ids, special tokens included
///   sequence     int64   [n]         index of the sequence, from 0
///   position     int64   [n]         index in the sequence, from 0
///   special      bool    [n]         special tokens (BOS, EOS, padding), on which autoencoders aren't trained
///   response     bool    [n]         response tokens; all false for plain texts
///
/// Example:
///   fpo activations --model gemma-2-2b --data texts.txt --site resid_post:25 --out activations.safetensors
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = AFTER_HELP)]
pub struct Activations {
    /// Folder of the model in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Texts, examples or pairs; see below.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    data: PathBuf,
    /// KIND:LAYER, with layers counted from 0. The kinds are resid_post (the block's output, before the final norm), resid_pre (its
    /// input), mlp_out (the MLP's contribution to the residual stream, after its norm) and attn_z (the concatenated heads, before
    /// the output projection). Names of TransformerLens (blocks.25.hook_resid_post) and Hugging Face (model.layers.25) are read too.
    #[arg(long, value_name = "SITE")]
    site: Site,
    /// The safetensors file to write.
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    out: PathBuf,
    /// Sequences per forward pass.
    #[arg(long, default_value = "8", value_name = "SEQUENCES")]
    batch_size: NonZeroUsize,
    #[command(flatten)]
    tokens: TokenArgs,
    #[command(flatten)]
    placement: PlacementArgs,
}

const AFTER_HELP: &str = "\
Data formats, by file name and columns:
  * a .txt file: every non-empty line is a sequence, with BOS prepended and nothing appended;
  * JSON lines (plain or gzip) or Parquet with `text`: one sequence per row, tokenised the same way;
  * with `prompt` and `response` (or `completion`), or with `messages`: prompt and response as one sequence;
  * with `prompt`, `chosen`, `rejected`: two sequences per row, the chosen one first;
  * prepared/sft.arrow, train.arrow and held_out.arrow of a run, whose rows are tokenised already.
Prompts and responses are tokenised as in `fpo score` (see --rendering). `text` rows and lines of .txt files
never go through the chat template.

In transformers, resid_post:L is hidden_states[L + 1] for every layer except the last. For the last layer it
is the output of model.layers[L], because hidden_states[-1] comes after the final norm.";

impl Activations {
    pub fn run(self) -> Result<()> {
        streams::keep_apart(&self.out, &[&self.data, &self.model])?;
        let placement = self.placement.open()?;
        let folder = ModelFolder::open(&self.model)?.with_system(self.tokens.system);
        self.site.check(folder.config.num_hidden_layers)?;
        let sequences = self.tokens.read_sequences(&folder, &self.data)?;
        let model = folder.load(&placement)?;
        let pad = folder.tokenizer.pad_id();
        let total = sequences.iter().map(|s| s.tokens.len()).sum::<usize>();
        let layout = Layout { tokens: total, width: self.site.width(&folder.config) };
        let mut progress = reporter().begin("activations", "tokens", total, 0);
        atomic::write_file(&self.out, |file| -> Result<()> {
            file.write_all(&layout.header(self.site, &self.model)?)?;
            for batch in sequences.chunks(self.batch_size.get()) {
                let values = read(&model, self.site, batch, pad)?;
                ensure!(
                    values.iter().all(|x| x.is_finite()),
                    "the activations at {} are not finite",
                    self.site
                );
                write_floats(file, &values)?;
                progress.advance(batch.iter().map(|s| s.tokens.len()).sum(), "");
            }
            write_columns(file, &folder, &sequences)
        })?;
        progress.finish(&format!("{total} tokens of {} sequences", sequences.len()));
        Ok(())
    }
}

/// The activations of a batch without padding, `[tokens of all sequences, width]`, row-major.
fn read(model: &LanguageModel, site: Site, sequences: &[Sequence], pad: u32) -> Result<Vec<f32>> {
    let longest = sequences.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
    let mut ids = Vec::with_capacity(sequences.len() * longest);
    let mut kept = Vec::new();
    for (row, sequence) in sequences.iter().enumerate() {
        ids.extend(sequence.tokens.iter().map(|&id| id as i32));
        ids.resize((row + 1) * longest, pad as i32);
        kept.extend((0..sequence.tokens.len()).map(|t| (row * longest + t) as i32));
    }
    let device = model.device();
    let shape = [sequences.len(), longest];
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device);
    let count = kept.len();
    let kept = Tensor::<1, Int>::from_data(TensorData::new(kept, [count]), &device);
    let mut found = model.activations(ids, &[site]);
    let activations = found.remove(0);
    let [rows, tokens, width] = activations.dims();
    let activations = activations.reshape([rows * tokens, width]).select(0, kept);
    Ok(activations.into_data().iter::<f32>().collect())
}

/// The sizes of the output file. They are known before the first forward pass, so activations are written as they are computed.
struct Layout {
    tokens: usize,
    width: usize,
}

impl Layout {
    /// The safetensors header: its length in 8 bytes, then JSON. The tensors must follow in the order given here.
    fn header(&self, site: Site, model: &Path) -> Result<Vec<u8>> {
        let n = self.tokens;
        let mut header = serde_json::Map::new();
        header.insert(
            "__metadata__".into(),
            json!({ "format": "pt", "site": site.to_string(), "model": model.display().to_string() }),
        );
        let mut start = 0usize;
        for (name, dtype, shape, bytes) in [
            ("activations", "F32", vec![n, self.width], 4 * n * self.width),
            ("tokens", "I64", vec![n], 8 * n),
            ("sequence", "I64", vec![n], 8 * n),
            ("position", "I64", vec![n], 8 * n),
            ("special", "BOOL", vec![n], n),
            ("response", "BOOL", vec![n], n),
        ] {
            let offsets = [start, start + bytes];
            start += bytes;
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
            header.insert(name.into(), entry);
        }
        let mut json = serde_json::to_vec(&header)?;
        // Aligns the data to 8 bytes, so that readers can memory-map it.
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut json);
        Ok(bytes)
    }
}

fn write_floats(file: &mut impl Write, values: &[f32]) -> Result<()> {
    for value in values {
        file.write_all(&value.to_le_bytes())?;
    }
    Ok(())
}

/// Writes all tensors after the activations.
fn write_columns(
    file: &mut impl Write,
    folder: &ModelFolder,
    sequences: &[Sequence],
) -> Result<()> {
    let special = folder.tokenizer.special_ids();
    let tokens = || sequences.iter().flat_map(|s| s.tokens.iter().copied());
    let mut integers = |values: &mut dyn Iterator<Item = usize>| -> Result<()> {
        for value in values {
            file.write_all(&(value as i64).to_le_bytes())?;
        }
        Ok(())
    };
    integers(&mut tokens().map(|id| id as usize))?;
    integers(&mut sequences.iter().enumerate().flat_map(|(i, s)| s.tokens.iter().map(move |_| i)))?;
    integers(&mut sequences.iter().flat_map(|s| 0..s.tokens.len()))?;
    let special: Vec<u8> = tokens().map(|id| u8::from(special.contains(&id))).collect();
    file.write_all(&special)?;
    let response: Vec<u8> = sequences
        .iter()
        .flat_map(|s| (0..s.tokens.len()).map(|t| u8::from(t >= s.response_start)))
        .collect();
    Ok(file.write_all(&response)?)
}
