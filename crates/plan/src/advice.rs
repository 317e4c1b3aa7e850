//! What to change where a device failed in the middle of known work: the largest consumers of memory, and what would fit.

use anyhow::{Error, anyhow};
use burn::tensor::Device;

use crate::{self as plan, Evaluation, Goal, Memory, Reach, Stage, Step};
use fpo_config::Settings;
use fpo_device::{
    DeviceFailure,
    facts::{Bfloat16, Facts, Held, facts, held},
    guard, size,
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

    /// What there is room for, at most, in bytes: a request was refused beside what was held, so there is less than both together.
    /// Where the request isn't told, what was held says as much only if it was most of the device.
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

    /// Whether the device computes in bfloat16, as far as it told.
    fn rounds(&self) -> bool {
        !matches!(self.bfloat16, Some(Bfloat16::Stores | Bfloat16::Lacks))
    }
}

/// What a stage's memory goes to, and the settings that lower it.
fn lower(failure: &DeviceFailure, stage: &str, s: &Settings, state: &State) -> Vec<String> {
    let counted =
        Stage::named(stage).and_then(|stage| Some((stage, stage.memory(s).ok().flatten()?)));
    let Some((stage, memory)) = counted else { return others(stage, s) };
    if let DeviceFailure::BufferTooLarge(_) = failure {
        return tensors(stage, s, state);
    }
    let mut lines = vec![consumers(stage.name(), &memory)];
    lines.extend(changes(stage, s, state.room(failure), state.rounds()));
    lines
}

/// `align needs … by fpo plan's count: optimiser 20.91 GB, weights 10.46 GB, …`, the largest first.
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
    format!("{what} needs {} by `fpo plan`'s count: {}", size(memory.total()), parts.join(", "))
}

/// The largest tensors of a stage, and the settings that their sizes are made of.
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
        "inside of an MLP",
        BYTES * (tokens * c.intermediate_size) as u64,
        format!("{name}.{batch}, data.max_length, model.intermediate_size"),
    )];
    if stage == Stage::Evaluate {
        let settings = "evaluate.batch_size, data.max_prompt_length (its square)".to_owned();
        found.push(("scores of the prompts to answer", evaluation.scores() / 3, settings));
    }
    // Where the limit is known, the table is held in parts that keep to it.
    if state.facts.is_none() {
        let settings = "model.vocab_size, model.hidden_size".to_owned();
        let table = BYTES * (c.vocab_size * c.hidden_size) as u64;
        found.push(("embedding and its gradient", table, settings));
    }
    found.sort_by_key(|(_, bytes, _)| std::cmp::Reverse(*bytes));
    let tensors = found
        .into_iter()
        .map(|(what, bytes, settings)| format!("  {what}: up to {} ({settings})", size(bytes)));
    std::iter::once(format!("the largest tensors of {name}, and what to lower:"))
        .chain(tensors)
        .collect()
}

/// Settings that would make a stage fit into `room`, its own first; where it should fit already or nothing is known of the room, the
/// first that lower what it needs.
fn changes(stage: Stage, settings: &Settings, room: Option<u64>, bfloat16: bool) -> Vec<String> {
    let stages = [stage];
    let Ok(peak) = plan::peak(settings, &stages) else { return Vec::new() };
    let known = room.filter(|room| *room < peak);
    let says = match (known, room) {
        (Some(room), _) => format!("these would make it fit into {}", size(room)),
        (None, Some(_)) => {
            "it should fit, so other programs may hold the rest of the device's memory; these lower what it needs".into()
        }
        (None, None) => "these lower what it needs".into(),
    };
    let rooms =
        known.map_or([7, 8, 9].map(|tenths| peak / 10 * tenths).to_vec(), |room| vec![room]);
    let mut found = rooms
        .into_iter()
        .map(|room| plan::fit(settings, &Goal { stages: &stages, room, bfloat16 }));
    let Some(found) = found.find_map(|found| found.ok().flatten()) else {
        let into = known.map_or("much less".into(), size);
        return vec![format!(
            "no settings make it fit into {into}: a smaller model would, or a device with more memory"
        )];
    };
    let lines =
        found.iter().map(|change| format!("  {:<64} {:>10}", change.set, size(change.peak)));
    let mut lines: Vec<_> = std::iter::once(format!("{says}:")).chain(lines).collect();
    if stage != Stage::Sft && found.iter().any(|change| change.reach == Reach::All) {
        lines
            .push("settings of data and model are those of every stage: all are made again".into());
    }
    lines
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

    fn goal(stages: &[Stage], room: u64) -> Goal<'_> {
        Goal { stages, room, bfloat16: true }
    }

    #[test]
    fn memory_that_ran_out_names_the_largest_settings() {
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
    fn a_stage_that_fails_leaves_those_before_it_alone() {
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
        assert!(all.contains("model.precision") && all.contains("all are made again"), "{all}");
    }

    #[test]
    fn a_precision_that_the_device_lacks_is_not_advised() {
        let s = settings(&["model.precision=float32", "align.checkpoint_activations=true"]);
        let failure = DeviceFailure::OutOfMemory(None);
        let lacks = state(None, 0);
        let text = lower(&failure, "align", &s, &lacks).join("\n");
        assert!(text.contains("--set align.lora") && !text.contains("bf16"), "{text}");
    }

    #[test]
    fn room_that_others_take_or_that_is_not_known() {
        let s = settings(&[]);
        // Most of it is weights.
        let evaluate = changes(Stage::Evaluate, &s, None, true).join("\n");
        assert!(evaluate.contains("--set evaluate.batch_size=1"), "{evaluate}");
        let peak = plan::peak(&s, &[Stage::Align]).unwrap();
        for (room, says) in [
            (Some(2 * peak), "other programs"),
            (None, "these lower what it needs"),
            (Some(GB / 10), "no settings make it fit"),
        ] {
            let text = changes(Stage::Align, &s, room, true).join("\n");
            assert!(text.contains(says), "{room:?}: no {says:?} in:\n{text}");
        }
    }

    #[test]
    fn a_large_request_that_is_refused_early_says_little() {
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
    fn a_tensor_that_is_too_large_is_looked_for() {
        let s = settings(&["evaluate.batch_size=8", "data.max_prompt_length=512"]);
        let failure = DeviceFailure::BufferTooLarge(Some(3 * GB));
        let of = |stage: &str, state: &State| lower(&failure, stage, &s, state).join("\n");
        let limited = of("align", &state(None, GB));
        // 2 × 2 × 1,024 tokens × 9,216 numbers.
        let says = "inside of an MLP: up to 151.0 MB (align.micro_batch_size, data.max_length";
        assert!(limited.contains(says) && !limited.contains("embedding"), "{limited}");
        assert!(!limited.contains("other programs"), "{limited}");
        // 256,000 × 2,304 numbers.
        let unlimited = of("align", &State::default());
        assert!(unlimited.contains("embedding and its gradient: up to 2.36 GB"), "{unlimited}");
        let answers = of("evaluate", &state(None, GB));
        // 8 × 8 heads × 512² numbers.
        let says = "scores of the prompts to answer: up to 67.1 MB (evaluate.batch_size";
        assert!(answers.contains(says), "{answers}");
    }

    #[test]
    fn stages_that_are_not_counted_name_their_settings() {
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
