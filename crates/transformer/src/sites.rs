//! Activation sites: the residual stream, MLP outputs, attention heads.

use std::{fmt, str::FromStr};

use crate::{Error, ModelConfig};

/// A tensor of a block that can be read or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SiteKind {
    /// The residual stream before the first block: the scaled embeddings. Before any other block it is [`Self::ResidPost`] of the
    /// block before.
    ResidPre,
    /// The residual stream after the block, before the final norm: output of Hugging Face's `model.layers.L`.
    ResidPost,
    /// What the MLP adds to the residual stream: output of `model.layers.L.post_feedforward_layernorm`, or of `model.layers.L.mlp`
    /// in models that don't normalise it.
    MlpOut,
    /// The concatenated heads before the output projection: input of `model.layers.L.self_attn.o_proj`.
    AttnZ,
}

/// An activation site: a kind of tensor and a 0-based layer, written `resid_post:25`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Which tensor of the block.
    pub kind: SiteKind,
    /// The block, from 0.
    pub layer: usize,
}

impl Site {
    /// The residual stream after block `layer`.
    pub const fn resid_post(layer: usize) -> Self {
        Self { kind: SiteKind::ResidPost, layer }
    }

    /// The residual stream before block `layer`.
    pub const fn resid_pre(layer: usize) -> Self {
        match layer.checked_sub(1) {
            Some(before) => Self::resid_post(before),
            None => Self { kind: SiteKind::ResidPre, layer },
        }
    }

    /// The name in TransformerLens, with which autoencoder files name their site, such as `blocks.25.hook_resid_post`.
    pub fn hook_name(self) -> String {
        let hook = match self.kind {
            SiteKind::ResidPre => "hook_resid_pre",
            SiteKind::ResidPost => "hook_resid_post",
            SiteKind::MlpOut => "hook_mlp_out",
            SiteKind::AttnZ => "attn.hook_z",
        };
        format!("blocks.{}.{hook}", self.layer)
    }

    /// The number of features of its activations.
    pub fn width(self, config: &ModelConfig) -> usize {
        match self.kind {
            SiteKind::ResidPre | SiteKind::ResidPost | SiteKind::MlpOut => config.hidden_size,
            SiteKind::AttnZ => config.num_attention_heads * config.head_dim,
        }
    }

    /// Checks that a model of `num_layers` layers has this site.
    ///
    /// # Errors
    /// [`Error::Site`] if it has too few layers.
    pub fn check(self, num_layers: usize) -> Result<Self, Error> {
        if self.layer < num_layers {
            return Ok(self);
        }
        Err(Error::Site(
            self.to_string(),
            format!("the model has {num_layers} layers, 0 to {}", num_layers.saturating_sub(1)),
        ))
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SiteKind::ResidPre => "resid_pre",
            SiteKind::ResidPost => "resid_post",
            SiteKind::MlpOut => "mlp_out",
            SiteKind::AttnZ => "attn_z",
        };
        write!(f, "{kind}:{}", self.layer)
    }
}

/// Reads `resid_post:25`, TransformerLens' `blocks.25.hook_resid_post`, and Hugging Face's `model.layers.25`.
impl FromStr for Site {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fail = |why: &str| Error::Site(text.to_owned(), why.to_owned());
        let number = |layer: &str| {
            layer.parse().map_err(|_| fail("the layer must be a whole number from 0"))
        };
        if text == "hook_embed" {
            return Ok(Self::resid_pre(0));
        }
        if let Some((layer, hook)) = text.strip_prefix("blocks.").and_then(|t| t.split_once('.')) {
            let known = named(&HOOKS, hook);
            let known = known.ok_or_else(|| fail(&format!("the hook must be {}", list(&HOOKS))));
            return Ok(known?(number(layer)?));
        }
        if let Some(rest) = MODULES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
            let (layer, part) = rest.split_once('.').unwrap_or((rest, "output"));
            let known = named(&PARTS, part).ok_or_else(|| {
                fail(&format!(
                    "of a layer of Hugging Face's model, {} are read; where the MLP's output isn't normalised, it is mlp_out:{layer}",
                    list(&PARTS)
                ))
            });
            return Ok(known?(number(layer)?));
        }
        let (kind, layer) = text.split_once(':').ok_or_else(|| {
            fail(
                "expected KIND:LAYER, such as resid_post:25, or a name of TransformerLens or Hugging Face",
            )
        })?;
        let known = named(&KINDS, kind);
        let known = known.ok_or_else(|| fail(&format!("the kind must be {}", list(&KINDS))));
        Ok(known?(number(layer)?))
    }
}

