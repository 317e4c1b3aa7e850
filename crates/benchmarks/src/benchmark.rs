//! The benchmarks, and how each is used to being answered.

use std::{fmt, str::FromStr};

/// A benchmark that asks questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Benchmark {
    /// <https://github.com/tatsu-lab/alpaca_eval>
    AlpacaEval,
    /// <https://github.com/lmarena/arena-hard-auto>
    ArenaHard,
    /// <https://github.com/lm-sys/FastChat>, `fastchat/llm_judge`
    MtBench,
    /// <https://github.com/google-research/google-research>, `instruction_following_eval`
    IfEval,
}

/// MT-Bench's temperature of each category, in FastChat's code.
const MT_BENCH_TEMPERATURES: [(&str, f64); 9] = [
    ("writing", 0.7),
    ("roleplay", 0.7),
    ("extraction", 0.0),
    ("math", 0.0),
    ("coding", 0.0),
    ("reasoning", 0.0),
    ("stem", 0.1),
    ("humanities", 0.1),
    ("arena-hard-200", 0.0),
];

impl Benchmark {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::AlpacaEval, Self::ArenaHard, Self::MtBench, Self::IfEval];

    /// As it is typed: `mt-bench`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AlpacaEval => "alpaca-eval",
            Self::ArenaHard => "arena-hard",
            Self::MtBench => "mt-bench",
            Self::IfEval => "ifeval",
        }
    }

    /// As it calls itself.
    pub const fn title(self) -> &'static str {
        match self {
            Self::AlpacaEval => "AlpacaEval",
            Self::ArenaHard => "Arena-Hard",
            Self::MtBench => "MT-Bench",
            Self::IfEval => "IFEval",
        }
    }

    /// How long an answer may be unless told otherwise, in tokens: what most of AlpacaEval's configurations and Arena-Hard's have,
    /// the MT-Bench paper's, and lm-evaluation-harness' for IFEval.
    pub const fn max_new_tokens(self) -> usize {
        match self {
            Self::AlpacaEval => 2048,
            Self::ArenaHard => 4096,
            Self::MtBench => 1024,
            Self::IfEval => 1280,
        }
    }

    /// The temperature of a question of this category, where there are categories: most of AlpacaEval's configurations sample at
    /// 0.7; Arena-Hard and IFEval are answered greedily; MT-Bench has a table, and 0.7 for what isn't in it.
    pub fn temperature(self, category: Option<&str>) -> f64 {
        match self {
            Self::AlpacaEval => 0.7,
            Self::ArenaHard | Self::IfEval => 0.0,
            Self::MtBench => MT_BENCH_TEMPERATURES
                .into_iter()
                .find(|(name, _)| Some(*name) == category)
                .map_or(0.7, |(_, temperature)| temperature),
        }
    }
}

impl fmt::Display for Benchmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Benchmark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name);
        Self::ALL.into_iter().find(|benchmark| benchmark.name() == text).ok_or_else(|| {
            format!("no benchmark `{text}`; choose {} or {}", names[..3].join(", "), names[3])
        })
    }
}
