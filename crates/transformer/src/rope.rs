//! The frequencies of the rotary embedding.

use std::f64::consts::TAU;

/// The frequencies of the rotary embedding: `theta^(−2i / head_dim)` for pair i of a head's features, scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base.
    pub theta: f64,
    /// What is done to the frequencies, so that longer texts fit.
    pub scaling: RopeScaling,
}

/// What is done to rotary frequencies, by Hugging Face's `rope_type`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Nothing (`default`).
    None,
    /// All are divided by `factor` (Chen et al. 2023, "position interpolation").
    Linear {
        /// At least 1 in practice.
        factor: f64,
    },
    /// Those of long wavelengths are divided by `factor`, those of short ones stay, and between the two it is interpolated
    /// (Llama 3.1).
    Llama3 {
        /// Divides the frequencies whose wavelength is above `original_positions / low_freq_factor`.
        factor: f64,
        /// See `factor`.
        low_freq_factor: f64,
        /// Frequencies whose wavelength is below `original_positions / high_freq_factor` stay.
        high_freq_factor: f64,
        /// The longest text before the scaling, in tokens.
        original_positions: f64,
    },
}

impl Rope {
    /// Without scaling.
    pub const fn plain(theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::None }
    }

    /// The frequencies in radians per token, `[head_dim / 2]`, computed in float64 and rounded to float32.
    pub(crate) fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let pairs = 0..head_dim / 2;
        let plain = pairs.map(|i| 1.0 / self.theta.powf(2.0 * i as f64 / head_dim as f64));
        plain.map(|frequency| self.scaling.of(frequency) as f32).collect()
    }

    /// Checks the constants; the error is a sentence.
    pub(crate) fn check(&self) -> Result<(), String> {
        let constants = match self.scaling {
            RopeScaling::None => vec![],
            RopeScaling::Linear { factor } => vec![("factor", factor)],
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_positions,
            } => vec![
                ("factor", factor),
                ("low_freq_factor", low_freq_factor),
                ("high_freq_factor", high_freq_factor),
                ("original_max_position_embeddings", original_positions),
                ("high_freq_factor - low_freq_factor", high_freq_factor - low_freq_factor),
            ],
        };
        for (name, value) in [("rope_theta", self.theta)].into_iter().chain(constants) {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("{name} = {value} must be positive"));
            }
        }
        Ok(())
    }
}

impl RopeScaling {
    /// The scaled frequency.
    fn of(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                // How often the longest text before the scaling goes round: its length over the wavelength.
                let turns = original_positions * frequency / TAU;
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        }
    }
}
