//! Held-out splits, by prompt.

use crate::source::{Pair, Prompt, SftExample};
use std::collections::HashMap;

/// An item with a prompt.
pub trait Prompted {
    /// What the item responds to.
    fn prompt(&self) -> &Prompt;
}

impl Prompted for Pair {
    fn prompt(&self) -> &Prompt {
        &self.prompt
    }
}

impl Prompted for SftExample {
    fn prompt(&self) -> &Prompt {
        &self.prompt
    }
}

/// The two parts of a split, each in the original order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split<T> {
    /// For training.
    pub train: Vec<T>,
    /// For evaluation.
    pub held_out: Vec<T>,
}

/// Holds out a share of the items (0 to 1). All items with the same prompt end up in the same part.
///
/// Prompts are held out in an order that depends only on their text and the seed, until the share is reached; the last one may
/// exceed it slightly. A share above 0 holds out at least one prompt, and at least one prompt always remains for training.
pub fn hold_out<T: Prompted>(items: Vec<T>, share: f64, seed: u64) -> Split<T> {
    let keys: Vec<[u8; 32]> = items.iter().map(|item| key(item.prompt(), seed)).collect();
    let mut prompts: HashMap<[u8; 32], usize> = HashMap::new();
    for key in &keys {
        *prompts.entry(*key).or_default() += 1;
    }
    let mut prompts: Vec<_> = prompts.into_iter().collect();
    prompts.sort_unstable();

    let wanted = share.clamp(0.0, 1.0) * items.len() as f64;
    let mut held = 0;
    let mut last = None;
    for (key, count) in prompts.iter().take(prompts.len().saturating_sub(1)) {
        if (held as f64) < wanted {
            held += count;
            last = Some(*key);
        }
    }
    let mut split = Split { train: Vec::new(), held_out: Vec::new() };
    for (item, key) in items.into_iter().zip(keys) {
        // If `last` is `None`, nothing is held out: `None` is below every key.
        if Some(key) <= last { split.held_out.push(item) } else { split.train.push(item) }
    }
    split
}

/// A prompt's place in the order. A text and a conversation that consists of it as one user message are the same prompt.
fn key(prompt: &Prompt, seed: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    for message in prompt.to_messages() {
        let content = match message.plain_text() {
            Some(text) => text.to_owned(),
            None => serde_json::Value::Object(message.keys().clone()).to_string(),
        };
        for text in [message.role(), &content] {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Message;

    fn examples(count: u64, prompts: u64) -> Vec<SftExample> {
        let example = |id| SftExample {
            id,
            prompt: Prompt::Text(format!("p{}", id % prompts)),
            response: "r".into(),
        };
        (0..count).map(example).collect()
    }

    #[test]
    fn equal_prompts_stay_together_and_the_share_is_met() {
        // (items, prompts, share, held out)
        let cases = [
            (100, 100, 0.1, 10),
            (100, 10, 0.1, 10),
            (100, 10, 0.05, 10),
            (100, 100, 0.0, 0),
            (100, 100, 1.0, 99),
            (100, 100, f64::NAN, 0),
            (100, 1, 0.5, 0),
            (2, 2, 0.01, 1),
            (0, 1, 0.5, 0),
        ];
        for (items, prompts, share, held_out) in cases {
            let split = hold_out(examples(items, prompts), share, 1);
            assert_eq!(split.held_out.len(), held_out, "{items} {prompts} {share}");
            assert_eq!(split.train.len() + split.held_out.len(), items as usize);
            assert!(
                split.train.iter().all(|a| split.held_out.iter().all(|b| a.prompt != b.prompt))
            );
            assert!(
                split.train.is_sorted_by_key(|item| item.id)
                    && split.held_out.is_sorted_by_key(|item| item.id)
            );
        }
    }

    #[test]
    fn it_depends_on_the_seed_and_not_on_the_order() {
        let ids = |split: Split<SftExample>| {
            split.held_out.iter().map(|item| item.id).collect::<Vec<_>>()
        };
        let first = ids(hold_out(examples(200, 200), 0.2, 1));
        assert_eq!(first, ids(hold_out(examples(200, 200), 0.2, 1)));
        assert_ne!(first, ids(hold_out(examples(200, 200), 0.2, 2)));
        let mut reversed = ids(hold_out(examples(200, 200).into_iter().rev().collect(), 0.2, 1));
        reversed.reverse();
        assert_eq!(first, reversed);
    }

    #[test]
    fn a_text_and_its_one_message_are_the_same_prompt() {
        let text = Prompt::Text("q".into());
        let message = |role: &str| Prompt::Messages(vec![Message::new(role, "q")].into());
        assert_eq!(key(&text, 0), key(&message("user"), 0));
        assert_ne!(key(&text, 0), key(&message("system"), 0));
    }
}