/// Names of one naming, and the sites of a layer that they stand for.
type Names<const N: usize> = [(&'static str, fn(usize) -> Site); N];

const KINDS: Names<4> = [
    ("resid_post", Site::resid_post),
    ("resid_pre", Site::resid_pre),
    ("mlp_out", |layer| Site { kind: SiteKind::MlpOut, layer }),
    ("attn_z", |layer| Site { kind: SiteKind::AttnZ, layer }),
];

/// TransformerLens' hooks of a block.
const HOOKS: Names<4> = [
    ("hook_resid_post", Site::resid_post),
    ("hook_resid_pre", Site::resid_pre),
    ("hook_mlp_out", |layer| Site { kind: SiteKind::MlpOut, layer }),
    ("attn.hook_z", |layer| Site { kind: SiteKind::AttnZ, layer }),
];

/// What comes before the number of a layer in Hugging Face's names of modules.
const MODULES: [&str; 4] =
    ["model.layers.", "layers.", "model.language_model.layers.", "language_model.model.layers."];

/// Inputs and outputs of modules of Hugging Face's layers; a module alone is its output.
const PARTS: Names<5> = [
    ("output", Site::resid_post),
    ("input", Site::resid_pre),
    ("post_feedforward_layernorm.output", |layer| Site { kind: SiteKind::MlpOut, layer }),
    ("post_feedforward_layernorm", |layer| Site { kind: SiteKind::MlpOut, layer }),
    ("self_attn.o_proj.input", |layer| Site { kind: SiteKind::AttnZ, layer }),
];

fn named<const N: usize>(names: &Names<N>, name: &str) -> Option<fn(usize) -> Site> {
    names.iter().find(|(known, _)| *known == name).map(|(_, site)| *site)
}

fn list<const N: usize>(names: &Names<N>) -> String {
    names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_back() {
        for text in ["resid_post:0", "mlp_out:25", "attn_z:3", "resid_pre:0"] {
            let site: Site = text.parse().unwrap();
            assert_eq!(site.to_string(), text);
            assert_eq!(site.hook_name().parse::<Site>().unwrap(), site);
        }
        for text in [
            "resid_post",
            "resid_mid:1",
            "mlp_out:-1",
            "attn_z:",
            "",
            "blocks.3.hook_resid_mid",
            "blocks.x.hook_resid_post",
            "blocks.3",
            "model.layers.3.mlp",
            "model.layers.",
            "lm_head",
        ] {
            assert!(text.parse::<Site>().is_err(), "{text:?} was accepted");
        }
        assert!(Site::resid_post(3).check(4).is_ok());
        assert!(Site::resid_post(4).check(4).is_err());
    }

    #[test]
    fn every_naming_means_the_same_sites() {
        for (site, names) in [
            (
                "resid_post:2",
                &[
                    "resid_pre:3",
                    "blocks.2.hook_resid_post",
                    "blocks.3.hook_resid_pre",
                    "model.layers.2",
                    "model.layers.2.output",
                    "model.layers.3.input",
                    "layers.2",
                    "model.language_model.layers.2",
                ][..],
            ),
            ("resid_pre:0", &["blocks.0.hook_resid_pre", "model.layers.0.input", "hook_embed"]),
            (
                "mlp_out:4",
                &["blocks.4.hook_mlp_out", "model.layers.4.post_feedforward_layernorm.output"],
            ),
            ("attn_z:1", &["blocks.1.attn.hook_z", "model.layers.1.self_attn.o_proj.input"]),
        ] {
            for name in names {
                assert_eq!(name.parse::<Site>().unwrap().to_string(), site, "{name}");
            }
        }
    }
}
