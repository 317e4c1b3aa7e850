//! Reading a `config.json` field by field. Nothing is guessed: a field that no reader takes is refused by name, unless it is known
//! to change nothing.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::Sizes;
use crate::{ModelConfig, Rope, RopeScaling};

/// Fields that change nothing in what a decoder computes here: where it comes from, how other software runs it, dropout (which is
/// not applied), and settings of generation that old files hold.
const WITHOUT_EFFECT: [&str; 61] = [
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_sliding_window_pattern",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_window_layers",
    "min_length",
    "model_type",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    "use_bfloat16",
];

/// The fields of a `config.json` that no reader has taken yet.
pub(super) struct Fields(Map<String, Value>);

/// How a family's `config.json` is read where families differ in what may be absent.
pub(super) struct Absent {
    /// Key and value heads; `None` if a file must say.
    pub kv_heads: Option<usize>,
    /// Width of a head; `None` is d_model divided by the number of heads.
    pub head_dim: Option<usize>,
}

impl Fields {
    /// The fields of an object.
    pub(super) fn of(config: Value) -> Result<Self, String> {
        match config {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err("expected an object".into()),
        }
    }

    /// A field's value, `None` if it is absent or `null`.
    pub(super) fn optional<T: DeserializeOwned>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, String> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                serde_json::from_value(value).map(Some).map_err(|e| format!("`{name}`: {e}"))
            }
        }
    }

    /// A field that must be there.
    pub(super) fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, String> {
        self.optional(name)?.ok_or_else(|| format!("`{name}` is missing"))
    }

    /// A field's value, or what its absence means.
    pub(super) fn or<T: DeserializeOwned>(&mut self, name: &str, absent: T) -> Result<T, String> {
        Ok(self.optional(name)?.unwrap_or(absent))
    }

    /// A number that may be `null`, which is not the same as absent.
    pub(super) fn nullable(
        &mut self,
        name: &str,
        absent: Option<f64>,
    ) -> Result<Option<f64>, String> {
        match self.0.contains_key(name) {
            true => self.optional(name),
            false => Ok(absent),
        }
    }

    /// Takes a field that must have this value if it is there.
    pub(super) fn only(&mut self, name: &str, value: &str) -> Result<(), String> {
        match self.optional::<String>(name)? {
            Some(other) if other != value => {
                Err(format!("{name} `{other}` is not supported, only `{value}` is"))
            }
            _ => Ok(()),
        }
    }

    /// A size that another reader takes.
    pub(super) fn peek(&self, name: &str) -> Option<usize> {
        self.0.get(name)?.as_u64().and_then(|value| usize::try_from(value).ok())
    }

    /// Gives a field that is absent a value.
    pub(super) fn fill(&mut self, name: &str, absent: usize) {
        let value = self.0.entry(name).or_insert(Value::Null);
        if value.is_null() {
            *value = json!(absent);
        }
    }

    /// Takes a field that is of no effect in this family.
    pub(super) fn ignore(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// The sizes.
    pub(super) fn sizes(&mut self, absent: &Absent) -> Result<Sizes, String> {
        let hidden_size: usize = self.required("hidden_size")?;
        let num_attention_heads: usize = self.required("num_attention_heads")?;
        let head_dim = match (self.optional("head_dim")?, absent.head_dim) {
            (Some(given), _) | (None, Some(given)) => given,
            (None, None)
                if num_attention_heads > 0 && hidden_size.is_multiple_of(num_attention_heads) =>
            {
                hidden_size / num_attention_heads
            }
            (None, None) => {
                return Err(format!(
                    "hidden_size = {hidden_size} is not a multiple of num_attention_heads = {num_attention_heads}, \
                     and there is no head_dim"
                ));
            }
        };
        Ok(Sizes {
            vocab_size: self.required("vocab_size")?,
            hidden_size,
            intermediate_size: self.required("intermediate_size")?,
            num_hidden_layers: self.required("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: match absent.kv_heads {
                Some(heads) => self.or("num_key_value_heads", heads)?,
                None => self.required("num_key_value_heads")?,
            },
            head_dim,
        })
    }

    /// Constants and tokens that every family has; `absent` says what they are if the file doesn't.
    pub(super) fn common(&mut self, absent: ModelConfig) -> Result<ModelConfig, String> {
        Ok(ModelConfig {
            tie_word_embeddings: self.or("tie_word_embeddings", absent.tie_word_embeddings)?,
            rms_norm_eps: self.or("rms_norm_eps", absent.rms_norm_eps)?,
            initializer_range: self.or("initializer_range", absent.initializer_range)?,
            max_position_embeddings: self
                .or("max_position_embeddings", absent.max_position_embeddings)?,
            pad_token_id: self.optional("pad_token_id")?.or(absent.pad_token_id),
            bos_token_id: self.optional("bos_token_id")?.or(absent.bos_token_id),
            eos_token_ids: self.end_tokens()?.unwrap_or(absent.eos_token_ids.clone()),
            ..absent
        })
    }

    /// One token or several.
    fn end_tokens(&mut self) -> Result<Option<Vec<u32>>, String> {
        Ok(match self.optional::<Value>("eos_token_id")? {
            None => None,
            Some(Value::Array(many)) => {
                Some(many.into_iter().map(token).collect::<Result<_, _>>()?)
            }
            Some(one) => Some(vec![token(one)?]),
        })
    }

    /// The rotary settings of a family with one set of them, in either spelling: `rope_theta` and `rope_scaling`, or
    /// transformers 5's `rope_parameters`.
    pub(super) fn rope(&mut self, absent: f64) -> Result<Rope, String> {
        let theta = self.optional("rope_theta")?;
        let parameters = self.optional("rope_parameters")?.map(|map| ("rope_parameters", map));
        let scaling = self.optional("rope_scaling")?.map(|map| ("rope_scaling", map));
        match (scaling, parameters) {
            (Some((_, a)), Some((_, b))) if a != b => {
                Err("rope_scaling and rope_parameters differ: keep one of them".into())
            }
            (scaling, parameters) => rope(parameters.or(scaling), theta, absent),
        }
    }

    /// Gemma-3's two sets of rotary settings, of full and of sliding layers: `rope_theta`, `rope_local_base_freq` and
    /// `rope_scaling`, or `rope_parameters` with one object for each type of layer.
    pub(super) fn ropes(&mut self, absent: [f64; 2]) -> Result<[Rope; 2], String> {
        let theta = self.optional("rope_theta")?;
        let local = self.optional("rope_local_base_freq")?;
        let scaling = self.optional("rope_scaling")?.map(|map| ("rope_scaling", map));
        let Some(parameters) = self.optional::<Map<String, Value>>("rope_parameters")? else {
            return Ok([rope(scaling, theta, absent[0])?, rope(None, local, absent[1])?]);
        };
        if scaling.is_some() {
            return Err("rope_scaling and rope_parameters are both given: keep one of them".into());
        }
        let mut parameters = Self(parameters);
        let full = parameters.optional("full_attention")?;
        let sliding = parameters.optional("sliding_attention")?;
        if let Some(other) = parameters.0.keys().next() {
            return Err(format!(
                "rope_parameters: {other} is not supported, only full_attention and sliding_attention are"
            ));
        }
        let full = full.map(|map| ("rope_parameters: full_attention", map));
        let sliding = sliding.map(|map| ("rope_parameters: sliding_attention", map));
        let [full, sliding] = [rope(full, theta, absent[0])?, rope(sliding, local, absent[1])?];
        if sliding.scaling != RopeScaling::None {
            return Err("rope_parameters: scaling of sliding_attention is not supported".into());
        }
        Ok([full, sliding])
    }

    /// Refuses what is left.
    pub(super) fn finish(self) -> Result<(), String> {
        for (name, value) in &self.0 {
            if name == "quantization_config" && !value.is_null() {
                return Err(
                    "quantization_config is not supported: use the unquantized checkpoint".into()
                );
            }
            if !WITHOUT_EFFECT.contains(&name.as_str()) && !is_off(value) {
                return Err(format!("{name} = {} is not supported", short(value)));
            }
        }
        Ok(())
    }
}

