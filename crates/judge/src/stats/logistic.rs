//! Logistic regression without intercept, with an L1 penalty and soft labels:
//!
//! ```text
//! minimise  ‖w‖₁ + C Σᵢ sᵢ [ yᵢ log(1 + exp(−w·xᵢ)) + (1 − yᵢ) log(1 + exp(w·xᵢ)) ]
//! ```
//!
//! That is the problem which scikit-learn gives to liblinear for AlpacaEval. It has a handful of weights, so a Newton step on the
//! smooth part, with coordinate descent for the penalty, reaches the limit of float64 in a few rounds.

/// An observation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row<const D: usize> {
    /// Features.
    pub x: [f64; D],
    /// Probability of the first class.
    pub y: f64,
    /// Weight of the observation, not negative.
    pub weight: f64,
}

/// A gradient this small, relative to the gradient at zero, ends the search. liblinear's own limit is 10⁻⁴.
const TOLERANCE: f64 = 1e-12;
const ROUNDS: usize = 200;

/// The weights that minimise the penalised loss.
pub fn fit<const D: usize>(rows: &[Row<D>], c: f64) -> [f64; D] {
    let mut w = [0.0; D];
    let scale = c * rows.iter().map(|row| row.weight * norm(&row.x)).sum::<f64>();
    let mut value = objective(rows, c, &w);
    for _ in 0..ROUNDS {
        let (gradient, hessian) = derivatives(rows, c, &w);
        if violation(&w, &gradient) <= TOLERANCE * scale.max(1.0) {
            break;
        }
        let step = newton_step(&w, &gradient, &hessian);
        let Some((next, lower)) = search(rows, c, &w, &step, value) else { break };
        (w, value) = (next, lower);
    }
    w
}

/// Probability of the first class.
pub fn predict<const D: usize>(w: &[f64; D], x: &[f64; D]) -> f64 {
    sigmoid(dot(w, x))
}

/// The largest entry of the smallest subgradient of the penalised loss: zero at the minimum, and only there.
pub fn violation<const D: usize>(w: &[f64; D], gradient: &[f64; D]) -> f64 {
    let entry = |(w, g): (&f64, &f64)| match *w {
        w if w > 0.0 => (g + 1.0).abs(),
        w if w < 0.0 => (g - 1.0).abs(),
        _ => (g.abs() - 1.0).max(0.0),
    };
    w.iter().zip(gradient).map(entry).fold(0.0, f64::max)
}

/// Gradient and Hessian of the smooth part.
fn derivatives<const D: usize>(rows: &[Row<D>], c: f64, w: &[f64; D]) -> ([f64; D], [[f64; D]; D]) {
    let (mut gradient, mut hessian) = ([0.0; D], [[0.0; D]; D]);
    for row in rows {
        let p = predict(w, &row.x);
        let weight = c * row.weight;
        for (i, x) in row.x.iter().enumerate() {
            gradient[i] += weight * (p - row.y) * x;
            let entries = hessian[i].iter_mut().zip(&row.x);
            entries.for_each(|(entry, other)| *entry += weight * p * (1.0 - p) * x * other);
        }
    }
    (gradient, hessian)
}

/// The step that minimises the quadratic model plus the penalty, by coordinate descent.
fn newton_step<const D: usize>(
    w: &[f64; D],
    gradient: &[f64; D],
    hessian: &[[f64; D]; D],
) -> [f64; D] {
    // Keeps coordinates apart whose curvature vanishes where the loss is flat.
    let trace: f64 = (0..D).map(|i| hessian[i][i]).sum();
    let damping = 1e-12 * trace + f64::MIN_POSITIVE;
    let mut step = [0.0; D];
    for _ in 0..10_000 {
        let mut moved = 0.0f64;
        for i in 0..D {
            let curvature = hessian[i][i] + damping;
            let slope = gradient[i] + dot(&hessian[i], &step) + damping * step[i];
            let at = w[i] + step[i];
            let target = at - slope / curvature;
            let next = target.signum() * (target.abs() - 1.0 / curvature).max(0.0);
            moved = moved.max((next - at).abs() / (1.0 + at.abs()));
            step[i] += next - at;
        }
        if moved <= 1e-15 {
            break;
        }
    }
    step
}

