//! What the offline reference takes: on disk, and in the host's memory while a stage reads it.

use fpo_config::Settings;

use crate::{d_sae, width};

/// A number and a value.
const ACTIVATION: u64 = 4 + 4;
/// Log-probabilities, counts, the pair's number and its place.
const PAIR: u64 = 50;

/// The reference cache of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Pairs, training and held-out ones, where they are known beforehand.
    pub pairs: Option<usize>,
    /// Activations of a response that are stored, at most.
    pub activations: usize,
}

impl Cache {
    /// Of a run.
    pub fn of(settings: &Settings) -> Self {
        let more = settings.align.more_sites.iter().map(|site| width(&site.sae));
        let all = d_sae(settings) + more.sum::<usize>();
        let data = &settings.data;
        Self {
            pairs: match data.train {
                Some(_) => None,
                None => Some(data.built_in.pairs + data.built_in.held_out_pairs),
            },
            activations: settings.reference.top_n.map_or(all, |n| all.min(n.get())),
        }
    }

    /// Bytes of so many pairs in memory, at most; on disk they are compressed.
    pub fn bytes(&self, pairs: usize) -> u64 {
        pairs as u64 * (2 * ACTIVATION * self.activations as u64 + PAIR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(recipe: &str, set: &[&str]) -> Cache {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        Cache::of(&Settings::resolve(recipe, None, &set).unwrap())
    }

    #[test]
    fn what_is_known_of_pairs_and_features() {
        assert_eq!(cache("tiny", &[]), Cache { pairs: Some(9000), activations: 1024 });
        let gemma = cache("gemma-2-2b-fpo", &[]);
        assert_eq!(gemma, Cache { pairs: None, activations: 16_384 });
        assert_eq!(gemma.bytes(1000), 1000 * (16 * 16_384 + 50));
        assert_eq!(cache("gemma-2-2b-fpo", &["reference.top_n=500"]).activations, 500);
        let site = "align.more_sites=[{ site = \"resid_post:7\", sae = \"layer_7/width_65k/x\" }]";
        assert_eq!(cache("gemma-2-2b-fpo", &[site]).activations, 16_384 + 65 * 1024);
    }
}