/// Rotary settings from the object that holds them, if there is one, and from a base outside of it.
fn rope(
    given: Option<(&str, Map<String, Value>)>,
    theta: Option<f64>,
    absent: f64,
) -> Result<Rope, String> {
    let Some((place, settings)) = given else {
        return Ok(Rope::plain(theta.unwrap_or(absent)));
    };
    let at = |message: String| format!("{place}: {message}");
    let mut settings = Fields(settings);
    let kind: Option<String> = settings.optional("rope_type").map_err(at)?;
    // The name before rope_type.
    let old: Option<String> = settings.optional("type").map_err(at)?;
    let kind = kind.or(old).unwrap_or_else(|| "default".into());
    let inner: Option<f64> = settings.optional("rope_theta").map_err(at)?;
    let theta = match (inner, theta) {
        (Some(a), Some(b)) if a != b => {
            return Err(at(format!("rope_theta = {a} contradicts rope_theta = {b} outside")));
        }
        (inner, theta) => inner.or(theta).unwrap_or(absent),
    };
    let scaling = match kind.as_str() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: settings.required("factor").map_err(at)? },
        "llama3" => RopeScaling::Llama3 {
            factor: settings.required("factor").map_err(at)?,
            low_freq_factor: settings.required("low_freq_factor").map_err(at)?,
            high_freq_factor: settings.required("high_freq_factor").map_err(at)?,
            original_positions: settings
                .required("original_max_position_embeddings")
                .map_err(at)?,
        },
        _ => {
            return Err(at(format!(
                "rope_type = {kind:?} is not supported, only default, linear and llama3 are"
            )));
        }
    };
    match settings.optional::<f64>("partial_rotary_factor").map_err(at)? {
        None | Some(1.0) => {}
        Some(other) => return Err(at(format!("partial_rotary_factor = {other} is not supported"))),
    }
    match settings.0.iter().find(|(_, value)| !value.is_null()) {
        None => Ok(Rope { theta, scaling }),
        Some((name, value)) => {
            Err(at(format!("{name} = {} is not supported with rope_type {kind}", short(value))))
        }
    }
}

