//! Size of the reference cache: on disk, and in host memory while a stage reads it.

use fpo_config::Settings;

use crate::{d_sae, width};

/// Bytes of a stored activation: feature index and value.
const ACTIVATION: u64 = 4 + 4;
/// Bytes per pair beside activations: log-probabilities, token counts, the pair's id and offsets.
const PAIR: u64 = 50;

/// The reference cache of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Number of pairs, training and held-out; `None` if only the data file tells.
    pub pairs: Option<usize>,
    /// Upper bound of the activations stored per response.
    pub activations: usize,
}

impl Cache {
    /// The cache of a run with these settings.
    pub fn of(settings: &Settings) -> Self {
        let more = settings.align.more_sites.iter().map(|site| width(&site.sae, &settings.model));
        let all = match settings.features() {
            true => d_sae(settings) + more.sum::<usize>(),
            false => 0,
        };
        let data = &settings.data;
        Self {
            pairs: match data.train {
                Some(_) => None,
                None => Some(data.built_in.pairs + data.built_in.held_out_pairs),
            },
            activations: settings.reference.top_n.map_or(all, |n| all.min(n.get())),
        }
    }

    /// Upper bound in bytes of `pairs` pairs in memory; on disk they are compressed.
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
    fn pairs_and_features_follow_the_settings() {
        assert_eq!(cache("tiny", &[]), Cache { pairs: Some(9000), activations: 1024 });
        let gemma = cache("gemma-2-2b-fpo", &[]);
        assert_eq!(gemma, Cache { pairs: None, activations: 16_384 });
        assert_eq!(gemma.bytes(1000), 1000 * (16 * 16_384 + 50));
        assert_eq!(cache("gemma-2-2b-fpo", &["reference.top_n=500"]).activations, 500);
        assert_eq!(cache("gemma-2-2b-dpo", &[]).activations, 0);
        assert_eq!(cache("gemma-2-2b-dpo", &["evaluate.features=true"]).activations, 16_384);
        let site = "align.more_sites=[{ site = \"resid_post:7\", sae = \"layer_7/width_65k/x\" }]";
        assert_eq!(cache("gemma-2-2b-fpo", &[site]).activations, 16_384 + 65 * 1024);
    }
}
