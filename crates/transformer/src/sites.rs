//! Activation sites: the residual stream, MLP outputs, attention heads.

use std::{fmt, str::FromStr};

use crate::{Error, ModelConfig};

/// A tensor of a block that can be read or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SiteKind {
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

    /// The name in TransformerLens, with which autoencoder files name their site, such as `blocks.25.hook_resid_post`.
    pub fn hook_name(self) -> String {
        let hook = match self.kind {
            SiteKind::ResidPost => "hook_resid_post",
            SiteKind::MlpOut => "hook_mlp_out",
            SiteKind::AttnZ => "attn.hook_z",
        };
        format!("blocks.{}.{hook}", self.layer)
    }

    /// The number of features of its activations.
    pub fn width(self, config: &ModelConfig) -> usize {
        match self.kind {
            SiteKind::ResidPost | SiteKind::MlpOut => config.hidden_size,
            SiteKind::AttnZ => config.num_attention_heads * config.head_dim,
        }
    }

    /// The site with this [`Self::hook_name`]; `None` if there is none.
    pub fn from_hook_name(name: &str) -> Option<Self> {
        let (layer, hook) = name.strip_prefix("blocks.")?.split_once('.')?;
        let kind = match hook {
            "hook_resid_post" => SiteKind::ResidPost,
            "hook_mlp_out" => SiteKind::MlpOut,
            "attn.hook_z" => SiteKind::AttnZ,
            _ => return None,
        };
        Some(Self { kind, layer: layer.parse().ok()? })
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
            SiteKind::ResidPost => "resid_post",
            SiteKind::MlpOut => "mlp_out",
            SiteKind::AttnZ => "attn_z",
        };
        write!(f, "{kind}:{}", self.layer)
    }
}

impl FromStr for Site {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fail = |why: &str| Error::Site(text.to_owned(), why.to_owned());
        let (kind, layer) = text
            .split_once(':')
            .ok_or_else(|| fail("expected KIND:LAYER, such as resid_post:25"))?;
        let kind = match kind {
            "resid_post" => SiteKind::ResidPost,
            "mlp_out" => SiteKind::MlpOut,
            "attn_z" => SiteKind::AttnZ,
            _ => return Err(fail("the kind must be resid_post, mlp_out or attn_z")),
        };
        let layer = layer.parse().map_err(|_| fail("the layer must be a whole number from 0"))?;
        Ok(Self { kind, layer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_back() {
        for text in ["resid_post:0", "mlp_out:25", "attn_z:3"] {
            let site: Site = text.parse().unwrap();
            assert_eq!(site.to_string(), text);
            assert_eq!(Site::from_hook_name(&site.hook_name()), Some(site));
        }
        for text in ["resid_post", "resid_pre:1", "mlp_out:-1", "attn_z:", ""] {
            assert!(text.parse::<Site>().is_err(), "{text:?} was accepted");
        }
        assert!(Site::resid_post(3).check(4).is_ok());
        assert!(Site::resid_post(4).check(4).is_err());
    }
}