fn token(value: Value) -> Result<u32, String> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| format!("`eos_token_id`: {value} is no token"))
}

/// Whether a field's value says that something is not there, in a model's configuration or an adapter's.
pub(crate) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// A value as JSON, cut off if it is long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// What every family writes.
pub(super) fn written(config: &ModelConfig, dtype: &str) -> Map<String, Value> {
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    };
    let kind = json!({
        "architectures": [config.family.architecture()],
        "model_type": config.family.model_type(),
    });
    let rest = json!({
        "rope_theta": config.rope.theta,
        "rms_norm_eps": config.rms_norm_eps,
        "initializer_range": config.initializer_range,
        "max_position_embeddings": config.max_position_embeddings,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": true,
        "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "torch_dtype": dtype,
    });
    let objects = [kind, json!(config.sizes), rest].into_iter().filter_map(|value| match value {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    let mut fields: Map<String, Value> = objects.flatten().collect();
    if let Some(scaling) = written_scaling(config.rope.scaling) {
        fields.insert("rope_scaling".into(), scaling);
    }
    fields
}

fn written_scaling(scaling: RopeScaling) -> Option<Value> {
    match scaling {
        RopeScaling::None => None,
        RopeScaling::Linear { factor } => Some(json!({ "rope_type": "linear", "factor": factor })),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
            Some(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": whole(original_positions),
            }))
        }
    }
}

/// A number that transformers 5 wants without a point where it is whole.
pub(super) fn whole(number: f64) -> Value {
    match number.fract() == 0.0 && number.abs() < 1e15 {
        true => json!(number as u64),
        false => json!(number),
    }
}
