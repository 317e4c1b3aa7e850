//! What to change where a device failed in the middle of known work: the largest consumers of memory, and what would fit.

use anyhow::{Error, anyhow};
use burn::tensor::Device;

use super::{
    DeviceFailure,
    facts::{Bfloat16, Facts, Held, facts, held},
    failure::size,
    guard,
};
use crate::{
    plan::{self, Memory, Step},
    settings::Settings,
};

/// An error of a run's stage; where its device failed, with what to do about it. Any other is returned as it is.
pub fn of_stage(error: Error, stage: &str, settings: &Settings, device: &Device) -> Error {
    let Some(failure) = error.downcast_ref::<DeviceFailure>() else { return error };
    let mut lines = match failure {
        DeviceFailure::OutOfMemory(_) | DeviceFailure::BufferTooLarge(_) => {
            let state = State::of(device);
            let mut lines = state.lines(failure);
            lines.extend(lower(failure, stage, settings, &state));
            lines
        }
        other => vec![other.what_to_do().to_owned()],
    };
    if !matches!(failure, DeviceFailure::Lost(_)) {
        lines.push("checkpoints and finished stages are as they were".into());
    }
    with_lines(&error, &lines)
}

/// The same for one step, as `fpo bench` measures it.
pub fn of_step(error: Error, step: &Step, device: &Device) -> Error {
    let Some(failure) = error.downcast_ref::<DeviceFailure>() else { return error };
    let lines = match failure {
        DeviceFailure::OutOfMemory(_) | DeviceFailure::BufferTooLarge(_) => {
            let mut lines = State::of(device).lines(failure);
            lines.push(consumers(&step.memory()));
            lines
        }
        other => vec![other.what_to_do().to_owned()],
    };
    with_lines(&error, &lines)
}

fn with_lines(error: &Error, lines: &[String]) -> Error {
    anyhow!("{error:#}\n  {}", lines.join("\n  "))
}

/// What the device says after the failure, as far as it still answers.
#[derive(Default)]
struct State {
    facts: Option<Facts>,
    held: Option<Held>,
    bfloat16: Option<Bfloat16>,
}

impl State {
    fn of(device: &Device) -> Self {
        let facts = guard(|| Ok(facts(device))).ok().flatten();
        let held = guard(|| Ok(held(device))).ok().flatten();
        let bfloat16 = guard(|| Ok(Bfloat16::of(device))).ok();
        Self { facts, held, bfloat16 }
    }

    fn lines(&self, failure: &DeviceFailure) -> Vec<String> {
        let Some(facts) = &self.facts else { return Vec::new() };
        let name = &facts.name;
        if let DeviceFailure::BufferTooLarge(_) = failure {
            return vec![format!("{name}: tensors up to {}", size(facts.largest_tensor))];
        }
        let memory = facts.memory.map_or("memory not told".into(), size);
        let held = self.held.map_or(String::new(), |held| {
            format!(", of which this program had {}", size(held.reserved))
        });
        vec![format!("{name}: {memory}{held}")]
    }

    /// Bytes that a run can count on.
    fn room(&self) -> Option<u64> {
        let memory = self.facts.as_ref().and_then(|facts| facts.memory);
        let had = self.held.map(|held| held.reserved).filter(|&bytes| bytes > 0);
        memory.into_iter().chain(had).min()
    }
}

/// What a stage's memory goes to, and the settings that lower it.
fn lower(failure: &DeviceFailure, stage: &str, s: &Settings, state: &State) -> Vec<String> {
    let step = match stage {
        "align" => plan::alignment(s).ok(),
        "sft" => plan::fine_tuning(s).ok().flatten(),
        _ => None,
    };
    let Some(step) = step else { return others(stage, s) };
    let mut lines = Vec::new();
    if let DeviceFailure::BufferTooLarge(_) = failure {
        lines.extend(tensors(&step, stage, s));
    }
    lines.push(consumers(&step.memory()));
    let changes = changes(s, state.room());
    let rounds = changes.iter().any(|line| line.contains("bf16-mixed"));
    lines.extend(changes);
    if let (true, Some(bfloat16 @ (Bfloat16::Stores | Bfloat16::Lacks))) = (rounds, state.bfloat16)
    {
        lines.push(format!("but leave out model.precision here: {}", bfloat16.describe()));
    }
    lines
}

