//! Constants that only some methods have.

use crate::Method;

/// Constants that only some methods have; absent, the method's own default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// ε, the share of labels taken to be wrong.
    pub label_smoothing: Option<f64>,
    /// τ of DiscoPOP.
    pub discopop_tau: Option<f64>,
    /// Weight of the chosen response's negative log-likelihood, the mean over its tokens.
    pub nll_weight: Option<f64>,
    /// BCO's δ is the mean reward of the step, as in the paper, rather than 0, as in TRL.
    pub reward_shift: Option<bool>,
    /// ρ₀ of Ada-DPO.
    pub ada_rho: Option<f64>,
    /// The least and the largest scale of Ada-DPO.
    pub ada_tau: Option<[f64; 2]>,
    /// Weight of the tokens by which a response is longer than the other of its pair.
    pub ld_alpha: Option<f64>,
    /// Weighs pairs by how probable both responses are to the policy: WPO.
    pub use_weighting: Option<bool>,
}

/// An option as it is checked: its name, its value where it is given, who has it, what it may be.
struct Rule {
    name: &'static str,
    value: Option<String>,
    has: fn(Method) -> bool,
    in_range: bool,
    range: &'static str,
}

impl Options {
    /// Refuses an option that the method lacks, and a value out of range, with a sentence.
    pub fn check(&self, method: Method) -> Result<(), String> {
        for rule in self.rules(method) {
            let Some(value) = rule.value else { continue };
            let name = rule.name;
            if !(rule.has)(method) {
                let having: Vec<_> =
                    Method::ALL.into_iter().filter(|m| (rule.has)(*m)).map(Method::name).collect();
                return Err(format!(
                    "{method} has no {name}; leave it out, or choose one of {}",
                    having.join(", ")
                ));
            }
            if !rule.in_range {
                return Err(format!("{name} = {value} must be {} for {method}", rule.range));
            }
        }
        Ok(())
    }

    /// What remains of the options for a method that may lack some of them.
    pub fn for_method(self, method: Method) -> Self {
        let keep = |has: fn(Method) -> bool| has(method);
        Self {
            label_smoothing: self.label_smoothing.filter(|_| keep(has_smoothing)),
            discopop_tau: self.discopop_tau.filter(|_| keep(is_discopop)),
            nll_weight: self.nll_weight.filter(|_| keep(has_nll_weight)),
            reward_shift: self.reward_shift.filter(|_| keep(is_bco)),
            ada_rho: self.ada_rho.filter(|_| keep(is_ada)),
            ada_tau: self.ada_tau.filter(|_| keep(is_ada)),
            ld_alpha: self.ld_alpha.filter(|_| keep(has_ld_alpha)),
            use_weighting: self.use_weighting.filter(|_| keep(has_weighting)),
        }
    }

    fn rules(&self, method: Method) -> [Rule; 8] {
        let smoothing = |e: f64| match method {
            Method::Robust => (0.0..0.5).contains(&e),
            Method::ExoPair => e > 0.0 && e <= 0.5,
            _ => (0.0..=0.5).contains(&e),
        };
        let smoothing_range = match method {
            Method::Robust => "from 0 to below ½",
            Method::ExoPair => "above 0 and at most ½",
            _ => "from 0 to ½",
        };
        fn rule<T: Copy + std::fmt::Debug>(
            name: &'static str,
            value: Option<T>,
            has: fn(Method) -> bool,
            in_range: impl FnOnce(T) -> bool,
            range: &'static str,
        ) -> Rule {
            let in_range = value.is_none_or(in_range);
            Rule { name, value: value.map(|v| format!("{v:?}")), has, in_range, range }
        }
        let above_0 = |x: f64| x > 0.0 && x.is_finite();
        [
            rule(
                "label_smoothing",
                self.label_smoothing,
                has_smoothing,
                smoothing,
                smoothing_range,
            ),
            rule(
                "discopop_tau",
                self.discopop_tau,
                is_discopop,
                |t| t > 0.0 && t <= 1.0,
                "above 0 and at most 1",
            ),
            rule(
                "nll_weight",
                self.nll_weight,
                has_nll_weight,
                |w| w >= 0.0 && w.is_finite(),
                "at least 0",
            ),
            rule("reward_shift", self.reward_shift, is_bco, |_| true, ""),
            rule(
                "ada_rho",
                self.ada_rho,
                is_ada,
                |r| r > 0.0 && r < std::f64::consts::LN_2,
                "above 0 and below log 2",
            ),
            rule(
                "ada_tau",
                self.ada_tau,
                is_ada,
                |[least, largest]| above_0(least) && above_0(largest) && least <= largest,
                "two numbers above 0 in ascending order",
            ),
            rule(
                "ld_alpha",
                self.ld_alpha,
                has_ld_alpha,
                |a| (0.0..=1.0).contains(&a),
                "from 0 to 1",
            ),
            rule("use_weighting", self.use_weighting, has_weighting, |_| true, ""),
        ]
    }

    /// ε, or the method's own.
    pub fn label_smoothing(&self, method: Method) -> f64 {
        self.label_smoothing.unwrap_or(match method {
            Method::Cdpo | Method::Robust => 0.1,
            Method::ExoPair => 1e-3,
            _ => 0.0,
        })
    }

    /// τ of DiscoPOP, or the paper's.
    pub fn discopop_tau(&self) -> f64 {
        self.discopop_tau.unwrap_or(0.05)
    }

    /// The weight of the negative log-likelihood, or the method's own.
    pub fn nll_weight(&self, method: Method) -> f64 {
        self.nll_weight.unwrap_or(match method {
            Method::Cpo | Method::CpoHinge => 1.0,
            _ => 0.0,
        })
    }

    /// ρ₀ of Ada-DPO, or 0.3.
    pub fn ada_rho(&self) -> f64 {
        self.ada_rho.unwrap_or(0.3)
    }

    /// The bounds of Ada-DPO's scale, or 0.1 and 5.
    pub fn ada_tau(&self) -> [f64; 2] {
        self.ada_tau.unwrap_or([0.1, 5.0])
    }
}

fn has_smoothing(method: Method) -> bool {
    use Method::{Aot, AotUnpaired, Cdpo, Cpo, ExoPair, Robust};
    matches!(method, Cdpo | Robust | ExoPair | Aot | AotUnpaired | Cpo)
}

fn is_discopop(method: Method) -> bool {
    method == Method::Discopop
}

fn has_nll_weight(method: Method) -> bool {
    matches!(method, Method::Cpo | Method::CpoHinge | Method::Simpo)
}

fn is_bco(method: Method) -> bool {
    method == Method::BcoPair
}

fn is_ada(method: Method) -> bool {
    method == Method::AdaDpo
}

/// An average has no tail to weigh, and TDPO's constraint is over all tokens.
fn has_ld_alpha(method: Method) -> bool {
    let token_level = matches!(method, Method::Tdpo1 | Method::Tdpo2);
    method.has_reference() && !method.is_length_normalised() && !token_level
}

/// The losses of transport are those of quantiles, which belong to no pair.
fn has_weighting(method: Method) -> bool {
    !method.is_transport()
}
