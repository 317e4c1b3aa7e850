//! Modules that are trained whole beside adapters: PEFT's `modules_to_save`.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Tensor, TensorData},
};

use crate::{
    Error, LanguageModel, LoraConfig, Piece,
    builder::Builder,
    embedding::{EMBEDDING, HEAD, stored_name},
    multimodal::spellings,
    weights::parameters,
};

impl LoraConfig {
    /// Whether a parameter belongs to a module that is trained whole. As in PEFT, a name is the end of a module's.
    pub fn saves(&self, parameter: &str) -> bool {
        self.modules_to_save.iter().any(|name| is_saved(name, parameter))
    }

    /// Whether a module with this name is trained whole.
    pub(crate) fn saves_module(&self, module: &str) -> bool {
        self.modules_to_save.iter().any(|name| module.ends_with(name.as_str()))
    }
}

/// Whether a parameter belongs to a module that `name` is the end of.
fn is_saved(name: &str, parameter: &str) -> bool {
    let module = parameter.rsplit_once('.').map_or(parameter, |(module, _)| module);
    spellings(module).iter().any(|module| module.ends_with(name))
}

/// Replaces the parameters of the modules that are trained whole by those of `builder`. If the embedding or the unembedding is one
/// of them, they are no longer tied.
pub(crate) fn replace(
    mut model: LanguageModel,
    config: &LoraConfig,
    builder: Builder,
) -> Result<LanguageModel, Error> {
    if model.lm_head.is_none() && (config.saves(EMBEDDING) || config.saves(HEAD)) {
        model.lm_head = Some(model.model.embed_tokens.clone());
        model.config.tie_word_embeddings = false;
    }
    let shapes = parameters(&model).into_iter().map(|tensor| (tensor.name, tensor.shape));
    let mut replacing = Replacing {
        config,
        builder,
        shapes: shapes.collect(),
        path: Vec::new(),
        done: BTreeMap::new(),
        error: None,
    };
    let model = model.map(&mut replacing);
    if let Some(error) = replacing.error {
        return Err(error);
    }
    let is_missing =
        |name: &&String| !replacing.done.keys().any(|parameter| is_saved(name, parameter));
    match config.modules_to_save.iter().find(is_missing) {
        Some(name) => Err(Error::Adapters(format!("modules_to_save: no module is named `{name}`"))),
        None => Ok(model),
    }
}

struct Replacing<'a, 'b> {
    config: &'a LoraConfig,
    builder: Builder<'b>,
    shapes: BTreeMap<String, Vec<usize>>,
    path: Vec<String>,
    /// Rows replaced so far, of parameters in one or several tensors.
    done: BTreeMap<String, usize>,
    error: Option<Error>,
}

impl ModuleMapper for Replacing<'_, '_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let name = stored_name(&path);
        let adapter = self.path.iter().any(|part| part == "lora");
        let Some(shape) = self.shapes.get(name).filter(|_| !adapter && self.config.saves(name))
        else {
            return param;
        };
        let start = self.done.get(name).copied().unwrap_or(0);
        let rows = start..start + param.dims()[0];
        self.done.insert(name.to_owned(), rows.end);
        // In float32, because they are trained.
        match self.builder.piece(&Piece { name, shape, rows, dtype: DType::F32 }) {
            Ok(replaced) => replaced,
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}

/// The values of a piece of a parameter before it is trained. An unembedding that was tied begins as the embedding.
pub(crate) fn initial(model: &LanguageModel, piece: &Piece) -> Result<TensorData, Error> {
    let tied = piece.name == HEAD && model.lm_head.is_none();
    let name = if tied { EMBEDDING } else { piece.name };
    let parameter = parameters(model).into_iter().find(|tensor| tensor.name == name);
    let parameter = parameter.expect("a parameter of this model");
    Ok(TensorData::new(parameter.numbers(piece.rows.clone())?, piece.dims()))
}