/// `… by fpo plan's count: optimiser 20.91 GB, weights 10.46 GB, …`, the largest first.
fn consumers(memory: &Memory) -> String {
    let mut parts = [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimiser", memory.optimizer),
        ("activations", memory.activations),
        ("the rest", memory.rest),
    ];
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let parts = parts.map(|(name, bytes)| format!("{name} {}", size(bytes))).join(", ");
    format!("a step needs {} by `fpo plan`'s count: {parts}", size(memory.total()))
}

/// The largest tensors of a step, and the settings that their sizes are made of.
fn tensors(step: &Step, stage: &str, s: &Settings) -> Vec<String> {
    const BYTES: u64 = 4;
    let c = &step.config;
    let texts = step.tokens / s.data.max_length.max(1);
    let mut found = [
        (
            "embedding and its gradient",
            c.vocab_size * c.hidden_size,
            "model.vocab_size, model.hidden_size".to_owned(),
        ),
        (
            "inside of an MLP",
            step.tokens * c.intermediate_size,
            format!("{stage}.micro_batch_size, data.max_length, model.intermediate_size"),
        ),
        (
            "attention of a block",
            texts * c.num_attention_heads * s.data.max_length.pow(2),
            format!("{stage}.micro_batch_size, data.max_length (its square)"),
        ),
    ];
    found.sort_by_key(|(_, numbers, _)| std::cmp::Reverse(*numbers));
    let tensors = found.into_iter().map(|(name, numbers, settings)| {
        format!("{name}: up to {} ({settings})", size(BYTES * numbers as u64))
    });
    std::iter::once("the largest tensors of a step, and what to lower:".to_owned())
        .chain(tensors.map(|line| format!("  {line}")))
        .collect()
}

/// Settings that would make the run fit into `room`; where it should fit already or nothing is known of the room, the first that
/// lower what it needs.
fn changes(settings: &Settings, room: Option<u64>) -> Vec<String> {
    let Ok(peak) = plan::peak(settings) else { return Vec::new() };
    let less = peak / 10 * 7;
    let (room, says) = match room {
        Some(room) if room < peak => (room, format!("these would make it fit into {}", size(room))),
        Some(_) => (
            less,
            "it should fit, so other programs may hold the rest of the device's memory; these lower what it needs".to_owned(),
        ),
        None => (less, "these lower what it needs".to_owned()),
    };
    match plan::fit(settings, room) {
        Ok(Some(changes)) => std::iter::once(format!("{says}:"))
            .chain(
                changes
                    .into_iter()
                    .map(|(change, after)| format!("  {change:<44} {:>10}", size(after))),
            )
            .collect(),
        _ => vec![format!(
            "no settings make it fit into {}: a smaller model would, or a device with more memory",
            size(room)
        )],
    }
}

