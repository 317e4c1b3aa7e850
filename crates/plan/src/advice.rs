//! Advice after a device failure in a known stage: the largest consumers of memory, and settings that fit.

use anyhow::{Error, anyhow};
use burn::tensor::Device;
use fpo_config::Settings;
use fpo_device::{
    DeviceFailure,
    facts::{Bfloat16, Facts, Held, facts, held},
    guard, size,
};

use crate::{self as plan, Evaluation, Goal, Memory, Reach, Stage, Step};

/// Adds advice to the error of a run's stage if a [`DeviceFailure`] caused it. Other errors are returned unchanged.
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
        lines.push("checkpoints and finished stages are unchanged".into());
    }
    with_lines(&error, &lines)
}

/// Adds advice to the error of a single step, as `fpo bench` runs it.
pub fn of_step(error: Error, step: &Step, device: &Device) -> Error {
    let Some(failure) = error.downcast_ref::<DeviceFailure>() else { return error };
    let lines = match failure {
        DeviceFailure::OutOfMemory(_) | DeviceFailure::BufferTooLarge(_) => {
            let mut lines = State::of(device).lines(failure);
            lines.push(consumers("a step", &step.memory()));
            lines
        }
        other => vec![other.what_to_do().to_owned()],
    };
    with_lines(&error, &lines)
}

fn with_lines(error: &Error, lines: &[String]) -> Error {
    anyhow!("{error:#}\n  {}", lines.join("\n  "))
}

/// The device's properties after the failure, as far as it still responds.
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
        let memory = facts.memory.map_or("memory unknown".into(), size);
        let held = self.held.map_or(String::new(), |held| {
            format!(", of which this program had {}", size(held.reserved))
        });
        vec![format!("{name}: {memory}{held}")]
    }

    /// Upper bound of the available memory in bytes. The failed request didn't fit beside the memory held, so less than their sum
    /// is available. If the size of the request is unknown, the memory held is a bound only if it is most of the device's.
    fn room(&self, failure: &DeviceFailure) -> Option<u64> {
        let memory = self.facts.as_ref().and_then(|facts| facts.memory);
        let had = self.held.map(|held| held.reserved).filter(|&bytes| bytes > 0);
        let most = match (failure, had) {
            (DeviceFailure::OutOfMemory(Some(request)), Some(had)) => Some(had + request),
            (DeviceFailure::OutOfMemory(None), Some(had)) => {
                Some(had).filter(|had| memory.is_some_and(|memory| *had > memory / 2))
            }
            _ => None,
        };
        memory.into_iter().chain(most).min()
    }

    /// Whether the device computes in bfloat16; assumed if unknown.
    fn computes_in_bfloat16(&self) -> bool {
        !matches!(self.bfloat16, Some(Bfloat16::Stores | Bfloat16::Lacks))
    }
}

/// What a stage uses memory for, and settings that lower it.
fn lower(failure: &DeviceFailure, stage: &str, s: &Settings, state: &State) -> Vec<String> {
    let counted =
        Stage::named(stage).and_then(|stage| Some((stage, stage.memory(s).ok().flatten()?)));
    let Some((stage, memory)) = counted else { return others(stage, s) };
    if let DeviceFailure::BufferTooLarge(_) = failure {
        return tensors(stage, s, state);
    }
    let mut lines = vec![consumers(stage.name(), &memory)];
    lines.extend(changes(stage, s, state.room(failure), state.computes_in_bfloat16()));
    lines
}

/// `align needs … according to fpo plan: optimiser 20.91 GB, weights 10.46 GB, …`, the largest first.
fn consumers(what: &str, memory: &Memory) -> String {
    let mut parts = vec![
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimiser", memory.optimizer),
        ("activations", memory.activations),
        ("the rest", memory.rest),
    ];
    parts.retain(|(_, bytes)| *bytes > 0);
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let parts: Vec<_> =
        parts.into_iter().map(|(name, bytes)| format!("{name} {}", size(bytes))).collect();
    format!("{what} needs {} according to `fpo plan`: {}", size(memory.total()), parts.join(", "))
}