/// The longest of the step, half of it, a quarter, … that lowers the objective.
fn search<const D: usize>(
    rows: &[Row<D>],
    c: f64,
    w: &[f64; D],
    step: &[f64; D],
    value: f64,
) -> Option<([f64; D], f64)> {
    let mut length = 1.0;
    for _ in 0..60 {
        let mut next = *w;
        next.iter_mut().zip(step).for_each(|(w, step)| *w += length * step);
        let lower = objective(rows, c, &next);
        if lower < value {
            return Some((next, lower));
        }
        length /= 2.0;
    }
    None
}

fn objective<const D: usize>(rows: &[Row<D>], c: f64, w: &[f64; D]) -> f64 {
    let loss = |row: &Row<D>| {
        let z = dot(w, &row.x);
        row.weight * (row.y * softplus(-z) + (1.0 - row.y) * softplus(z))
    };
    w.iter().map(|w| w.abs()).sum::<f64>() + c * rows.iter().map(loss).sum::<f64>()
}

/// log(1 + exp(z)).
pub fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

/// 1 / (1 + exp(−z)).
pub fn sigmoid(z: f64) -> f64 {
    let e = (-z.abs()).exp();
    if z >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

fn dot<const D: usize>(a: &[f64; D], b: &[f64; D]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm<const D: usize>(x: &[f64; D]) -> f64 {
    x.iter().map(|x| x.abs()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With one constant feature, the minimum has a closed form: C n (σ(w) − ȳ) = ∓1.
    #[test]
    fn a_single_weight_has_its_closed_form() {
        for (y, n, c) in [(0.9, 50, 1.0), (0.2, 10, 3.0), (0.55, 8, 0.5), (1.0, 20, 1000.0)] {
            let rows = vec![Row { x: [1.0], y, weight: 1.0 }; n];
            let slack = 1.0 / (c * n as f64);
            let p: f64 = if y - slack > 0.5 {
                y - slack
            } else if y + slack < 0.5 {
                y + slack
            } else {
                0.5
            };
            let [w] = fit(&rows, c);
            assert!((w - (p / (1.0 - p)).ln()).abs() < 1e-7, "{y} {n} {c}: {w}");
        }
    }

    /// The gradient by finite differences, the minimum by its subgradient.
    #[test]
    fn the_subgradient_vanishes_at_the_minimum() {
        let rows: Vec<Row<3>> = (0..200)
            .map(|i| {
                let t = f64::from(i) * 0.7;
                let x = [t.sin(), (1.3 * t).cos() * 2.0, 1.0];
                Row {
                    x,
                    y: sigmoid(x[0] - 0.3 * x[1] + (5.0 * t).sin()),
                    weight: 0.5 + t.cos().abs(),
                }
            })
            .collect();
        for c in [1e-4, 3e-3, 0.05, 1.0, 40.0, 1e4] {
            let w = fit(&rows, c);
            let (gradient, _) = derivatives(&rows, c, &w);
            let scale = c * rows.iter().map(|row| row.weight * norm(&row.x)).sum::<f64>();
            assert!(violation(&w, &gradient) < 1e-9 * scale.max(1.0), "{c}: {w:?}");
            for i in 0..3 {
                let at = |h: f64| {
                    let mut w = w;
                    w[i] += h;
                    objective(&rows, c, &w) - w.iter().map(|w| w.abs()).sum::<f64>()
                };
                let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((numeric - gradient[i]).abs() < 1e-6 * scale.max(1.0), "{c} {i}");
            }
        }
        assert_eq!(fit(&rows, 1e-4), [0.0; 3], "a strong penalty leaves nothing");
    }
}