/// Settings of the stages whose memory `fpo plan` does not count.
fn others(stage: &str, s: &Settings) -> Vec<String> {
    let sae = &s.sae.training;
    let named: &[(&str, usize)] = match stage {
        "sae" => &[
            ("reference.batch_size", s.reference.batch_size.get()),
            ("data.max_length", s.data.max_length),
            ("sae.training.batch_tokens", sae.batch_tokens),
            ("sae.training.d_sae", sae.d_sae),
        ],
        "reference" => &[
            ("reference.batch_size", s.reference.batch_size.get()),
            ("data.max_length", s.data.max_length),
        ],
        "evaluate" => &[
            ("evaluate.batch_size", s.evaluate.batch_size.get()),
            ("evaluate.max_new_tokens", s.evaluate.max_new_tokens),
            ("data.max_length", s.data.max_length),
        ],
        _ => return Vec::new(),
    };
    let named: Vec<_> = named.iter().map(|(name, value)| format!("{name} (now {value})")).collect();
    vec![format!("to lower: {}", named.join(", "))]
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    const GB: u64 = 1_000_000_000;

    fn settings(set: &[&str]) -> Settings {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        Settings::resolve("gemma-2-2b-fpo", None, &set).unwrap()
    }

    fn state(memory: Option<u64>, reserved: u64) -> State {
        let facts = Facts { name: "A GPU".into(), memory, largest_tensor: 2 * GB };
        let held = Some(Held { in_use: reserved, reserved });
        State { facts: Some(facts), held, bfloat16: Some(Bfloat16::Lacks) }
    }

    #[test]
    fn memory_that_ran_out_names_the_largest_settings() {
        let s = settings(&[]);
        let failure = DeviceFailure::OutOfMemory(Some(GB));
        assert_eq!(
            state(Some(48 * GB), 47 * GB).lines(&failure),
            ["A GPU: 48.00 GB, of which this program had 47.00 GB"]
        );
        let room = plan::peak(&s).unwrap() / 4 * 3;
        let state = state(Some(2 * room), room);
        let text = lower(&failure, "align", &s, &state).join("\n");
        let first = plan::alignment(&s).unwrap().memory();
        assert!(text.contains(&format!("needs {}", size(first.total()))), "{text}");
        let changes = plan::fit(&s, room).unwrap().unwrap();
        assert!(!changes.is_empty());
        for (change, after) in changes {
            assert!(text.contains(&change) && text.contains(&size(after)), "{change}:\n{text}");
        }
    }

    #[test]
    fn a_precision_that_the_device_lacks_is_not_advised() {
        let s = settings(&["model.precision=float32", "align.checkpoint_activations=true"]);
        let failure = DeviceFailure::OutOfMemory(None);
        let text =
            lower(&failure, "align", &s, &state(None, plan::peak(&s).unwrap() / 2)).join("\n");
        assert!(text.contains("leave out model.precision here: no bfloat16"), "{text}");
    }

    #[test]
    fn room_that_others_take_or_that_is_not_known() {
        let s = settings(&[]);
        let peak = plan::peak(&s).unwrap();
        for (room, says) in [
            (Some(2 * peak), "other programs"),
            (None, "these lower what it needs"),
            (Some(GB / 10), "no settings make it fit"),
        ] {
            let text = changes(&s, room).join("\n");
            assert!(text.contains(says), "{room:?}: no {says:?} in:\n{text}");
        }
        assert_eq!(state(None, 0).room(), None);
        assert_eq!(state(Some(9), 4).room(), Some(4));
    }

    #[test]
    fn a_tensor_that_is_too_large_is_looked_for() {
        let s = settings(&["data.max_length=512"]);
        let failure = DeviceFailure::BufferTooLarge(Some(3 * GB));
        let text = lower(&failure, "align", &s, &state(None, GB)).join("\n");
        // 256,000 × 2,304 numbers.
        assert!(text.contains("embedding and its gradient: up to 2.36 GB"), "{text}");
        assert!(text.contains("align.micro_batch_size, data.max_length"), "{text}");
    }

    #[test]
    fn stages_that_are_not_counted_name_their_settings() {
        let s = settings(&[]);
        for (stage, setting) in [
            ("sae", "sae.training.d_sae"),
            ("reference", "reference.batch_size"),
            ("evaluate", "evaluate.max_new_tokens"),
        ] {
            let lines = others(stage, &s);
            assert!(lines[0].contains(setting), "{stage}: {lines:?}");
        }
    }

    #[test]
    fn only_failures_of_devices_are_explained() {
        let device = Device::flex();
        let plain = of_stage(anyhow!("no such file"), "align", &settings(&[]), &device);
        assert_eq!(plain.to_string(), "no such file");
        let lost = Error::new(DeviceFailure::Lost("it fell off".into()));
        let lost = Err::<(), _>(lost).context("step 3").unwrap_err();
        let text = of_stage(lost, "align", &settings(&[]), &device).to_string();
        assert!(text.starts_with("step 3: the device was lost: it fell off\n"), "{text}");
        assert!(text.contains("--resume"), "{text}");
    }
}