/// The largest tensors of a stage, and the settings that determine their sizes.
fn tensors(stage: Stage, s: &Settings, state: &State) -> Vec<String> {
    const BYTES: u64 = 4;
    let Ok(evaluation) = Evaluation::of(s) else { return Vec::new() };
    let c = &evaluation.config;
    let name = stage.name();
    let (tokens, batch) = match stage {
        Stage::Sft => (s.sft.micro_batch_size.get() * s.data.max_length, "micro_batch_size"),
        Stage::Align => {
            (2 * s.align.micro_batch_size.get() * s.data.max_length, "micro_batch_size")
        }
        Stage::Evaluate => (evaluation.tokens, "batch_size"),
    };
    let mut found = vec![(
        "MLP activations",
        BYTES * (tokens * c.intermediate_size) as u64,
        format!("{name}.{batch}, data.max_length, model.intermediate_size"),
    )];
    if stage == Stage::Evaluate {
        let settings = "evaluate.batch_size, data.max_prompt_length (squared)".to_owned();
        found.push(("attention scores of the prompts", evaluation.scores() / 3, settings));
    }
    // If the limit is known, the embedding is split into parts below it.
    if state.facts.is_none() {
        let settings = "model.vocab_size, model.hidden_size".to_owned();
        let table = BYTES * (c.vocab_size * c.hidden_size) as u64;
        found.push(("embedding and its gradient", table, settings));
    }
    found.sort_by_key(|(_, bytes, _)| std::cmp::Reverse(*bytes));
    let tensors = found
        .into_iter()
        .map(|(what, bytes, settings)| format!("  {what}: up to {} ({settings})", size(bytes)));
    std::iter::once(format!("the largest tensors of {name}, and the settings to lower:"))
        .chain(tensors)
        .collect()
}

/// Changes that make a stage fit into `room`, its own settings first. If it should already fit, or the room is unknown, changes
/// that lower its peak by a tenth or more.
fn changes(stage: Stage, settings: &Settings, room: Option<u64>, bfloat16: bool) -> Vec<String> {
    let stages = [stage];
    let Ok(peak) = plan::peak(settings, &stages) else { return Vec::new() };
    let known = room.filter(|room| *room < peak);
    let says = match (known, room) {
        (Some(room), _) => format!("these settings make it fit into {}", size(room)),
        (None, Some(_)) => {
            "it should fit, so other programs may be using the device's memory; these settings lower the peak".into()
        }
        (None, None) => "these settings lower the peak".into(),
    };
    let rooms =
        known.map_or([7, 8, 9].map(|tenths| peak / 10 * tenths).to_vec(), |room| vec![room]);
    let mut found = rooms
        .into_iter()
        .map(|room| plan::fit(settings, &Goal { stages: &stages, room, bfloat16 }));
    let Some(found) = found.find_map(|found| found.ok().flatten()) else {
        let into = known.map_or("much less".into(), size);
        return vec![format!(
            "no settings make it fit into {into}; use a smaller model or a device with more memory"
        )];
    };
    let lines =
        found.iter().map(|change| format!("  {:<64} {:>10}", change.set, size(change.peak)));
    let mut lines: Vec<_> = std::iter::once(format!("{says}:")).chain(lines).collect();
    if stage != Stage::Sft && found.iter().any(|change| change.reach == Reach::All) {
        lines.push("settings of data and model affect every stage: all stages are rerun".into());
    }
    lines
}

