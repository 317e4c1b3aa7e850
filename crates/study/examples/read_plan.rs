//! What a plan of one's own comes to: every method's trials, and the intervals that its seeds would give.
//!
//! `cargo run --release -p fpo-study --example read_plan`

use anyhow::Result;
use fpo_study::{Mean, Plan};

const PLAN: &str = r#"
recipe = "tiny"
seeds = [0, 1, 2]
learning_rates = [1e-4, 3e-4]

[methods]
dpo = { beta = [0.05, 0.1] }
fpo = { alpha = [0.25, 0.5] }
"#;

fn main() -> Result<()> {
    let plan = Plan::parse("example", PLAN, &[])?;
    for (method, trials) in plan.trials() {
        println!("{method}");
        for trial in trials {
            let settings = plan.settings(Some((method, &trial)), plan.seeds[0], &[])?;
            println!("  {trial}: β {}", settings.align.objective().beta);
        }
    }
    // A method without a partner of as many trials is refused.
    let unequal = PLAN.replace("[0.25, 0.5]", "[0.5]");
    println!("{}", Plan::parse("example", &unequal, &[]).expect_err("4 trials and 2"));
    if let Some(mean) = Mean::of(&[0.86, 0.87, 0.85]) {
        println!(
            "{:.3} ± {:.3} over {} seeds",
            mean.mean,
            mean.half_width().unwrap_or(0.0),
            mean.seeds
        );
    }
    Ok(())
}
