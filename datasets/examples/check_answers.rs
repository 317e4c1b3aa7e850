//! Generates the built-in data and judges answers: `cargo run -p fpo-datasets --example check_answers`.

use fpo_datasets::{Sizes, check, generate, write_jsonl};

fn main() -> std::io::Result<()> {
    let sizes = Sizes { sft: 0, pairs: 3, held_out_pairs: 0, held_out_prompts: 2 };
    let data = generate(0, &sizes);
    println!("pairs, as JSON lines:");
    write_jsonl(&data.pairs, std::io::stdout())?;

    for pair in &data.pairs {
        println!("\n{}", pair.prompt);
        for (side, answer) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
            println!("  {side:<8}  {answer:?} is {}", check(&pair.task, answer));
        }
    }

    // What a model's answers to held-out prompts are judged by.
    for row in &data.held_out_prompts {
        println!("\n{}", row.prompt);
        for answer in [row.task.answer(), row.task.answer().to_uppercase(), "No idea.".to_owned()] {
            println!("  {answer:?} is {}", check(&row.task, &answer));
        }
        assert!(check(&row.task, &row.task.answer()).is_right());
    }
    Ok(())
}