/// Settings to lower for the stages that `fpo plan` doesn't cover.
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
        _ => return Vec::new(),
    };
    let named: Vec<_> = named.iter().map(|(name, value)| format!("{name} (now {value})")).collect();
    vec![format!("settings to lower: {}", named.join(", "))]
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

    fn goal(stages: &[Stage], room: u64) -> Goal<'_> {
        Goal { stages, room, bfloat16: true }
    }

    #[test]
    fn out_of_memory_names_consumers_and_changes() {
        let s = settings(&[]);
        let failure = DeviceFailure::OutOfMemory(Some(GB));
        assert_eq!(
            state(Some(48 * GB), 47 * GB).lines(&failure),
            ["A GPU: 48.00 GB, of which this program had 47.00 GB"]
        );
        for stage in Stage::ALL {
            let peak = plan::peak(&s, &[stage]).unwrap();
            let room = peak / 10 * 9;
            let state = state(Some(2 * room), room - GB);
            let text = lower(&failure, stage.name(), &s, &state).join("\n");
            assert!(text.contains(&format!("{} needs {}", stage.name(), size(peak))), "{text}");
            let changes = plan::fit(&s, &goal(&[stage], room)).unwrap().unwrap();
            assert!(!changes.is_empty());
            for change in changes {
                let says = [&change.set, &size(change.peak)];
                assert!(says.iter().all(|says| text.contains(*says)), "{change:?}:\n{text}");
            }
        }
    }

    #[test]
    fn advice_leaves_earlier_stages_alone() {
        let s = settings(&["align.checkpoint_activations=false"]);
        let peak = plan::peak(&s, &[Stage::Align]).unwrap();
        let own = changes(Stage::Align, &s, Some(peak - 1), true).join("\n");
        assert!(
            own.contains("align.") && !own.contains("sft.") && !own.contains("every stage"),
            "{own}"
        );
        let s =
            settings(&["align.micro_batch_size=1", "align.lora.rank=4", "model.precision=float32"]);
        let peak = plan::peak(&s, &[Stage::Align]).unwrap();
        let all = changes(Stage::Align, &s, Some(peak / 10 * 8), true).join("\n");
        assert!(all.contains("model.precision") && all.contains("all stages are rerun"), "{all}");
    }

    #[test]
    fn an_unsupported_precision_is_not_suggested() {
        let s = settings(&["model.precision=float32", "align.checkpoint_activations=true"]);
        let failure = DeviceFailure::OutOfMemory(None);
        let lacks = state(None, 0);
        let text = lower(&failure, "align", &s, &lacks).join("\n");
        assert!(text.contains("--set align.lora") && !text.contains("bf16"), "{text}");
    }

    #[test]
    fn advice_when_other_programs_use_memory_or_the_room_is_unknown() {
        let s = settings(&[]);
        // Most of an evaluation's memory is weights.
        let evaluate = changes(Stage::Evaluate, &s, None, true).join("\n");
        assert!(evaluate.contains("--set evaluate.batch_size=1"), "{evaluate}");
        let peak = plan::peak(&s, &[Stage::Align]).unwrap();
        for (room, says) in [
            (Some(2 * peak), "other programs"),
            (None, "these settings lower the peak"),
            (Some(GB / 10), "no settings make it fit"),
        ] {
            let text = changes(Stage::Align, &s, room, true).join("\n");
            assert!(text.contains(says), "{room:?}: no {says:?} in:\n{text}");
        }
    }

    #[test]
    fn the_room_is_bounded_by_what_failed() {
        for (request, memory, reserved, room) in [
            (Some(8), None, 0, None),
            (Some(1), Some(24), 20, Some(21)),
            (Some(30), Some(24), 1, Some(24)),
            (Some(8), Some(24), 1, Some(9)),
            (Some(8), None, 1, Some(9)),
            (None, Some(24), 1, Some(24)),
            (None, Some(24), 20, Some(20)),
            (None, None, 20, None),
        ] {
            let found = state(memory, reserved).room(&DeviceFailure::OutOfMemory(request));
            assert_eq!(found, room, "{request:?} beside {reserved} of {memory:?}");
        }
    }

    #[test]
    fn a_too_large_tensor_lists_candidates() {
        let s = settings(&["evaluate.batch_size=8", "data.max_prompt_length=512"]);
        let failure = DeviceFailure::BufferTooLarge(Some(3 * GB));
        let of = |stage: &str, state: &State| lower(&failure, stage, &s, state).join("\n");
        let limited = of("align", &state(None, GB));
        // 2 × 2 × 1,024 tokens × 9,216 elements.
        let says = "MLP activations: up to 151.0 MB (align.micro_batch_size, data.max_length";
        assert!(limited.contains(says) && !limited.contains("embedding"), "{limited}");
        assert!(!limited.contains("other programs"), "{limited}");
        // 256,000 × 2,304 elements.
        let unlimited = of("align", &State::default());
        assert!(unlimited.contains("embedding and its gradient: up to 2.36 GB"), "{unlimited}");
        let answers = of("evaluate", &state(None, GB));
        // 8 × 8 heads × 512² elements.
        let says = "attention scores of the prompts: up to 67.1 MB (evaluate.batch_size";
        assert!(answers.contains(says), "{answers}");
    }

    #[test]
    fn uncovered_stages_name_their_settings() {
        let s = settings(&[]);
        for (stage, setting) in
            [("sae", "sae.training.d_sae"), ("reference", "reference.batch_size")]
        {
            let lines = others(stage, &s);
            assert!(lines[0].contains(setting), "{stage}: {lines:?}");
        }
        let failure = DeviceFailure::OutOfMemory(Some(GB));
        let room = plan::peak(&s, &[Stage::Evaluate]).unwrap() / 100 * 97;
        let evaluate = lower(&failure, "evaluate", &s, &state(None, room - GB)).join("\n");
        assert!(evaluate.contains("--set evaluate.batch_size=1"), "{evaluate}");
    }

    #[test]
    fn only_device_failures_get_advice() {
        let device = Device::flex();
        let plain = of_stage(anyhow!("no such file"), "align", &settings(&[]), &device);
        assert_eq!(plain.to_string(), "no such file");
        let lost = Error::new(DeviceFailure::Lost("it fell off".into()));
        let lost = Err::<(), _>(lost).context("step 3").unwrap_err();
        let text = of_stage(lost, "align", &settings(&[]), &device).to_string();
        assert!(text.starts_with("step 3: the device was lost: it fell off\n"), "{text}");
        assert!(text.contains("continues from its last checkpoint"), "{text}");
    }
}
